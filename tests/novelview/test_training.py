"""One training step of a novel-view model as a function of model and batch."""

import pytest
import torch
from turboprop.novelview.augmentation import PhotometricAugmentation
from turboprop.novelview.image_encoders import ImageEncoder
from turboprop.novelview.model import NovelViewModel, NovelViewSettings
from turboprop.novelview.timestep_sampling import TimestepSampling
from turboprop.novelview.training import TrainingRule, clean_latents, loss_by_bin, pose_of_batch, training_loss
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

from ..tiny_novelview import tiny_dino, tiny_unet, tiny_vae

PLAIN = TrainingRule(TimestepSampling("uniform"))


@pytest.fixture()
def model() -> NovelViewModel:
    torch.manual_seed(1)
    settings = NovelViewSettings(tokens="patches", feature_layers=(1, 3), normalize_tokens=True)
    alphas = scaled_linear_alphas_cumprod()
    return NovelViewModel(tiny_unet(), tiny_vae(), ImageEncoder(tiny_dino()), settings, alphas)


@pytest.fixture()
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "input_image": torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1,
        "target_image": torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1,
        "input_camera": torch.tensor([[10.0, 30.0, 1.6]]).repeat(4, 1),
        "target_camera": torch.tensor([[0.0, 30.0, 1.6], [10.0, 120.0, 1.6], [10.0, 30.0, 2.0], [40.0, -60.0, 1.5]]),
    }


def loss_with_seed(model, batch, rule, seed=0) -> torch.Tensor:
    torch.manual_seed(seed)
    return training_loss(model, batch, rule)[0]


def test_a_step_is_a_function_of_the_seed(model, batch):
    first, again, other = (loss_with_seed(model, batch, PLAIN, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_pose_is_from_the_input_to_the_target(batch):
    pose = pose_of_batch(batch, "distance_difference")
    expected = [[10.0, 0, 1, 0], [0.0, 1, 0, 0], [0.0, 0, 1, 0.4], [-30.0, -1, 0, -0.1]]
    expected = torch.tensor(expected)
    expected[:, 0] = torch.deg2rad(expected[:, 0])
    torch.testing.assert_close(pose, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_cached_moments_are_what_the_pictures_give(model, batch):
    cached = dict(batch)
    for name in ("input", "target"):
        cached[f"{name}_moments"] = torch.stack(model.latent_moments(batch[f"{name}_image"]), 1)
    del cached["target_image"]
    for sampled in (False, True):
        torch.manual_seed(3)
        ours = clean_latents(model, cached, sampled)
        torch.manual_seed(3)
        theirs = clean_latents(model, batch, sampled)
        torch.testing.assert_close(ours, theirs)
    mean, std = model.latent_moments(batch["target_image"])
    drawn = torch.stack([clean_latents(model, cached, True)[0] for _ in range(400)])
    scale = model.vae.config.scaling_factor
    torch.testing.assert_close(drawn.std(0).mean(), (scale * std).mean(), atol=0, rtol=0.02)
    assert torch.equal(loss_with_seed(model, cached, PLAIN), loss_with_seed(model, batch, PLAIN))


def test_the_photometric_change_is_for_the_encoders_alone(model, batch, monkeypatch):
    seen = {}
    encode = model.encode_view

    def watched(images, latents, pictures):
        seen["encoder"] = pictures
        return encode(images, latents, pictures)

    monkeypatch.setattr(model, "encode_view", watched)
    strong = PhotometricAugmentation(1.0, 0.5, 0.5, 0.5, 0.3)
    loss_with_seed(model, batch, TrainingRule(TimestepSampling("uniform"), photometric=strong))
    assert not torch.allclose(seen["encoder"], batch["input_image"], atol=0.05)
    _, given = clean_latents(model, batch, sampled=False)
    torch.testing.assert_close(given, model.encode_input_latents(batch["input_image"]))


def test_min_snr_weighs_low_noise_down(model, batch):
    low = TimestepSampling("truncated_normal", mean=20.0, std=5.0)
    weighted = TrainingRule(low, min_snr_gamma=5.0)
    assert float(loss_with_seed(model, batch, weighted)) < 0.2 * float(loss_with_seed(model, batch, TrainingRule(low)))


def test_bins_are_compared_with_the_same_condition(model, batch):
    torch.manual_seed(0)
    losses = loss_by_bin(model, batch, 4)
    assert losses.shape == (4,) and bool(torch.isfinite(losses).all()) and not losses.requires_grad


def test_training_learns_to_draw_one_pair(model, batch):
    """The loss on one batch falls well below that of a model that knows nothing, at high noise too."""
    torch.manual_seed(0)
    before = loss_by_bin(model, batch, 2)
    trained = [parameter for part in model.trained_parts().values() for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for step in range(80):
        optimizer.zero_grad()
        loss_with_seed(model, batch, PLAIN, seed=step).backward()
        optimizer.step()
    torch.manual_seed(0)
    after = loss_by_bin(model, batch, 2)
    assert bool((after < 0.7 * before).all()), (before, after)
    assert model.injection.projections[0].weight.abs().max() > 0
