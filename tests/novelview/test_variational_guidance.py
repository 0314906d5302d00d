"""Variational score distillation by a novel-view model: its adapters are asked about the same picture and camera."""

import pytest
import torch
from turboprop.novelview.teacher import NovelViewTeacher

import threestudio
from tests.novelview.guidance_calls import FIXED, call, expected_gradient, picture_on_white

MATRICES = {"mvp_mtx": 2.0 * torch.eye(4).expand(2, 4, 4)}


@pytest.fixture(params=["zero123", "dino"])
def folder(request, tiny_zero123_folder):
    """A model in upstream's layout, and one with injected features."""
    return {"zero123": tiny_zero123_folder, "dino": "assets/novelview/mini-novelview"}[request.param]


@pytest.fixture()
def built(ball_picture):
    def build(folder, name="zero123-dino-vsd-guidance", **changes):
        place = {"cond_elevation_deg": 5.0, "cond_azimuth_deg": 10.0, "cond_camera_distance": 2.7}
        config = {"pretrained_model_name_or_path": str(folder), "cond_image_path": str(ball_picture), **place}
        return threestudio.find(name)({**config, **changes})

    return build


def without_camera(guidance):
    """Leaves the trained embedding of cameras without influence; adapters have none before they are trained."""
    for parameter in guidance.lora.camera_embedding.parameters():
        torch.nn.init.zeros_(parameter)
    return guidance


def test_untrained_it_is_the_classifiers_score(built, tiny_zero123_folder, ball_picture):
    """eps_phi is the conditional score then: u + s (c - u) - c, as CSD's s' (c - u) with s' = s - 1."""
    guidance = without_camera(built(tiny_zero123_folder, guidance_scale=4.0, **FIXED))
    output, rgb = call(guidance, **MATRICES)
    expected = expected_gradient(tiny_zero123_folder, picture_on_white(ball_picture), rgb.detach(), "csd", 3.0)
    torch.testing.assert_close(output["grad_norm"], expected.norm(), rtol=1e-4, atol=1e-6)


def test_its_weights_learn_the_renders_and_the_model_stays(built, folder):
    guidance, pristine = built(folder, **FIXED), NovelViewTeacher.from_pretrained(str(folder))
    optimizer = torch.optim.Adam(guidance.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output, rgb = call(guidance, **MATRICES)
        output["loss_lora"].backward()
        assert rgb.grad is None and all(p.grad.isfinite().all() for p in guidance.parameters())
        optimizer.step()
        losses.append(output["loss_lora"].item())
    assert losses[-1] < losses[0]
    output, rgb = call(guidance, **MATRICES)
    (gradient,) = torch.autograd.grad(output["loss_vsd"], rgb)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    asked = guidance.conditions(None, cameras()).positive
    size = pristine.latent_size
    noisy, timesteps = torch.randn(2, 4, size, size), torch.full((2,), 400)
    answer = guidance.teacher.predict_noise(noisy, timesteps, asked)
    assert torch.equal(answer, pristine.predict_noise(noisy, timesteps, asked))
    told = guidance.render_conditions(None, cameras(), MATRICES["mvp_mtx"]).positive
    assert (guidance.lora.predict_noise(noisy, timesteps, told) - answer).abs().max() > 1e-4


def cameras():
    from turboprop.teachers.contract import Cameras

    angles = torch.tensor([10.0, -20.0]), torch.tensor([30.0, 200.0]), torch.tensor([2.7, 2.7])
    return Cameras(*angles, torch.eye(4).expand(2, 4, 4))


def test_unified_has_it_under_other_names(built, tiny_zero123_folder):
    """One timestep for all samples; the adapters' loss is loss_train_phi."""
    unified = {**FIXED, "weighting_strategy": "uniform", "guidance_scale": 4.0}
    torch.manual_seed(0)
    guidance = built(tiny_zero123_folder, "zero123-unified-guidance", guidance_type="vsd", **unified)
    torch.manual_seed(0)
    own = {"shared_timesteps": True, "lora_cfg_training": False, "half_precision_weights": True}
    plain = built(tiny_zero123_folder, **unified, **own)
    output, expected = call(guidance, **MATRICES)[0], call(plain, **MATRICES)[0]
    assert {key for key in output if key.startswith("loss_")} == {"loss_sd", "loss_train_phi"}
    assert torch.equal(output["loss_sd"], expected["loss_vsd"])
    assert torch.equal(output["loss_train_phi"], expected["loss_lora"])
    assert guidance.optimizer_group == {"lr": 1e-4, "eps": 1e-8}
    kind = threestudio.find("zero123-unified-guidance")
    assert kind.returned_losses({"guidance_type": "vsd"}) == ("sd", "train_phi")
    assert built(tiny_zero123_folder, "zero123-unified-guidance").optimizer_group is None


def test_another_network_under_the_adapters_is_refused(built, tiny_zero123_folder, tiny_sd_folder):
    with pytest.raises(ValueError, match='pretrained_model_name_or_path_lora: expected "" or the name of the novel'):
        built(tiny_zero123_folder, pretrained_model_name_or_path_lora=str(tiny_sd_folder))
