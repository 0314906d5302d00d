"""Guidances by multi-view teachers: MVDream's names and keys, and several prompts and several views a step."""

import dataclasses
import math

import pytest
import torch
from turboprop.distillation import METHODS, Conditions, Query, reconstruction_gradient
from turboprop.distillation.guidance import conditions_of
from turboprop.distillation.reconstruction import spread
from turboprop.distillation.renders import renders_for
from turboprop.teachers import load_teacher
from turboprop.teachers.contract import Cameras
from turboprop.teachers.multi_view.cameras import camera_numbers
from turboprop.teachers.multi_view.hub import fetch_published

import threestudio

ASD = "mvdream-asynchronous-score-distillation-guidance"
SDS = "mvdream-multiview-diffusion-guidance"
PROMPTS = ["a blue car", "a red chair"]


@pytest.fixture()
def prompt_utils(tiny_sd_folder, text_cache):
    def make(prompts=PROMPTS, **cfg):
        keys = {"pretrained_model_name_or_path": str(tiny_sd_folder), "prompts": ["a red chair", "a blue car"]}
        return threestudio.find("turboprop-multi-prompt-processor")({**keys, **cfg})(prompts)

    return make


def batch(prompts: int = 2, views: int = 4, size: int = 12) -> dict:
    """A step of the multi-prompt data: sets of cameras, and a picture of each."""
    data = threestudio.find("turboprop-multiprompt-camera-datamodule")(
        {
            "prompts": ["a", "b", "c"],
            "batch_size": prompts,
            "n_view": views,
            "view_sets": True,
            "height": 4,
            "width": 4,
            "camera_perturb": 0.0,
            "center_perturb": 0.0,
            "up_perturb": 0.0,
        }  # fmt: skip
    )
    data.setup("fit")
    torch.manual_seed(3)
    cameras = data.train_dataset.collate({})
    return {**cameras, "rgb": torch.rand(prompts * views, size, size, 3, requires_grad=True)}


def call(guidance, utils, data, seed=1, **more):
    torch.manual_seed(seed)
    return guidance(data["rgb"], utils, **{k: v for k, v in data.items() if k not in ("rgb", "prompt")}, **more)


def cameras_of(data: dict) -> Cameras:
    return Cameras(data["elevation"], data["azimuth"], data["camera_distances"], data["c2w"], data["fovy"])


@pytest.mark.parametrize(("name", "loss"), [(ASD, "loss_asd"), (SDS, "loss_sds")])
def test_mvdreams_names_run_with_any_multi_view_model(name, loss, tiny_mv_folder, prompt_utils):
    guidance = threestudio.find(name)({"ckpt_path": str(tiny_mv_folder), "half_precision_weights": False})
    data = batch()
    output = call(guidance, prompt_utils(), data)
    assert {loss, "grad_norm", "nan_gradients", "min_step", "max_step"} <= set(output)
    output[loss].backward()
    by_view = data["rgb"].grad.abs().amax((1, 2, 3))
    assert data["rgb"].grad.isfinite().all() and (by_view > 0).all()
    again = call(guidance, prompt_utils(), data)
    assert torch.equal(again[loss], output[loss])


def test_the_original_file_is_a_ckpt_path(mvdream_file, prompt_utils):
    guidance = threestudio.find(SDS)({"ckpt_path": str(mvdream_file)})
    assert guidance.teacher.image_size == 64
    output = call(guidance, prompt_utils(["a red chair"]), batch(prompts=1))
    assert output["loss_sds"].isfinite() and output["loss_sds"] > 0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_method_by_one_key(method, tiny_mv_folder, prompt_utils):
    keys = {"method": method, "pretrained_model_name_or_path": str(tiny_mv_folder), "n_view": 4}
    output = call(threestudio.find("turboprop-guidance")(keys), prompt_utils(), batch())
    assert output[f"loss_{method}"].isfinite() and output[f"loss_{method}"] > 0


