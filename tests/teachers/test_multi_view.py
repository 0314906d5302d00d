"""MVDream's kind of network and teacher: attention across views, cameras, folders, and what methods make of it."""

import math
from functools import partial

import pytest
import torch
from turboprop.distillation import METHODS, Conditions, Query, sdi_gradient, vsd_gradient
from turboprop.teachers import load_teacher
from turboprop.teachers.contract import Cameras
from turboprop.teachers.loading import LoadingOptions
from turboprop.teachers.multi_view.attention import CrossViewAttentionProcessor
from turboprop.teachers.multi_view.cameras import camera_numbers
from turboprop.teachers.multi_view.network import MultiViewUNet, from_text_to_image
from turboprop.teachers.multi_view.teacher import MultiViewCondition, MultiViewTeacher

from tests.tiny_multi_view import write_tiny_multi_view


@pytest.fixture(scope="module")
def unet(tiny_sd_folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(tiny_sd_folder / "unet").eval()


@pytest.fixture(scope="module")
def teacher(tiny_mv_folder):
    return load_teacher(str(tiny_mv_folder))


@pytest.fixture(scope="module")
def network(teacher):
    return teacher.network


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def question(sets: int, views: int) -> tuple[torch.Tensor, ...]:
    """Noisy latents, timesteps, texts and camera numbers of some sets."""
    count = sets * views
    timesteps = torch.tensor([30, 500, 900])[:sets].repeat_interleave(views)
    return draws(count, 4, 8, 8), timesteps, draws(count, 12, 16, seed=1), draws(count, 16, seed=2)


def orbit(sets: int, views: int) -> Cameras:
    """Sets of cameras at equal steps of azimuth, each set at an elevation and a distance of its own."""
    elevation = torch.tensor([10.0, 25.0, 40.0])[:sets].repeat_interleave(views)
    azimuth = (torch.arange(views) * 360.0 / views).repeat(sets)
    distance = torch.tensor([2.0, 3.0, 4.0])[:sets].repeat_interleave(views)
    e, a = elevation.deg2rad(), azimuth.deg2rad()
    back = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)  # [B, 3], where the camera stands
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)
    c2w = torch.eye(4).repeat(len(a), 1, 1)
    c2w[:, :3] = torch.stack([right, torch.linalg.cross(back, right), back, distance[:, None] * back], -1)
    return Cameras(elevation, azimuth, distance, c2w, torch.full_like(a, math.radians(40)))


# ------------------------------------------------------------------------- attention


