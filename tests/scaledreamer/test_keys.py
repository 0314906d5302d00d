"""ScaleDreamer's keys build what ours build; what has no counterpart is an error that names the key."""

import math

import pytest
import torch
from turboprop.scaledreamer.geometries import synthesis_widths

import threestudio
from threestudio.utils.errors import UserError

FIELD = {
    "radius": 1.5, "normal_type": "finite_difference", "finite_difference_normal_eps": 0.02, "sdf_bias": "sphere",
    "sdf_bias_params": 0.7,
}  # fmt: skip
OUR_FIELD = {"radius": 1.5, "finite_difference_eps": 0.02, "sphere_radius": 0.7}
GRID = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4,
        "per_level_scale": 1.5}  # fmt: skip
PAIRS = {
    "3DConv-net": (
        {
            "space_generator_config": {
                "z_dim": 3, "w_dim": 6, "c_dim": 5, "num_layers": 2, "img_resolution": 4, "img_channels": 7,
                "channel_multiplier": 1,
            },
            "mlp_network_config": {"otype": "VanillaMLP", "activation": "ReLU", "output_activation": "none",
                                   "n_neurons": 9, "n_hidden_layers": 1},
        },
        {"noise_dim": 3, "style_dim": 6, "text_dim": 5, "channels": [512], "feature_dim": 7, "hidden_dim": 9},
    ),
    "Hyper-iNGP": (
        {
            "pos_encoding_config": GRID,
            "hypernet_config": {
                "c_dim": 5, "out_dims": {"sdf_weights": [9, 9, 1], "feature_weights": [9, 9, 3]}, "spectral_norm": True,
                "n_neurons": 6, "n_hidden_layers": 2,
            },
        },
        {"pos_encoding_config": GRID, "text_dim": 5, "hidden_dim": 9, "hidden_layers": 2, "spectral_norm": True,
         "hyper_dim": 6, "hyper_layers": 2},
    ),
    "Triplane-transformer-sdf": (
        {
            "space_generator_config": {
                "inner_dim": 12, "condition_dim": 5, "triplane_low_res": 4, "triplane_high_res": 8, "triplane_dim": 3,
                "num_layers": 1, "num_heads": 2, "mlp_ratio": 2, "local_text": False, "flash_attention": False,
            },
            "mlp_network_config": {"n_neurons": 9, "n_hidden_layers": 3},
        },
        {"inner_dim": 12, "text_dim": 5, "triplane_low_res": 4, "triplane_dim": 3, "num_layers": 1, "num_heads": 2,
         "mlp_ratio": 2.0, "local_text": False, "hidden_dim": 9, "hidden_layers": 3},
    ),
}  # fmt: skip


def built(name: str, keys: dict) -> dict:
    torch.manual_seed(0)
    geometry = threestudio.find(name)(keys)
    return {**geometry.state_dict(), "text_dim": torch.tensor(geometry.cfg.text_dim)}


@pytest.mark.parametrize("name", PAIRS)
def test_their_keys_build_what_ours_build(name):
    theirs, ours = PAIRS[name]
    first, second = built(name, {**FIELD, **theirs}), built(name, {**OUR_FIELD, **ours})
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_published_widths():
    assert synthesis_widths(128, 1) == [512, 512, 512, 256, 128, 64]
    assert synthesis_widths(256, 2) == [512, 512, 512, 512, 256, 128, 64]
    with pytest.raises(UserError, match="img_resolution: expected 4 or 8 .* or 256, got 100"):
        synthesis_widths(100, 1)


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("3DConv-net", {"space_generator_config": {"zdim": 3}}, "unknown key .*space_generator_config.zdim.*z_dim"),
        ("3DConv-net", {"space_generator_config": {"num_layers": 8}}, "space_generator_config.num_layers: expected"),
        ("3DConv-net", {"sdf_bias": 0.1}, "geometry.sdf_bias: expected null or sphere, got 0.1"),
        ("3DConv-net", {"normal_type": "pred"}, "geometry.normal_type: expected finite_difference, got 'pred'"),
        ("3DConv-net", {"mlp_network_config": {"activation": "SiLU"}}, "mlp_network_config.activation: expected relu"),
        ("Hyper-iNGP", {"hypernet_config": {"out_dims": {"sdf_weights": [64, 1]}}}, "feature_weights: a value is"),
        (
            "Hyper-iNGP",
            {"hypernet_config": {"out_dims": {"sdf_weights": [64, 1], "feature_weights": [32, 3]}}},
            "expected equal hidden layers of both",
        ),
        (
            "Hyper-iNGP",
            {"hypernet_config": {"out_dims": {"sdf_weights": [64, 2], "feature_weights": [64, 3]}}},
            "sdf_weights: expected 1 as the last number",
        ),
        (
            "Triplane-transformer-sdf",
            {"space_generator_config": {"triplane_low_res": 4, "triplane_high_res": 12}},
            "triplane_high_res: expected null or 8, got 12",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(name, keys, message):
    with pytest.raises(UserError, match=message):
        threestudio.find(name)(keys)


def test_the_renderers_sharpness_is_neus_own():
    """v of NeuS stands for exp(10 v): 0.340119 for 30."""
    geometry = threestudio.find("3DConv-net")(PAIRS["3DConv-net"][1])
    material = threestudio.find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid-mipnerf"})
    background = threestudio.find("turboprop-plain-background")({})
    parts = {"geometry": geometry, "material": material, "background": background}
    keys = {"radius": 2.0, "learned_variance_init": 0.340119, "use_volsdf": True, "trainable_variance": False}
    renderer = threestudio.find("generative-space-volsdf-volume-renderer")(keys, **parts)
    assert renderer.inv_std == pytest.approx(30, rel=1e-4)
    for key, value in {"estimator": "occgrid", "trainable_variance": True, "use_volsdf": False}.items():
        with pytest.raises(UserError, match=f"renderer.{key}: expected"):
            threestudio.find("generative-space-volsdf-volume-renderer")({**keys, key: value}, **parts)


def test_mip_nerfs_sigmoid():
    """Maps logits onto [-0.001, 1.001], so that 0 and 1 are finite logits."""
    from threestudio.utils.ops import get_activation

    logits = torch.tensor([-100.0, 0.0, math.log(1.001 / 0.001), 100.0], dtype=torch.double)
    values = get_activation("sigmoid-mipnerf")(logits)
    torch.testing.assert_close(values, torch.tensor([-0.001, 0.5, 1.0, 1.001], dtype=torch.double), atol=1e-9, rtol=0)


def test_the_eikonal_regulariser_is_of_all_samples():
    """ScaleDreamer's mean is over all samples of the rays. Over the shaded ones alone, which lie near the surface and
    are 45 of 100 at the first shape, each would count more than twice as much."""
    assert threestudio.find("generative-space-volsdf-volume-renderer").Config().eikonal_at == "rays"
