"""The novel-view teacher on zero123's layouts: what it computes against the parts themselves, and its conditions."""

import math

import pytest
import torch
import torch.nn.functional as F
from turboprop.novelview.loading import fourth_number_of
from turboprop.novelview.teacher import NovelViewCondition, NovelViewTeacher
from turboprop.teachers.contract import Teacher

CAMERAS = (torch.tensor([10.0, -20.0]), torch.tensor([30.0, 200.0]), torch.tensor([1.6, 2.0]))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def teacher(tiny_zero123_folder) -> NovelViewTeacher:
    return NovelViewTeacher.from_pretrained(str(tiny_zero123_folder))


@torch.no_grad()
def expected_noise(folder, picture, cameras, noisy, timesteps, fourth):
    """zero-1-to-3's forward pass, written out with the parts of the folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import CLIPVisionModelWithProjection

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    projection = load_file(folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
    image = picture * 2 - 1
    small = F.interpolate(image, (28, 28), mode="bicubic", align_corners=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    embedding = clip(((small + 1) / 2 - mean) / std).image_embeds  # [1, 16]
    pose = torch.tensor(
        [
            [math.radians(5.0 - e), math.sin(math.radians(a - 10.0)), math.cos(math.radians(a - 10.0)), f]
            for e, a, f in zip(*(c.tolist() for c in cameras[:2]), fourth)
        ]
    )
    joined = torch.cat([embedding.expand(2, -1), pose], dim=-1)
    token = joined @ projection["projection.weight"].T + projection["projection.bias"]
    latent = vae.encode(image).latent_dist.mode().expand(2, -1, -1, -1)  # unscaled
    return unet(torch.cat([noisy, latent], 1), timesteps, encoder_hidden_states=token[:, None]).sample


def ask(teacher, picture, noisy, timesteps):
    condition = teacher.condition(picture, 5.0, 10.0, 1.5, *CAMERAS)
    return teacher.predict_noise(noisy, timesteps, condition)


@pytest.fixture(scope="module")
def question() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([700, 31])


def test_zero123_is_computed_as_published(teacher, tiny_zero123_folder, picture, question):
    expected = expected_noise(tiny_zero123_folder, picture, CAMERAS, *question, [0.1, 0.5])
    torch.testing.assert_close(ask(teacher, picture, *question), expected, atol=1e-5, rtol=1e-4)


def test_stable_zero123_takes_the_polar_angle_of_the_input_view(tiny_zero123_folder, picture, question):
    stable = NovelViewTeacher.from_pretrained(str(tiny_zero123_folder), fourth_number="input_polar_angle")
    fourth = [math.radians(85.0)] * 2
    expected = expected_noise(tiny_zero123_folder, picture, CAMERAS, *question, fourth)
    torch.testing.assert_close(ask(stable, picture, *question), expected, atol=1e-5, rtol=1e-4)


def test_both_layouts_hold_the_same_model(teacher, tiny_zero123_unified_folder, picture, question):
    other = NovelViewTeacher.from_pretrained(str(tiny_zero123_unified_folder))
    assert torch.equal(ask(other, picture, *question), ask(teacher, picture, *question))


def test_the_contract(teacher, picture):
    assert isinstance(teacher, Teacher)
    assert (teacher.image_size, teacher.latent_size, teacher.latent_channels) == (16, 8, 4)
    assert teacher.num_timesteps == 1000 and teacher.alphas_cumprod.dtype == torch.float32
    images = (picture * 2 - 1).requires_grad_()
    latents = teacher.encode(images)
    assert latents.shape == (1, 4, 8, 8)
    latents.sum().backward()
    assert images.grad.abs().sum() > 0
    assert teacher.decode(latents.detach()).shape == (1, 3, 16, 16)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_encoding_is_scaled_for_the_view_to_draw_and_raw_for_the_input_view(teacher, picture):
    images = picture * 2 - 1
    mean = teacher.model.vae.encode(images).latent_dist.mean
    zero = torch.zeros(1, 4, 8, 8)
    torch.testing.assert_close(teacher.encode(images, zero), mean * teacher.model.vae.config.scaling_factor)
    condition = teacher.condition(picture, 0.0, 0.0, 1.5, *CAMERAS)
    torch.testing.assert_close(condition.latents, mean.expand(2, -1, -1, -1))


def test_conditions_join_and_shorten(teacher, picture):
    condition = teacher.condition(picture, 0.0, 0.0, 1.5, *CAMERAS)
    assert len(condition) == 2 and condition.tokens.shape == (2, 1, 16) and condition.features == ()
    null = teacher.unconditional(condition)
    assert not null.latents.any() and not null.tokens.any() and null.tokens.shape == condition.tokens.shape
    joined = condition.cat([null, condition])
    assert len(joined) == 6 and torch.equal(joined.tokens[4:], condition.tokens)
    assert torch.equal(joined.take(3).latents[2], null.latents[0])
    with_features = NovelViewCondition(condition.latents, condition.tokens, (torch.ones(2, 8, 4, 4),))
    assert with_features.cat([with_features]).features[0].shape == (4, 8, 4, 4)
    assert with_features.take(1).features[0].shape == (1, 8, 4, 4)
    assert not teacher.unconditional(with_features).features[0].any()
    with pytest.raises(ValueError, match="do not join"):
        condition.cat([with_features])


def test_a_picture_is_encoded_once_and_anew_when_it_changes(teacher):
    picture = torch.rand(1, 3, 16, 16)
    calls = []
    handle = teacher.model.vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    teacher.condition(picture, 0.0, 0.0, 1.5, *CAMERAS)
    teacher.condition(picture, 0.0, 90.0, 1.5, *CAMERAS)
    assert len(calls) == 1
    picture.mul_(0.5)
    teacher.condition(picture, 0.0, 0.0, 1.5, *CAMERAS)
    handle.remove()
    assert len(calls) == 2


def test_pictures_are_resized_and_must_be_square(teacher):
    constant = torch.full((1, 3, 40, 40), 0.25)
    small = teacher.condition(torch.full((1, 3, 16, 16), 0.25), 0.0, 0.0, 1.5, *CAMERAS)
    torch.testing.assert_close(teacher.condition(constant, 0.0, 0.0, 1.5, *CAMERAS).latents, small.latents)
    with pytest.raises(ValueError, match=r"square pictures.*\[1, 3, 16, 20\]"):
        teacher.condition(torch.zeros(1, 3, 16, 20), 0.0, 0.0, 1.5, *CAMERAS)
    with pytest.raises(ValueError, match="expected 1 or 2 input views, got 3"):
        teacher.condition(torch.zeros(3, 3, 16, 16), 0.0, 0.0, 1.5, *CAMERAS)


@pytest.mark.parametrize(
    "name,fourth",
    [
        ("kxic/zero123-xl", "distance_difference"),
        ("bennyguo/zero123-diffusers", "distance_difference"),
        ("ashawkey/stable-zero123-diffusers", "input_polar_angle"),
        ("load/zero123/105000.ckpt", "distance_difference"),
        ("load/zero123/stable_zero123.ckpt", "input_polar_angle"),
    ],
)
def test_published_names_say_what_the_fourth_number_is(name, fourth):
    assert fourth_number_of(name) == fourth