def attention(width: int = 8, heads: int = 2, context: int | None = None):
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    layer = Attention(width, context, heads=heads, dim_head=width // heads)
    layer.set_processor(CrossViewAttentionProcessor())
    return layer.eval()


def by_hand(layer, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """One sequence [N, C] that attends to another [M, D], head by head."""
    query, key, value = (part.weight for part in (layer.to_q, layer.to_k, layer.to_v))
    parts = []
    for head in range(layer.heads):
        rows = slice(head * 4, head * 4 + 4)
        q, k, v = tokens @ query[rows].T, context @ key[rows].T, context @ value[rows].T
        parts.append((q @ k.T / 2).softmax(-1) @ v)  # 2 is the root of a head's width
    return layer.to_out[0](torch.cat(parts, -1))


def test_a_sets_views_attend_to_one_another_as_one_sequence():
    layer, tokens = attention(), draws(6, 5, 8)  # two sets of three views of five tokens
    answer = layer(tokens, num_views=3)
    for first in (0, 3):
        together = tokens[first : first + 3].reshape(15, 8)
        expected = by_hand(layer, together, together).reshape(3, 5, 8)
        torch.testing.assert_close(answer[first : first + 3], expected, rtol=1e-5, atol=1e-6)


def test_each_view_attends_to_its_own_text():
    layer, tokens, text = attention(context=6), draws(4, 5, 8), draws(4, 7, 6, seed=1)
    answer = layer(tokens, encoder_hidden_states=text, num_views=4)
    for view in range(4):
        torch.testing.assert_close(answer[view], by_hand(layer, tokens[view], text[view]), rtol=1e-5, atol=1e-6)


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match="takes no attention_mask"):
        CrossViewAttentionProcessor()(attention(), draws(2, 5, 8), attention_mask=torch.ones(2, 5, 5))


# --------------------------------------------------------------------------- network


def test_single_views_are_diffusers_own_unets(unet):
    """Bit for bit, whatever the camera: its embedding adds nothing yet."""
    network = from_text_to_image(unet, "mvdream", 4).eval()
    noisy, timesteps, text, cameras = question(3, 1)
    with torch.no_grad():
        theirs = unet(noisy, timesteps, encoder_hidden_states=text).sample
        for given in (None, cameras, 100 * cameras):
            assert torch.equal(network(noisy, timesteps, text, given, 1), theirs)


def test_the_camera_begins_without_a_part_and_can_learn_one(unet):
    network = from_text_to_image(unet, "mvdream", 4)
    noisy, timesteps, text, cameras = question(1, 4)
    answer = network(noisy, timesteps, text, cameras, 4)
    assert torch.equal(answer, network(noisy, timesteps, text, None, 4))
    answer.square().mean().backward()
    assert network.camera_embedding[-1].weight.grad.abs().max() > 0


@torch.no_grad()
def test_views_of_a_set_depend_on_one_another_and_sets_do_not(network):
    noisy, timesteps, text, cameras = question(2, 4)
    before = network(noisy, timesteps, text, cameras, 4)
    changed = noisy.clone()
    changed[1] += 1
    after = network(changed, timesteps, text, cameras, 4)
    moved = (after - before).abs().amax((1, 2, 3))
    assert (moved[:4] > 1e-4).all() and torch.equal(after[4:], before[4:])
    alone = network(noisy[4:], timesteps[4:], text[4:], cameras[4:], 4)
    torch.testing.assert_close(alone, before[4:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_a_sets_views_has_no_part(network):
    noisy, timesteps, text, cameras = question(1, 4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = network(noisy[order], timesteps, text[order], cameras[order], 4)
    torch.testing.assert_close(shuffled, network(noisy, timesteps, text, cameras, 4)[order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_view_has_its_own_camera(network):
    noisy, timesteps, text, cameras = question(3, 1)
    changed = cameras.clone()
    changed[1] += 1
    moved = (network(noisy, timesteps, text, changed) - network(noisy, timesteps, text, cameras)).abs().amax((1, 2, 3))
    assert moved[1] > 1e-3 and moved[0] == moved[2] == 0


@torch.no_grad()
def test_without_cameras_pictures_are_plain(network, unet):
    noisy, timesteps, text, _ = question(2, 1)
    theirs = unet(noisy, timesteps, encoder_hidden_states=text).sample
    assert torch.equal(network(noisy, timesteps, text), theirs)


def test_half_a_set_is_refused(network):
    noisy, timesteps, text, cameras = question(3, 1)
    with pytest.raises(ValueError, match="expected whole sets of 2 views, got 3 pictures"):
        network(noisy, timesteps, text, cameras, 2)


@torch.no_grad()
def test_a_saved_network_is_the_same(network, tmp_path):
    network.save_pretrained(tmp_path / "unet")
    loaded = MultiViewUNet.from_pretrained(tmp_path / "unet")
    assert (loaded.config.camera_encoding, loaded.config.num_views) == ("mvdream", 4)
    assert torch.equal(loaded(*question(2, 4), 4), network(*question(2, 4), 4))
    assert not any(key.startswith("_") for key in loaded.config.unet_config)  # no path of the machine it came from
    again = MultiViewUNet(loaded.config.unet_config)
    assert again.state_dict().keys() == network.state_dict().keys()


# --------------------------------------------------------------------------- cameras


def test_mvdreams_numbers_are_c2w_with_its_position_on_the_unit_sphere():
    cameras = orbit(2, 4)
    before = cameras.c2w.clone()
    numbers = camera_numbers(cameras.c2w, cameras.fovy, "mvdream")
    matrix = numbers.reshape(-1, 4, 4)
    assert torch.equal(matrix[:, :3, :3], cameras.c2w[:, :3, :3])
    torch.testing.assert_close(matrix[:, :3, 3], cameras.c2w[:, :3, 3] / cameras.distance[:, None])
    assert torch.equal(matrix[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(8, 4))
    assert torch.equal(cameras.c2w, before)  # the batch's own matrices stay
    other = camera_numbers(cameras.c2w, cameras.fovy * 2, "mvdream")
    assert torch.equal(other, numbers)


def test_apparent_scale_tells_how_large_an_object_looks():
    cameras = orbit(3, 1)
    numbers = camera_numbers(cameras.c2w, cameras.fovy, "apparent_scale")
    assert torch.equal(numbers[:, :15], camera_numbers(cameras.c2w, cameras.fovy, "mvdream")[:, :15])
    half_height = cameras.distance * math.tan(math.radians(20))
    torch.testing.assert_close(numbers[:, 15], 10 * half_height.log())


def test_an_unknown_encoding_is_named():
    with pytest.raises(ValueError, match="expected one of mvdream, apparent_scale, got 'plucker'"):
        camera_numbers(torch.eye(4)[None], torch.ones(1), "plucker")


# ------------------------------------------------------------------------ conditions


def test_conditions_follow_one_another_and_are_cut_between_sets():
    first = MultiViewCondition(draws(8, 3, 2), draws(8, 16), 4)
    second = MultiViewCondition(draws(4, 3, 2, seed=1), draws(4, 16, seed=1), 4)
    joined = first.cat([second])
    assert len(joined) == 12 and joined.num_views == 4
    assert torch.equal(joined.embeddings[8:], second.embeddings) and torch.equal(joined.cameras[8:], second.cameras)
    taken = joined.take(8)
    assert torch.equal(taken.embeddings, first.embeddings) and torch.equal(taken.cameras, first.cameras)
    with pytest.raises(ValueError, match="expected a multiple of 4 views, got 6"):
        joined.take(6)
    plain = MultiViewCondition(draws(2, 3, 2), None)
    assert plain.cat([plain]).cameras is None and plain.take(1).cameras is None
    for other in (MultiViewCondition(draws(4, 3, 2), draws(4, 16), 2), MultiViewCondition(draws(4, 3, 2), None, 4)):
        with pytest.raises(ValueError, match="expected sets of one size, all with cameras or all without"):
            first.cat([other])


def test_a_camera_is_needed(teacher):
    cameras = orbit(1, 4)
    text = draws(4, 12, 16)
    assert len(teacher.condition(text, cameras, 4)) == 4
    without = Cameras(cameras.elevation, cameras.azimuth, cameras.distance)
    for given in (None, without):
        with pytest.raises(ValueError, match="needs each view's c2w and fovy"):
            teacher.condition(text, given, 4)
    with pytest.raises(ValueError, match="n_view: expected a number of views that is a multiple of 3, got 4"):
        teacher.condition(text, cameras, 3)


# --------------------------------------------------------------------------- teacher


def test_a_folder_and_its_shared_parts_make_one_teacher(teacher, tiny_sd_folder, tmp_path):
    assert isinstance(teacher, MultiViewTeacher)
    assert (teacher.image_size, teacher.latent_size, teacher.latent_channels) == (16, 8, 4)
    whole = load_teacher(str(write_tiny_multi_view(tmp_path / "whole", tiny_sd_folder, shared=False)))
    images = draws(4, 3, 16, 16).clamp(-1, 1)
    condition = teacher.condition(draws(4, 12, 16), orbit(1, 4), 4)
    noisy, timesteps = draws(4, 4, 8, 8), torch.full((4,), 400)
    assert torch.equal(teacher.encode(images, noisy * 0), whole.encode(images, noisy * 0))
    assert torch.equal(
        teacher.predict_noise(noisy, timesteps, condition), whole.predict_noise(noisy, timesteps, condition)
    )


def test_the_folders_text_is_the_shared_models(tiny_mv_folder, tiny_sd_folder):
    from turboprop.teachers.text import encode_prompts

    own, shared = (encode_prompts(str(f), ["a red chair"], use_cache=False) for f in (tiny_mv_folder, tiny_sd_folder))
    assert torch.equal(own.local_embeddings, shared.local_embeddings)


def test_a_shared_part_that_is_not_there_is_named(tiny_sd_folder, tmp_path):
    folder = write_tiny_multi_view(tmp_path / "deep" / "tiny-mv", tiny_sd_folder)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="lacks vae/config.json, vae/diffusion_pytorch_model.safetensors"):
        load_teacher(str(moved))


def test_the_teacher_is_frozen_and_says_epsilon(teacher):
    assert not any(p.requires_grad for part in (teacher.network, teacher.vae) for p in part.parameters())
    noisy, timesteps, text, _ = question(1, 4)
    condition = teacher.condition(text, orbit(1, 4), 4)
    answer = teacher.predict_noise(noisy.requires_grad_(), timesteps, condition)
    assert not answer.requires_grad
    own = MultiViewTeacher(teacher.network, teacher.vae, teacher.alphas_cumprod, "v_prediction")
    abar = teacher.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    as_v = own.predict_noise(noisy, timesteps, condition)
    torch.testing.assert_close(as_v, (abar.sqrt() * answer + (1 - abar).sqrt() * noisy).detach())


def test_another_size_of_picture(teacher):
    large = teacher.at_image_size(24)
    assert (large.image_size, large.latent_size) == (24, 12)
    assert large.encode(torch.zeros(1, 3, 24, 24)).shape == (1, 4, 12, 12)
    assert (teacher.image_size, teacher.latent_size) == (16, 8)
    with pytest.raises(ValueError, match="image_size: expected a multiple of 2, got 25"):
        teacher.at_image_size(25)


SINGLE = dict(guidance_scale=7.5, weighting="sds")


@pytest.mark.parametrize("name", [*METHODS, "vsd", "sdi"])
def test_every_method_takes_it_and_sets_stay_apart(teacher, name):
    method = {
        **METHODS,
        "sdi": partial(
            sdi_gradient, invert=True, inversion_guidance_scale=-7.5, inversion_n_steps=3, inversion_eta=0.0
        ),
    }.get(name)

    def conditions(sets: slice) -> Conditions:
        cameras, rows = orbit(2, 4), slice(sets.start * 4, sets.stop * 4)
        part = Cameras(*(value[rows] for value in (cameras.elevation, cameras.azimuth, cameras.distance)),
                       cameras.c2w[rows], cameras.fovy[rows])  # fmt: skip
        text, none = draws(8, 12, 16)[rows], draws(1, 12, 16, seed=5).expand(8, -1, -1)[rows]
        return Conditions(teacher.condition(text, part, 4), teacher.condition(none, part, 4))

    latents, noise = draws(8, 4, 8, 8, seed=6), draws(8, 4, 8, 8, seed=7)
    t, later = (torch.tensor(pair).repeat_interleave(4) for pair in ([300, 700], [310, 760]))

    def gradient(sets: slice) -> torch.Tensor:
        rows, asked = slice(sets.start * 4, sets.stop * 4), conditions(sets)
        if name == "vsd":
            chosen = partial(vsd_gradient, render_teacher=teacher, render_conditions=asked)
        else:
            chosen = method
        return chosen(Query(teacher, latents[rows], asked, t[rows], noise[rows], later[rows], **SINGLE)).gradient

    both = gradient(slice(0, 2))
    assert both.shape == latents.shape and both.isfinite().all() and both.abs().max() > 0
    torch.testing.assert_close(both[:4], gradient(slice(0, 1)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(both[4:], gradient(slice(1, 2)), rtol=1e-3, atol=1e-4)


def test_options_that_a_multi_view_teacher_goes_without_are_told(tiny_mv_folder, caplog):
    with caplog.at_level("WARNING"):
        load_teacher(str(tiny_mv_folder), options=LoadingOptions(enable_attention_slicing=True))
    assert "enable_attention_slicing: multi-view teachers go without it" in caplog.text
