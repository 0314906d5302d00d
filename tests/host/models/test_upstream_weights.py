"""Weights under the names that they have in threestudio's checkpoints: tiny-cuda-nn's rows, layers counted with their
activations, nerfacc's grid."""

import pytest
import torch
from torch import nn

import threestudio
from threestudio.models.estimators import OccupancyGridEstimator
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.weight_names import renaming_hook

GRID = {"otype": "HashGrid", "n_levels": 3, "n_features_per_level": 2, "log2_hashmap_size": 6, "base_resolution": 4,
        "per_level_scale": 1.5}  # fmt: skip
BANDED = {**GRID, "otype": "ProgressiveBandHashGrid", "start_level": 2, "start_step": 0, "update_steps": 1}
BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def with_activations(layer: int, rest: str) -> str:
    return f"layers.{2 * layer}.{rest}"


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_layers_counted_with_activations(layers):
    config = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": layers}
    source, target = (get_mlp(4, 2, config) for _ in range(2))
    state = {with_activations(int(key.split(".")[1]), "weight"): value for key, value in source.state_dict().items()}
    assert len(state) == layers + 1
    target.load_state_dict(state)
    x = torch.rand(5, 4)
    assert torch.equal(source(x), target(x))
    target.load_state_dict(get_mlp(4, 2, config).state_dict())  # ours are taken as ever
    assert not torch.equal(source(x), target(x))


def test_layers_with_torchs_older_names_of_weight_norm():
    config = {"otype": "SphereInitVanillaMLP", "n_neurons": 8, "n_hidden_layers": 2}
    source, target = (get_mlp(4, 1, config) for _ in range(2))
    nn.init.normal_(source.layers[1].bias)
    old = {"bias": "bias", "parametrizations.weight.original0": "weight_g",
           "parametrizations.weight.original1": "weight_v"}  # fmt: skip
    state = {}
    for key, value in source.state_dict().items():
        _, layer, rest = key.split(".", 2)
        state[with_activations(int(layer), old[rest])] = value
    target.load_state_dict(state)
    x = torch.rand(5, 4)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("config", [GRID, BANDED])
def test_tiny_cuda_nns_row_of_numbers(config):
    source, target = (get_encoding(3, config) for _ in range(2))
    table = next(source.parameters())
    nn.init.normal_(table)
    target.load_state_dict({"encoding.encoding.params": table.detach().reshape(-1)})
    x = torch.rand(7, 3)
    assert torch.equal(source(x), target(x)) and source(x).abs().max() > 0.1


def test_a_row_of_another_length_is_no_table():
    with pytest.raises(RuntimeError, match="size mismatch for encoding.params"):
        get_encoding(3, GRID).load_state_dict({"encoding.encoding.params": torch.zeros(10)})


@pytest.mark.parametrize(
    "config", [{"otype": "SphericalHarmonics", "degree": 2}, {"otype": "Frequency", "n_frequencies": 2}]
)
def test_tinycudanns_empty_tensors_are_no_weights(config):
    get_encoding(3, config).load_state_dict({"encoding.encoding.params": torch.zeros(0)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        get_encoding(3, config).load_state_dict({"encoding.encoding.params": torch.zeros(1)})


def test_nerfaccs_grid_of_one_level():
    source, target = (OccupancyGridEstimator(BOX, 4) for _ in range(2))
    source.occs.copy_(torch.rand(64))
    source.binaries.copy_((source.occs > 0.5).view(4, 4, 4))
    state = {
        "resolution": torch.tensor([4, 4, 4]), "aabbs": BOX.reshape(1, 6), "occs": source.occs,
        "binaries": source.binaries[None],
    }  # fmt: skip
    target.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(source.buffers(), target.buffers()))


def test_a_whole_scene_of_threestudio():
    """An implicit volume as its checkpoint names it: nothing is missing, nothing is unknown, the same answers."""
    config = {"pos_encoding_config": GRID, "normal_type": "finite_difference"}
    source, target = (threestudio.find("implicit-volume")(config) for _ in range(2))
    nn.init.normal_(source.encoding.encoding.params)
    weights = source.state_dict()
    state = {"bbox": weights["bbox"]}
    state["encoding.encoding.encoding.params"] = weights["encoding.encoding.params"].reshape(-1)
    for network in ("density_network", "feature_network"):
        for layer in (0, 1):
            state[f"{network}.{with_activations(layer, 'weight')}"] = weights[f"{network}.layers.{layer}.weight"]
    target.load_state_dict(state)
    points = torch.rand(6, 3) * 2 - 1
    for name, value in source(points, output_normal=True).items():
        assert torch.equal(value, target(points, output_normal=True)[name]), name


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        rules = [("old", None), ("a", "left"), (r"(b)", lambda match: {"b": "right"}[match[1]])]
        self.register_load_state_dict_pre_hook(renaming_hook(rules))


def test_a_rule_renames_leaves_out_and_gives_way():
    pair = nn.Sequential(Pair())
    pair.load_state_dict({"0.old": torch.ones(9), "0.a": torch.ones(1), "0.b": torch.full((1,), 2.0)})
    assert (pair[0].left.item(), pair[0].right.item()) == (1.0, 2.0)
    with pytest.raises(RuntimeError, match="Unexpected key"):  # both names: ours counts, the other is not dropped
        pair.load_state_dict({"0.left": torch.ones(1), "0.a": torch.ones(1), "0.b": torch.ones(1)})
