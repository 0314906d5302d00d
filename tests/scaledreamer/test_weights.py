"""ScaleDreamer's checkpoints: weights under its names give what its networks compute.

The networks are written down here once more, in plain torch, as functions of such weights.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.ops.hash_grid import HashGridLayout, hash_grid

PROMPTS, POINTS, TEXT = 2, 40, 6
RADIUS, SPHERE = 2.0, 0.8
FIELD = {"radius": RADIUS, "sdf_bias": "sphere", "sdf_bias_params": SPHERE}
GRID = {"n_levels": 3, "log2_hashmap_size": 6, "base_resolution": 4, "per_level_scale": 1.5}
Weights = dict[str, Tensor]


def randn(*shape: int) -> Tensor:
    return 0.5 * torch.randn(shape)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return x @ weight.T / math.sqrt(weight.shape[1]) + weights[f"{name}.bias"]


def linear_weights(name: str, inputs: int, outputs: int) -> Weights:
    return {f"{name}.weight": randn(outputs, inputs), f"{name}.bias": randn(outputs)}


def networks(inputs: int, hidden: list[int]) -> Weights:
    """Those of distance and colour, layers counted with their activations."""
    weights = {}
    for name, outputs in (("sdf_network", 1), ("feature_network", 3)):
        widths = [inputs, *hidden, outputs]
        for layer, (i, o) in enumerate(zip(widths, widths[1:])):
            weights[f"{name}.layers.{2 * layer}.weight"] = randn(o, i)
    return weights


def read(weights: Weights, features: Tensor) -> tuple[Tensor, Tensor]:
    """Distance without its bias, and colour, of features [P, N, F]."""
    answers = []
    for name in ("sdf_network", "feature_network"):
        layers = [value for key, value in weights.items() if key.startswith(f"{name}.layers")]
        x = features
        for layer in layers[:-1]:
            x = torch.relu(x @ layer.T)
        answers.append(x @ layers[-1].T)
    return answers[0], answers[1]


# ------------------------------------------------------------------------------------------- 3DConv-net

WIDTH, STYLE, NOISE, CHANNELS = 512, 5, 4, 3  # its widths at 4^3 and 8^3 are fixed
SYNTHESIS = "space_generator.synthesis"


def conv_weights() -> Weights:
    mapping = "space_generator.mapping"
    weights = {
        f"{mapping}.w_avg": randn(STYLE), f"{SYNTHESIS}.first_block.const": randn(WIDTH, 4, 4, 4),
        **linear_weights(f"{mapping}.layers.0", NOISE, STYLE), **linear_weights(f"{mapping}.layers.1", STYLE, STYLE),
        **linear_weights(f"{mapping}.embed", STYLE + TEXT, STYLE),
    }  # fmt: skip
    for block, side in (("first_block", 4), ("blocks.0", 8)):
        for layer in ("conv0", "conv1", "torgb"):
            if (block, layer) == ("first_block", "conv0"):
                continue
            name, rgb = f"{SYNTHESIS}.{block}.{layer}", layer == "torgb"
            outputs, kernel = (CHANNELS, 1) if rgb else (WIDTH, 3)
            weights |= linear_weights(f"{name}.affine", STYLE, WIDTH)
            weights[f"{name}.weight"] = randn(outputs, WIDTH, kernel, kernel, kernel)
            weights[f"{name}.bias"] = randn(outputs)
            if not rgb:
                weights[f"{name}.noise_const"] = randn(side, side, side)
                weights[f"{name}.noise_strength"] = torch.ones(1)
    weights[f"{SYNTHESIS}.blocks.0.const_bias"] = randn(WIDTH, 8, 8, 8)
    return weights | networks(CHANNELS, [64])


def conv_layer(weights: Weights, name: str, x: Tensor, style: Tensor, demodulate: bool, double: bool = False) -> Tensor:
    """Each sample through a convolution whose kernel its style has scaled (StyleGAN2, equations 1 to 3)."""
    weight = weights[f"{name}.weight"]
    scale = linear(weights, f"{name}.affine", style)
    if not demodulate:
        scale = scale / math.sqrt(weight.shape[1])
    answers = []
    for sample, row in zip(x, scale):
        kernel = weight * row[None, :, None, None, None]
        if demodulate:
            kernel = kernel / kernel.square().sum((1, 2, 3, 4), keepdim=True).add(1e-8).sqrt()
        answers.append(F.conv3d(sample[None], kernel, padding=kernel.shape[-1] // 2))
    answer = torch.cat(answers)
    if double:
        answer = F.interpolate(answer, scale_factor=2, mode="trilinear", align_corners=True)
    answer = answer + weights[f"{name}.bias"][:, None, None, None]
    return leaky(answer).clamp(-256, 256) if demodulate else answer


def conv_field(weights: Weights, points: Tensor, noise: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    style = noise / noise.square().mean(1, keepdim=True).add(1e-8).sqrt()
    for layer in (0, 1):
        style = leaky(linear(weights, f"space_generator.mapping.layers.{layer}", style))
    style = linear(weights, "space_generator.mapping.embed", torch.cat([style, text], 1))
    x = weights[f"{SYNTHESIS}.first_block.const"].repeat(PROMPTS, 1, 1, 1, 1)
    x = conv_layer(weights, f"{SYNTHESIS}.first_block.conv1", x, style, True)
    grid = conv_layer(weights, f"{SYNTHESIS}.first_block.torgb", x, style, False)
    block = f"{SYNTHESIS}.blocks.0"
    x = conv_layer(weights, f"{block}.conv0", x, style, True, double=True) + weights[f"{block}.const_bias"]
    x = conv_layer(weights, f"{block}.conv1", x, style, True)
    grid = F.interpolate(grid, scale_factor=2, mode="trilinear", align_corners=True)
    grid = grid + conv_layer(weights, f"{block}.torgb", x, style, False)
    found = F.grid_sample(grid, points[:, :, None, None] / RADIUS, align_corners=False)  # [P, C, N, 1, 1]
    return read(weights, found[..., 0, 0].transpose(1, 2))


# -------------------------------------------------------------------------------------------- Hyper-iNGP


def hyper_weights(spectral_norm: bool, deep: bool = False) -> Weights:
    features = 2 * GRID["n_levels"]
    made = features * 64 + 64 + features * 64 + 64 * 3
    weights = {
        "encoding.encoding.encoding.params": torch.randn(2 * HashGridLayout(**GRID).n_entries),
        "hypernet.layers.0.weight": randn(64, TEXT), "hypernet.layers.1.weight": randn(64),
        "hypernet.layers.1.bias": randn(64), "hypernet.layers.3.weight": randn(made, 64),
        "hypernet.layers.3.bias": randn(made),
    }  # fmt: skip
    if deep:  # a second hidden layer, which has a bias
        for part in ("weight", "bias"):
            weights[f"hypernet.layers.6.{part}"] = weights.pop(f"hypernet.layers.3.{part}")
            weights[f"hypernet.layers.4.{part}"] = randn(64)
        weights |= {"hypernet.layers.3.weight": randn(64, 64), "hypernet.layers.3.bias": randn(64)}
    if spectral_norm:
        for name in ("hypernet.layers.0", "hypernet.layers.3"):
            weight = weights.pop(f"{name}.weight")
            weights |= {
                f"{name}.weight_orig": weight,
                f"{name}.weight_u": F.normalize(randn(len(weight)), dim=0),
                f"{name}.weight_v": F.normalize(randn(weight.shape[1]), dim=0),
            }
    return weights


def hyper_matrix(weights: Weights, name: str) -> Tensor:
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"]
    matrix = weights[f"{name}.weight_orig"]
    return matrix / (weights[f"{name}.weight_u"] @ matrix @ weights[f"{name}.weight_v"])


def hyper_network(weights: Weights, text: Tensor) -> Tensor:
    x, last = text @ hyper_matrix(weights, "hypernet.layers.0").T, 3
    x = F.silu(F.layer_norm(x, (64,), weights["hypernet.layers.1.weight"], weights["hypernet.layers.1.bias"]))
    if "hypernet.layers.6.bias" in weights:
        x = x @ hyper_matrix(weights, "hypernet.layers.3").T + weights["hypernet.layers.3.bias"]
        x = F.silu(F.layer_norm(x, (64,), weights["hypernet.layers.4.weight"], weights["hypernet.layers.4.bias"]))
        last = 6
    return x @ hyper_matrix(weights, f"hypernet.layers.{last}").T + weights[f"hypernet.layers.{last}.bias"]


def hyper_field(weights: Weights, points: Tensor, noise: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    layout = HashGridLayout(**GRID)
    table = weights["encoding.encoding.encoding.params"].view(-1, 2)
    features = hash_grid((points / RADIUS / 2 + 0.5).reshape(-1, 3), table, layout, backend="torch")
    features = features.view(PROMPTS, POINTS, -1)
    made, count, answers = hyper_network(weights, text), features.shape[-1], []
    for outputs in (1, 3):
        first, made = made[:, : count * 64].view(-1, count, 64), made[:, count * 64 :]
        second, made = made[:, : 64 * outputs].view(-1, 64, outputs), made[:, 64 * outputs :]
        answers.append(torch.relu(features @ first) @ second)
    return answers[0], answers[1]


# ---------------------------------------------------------------------------------- Triplane-Transformer

DIM, HEADS, SIDE, PLANE = 8, 2, 4, 3


def triplane_weights() -> Weights:
    weights = {
        "space_generator.pos_embed": randn(1, 3 * SIDE**2, DIM),
        "space_generator.deconv.weight": randn(DIM, PLANE, 2, 2),
        "space_generator.norm.weight": 1 + randn(DIM), "space_generator.norm.bias": randn(DIM),
    }  # fmt: skip
    for layer in (0, 1):
        name = f"space_generator.layers.{layer}"
        for norm in ("norm1", "norm2", "norm3"):
            weights |= {f"{name}.{norm}.weight": 1 + randn(DIM), f"{name}.{norm}.bias": randn(DIM)}
        for attention, context in (("cross_attn", TEXT), ("self_attn", DIM)):
            for projection, inputs in (("to_q", DIM), ("to_k", context), ("to_v", context)):
                weights[f"{name}.{attention}.{projection}.weight"] = randn(DIM, inputs)
            weights |= linear_weights(f"{name}.{attention}.to_out.0", DIM, DIM)
        weights |= linear_weights(f"{name}.mlp.0", DIM, 4 * DIM) | linear_weights(f"{name}.mlp.3", 4 * DIM, DIM)
    return weights | networks(3 * PLANE, [64, 64])


def attended(weights: Weights, name: str, x: Tensor, context: Tensor) -> Tensor:
    query, key, value = (
        (tokens @ weights[f"{name}.{projection}.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for projection, tokens in (("to_q", x), ("to_k", context), ("to_v", context))
    )
    share = (query @ key.transpose(-1, -2) / math.sqrt(DIM // HEADS)).softmax(-1)
    out = (share @ value).transpose(1, 2).flatten(2)
    return F.linear(out, weights[f"{name}.to_out.0.weight"], weights[f"{name}.to_out.0.bias"])


def normed(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def triplane_field(weights: Weights, points: Tensor, noise: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    x = weights["space_generator.pos_embed"].repeat(PROMPTS, 1, 1)
    for layer in (0, 1):
        name = f"space_generator.layers.{layer}"
        x = x + attended(weights, f"{name}.cross_attn", normed(weights, f"{name}.norm1", x), text)
        before = normed(weights, f"{name}.norm2", x)
        x = x + attended(weights, f"{name}.self_attn", before, before)
        y = normed(weights, f"{name}.norm3", x)
        y = F.gelu(F.linear(y, weights[f"{name}.mlp.0.weight"], weights[f"{name}.mlp.0.bias"]))
        x = x + F.linear(y, weights[f"{name}.mlp.3.weight"], weights[f"{name}.mlp.3.bias"])
    x = normed(weights, "space_generator.norm", x).view(PROMPTS * 3, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    planes = F.conv_transpose2d(x, weights["space_generator.deconv.weight"], stride=2)
    planes = planes.view(PROMPTS, 3, *planes.shape[1:])
    unit = points / RADIUS
    found = [
        F.grid_sample(planes[:, index], unit[:, None, :, pair], align_corners=False)[:, :, 0].transpose(1, 2)
        for index, pair in enumerate(([0, 1], [0, 2], [2, 1]))  # EG3D's planes, as its authors' correction has them
    ]
    return read(weights, torch.cat(found, -1))


def hyper_config(spectral_norm: bool, layers: int = 1) -> dict:
    return {
        "pos_encoding_config": {"otype": "HashGrid", "n_features_per_level": 2, **GRID},
        "hypernet_config": {"c_dim": TEXT, "out_dims": {"sdf_weights": [64, 1], "feature_weights": [64, 3]},
                            "spectral_norm": spectral_norm, "n_neurons": 64, "n_hidden_layers": layers},
    }  # fmt: skip


NETWORKS = {
    "3DConv-net": (
        lambda: conv_weights(),
        conv_field,
        {"space_generator_config": {"z_dim": NOISE, "w_dim": STYLE, "c_dim": TEXT, "num_layers": 2,
                                    "img_resolution": 8, "img_channels": CHANNELS, "channel_multiplier": 1}},
    ),
    "Hyper-iNGP": (lambda: hyper_weights(False), hyper_field, hyper_config(False)),
    "Hyper-iNGP, spectral norm": (lambda: hyper_weights(True), hyper_field, hyper_config(True)),
    "Hyper-iNGP, two hidden layers": (lambda: hyper_weights(False, True), hyper_field, hyper_config(False, 2)),
    "Triplane-transformer-sdf": (
        triplane_weights,
        triplane_field,
        {"mlp_network_config": {"n_neurons": 64, "n_hidden_layers": 2},
         "space_generator_config": {"inner_dim": DIM, "condition_dim": TEXT, "triplane_low_res": SIDE,
                                    "triplane_high_res": 2 * SIDE, "triplane_dim": PLANE, "num_layers": 2,
                                    "num_heads": HEADS, "mlp_ratio": 4, "local_text": True}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_its_weights_give_its_answers(name):
    torch.manual_seed(0)
    weights_of, field, config = NETWORKS[name]
    weights = weights_of()
    geometry = threestudio.find(name.split(",")[0])({**FIELD, **config})
    box = torch.tensor([[-RADIUS] * 3, [RADIUS] * 3])
    result = geometry.load_state_dict({"bbox": box, **weights}, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    geometry.eval()
    points = torch.rand(PROMPTS, POINTS, 3) * 3 - 1.5  # outermost half voxels are zero there and go on here
    noise, text = torch.randn(PROMPTS, NOISE), torch.randn(PROMPTS, *([5] if "Triplane" in name else []), TEXT)
    distance, color = field(weights, points, noise, text)
    found = geometry(points, geometry.generate_space_cache(noise, text))
    distance = distance + points.norm(dim=-1, keepdim=True) - SPHERE
    for ours, theirs in ((found["sdf"], distance), (found["features"], color)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
def test_its_background_gives_its_answers():
    torch.manual_seed(0)
    weights = hyper_weights(False)
    features = 2 * GRID["n_levels"]
    made = features * 64 + 64 * 3
    weights |= {"hypernet.layers.3.weight": randn(made, 64), "hypernet.layers.3.bias": randn(made)}
    background = threestudio.find("multiprompt-neural-hashgrid-environment-map-background")(
        {"pos_encoding_config": {"otype": "HashGrid", "n_features_per_level": 2, **GRID},
         "hypernet_config": {"c_dim": TEXT, "out_dims": {"bg_weights": [64, 3]}}}
    )  # fmt: skip
    background.load_state_dict(weights)
    background.eval()
    dirs, text = F.normalize(torch.randn(PROMPTS, 3, 3, 3), dim=-1), torch.randn(PROMPTS, TEXT)
    table = weights["encoding.encoding.encoding.params"].view(-1, 2)
    read_by = hash_grid((dirs.reshape(-1, 3) + 1) / 2, table, HashGridLayout(**GRID), backend="torch")
    flat = hyper_network(weights, text)
    first, second = flat[:, : features * 64].view(-1, features, 64), flat[:, features * 64 :].view(-1, 64, 3)
    expected = torch.sigmoid(torch.relu(read_by.view(PROMPTS, 9, -1) @ first) @ second)
    torch.testing.assert_close(background(dirs, text), expected.view(PROMPTS, 3, 3, 3), rtol=1e-4, atol=1e-5)
