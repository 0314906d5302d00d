"""The first weights of the world's autoencoder."""

import pytest
import torch
from turboprop.small_models.autoencoder_init import hand_colors_through
from turboprop.small_models.recipes.mini_vae import make_autoencoder


@torch.no_grad()
def plain_pictures(autoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours [N, 3] in [-1, 1], and what comes back of pictures that are plain in them."""
    levels = torch.linspace(-0.9, 0.9, 4)
    colors = torch.cartesian_prod(levels, levels, levels)
    pictures = colors[:, :, None, None].expand(-1, -1, 32, 32).contiguous()
    decoded = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mode()).sample
    return colors, decoded[:, :, 8:24, 8:24].mean((2, 3))  # away from the border, where zeros are padded


@pytest.fixture()
def fresh():
    torch.manual_seed(0)
    return make_autoencoder()


def test_plain_colours_pass_a_fresh_autoencoder(fresh):
    """But for a gain, which varies with the draw (1.27 to 1.56 in three)."""
    colors, before = plain_pictures(fresh)
    assert float(torch.corrcoef(torch.stack([colors.flatten(), before.flatten()]))[0, 1]) < 0.3  # nothing passes
    hand_colors_through(fresh)
    _, after = plain_pictures(fresh)
    for channel in range(3):
        assert float(torch.corrcoef(torch.stack([colors[:, channel], after[:, channel]]))[0, 1]) > 0.98
    gain = float((after * colors).sum() / colors.square().sum())
    assert 1.0 < gain < 1.8
    assert float((after / gain - colors).square().mean().sqrt()) < 0.12


@torch.no_grad()
def test_latents_hold_the_picture_at_a_quarter_of_its_size(fresh):
    hand_colors_through(fresh)
    halves = torch.full((1, 3, 32, 32), -0.5)
    halves[..., 16:] = 0.5
    mean = fresh.encode(halves).latent_dist.mode()
    assert mean.shape == (1, 4, 8, 8)
    gap = mean[:, :3, 2:6, 5:7].mean() - mean[:, :3, 2:6, 1:3].mean()
    assert float(gap) > 0.3
    assert float(fresh.encode(halves).latent_dist.logvar[0, :, 4, 4].mean()) < -2  # the posterior starts narrow


def test_it_can_be_trained(fresh):
    hand_colors_through(fresh)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    optimizer = torch.optim.SGD(fresh.parameters(), 1e-3)
    for _ in range(2):  # layers behind those that start at zero learn from the second step on
        optimizer.zero_grad()
        (fresh(pictures, sample_posterior=True).sample - pictures).square().mean().backward()
        optimizer.step()
    dead = [
        name for name, p in fresh.named_parameters() if not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0
    ]
    assert dead == []