def test_inversion_takes_it_too(tiny_mv_folder, prompt_utils):
    keys = {"pretrained_model_name_or_path": str(tiny_mv_folder), "n_view": 4, "inversion_n_steps": 3}
    output = call(threestudio.find("stable-diffusion-sdi-guidance")(keys), prompt_utils(), batch())
    assert output["loss_sdi"].isfinite() and output["loss_sdi"] > 0


def test_vsd_takes_it_with_a_network_of_single_views_for_the_renders(tiny_mv_folder, tiny_sd_folder, prompt_utils):
    keys = {"pretrained_model_name_or_path": str(tiny_mv_folder), "n_view": 4}
    keys["pretrained_model_name_or_path_lora"] = str(tiny_sd_folder)
    output = call(threestudio.find("turboprop-vsd-guidance")(keys), prompt_utils(), batch())
    assert output["loss_vsd"].isfinite() and output["loss_vsd"] > 0 and output["loss_lora"] > 0


def vsd(folder, **keys):
    torch.manual_seed(0)
    keys = {"pretrained_model_name_or_path": str(folder), "n_view": 4, **keys}
    return threestudio.find("turboprop-vsd-guidance")(keys)


def test_another_multi_view_model_for_the_renders_is_refused(tiny_mv_folder, tiny_sd_folder):
    with pytest.raises(ValueError, match="pretrained_model_name_or_path_lora: expected a text-to-image model"):
        vsd(tiny_sd_folder, n_view=1, pretrained_model_name_or_path_lora=str(tiny_mv_folder))


@pytest.mark.parametrize("own", [True, False])
def test_vsds_adapters_on_the_multi_view_network_itself(tiny_mv_folder, prompt_utils, own):
    """Named by its folder or not at all; the adapters learn, and the teacher stays as it was."""
    guidance = vsd(tiny_mv_folder, pretrained_model_name_or_path_lora="" if own else str(tiny_mv_folder))
    pristine = load_teacher(str(tiny_mv_folder))
    assert {name.split(".")[1] for name, _ in guidance.named_parameters()} == {"adapters"}
    utils, data = prompt_utils(), batch()
    optimizer = torch.optim.Adam(guidance.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        output = call(guidance, utils, data)
        output["loss_lora"].backward()
        assert all(p.grad.isfinite().all() for p in guidance.parameters())
        optimizer.step()
        losses.append(output["loss_lora"].item())
    assert data["rgb"].grad is None and losses[-1] < losses[0]
    (gradient,) = torch.autograd.grad(call(guidance, utils, data)["loss_vsd"], data["rgb"])
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    asked = conditions_of(guidance.cfg, guidance.teacher, utils, cameras_of(data)).positive
    noisy, timesteps = torch.randn(8, 4, 8, 8), torch.full((8,), 400)
    expected = pristine.predict_noise(noisy, timesteps, asked)
    assert torch.equal(guidance.teacher.predict_noise(noisy, timesteps, asked), expected)
    render = guidance.render_conditions(utils, cameras_of(data), data["mvp_mtx"])
    own_answer = guidance.lora.predict_noise(noisy, timesteps, render.positive)
    assert (own_answer - expected).abs().max() > 1e-3


def test_untrained_adapters_answer_as_the_multi_view_teacher(tiny_mv_folder, prompt_utils):
    """For each prompt, set and camera, and without cameras: VSD then is the classifier score, s - 1 times."""
    guidance, utils, data = vsd(tiny_mv_folder, guidance_scale=7.5), prompt_utils(), batch()
    asked = guidance.render_conditions(utils, cameras_of(data), data["mvp_mtx"])
    assert torch.equal(asked.positive.asked.embeddings, utils.local_embeddings.repeat_interleave(4, 0))
    assert asked.positive.num_views == 4 and (asked.unconditional.cameras == 0).all()
    teacher = guidance.teacher
    whole = teacher.condition(asked.positive.asked.embeddings, cameras_of(data), 4)
    noisy, timesteps = torch.randn(8, 4, 8, 8), torch.tensor([300, 800]).repeat_interleave(4)
    answer = guidance.lora.predict_noise(noisy, timesteps, asked.positive)
    torch.testing.assert_close(answer, teacher.predict_noise(noisy, timesteps, whole))
    plain = type(whole)(whole.embeddings, None, 4)
    blind = guidance.lora.predict_noise(noisy, timesteps, asked.unconditional)
    torch.testing.assert_close(blind, teacher.predict_noise(noisy, timesteps, plain))
    assert (blind - answer).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needs each view's c2w and fovy"):
        guidance.render_conditions(utils, dataclasses.replace(cameras_of(data), fovy=None), data["mvp_mtx"])


def test_samples_of_a_set_and_of_a_single_view(tiny_mv_folder, prompt_utils):
    """A validation batch is one view: it is drawn as a single view, and not refused."""
    guidance, utils, data = vsd(tiny_mv_folder), prompt_utils(), batch()
    rest = {name: value for name, value in data.items() if name != "rgb"}
    whole = guidance.sample(utils, **rest, num_steps=2)
    assert whole.shape[0] == guidance.sample_lora(utils, **rest, num_steps=2).shape[0] == 8
    one = prompt_utils(["a red chair"])
    first = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in rest.items()}
    for sample in (guidance.sample, guidance.sample_lora):
        picture = sample(one, **first, num_steps=2)
        assert picture.shape == (1, *whole.shape[1:]) and picture.isfinite().all()


