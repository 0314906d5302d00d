"""Losses against a picture, by hand and by what they must not see."""

import math

import pytest
import torch

from threestudio.systems import reference_losses as losses


@pytest.fixture()
def mask():
    inside = torch.zeros(1, 4, 4, 1, dtype=torch.bool)
    inside[:, 1:3, 1:3] = True
    return inside


def test_color_loss_compares_over_the_renders_own_background(mask):
    background = torch.full((1, 4, 4, 3), 0.3)
    picture = torch.full((1, 4, 4, 3), 0.8)
    render = torch.where(mask, picture, background)
    assert losses.color_loss(render, background, picture, mask) == 0
    off = render + 0.1
    assert losses.color_loss(off, background, picture, mask).item() == pytest.approx(0.01)
    # a mask of one half mixes both
    half = torch.full((1, 4, 4, 1), 0.5)
    assert losses.color_loss(torch.full((1, 4, 4, 3), 0.55), background, picture, half).item() == pytest.approx(
        0.0, abs=1e-12
    )


def test_covered_color_loss_sees_nothing_outside_the_mask(mask):
    picture, render = torch.full((1, 4, 4, 3), 0.8), torch.full((1, 4, 4, 3), 0.5)
    assert losses.covered_color_loss(render, picture, mask).item() == pytest.approx(4 / 16 * 0.3**2)
    outside = torch.where(mask, render, torch.rand(1, 4, 4, 3))
    assert torch.equal(
        losses.covered_color_loss(outside, picture, mask), losses.covered_color_loss(render, picture, mask)
    )


def test_mask_losses(mask):
    opacity = torch.where(mask, 0.9, 0.2)
    assert losses.mask_loss(opacity, mask).item() == pytest.approx((4 * 0.1**2 + 12 * 0.2**2) / 16)
    expected = -(4 * math.log(0.9) + 12 * math.log(0.8)) / 16
    assert losses.mask_cross_entropy(opacity, mask).item() == pytest.approx(expected)
    assert losses.mask_cross_entropy(torch.zeros(1, 4, 4, 1), mask).isfinite()


def test_depth_losses_do_not_see_scale_and_origin(mask):
    torch.manual_seed(0)
    depth = torch.rand(1, 4, 4, 1, dtype=torch.float64)
    reference = torch.where(mask, 3.0 * depth - 0.7, torch.rand(1, 4, 4, 1))
    assert losses.depth_loss(depth, reference, mask).item() == pytest.approx(0.0, abs=1e-10)
    assert losses.depth_correlation_loss(depth, reference, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.depth_correlation_loss(depth, -reference, mask).item() == pytest.approx(2.0, abs=1e-6)


def test_each_picture_of_a_batch_has_a_depth_of_its_own_unit(mask):
    torch.manual_seed(0)
    depth, both = torch.rand(2, 4, 4, 1, dtype=torch.float64), mask.expand(2, 4, 4, 1)
    reference = torch.stack([3.0 * depth[0] - 0.7, 0.1 * depth[1] + 5.0])
    assert losses.depth_loss(depth, reference, both).item() == pytest.approx(0.0, abs=1e-10)
    assert losses.depth_correlation_loss(depth, reference, both).item() == pytest.approx(0.0, abs=1e-6)
    # a batch's loss is the mean of its pictures', of equal masks
    reference = torch.rand(2, 4, 4, 1)
    for loss in (losses.depth_loss, losses.depth_correlation_loss):
        each = [loss(depth[i : i + 1], reference[i : i + 1], mask).item() for i in range(2)]
        assert loss(depth, reference, both).item() == pytest.approx(sum(each) / 2)


def test_depth_loss_is_the_residual_of_a_line(mask):
    """Depths 0, 1, 0, 1 over references 0, 1, 2, 3: the best line leaves 0.8 of 1 in sum."""
    depth, reference = torch.zeros(1, 4, 4, 1), torch.zeros(1, 4, 4, 1)
    depth[mask] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    reference[mask] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    depth.requires_grad_(True)
    loss = losses.depth_loss(depth, reference, mask)
    assert loss.item() == pytest.approx(0.8 / 4, abs=1e-5)
    loss.backward()
    assert depth.grad[~mask].abs().max() == 0 and depth.grad[mask].abs().max() > 0
    # the covariance sums to 1, the variances to 1 and 5
    measured = losses.depth_correlation_loss(depth, reference, mask).item()
    assert measured == pytest.approx(1 - 1.0 / math.sqrt(1.0 * 5.0), abs=1e-5)


def test_normal_loss(mask):
    normal = torch.tensor([0.0, 0.0, 1.0]).expand(1, 4, 4, 3)
    composited = (normal + 1) / 2
    for angle in (0.0, 60.0, 90.0, 180.0):
        turned = torch.tensor([math.sin(math.radians(angle)), 0.0, math.cos(math.radians(angle))])
        reference = torch.where(mask, (1 - turned) / 2, torch.rand(1, 4, 4, 3))
        expected = 1 - math.cos(math.radians(angle))
        assert losses.normal_loss(composited, reference, mask).item() == pytest.approx(expected, abs=1e-5)


def test_smoothness():
    ramp = torch.arange(5.0)[None, :, None, None].expand(2, 5, 6, 3) * 0.1  # grows downwards
    assert losses.normal_smoothness(ramp).item() == pytest.approx(0.01)
    assert losses.normal_smoothness(ramp.transpose(1, 2)).item() == pytest.approx(0.01)
    first, second = torch.zeros(4, 3), torch.tensor([[0.3, -0.3, 0.0]]).expand(4, 3)
    assert losses.perturbed_normal_loss(first, second).item() == pytest.approx(0.2)
