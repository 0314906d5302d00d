"""How Gaussians start, grow in number and are reset (Kerbl et al. 2023, sections 5.1 and 5.2), by hand."""

import pytest
import torch
from turboprop.gaussians.densification import (
    DensityControl,
    GaussianState,
    Statistics,
    density_control_step,
    observe,
)
from turboprop.gaussians.initial_points import point_spacing
from turboprop.gaussians.parameters import activate, from_points


def test_first_scales_are_of_the_three_nearest_others():
    """The root of the mean squared distance, as in the authors' code: of the first point sqrt((1 + 4 + 9) / 3)."""
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]])
    assert point_spacing(points)[0].item() == pytest.approx((14 / 3) ** 0.5)


def state_of(scales: list[float], opacity: float, statistics: Statistics | None = None) -> GaussianState:
    count = len(scales)
    points = torch.zeros(count, 3)
    parameters = from_points(points, torch.full((count, 3), 0.5), torch.tensor(scales), opacity, sh_degree=0)
    return GaussianState(parameters, {}, statistics or Statistics.zeros(points), torch.arange(count))


def test_a_reset_leaves_an_opacity_of_a_hundredth():
    """Twice the 0.005 below which Gaussians are removed, so that none of them is lost by the reset alone."""
    control = DensityControl(opacity_reset_interval=100, densify_until_iter=1000, densify_from_iter=2000)
    state, _ = density_control_step(control, state_of([0.01], 0.8), 100)
    assert activate(state.parameters).opacities.tolist() == pytest.approx([0.01])


def test_what_moves_on_the_screen_grows():
    """The gradient's mean over views, in screen units of half a picture: 3 pixels' gradient at 200 wide is 300.

    A small Gaussian is cloned, a large one becomes two, whose scales are divided by 1.6.
    """
    gradients = torch.tensor([[[3.0, 0.0]] * 3, [[0.0, 4.0]] * 3])  # two views, of which the last is not seen by one
    visible = torch.tensor([[True, True, True], [True, True, False]])
    seen = observe(Statistics.zeros(torch.zeros(3)), gradients, torch.ones(2, 3), visible, height=100, width=200)
    assert (seen.gradient_sum / seen.view_count).tolist() == [(300 + 200) / 2, 250.0, 300.0]
    control = DensityControl(
        densification_interval=100, densify_from_iter=0, densify_grad_threshold=249.0, split_thresh=0.1,
        prune_from_iter=2000,
    )  # fmt: skip
    state, change = density_control_step(control, state_of([0.01, 0.8, 0.8], 0.5, seen), 100)
    assert change.parents.tolist() == [0, 0, 1, 2, 1, 2]  # what is not split, the clone, first and second halves
    scales = activate(state.parameters).scales[:, 0]
    assert scales.tolist() == pytest.approx([0.01, 0.01, 0.5, 0.5, 0.5, 0.5])
