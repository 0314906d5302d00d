"""Cloning, splitting, removal and resets: what becomes of parameters, moments and statistics."""

import math

import pytest
import torch
from turboprop.gaussians.densification import (
    Change,
    DensityControl,
    GaussianState,
    Statistics,
    densify,
    density_control_step,
    observe,
    prune,
    reset_opacity,
)
from turboprop.gaussians.optimizer_state import exchange_parameters, read_moments
from turboprop.gaussians.parameters import from_points

CONTROL = DensityControl(densify_grad_threshold=0.5, split_thresh=0.1, min_opac_prune=0.05)


def state_of(scales: list[float], gradients: list[float], opacity: float = 0.5) -> GaussianState:
    """Gaussians in a row, with random colours and moments; gradients are means over two views."""
    n = len(scales)
    generator = torch.Generator().manual_seed(1)
    points = torch.stack([torch.arange(n).float(), torch.zeros(n), torch.zeros(n)], 1)
    parameters = from_points(points, torch.rand(n, 3, generator=generator), torch.tensor(scales), opacity, sh_degree=1)
    moments = {
        name: {key: torch.randn(value.shape, generator=generator) for key in ("exp_avg", "exp_avg_sq")}
        for name, value in parameters.items()
    }
    views = torch.full((n,), 2.0)
    statistics = Statistics(torch.tensor(gradients) * views, views, torch.ones(n))
    return GaussianState(parameters, moments, statistics, torch.arange(n))


def copy_of(state: GaussianState) -> GaussianState:
    return GaussianState(
        {k: v.clone() for k, v in state.parameters.items()},
        {k: {m: v.clone() for m, v in moments.items()} for k, moments in state.moments.items()},
        Statistics(*(v.clone() for v in state.statistics)),
        state.names.clone(),
    )


def assert_equal(a: GaussianState, b: GaussianState) -> None:
    assert a.parameters.keys() == b.parameters.keys() and a.moments.keys() == b.moments.keys()
    assert all(torch.equal(a.parameters[k], b.parameters[k]) for k in a.parameters)
    assert all(torch.equal(a.moments[k][m], b.moments[k][m]) for k in a.moments for m in a.moments[k])
    assert all(torch.equal(x, y) for x, y in zip(a.statistics, b.statistics))
    assert torch.equal(a.names, b.names)


def test_small_ones_are_cloned():
    state = state_of([0.01, 0.02, 0.03], [0.0, 0.9, 0.1])
    before = copy_of(state)
    after, change = densify(CONTROL, state, 50)
    assert change.parents.tolist() == [0, 1, 2, 1] and change.is_new.tolist() == [False, False, False, True]
    for name, value in after.parameters.items():
        assert torch.equal(value, state.parameters[name][[0, 1, 2, 1]])
        for moment, kept in after.moments[name].items():
            assert torch.equal(kept[:3], state.moments[name][moment]) and bool((kept[3] == 0).all())
    assert all(value.tolist() == [0.0] * 4 for value in after.statistics)
    assert_equal(state, before)


def test_large_ones_are_split():
    state = state_of([0.01, 0.4, 0.03], [0.0, 0.9, 0.1])
    torch.manual_seed(0)
    after, change = densify(CONTROL, state, 50)
    assert change.parents.tolist() == [0, 2, 1, 1] and change.is_new.tolist() == [False, False, True, True]
    halves = {name: value[2:] for name, value in after.parameters.items()}
    assert torch.allclose(halves["log_scales"].exp(), torch.full((2, 3), 0.4 / 1.6))
    assert not torch.equal(halves["means"][0], halves["means"][1])
    for name in ("sh_dc", "sh_rest", "opacity_logits", "quaternions"):
        assert torch.equal(halves[name], state.parameters[name][[1, 1]])


def test_halves_are_drawn_from_the_gaussian_they_halve():
    """Mean and covariance of 4000 halves of one long, turned Gaussian."""
    state = state_of([0.5], [1.0])
    parameters = {name: value.repeat(2000, *(1,) * (value.dim() - 1)) for name, value in state.parameters.items()}
    parameters["log_scales"] = torch.tensor([0.6, 0.2, 0.05]).log().repeat(2000, 1)
    angle = math.radians(30)
    parameters["quaternions"] = torch.tensor([math.cos(angle), 0.0, 0.0, math.sin(angle)]).repeat(2000, 1) * 3
    full = Statistics(*(value.repeat(2000) for value in state.statistics))
    torch.manual_seed(3)
    after, _ = densify(CONTROL, GaussianState(parameters, {}, full, torch.arange(2000)), 50)
    means = after.parameters["means"]
    assert means.shape == (4000, 3) and torch.allclose(means.mean(0), torch.zeros(3), atol=0.04)
    c, s = math.cos(2 * angle), math.sin(2 * angle)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    expected = turn @ torch.diag(torch.tensor([0.36, 0.04, 0.0025])) @ turn.T
    assert torch.allclose(torch.cov(means.T), expected, atol=0.02)