def test_a_set_trains_at_one_noise_level_with_all_or_none_of_its_cameras(tiny_mv_folder, prompt_utils, monkeypatch):
    guidance, utils, data = vsd(tiny_mv_folder, lora_n_timestamp_samples=20), prompt_utils(), batch()
    asked = guidance.render_conditions(utils, cameras_of(data), data["mvp_mtx"]).positive
    seen = []
    monkeypatch.setattr(guidance.lora, "denoising_loss", lambda *given: seen.append(given) or torch.zeros(()))
    torch.manual_seed(0)
    guidance.training_loss(torch.randn(8, 4, 8, 8), asked)
    ((latents, _, timesteps, condition),) = seen
    assert latents.shape[0] == len(condition) == 160
    sets = timesteps.view(40, 4)
    assert (sets == sets[:, :1]).all() and len(sets[:, 0].unique()) > 20
    known = (condition.cameras != 0).any(-1).view(40, 4)
    assert (known == known[:, :1]).all() and 0 < (~known[:, 0]).sum() < 20
    assert torch.equal(condition.asked.embeddings, asked.asked.embeddings.repeat(20, 1, 1))


def test_each_view_is_asked_about_with_its_own_prompt_and_camera(tiny_mv_folder, prompt_utils):
    guidance = threestudio.find(ASD)({"ckpt_path": str(tiny_mv_folder)})
    utils, data = prompt_utils(), batch()
    conditions = guidance.conditions(utils, cameras_of(data))
    assert not torch.equal(utils.local_embeddings[0], utils.local_embeddings[1])
    for view in range(8):
        assert torch.equal(conditions.positive.embeddings[view], utils.local_embeddings[view // 4])
        assert torch.equal(conditions.unconditional.embeddings[view], utils.uncond_embeddings)
    numbers = camera_numbers(data["c2w"], data["fovy"], "mvdream")
    for condition in (conditions.positive, conditions.unconditional):
        assert torch.equal(condition.cameras, numbers) and condition.num_views == 4
    assert len(numbers.unique(dim=0)) == 8


def test_prompts_and_cameras_that_change_places_take_their_gradients_along(tiny_mv_folder, prompt_utils):
    """Two prompts of four views, handed to the guidance in both orders, at one timestep and with one noise."""
    guidance = threestudio.find(ASD)({"ckpt_path": str(tiny_mv_folder)})
    data = batch()
    latents, noise = torch.randn(2, 8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    t, later = torch.full((8,), 400), torch.full((8,), 430)

    def gradient(prompts: list[str], order: torch.Tensor) -> torch.Tensor:
        camera = Cameras(*(value[order] for value in vars(cameras_of(data)).values()))
        conditions = guidance.conditions(prompt_utils(prompts), camera)
        rows = (latents[order], conditions, t, noise[order], later)
        return METHODS["asd"](Query(guidance.teacher, *rows, guidance_scale=7.5, weighting="sds")).gradient

    swapped = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    straight, turned = gradient(PROMPTS, torch.arange(8)), gradient(PROMPTS[::-1], swapped)
    torch.testing.assert_close(turned, straight[swapped], rtol=1e-3, atol=1e-4)
    mismatched = gradient(PROMPTS[::-1], torch.arange(8))
    assert (mismatched - straight).abs().max() > 0.01


@pytest.mark.parametrize("shared", [False, True])
def test_timesteps_are_shared_within_a_set(shared, tiny_mv_folder):
    keys = {"pretrained_model_name_or_path": str(tiny_mv_folder), "n_view": 4, "shared_timesteps": shared}
    guidance = threestudio.find("turboprop-asd-guidance")({**keys, "plus_random": True})
    torch.manual_seed(0)
    for steps in guidance.schedule.draw(40):
        sets = steps.reshape(10, 4)
        assert (sets == sets[:, :1]).all()
        assert len(sets[:, 0].unique()) == (1 if shared else 10)
    with pytest.raises(ValueError, match="n_view: expected a batch of whole sets of 4 views, got 6 views"):
        guidance.schedule.draw(6)


def test_mvdreams_guidances_ask_about_one_timestep_a_step(tiny_mv_folder):
    for name in (ASD, SDS):
        guidance = threestudio.find(name)({"ckpt_path": str(tiny_mv_folder)})
        assert all(len(steps.unique()) == 1 for steps in guidance.schedule.draw(8))


def test_pictures_of_the_guidance_are_whole_sets(tiny_mv_folder, prompt_utils):
    guidance = threestudio.find(ASD)({"ckpt_path": str(tiny_mv_folder), "max_items_eval": 5})
    shown = call(guidance, prompt_utils(), batch(), guidance_eval=True)["eval"]
    assert shown["bs"] == 4 and len(shown["imgs_1step"]) == 4


def test_another_size_of_picture(tiny_mv_folder, prompt_utils):
    guidance = threestudio.find(SDS)({"ckpt_path": str(tiny_mv_folder), "image_size": 24})
    renders = renders_for(guidance.teacher, batch()["rgb"], False)
    assert renders.images.shape == (8, 3, 24, 24) and renders.latents.shape == (8, 4, 12, 12)
    assert call(guidance, prompt_utils(), batch())["loss_sds"].isfinite()


# ------------------------------------------------------------------------ reconstruction


def tiny_question(teacher, scale: float, **options) -> tuple:
    """Two sets of three views at two timesteps: this method's answer, SDS's, and what both were asked."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 6, 4, 8, 8, generator=generator)
    text, none = torch.randn(2, 6, 12, 16, generator=generator)
    c2w = torch.eye(4).repeat(6, 1, 1)
    c2w[:, :3, 3] = torch.randn(6, 3, generator=generator)
    angles = torch.zeros(6)
    cameras = Cameras(angles, angles, angles, c2w, angles + math.radians(40))
    conditions = Conditions(teacher.condition(text, cameras, 3), teacher.condition(none, cameras, 3))
    t = torch.tensor([100, 600]).repeat_interleave(3)
    query = Query(teacher, latents, conditions, t, noise, t, guidance_scale=scale, weighting="uniform")
    return reconstruction_gradient(query, **options), METHODS["sds"](query), latents, t


def test_without_rescaling_it_is_sds_by_the_noise_to_signal_ratio(tiny_mv_folder):
    teacher = load_teacher(str(tiny_mv_folder))
    own, sds, _, t = tiny_question(teacher, 20.0, n_view=3, std_rescale=0.0)
    abar = teacher.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(own.gradient, (1 / abar - 1).sqrt() * sds.gradient, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own.guided_noise, sds.guided_noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_clean_latents_get_the_spread_that_they_have_without_guidance(share, tiny_mv_folder):
    teacher = load_teacher(str(tiny_mv_folder))

    def clean(scale: float, part: float) -> torch.Tensor:
        own, _, latents, _ = tiny_question(teacher, scale, n_view=3, std_rescale=part)
        return latents - own.gradient

    plain, guided, rescaled = clean(1.0, 0.0), clean(300.0, 0.0), clean(300.0, share)
    for first in (0, 3):  # set by set
        rows = slice(first, first + 3)
        whole = guided[rows] * plain[rows].std() / guided[rows].std()
        expected = share * whole + (1 - share) * guided[rows]
        torch.testing.assert_close(rescaled[rows], expected, rtol=1e-3, atol=1e-3)
        assert guided[rows].std() > 1.02 * plain[rows].std()


def test_the_spread_is_a_sets():
    latents = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    deviation = spread(latents, 3)
    assert deviation.shape == (6, 1, 1, 1)
    by_set = torch.stack([latents[:3].std(), latents[3:].std()])
    torch.testing.assert_close(deviation.flatten(), by_set.repeat_interleave(3))


def test_recon_loss_is_one_key(tiny_mv_folder, prompt_utils):
    keys = {"ckpt_path": str(tiny_mv_folder), "guidance_scale": 20.0}
    plain = threestudio.find(SDS)({**keys, "recon_loss": False})
    own = threestudio.find("turboprop-sds-guidance")(
        {
            "pretrained_model_name_or_path": str(tiny_mv_folder),
            "guidance_scale": 20.0,
            "n_view": 4,
            "shared_timesteps": True,
            "view_dependent_prompting": False,
        }  # fmt: skip
    )
    with_recon = threestudio.find(SDS)(keys)
    data, utils = batch(), prompt_utils()
    assert torch.equal(call(plain, utils, data)["loss_sds"], call(own, utils, data)["loss_sds"])
    assert not torch.equal(call(plain, utils, data)["loss_sds"], call(with_recon, utils, data)["loss_sds"])


# ------------------------------------------------------------------------------- errors


BAD = [
    ({"recon_std_rescale": 1.5}, "recon_std_rescale: expected between 0 and 1, got 1.5"),
    ({"camera_condition_type": "mvp"}, "camera_condition_type: expected one of rotation, got 'mvp'"),
    ({"model_name": "sd-v3"}, "model_name: expected one of sd-v2.1-base-4view, sd-v1.5-4view, got 'sd-v3'"),
    ({"method": "csd"}, "method: expected one of sds, got 'csd'"),
    ({"image_size": 25}, "image_size: expected a multiple of 2, got 25"),
    ({"n_view": 0}, "n_view: expected at least 1, got 0"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_impossible_values_are_named(changes, message, tiny_mv_folder):
    with pytest.raises(ValueError, match=message):
        threestudio.find(SDS)({"ckpt_path": str(tiny_mv_folder), **changes})


def test_a_model_of_single_views_is_refused(tiny_sd_folder):
    with pytest.raises(ValueError, match="guidance: expected a multi-view model, got .*tiny-sd"):
        threestudio.find(ASD)({"ckpt_path": str(tiny_sd_folder)})
    keys = {"pretrained_model_name_or_path": str(tiny_sd_folder), "n_view": 4}
    guidance = threestudio.find("turboprop-asd-guidance")(keys)
    with pytest.raises(ValueError, match="n_view: this teacher knows single views alone, expected 1, got 4"):
        guidance.teacher.condition(torch.zeros(4, 12, 16), None, 4)


def test_perp_neg_and_sets_do_not_go_together(tiny_mv_folder, prompt_utils):
    guidance = threestudio.find(ASD)({"ckpt_path": str(tiny_mv_folder), "view_dependent_prompting": True})
    with pytest.raises(ValueError, match="n_view: perp-neg works on single views"):
        call(guidance, prompt_utils(use_perp_neg=True), batch())


def test_an_unreachable_model_says_where_it_was_looked_for(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as caught:
        fetch_published("sd-v2.1-base-4view")
    for part in ("model_name", "MVDream/MVDream", "ashawkey/mvdream-sd2.1-diffusers", "ckpt_path"):
        assert part in str(caught.value)
