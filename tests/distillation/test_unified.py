"""stable-diffusion-unified-guidance: SDS and VSD under other names, with its own weights."""

import pytest
import torch

import threestudio

FIXED = {"min_step_percent": 0.5, "max_step_percent": 0.5, "half_precision_weights": False}


@pytest.fixture()
def utils(tiny_sd_folder, text_cache):
    config = {"prompt": "a red chair", "pretrained_model_name_or_path": str(tiny_sd_folder)}
    return threestudio.find("stable-diffusion-prompt-processor")(config)()


def build(name, folder, **changes):
    torch.manual_seed(2)  # adapters are drawn
    return threestudio.find(name)({"pretrained_model_name_or_path": str(folder), **FIXED, **changes})


def call(guidance, utils, seed=1):
    rgb = torch.rand(2, 12, 12, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    batch = {
        "elevation": torch.tensor([10.0, 20.0]),
        "azimuth": torch.tensor([100.0, 0.0]),
        "camera_distances": torch.ones(2),
        "mvp_mtx": torch.eye(4).expand(2, 4, 4),
        "c2w": torch.eye(4).expand(2, 4, 4),
        "fovy": torch.ones(2),
        "height": 12,
    }
    torch.manual_seed(seed)
    return guidance(rgb, utils, **batch, rgb_as_latents=False), rgb


def test_sds_under_other_names(tiny_sd_folder, utils):
    """Its gradient is that of the project's own SDS at the same scale, times 1 - sqrt(abar) over 1 - abar."""
    plain = call(
        build(
            "turboprop-sds-guidance",
            tiny_sd_folder,
            guidance_scale=7.5,
            shared_timesteps=True,
            weighting_strategy="uniform",
        ),
        utils,
    )[0]
    guidance = build("stable-diffusion-unified-guidance", tiny_sd_folder, guidance_scale=7.5, use_img_loss=False)
    output, rgb = call(guidance, utils)
    signal = guidance.guidance.teacher.alphas_cumprod[500].sqrt()
    torch.testing.assert_close(output["grad_norm"], (1 - signal) * plain["grad_norm"], rtol=1e-4, atol=0)
    assert {key for key in output if key.startswith("loss_")} == {"loss_sd"}
    output["loss_sd"].backward()
    assert rgb.grad.abs().max() > 0
    assert not list(guidance.parameters()) and not guidance.state_dict()


def test_the_loss_on_pictures_is_on_by_default(tiny_sd_folder, utils):
    output, _ = call(build("stable-diffusion-unified-guidance", tiny_sd_folder), utils)
    assert {key for key in output if key.startswith("loss_")} == {"loss_sd", "loss_sd_img"}


def test_vsd_trains_adapters_by_loss_train_phi(tiny_sd_folder, utils):
    guidance = build(
        "stable-diffusion-unified-guidance", tiny_sd_folder, guidance_type="vsd", guidance_scale=7.5, use_img_loss=False
    )
    own = build(
        "turboprop-vsd-guidance",
        tiny_sd_folder,
        guidance_scale=7.5,
        lora_cfg_training=False,
        shared_timesteps=True,
        weighting_strategy="unified_dreamfusion",
    )
    output, expected = call(guidance, utils)[0], call(own, utils)[0]
    assert torch.equal(output["loss_sd"], expected["loss_vsd"])
    assert torch.equal(output["loss_train_phi"], expected["loss_lora"])
    output["loss_train_phi"].backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in guidance.parameters())


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_sets_of_views_by_a_multi_view_model(tiny_mv_folder, text_cache, kind):
    config = {"prompt": "a red chair", "pretrained_model_name_or_path": str(tiny_mv_folder)}
    utils = threestudio.find("stable-diffusion-prompt-processor")(config)()
    keys = {"guidance_type": kind, "guidance_scale": 7.5}
    both, single = (
        call(build("stable-diffusion-unified-guidance", tiny_mv_folder, **keys, n_view=views), utils)[0]
        for views in (2, 1)
    )
    assert both["loss_sd"].isfinite() and not torch.equal(both["loss_sd"], single["loss_sd"])  # views see each other
    with pytest.raises(ValueError, match="n_view: expected a number of views that is a multiple of 3, got 2"):
        call(build("stable-diffusion-unified-guidance", tiny_mv_folder, **keys, n_view=3), utils)


def test_keys_of_vsd_are_not_read_with_sds(tiny_sd_folder):
    keys = {"guidance_type": "sds", "vsd_use_camera_condition": False}
    guidance = build("stable-diffusion-unified-guidance", tiny_sd_folder, **keys)
    assert not any(parameter.requires_grad for parameter in guidance.parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"guidance_type": "asd"}, "guidance_type: expected one of sds, vsd, got 'asd'"),
        ({"controlnet_model_name_or_path": "x"}, "controlnet_model_name_or_path: not supported, got x"),
        ({"guidance_type": "vsd", "vsd_use_lora": False}, "vsd_use_lora: not supported; expected true, got false"),
        ({"return_rgb_multistep_orig": True}, "return_rgb_multistep_orig: not supported"),
        (
            {"guidance_type": "vsd", "vsd_camera_condition_type": "spherical"},
            "camera_condition_type: expected one of extrinsics, mvp",
        ),
        ({"guidance_scal": 1.0}, "unknown key 'guidance_scal'.*nearest: guidance_scale"),
    ],
)
def test_bad_configs_are_named(tiny_sd_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        build("stable-diffusion-unified-guidance", tiny_sd_folder, **changes)