def test_splitting_draws_from_the_global_generator():
    state = state_of([0.4, 0.3], [1.0, 1.0])
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(densify(CONTROL, state, 50)[0])
    assert_equal(results[0], results[1])
    assert not torch.equal(results[0].parameters["means"], results[2].parameters["means"])


def test_a_decision_changes_no_others_random_numbers():
    """The second of five large Gaussians is split or not: the halves of all others are the same."""
    splits, spares = (state_of([0.4] * 5, [1.0, second, 1.0, 1.0, 0.0]) for second in (1.0, 0.0))
    results = []
    for state in (splits, spares):
        torch.manual_seed(5)
        after, _ = densify(CONTROL, state, 50)
        results.append({int(name): mean for name, mean in zip(after.names, after.parameters["means"])})
    assert len(results[0]) == 9 and len(results[1]) == 8
    common = results[0].keys() & results[1].keys()
    assert len(common) == 7 and all(torch.equal(results[0][name], results[1][name]) for name in common)


def test_names_stay_with_gaussians_and_never_meet():
    control = DensityControl(densify_grad_threshold=0.5, split_thresh=0.1, max_num=10_000)
    state = state_of([0.01, 0.4, 0.3, 0.01], [0.9, 0.9, 0.0, 0.0])
    after, _ = densify(control, state, 50)
    assert after.names[:3].tolist() == [0, 2, 3]
    for step in range(100, 500, 50):
        full = torch.ones_like(after.statistics.view_count)
        after, change = densify(control, after._replace(statistics=Statistics(full, full, full)), step)
        assert len(set(after.names.tolist())) == len(after.names) == len(change.parents)
    assert len(after.names) == 6 * 2**8


def test_the_highest_gradients_come_first_where_room_is_short():
    control = DensityControl(densify_grad_threshold=0.5, split_thresh=0.1, max_num=6)
    state = state_of([0.01, 0.01, 0.4, 0.01], [0.6, 0.9, 0.8, 0.7])
    after, change = densify(control, state, 50)
    assert sorted(change.parents.tolist()) == [0, 1, 1, 2, 2, 3]
    assert after.parameters["means"].shape[0] == 6
    more, change = densify(DensityControl(densify_grad_threshold=0.5, max_num=3), state, 50)
    assert change.parents.tolist() == [0, 1, 2, 3] and more.parameters["means"].shape[0] == 4


def test_transparent_large_and_broken_ones_are_removed():
    state = state_of([0.01] * 6, [0.0] * 6)
    state.parameters["opacity_logits"][1] = torch.logit(torch.tensor(0.04))
    state.parameters["log_scales"][2, 1] = math.log(0.9)
    state.statistics.max_radius[3] = 50.0
    state.parameters["sh_rest"][4, 1, 1] = float("nan")
    control = DensityControl(min_opac_prune=0.05, radii2d_thresh=40.0, largest_scale=0.5)
    after, change = prune(control, state)
    assert change.parents.tolist() == [0, 5] and not change.is_new.any()
    assert torch.equal(after.moments["means"]["exp_avg"], state.moments["means"]["exp_avg"][[0, 5]])
    assert torch.equal(after.statistics.view_count, state.statistics.view_count[[0, 5]])


def test_one_always_stays():
    state = state_of([0.01] * 3, [0.0] * 3, opacity=0.01)
    state.parameters["opacity_logits"][1] += 0.5
    assert prune(CONTROL, state)[1].parents.tolist() == [1]


def test_a_reset_caps_opacities_and_forgets_their_moments():
    state = state_of([0.01] * 2, [0.0] * 2)
    state.parameters["opacity_logits"][0] = torch.logit(torch.tensor(0.001))
    after = reset_opacity(state, 0.1)
    assert torch.allclose(torch.sigmoid(after.parameters["opacity_logits"]), torch.tensor([0.001, 0.1]), atol=1e-6)
    assert all(bool((value == 0).all()) for value in after.moments["opacity_logits"].values())
    assert torch.equal(after.moments["means"]["exp_avg"], state.moments["means"]["exp_avg"])


def test_events_come_at_their_steps():
    control = DensityControl(
        densification_interval=10, densify_from_iter=20, densify_until_iter=50,
        prune_interval=15, prune_from_iter=0, prune_until_iter=61, opacity_reset_interval=25,
    )  # fmt: skip
    steps = range(1, 100)
    assert [s for s in steps if control.densifies_at(s)] == [20, 30, 40]
    assert [s for s in steps if control.prunes_at(s)] == [15, 30, 45, 60]
    assert [s for s in steps if control.resets_at(s)] == [25]
    assert control.next_event(0) == 15 and control.next_event(15) == 20 and control.next_event(45) == 60
    assert control.next_event(60) is None
    state = state_of([0.01, 0.4], [1.0, 1.0])
    unchanged, change = density_control_step(control, state, 19)
    assert change is None and unchanged is state


def test_cloning_and_removal_in_one_step_give_one_change():
    control = DensityControl(
        densification_interval=10, prune_interval=10, densify_grad_threshold=0.5, split_thresh=0.1, min_opac_prune=0.05
    )
    state = state_of([0.01, 0.02, 0.03], [0.0, 0.9, 0.9])
    state.parameters["opacity_logits"][2] = -9.0
    after, change = density_control_step(control, state, 100)
    assert change.parents.tolist() == [0, 1, 1] and change.is_new.tolist() == [False, False, True]
    assert torch.equal(after.parameters["means"], change.gather(state.parameters["means"]))
    values = torch.arange(3.0)[:, None] + 1
    assert change.gather_moments(values).squeeze(1).tolist() == [1.0, 2.0, 0.0]


def test_changes_compose():
    a = Change(torch.tensor([2, 0, 0]), torch.tensor([False, False, True]))
    b = Change(torch.tensor([2, 1, 1, 0]), torch.tensor([False, False, True, False]))
    values = torch.randn(3, 2)
    both = a.then(b)
    assert torch.equal(both.gather(values), b.gather(a.gather(values)))
    assert torch.equal(both.gather_moments(values), b.gather_moments(a.gather_moments(values)))


def test_statistics_count_visible_views_only():
    gradients = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [float("nan"), 0.0]]])
    visible = torch.tensor([[True, False], [True, True]])
    radii = torch.tensor([[5.0, 9.0], [7.0, 3.0]])
    seen = observe(Statistics.zeros(torch.zeros(2)), gradients, radii, visible, height=2, width=2)
    assert seen.gradient_sum.tolist() == [7.0, 0.0]
    assert seen.view_count.tolist() == [2.0, 0.0]
    assert seen.max_radius.tolist() == [7.0, 3.0]


@pytest.mark.parametrize("factor", [2, 5])
def test_statistics_do_not_depend_on_the_image_size(factor):
    """One loss over a larger image has smaller gradients by pixel."""
    visible, radii = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3)
    gradients = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    zeros = Statistics.zeros(torch.zeros(3))
    small = observe(zeros, gradients, radii, visible, 10, 20).gradient_sum
    large = observe(zeros, gradients / factor, radii, visible, 10 * factor, 20 * factor).gradient_sum
    assert torch.allclose(small, large)


def test_moments_move_between_an_optimizer_and_a_state():
    parameters = {"means": torch.nn.Parameter(torch.randn(3, 3)), "other": torch.nn.Parameter(torch.randn(2))}
    optimizer = torch.optim.Adam([{"params": [parameters["means"]], "name": "m"}, {"params": [parameters["other"]]}])
    for _ in range(2):
        (parameters["means"].square().sum() + parameters["other"].sum()).backward()
        optimizer.step()
    old = {"means": parameters["means"]}
    moments = read_moments(optimizer, old)
    assert moments["means"].keys() == {"exp_avg", "exp_avg_sq"}
    change = Change(torch.tensor([2, 0, 2, 1]), torch.tensor([False, False, True, False]))
    new = {"means": torch.nn.Parameter(change.gather(old["means"].detach()))}
    changed = {"means": {key: change.gather_moments(value) for key, value in moments["means"].items()}}
    expected = {key: value.clone() for key, value in changed["means"].items()}
    exchange_parameters(optimizer, old, new, changed)
    assert optimizer.param_groups[0]["params"] == [new["means"]] and old["means"] not in optimizer.state
    state = optimizer.state[new["means"]]
    assert state["step"] == 2 and all(torch.equal(state[key], expected[key]) for key in expected)
    assert bool((state["exp_avg"][2] == 0).all()) and bool((state["exp_avg"][3] != 0).all())
    new["means"].square().sum().backward()
    optimizer.step()
    assert optimizer.state[new["means"]]["step"] == 3
