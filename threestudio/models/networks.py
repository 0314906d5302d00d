"""Encodings and small networks, made from config dictionaries in the form of tiny-cuda-nn.

Every encoding maps [N, n_input_dims] in [0, 1] to [N, n_output_dims]. All run in plain torch on any device;
the hash grid also has a Warp kernel and uses tinycudann where that is installed (see ops/hash_grid/).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.network_config import activation, check_known, errors_under, number, plain, whole_number
from threestudio.ops.hash_grid import HashGridLayout, hash_grid
from threestudio.ops.spherical_harmonics import real_spherical_harmonics
from threestudio.utils.base import Updateable
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.weight_names import renaming_hook, with_activations_counted


class Identity(nn.Module):
    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, ())
        self.n_input_dims = self.n_output_dims = n_input_dims

    def forward(self, x: Tensor) -> Tensor:
        return x


class Frequency(nn.Module):
    """sin and cos of 2^k pi x for k < n_frequencies, input by input (NeRF eq. 4, in tiny-cuda-nn's order)."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, ("n_frequencies",))
        self.n_input_dims = n_input_dims
        self.n_frequencies = whole_number(config, "n_frequencies", 12, 0)
        self.n_output_dims = n_input_dims * self.n_frequencies * 2
        self.register_load_state_dict_pre_hook(_without_empty_weights)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[..., None] * (math.pi * 2.0 ** torch.arange(self.n_frequencies, device=x.device))
        return torch.stack([angle.sin(), angle.cos()], -1).reshape(*x.shape[:-1], self.n_output_dims)


class ProgressiveBandFrequency(nn.Module, Updateable):
    """Frequency bands that fade in one after another over n_masking_step steps (Nerfies, Park et al. 2021, eq. 8).

    Bands are sin and cos of 2^k x, without NeRF's factor pi, ordered by band, then sine and cosine, then input:
    threestudio's, for its configs and checkpoints.
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, ("n_frequencies", "n_masking_step"))
        self.n_masking_step = whole_number(config, "n_masking_step", 0, 0)
        self.n_frequencies = whole_number(config, "n_frequencies", None, 0)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_input_dims * self.n_frequencies * 2
        self.register_buffer("band_weight", torch.ones(self.n_frequencies), persistent=False)
        if self.n_masking_step > 0:
            self.update_step(0, 0)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[..., None, :] * (2.0 ** torch.arange(self.n_frequencies, device=x.device))[:, None]  # [..., F, D]
        bands = torch.stack([angle.sin(), angle.cos()], -2)  # [..., F, 2, D]
        return (bands * self.band_weight[:, None, None]).flatten(-3)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.n_masking_step <= 0:
            return
        n = self.n_frequencies
        progress = global_step / self.n_masking_step * n - torch.arange(n, device=self.band_weight.device)
        self.band_weight = (1.0 - torch.cos(math.pi * progress.clamp(0, 1))) / 2.0


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of a unit direction that comes mapped to [0, 1]^3; degree^2 values."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, ("degree",))
        _check_three_inputs("SphericalHarmonics", n_input_dims)
        self.degree = whole_number(config, "degree", 4, 1)
        self.n_input_dims, self.n_output_dims = n_input_dims, self.degree**2
        self.register_load_state_dict_pre_hook(_without_empty_weights)

    def forward(self, x: Tensor) -> Tensor:
        return real_spherical_harmonics(x * 2.0 - 1.0, self.degree)


def _without_empty_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A hook before loading: tinycudann keeps an empty tensor for an encoding that has no weights."""
    weights = state_dict.get(prefix + "encoding.params")
    if weights is not None and not weights.numel():
        del state_dict[prefix + "encoding.params"]


class HashGrid(nn.Module):
    """Multiresolution hash grid with trainable features. ``backend``: auto, torch, warp or tinycudann."""

    KEYS = (
        "type",
        "n_levels",
        "n_features_per_level",
        "log2_hashmap_size",
        "base_resolution",
        "per_level_scale",
        "interpolation",
        "backend",
    )

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, self.KEYS)
        _check_three_inputs("HashGrid", n_input_dims)
        for name, only in (("interpolation", "Linear"), ("type", "Hash")):
            if config.get(name, only) != only:
                raise UserError(f"{name}: expected {only}, which alone is supported, got {config[name]!r}")
        self.layout = HashGridLayout(
            n_levels=whole_number(config, "n_levels", 16, 1),
            n_features=whole_number(config, "n_features_per_level", 2, 1),
            log2_hashmap_size=whole_number(config, "log2_hashmap_size", 19, 1),
            base_resolution=whole_number(config, "base_resolution", 16, 1),
            per_level_scale=number(config, "per_level_scale", 2.0),
        )
        self.backend = str(config.get("backend", "auto"))
        self.n_input_dims = n_input_dims
        self.n_output_dims = self.layout.n_levels * self.layout.n_features
        # Mueller et al. 2022, section 3: uniform in [-1e-4, 1e-4].
        self.params = nn.Parameter(torch.empty(self.layout.n_entries, self.layout.n_features).uniform_(-1e-4, 1e-4))
        # Those of a banded grid, and of tinycudann as threestudio holds it, are the same weights.
        self.register_load_state_dict_pre_hook(renaming_hook([(r"encoding\.params", "params")]))
        self.register_load_state_dict_pre_hook(self._table_of_row)

    @staticmethod
    def _table_of_row(module: HashGrid, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """A hook before loading: tinycudann has all numbers of the table in one row, entry by entry."""
        weights = state_dict.get(prefix + "params")
        if weights is not None and weights.shape == (module.params.numel(),):
            state_dict[prefix + "params"] = weights.view_as(module.params)

    def forward(self, x: Tensor, n_active_levels: int | None = None) -> Tensor:
        return hash_grid(x, self.params, self.layout, n_active_levels, backend=self.backend)


class ProgressiveBandHashGrid(nn.Module, Updateable):
    """A hash grid whose finer levels open one after another; levels still closed give zeros and cost nothing.

    Keys beside HashGrid's: start_level (open levels at first), start_step, update_steps (steps for each level).
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        own = ("start_level", "start_step", "update_steps")
        check_known(config, (*HashGrid.KEYS, *own))
        self.start_level, self.start_step, self.update_steps = (
            whole_number(config, name, None, least) for name, least in zip(own, (0, 0, 1))
        )
        self.encoding = HashGrid(n_input_dims, {k: v for k, v in config.items() if k not in own})
        self.n_input_dims, self.n_output_dims = n_input_dims, self.encoding.n_output_dims
        self.n_level = self.encoding.layout.n_levels
        self.register_load_state_dict_pre_hook(renaming_hook([("params", "encoding.params")]))
        self.current_level = self._level_at(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x, self.current_level)

    @property
    def grid_resolution(self) -> float:
        """Cells along an axis of the finest open level."""
        layout = self.encoding.layout
        return layout.base_resolution * layout.per_level_scale ** (self.current_level - 1)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        level = self._level_at(global_step)
        if level > self.current_level:
            threestudio.debug(f"hash grid: level {level} of {self.n_level} opens")
        self.current_level = level

    def _level_at(self, global_step: int) -> int:
        opened = self.start_level + max(global_step - self.start_step, 0) // self.update_steps
        return max(1, min(opened, self.n_level))


class TinyCudaNNEncoding(nn.Module):
    """Any other encoding of tiny-cuda-nn, where tinycudann is installed."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        import tinycudann

        self.n_input_dims = n_input_dims
        self.encoding = tinycudann.Encoding(n_input_dims, dict(config), dtype=torch.float32)
        self.n_output_dims = self.encoding.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.encoding(x)


class CompositeEncoding(nn.Module, Updateable):
    """An encoding and, with include_xyz, the input itself (scaled to [-1, 1]) before it."""

    def __init__(
        self, encoding: nn.Module, include_xyz: bool = False, xyz_scale: float = 2.0, xyz_offset: float = -1.0
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.include_xyz, self.xyz_scale, self.xyz_offset = include_xyz, xyz_scale, xyz_offset
        self.n_input_dims = encoding.n_input_dims
        self.n_output_dims = int(include_xyz) * self.n_input_dims + encoding.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encoding(x)
        if not self.include_xyz:
            return encoded
        return torch.cat([x * self.xyz_scale + self.xyz_offset, encoded], -1)


def _check_three_inputs(otype: str, n_input_dims: int) -> None:
    if n_input_dims != 3:
        raise UserError(f"otype: {otype} takes 3 inputs, got {n_input_dims}")


ENCODINGS: dict[str, type] = {
    "Identity": Identity,
    "Frequency": Frequency,
    "ProgressiveBandFrequency": ProgressiveBandFrequency,
    "SphericalHarmonics": SphericalHarmonics,
    "HashGrid": HashGrid,
    "ProgressiveBandHashGrid": ProgressiveBandHashGrid,
}


def get_encoding(n_input_dims: int, config: Mapping[str, Any]) -> CompositeEncoding:
    """Encoding from its config: ``otype`` and that type's keys, and ``include_xyz`` (default false).

    Raises UserError, with the full key, for an entry that is unknown or impossible.
    """
    options = plain(config)
    otype = options.pop("otype", None)
    include_xyz = bool(options.pop("include_xyz", False))
    with errors_under(config, "encoding"):
        if otype in ENCODINGS:
            encoding = ENCODINGS[otype](n_input_dims, options)
        elif torch.cuda.is_available() and importlib.util.find_spec("tinycudann") is not None:
            encoding = TinyCudaNNEncoding(n_input_dims, {"otype": otype, **options})
        else:
            message = f"otype: unknown encoding {otype!r} (other encodings of tiny-cuda-nn need tinycudann and CUDA)"
            raise UserError(with_suggestion(message, str(otype), ENCODINGS))
    return CompositeEncoding(encoding, include_xyz)


def _layer_sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Width and number of the hidden layers."""
    return whole_number(config, "n_neurons", 64, 1), whole_number(config, "n_hidden_layers", 1, 0)


class VanillaMLP(nn.Module):
    """Linear layers without bias. Runs in float32 under autocast too: fields are sensitive to rounding.

    Keys: n_neurons, n_hidden_layers, activation (a torch.nn.functional name in any case), output_activation.
    """

    def __init__(self, n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, ("activation", "output_activation", "n_neurons", "n_hidden_layers"))
        width, depth = _layer_sizes(config)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.activation = activation(config, "activation", "ReLU")
        self.output_activation = activation(config, "output_activation", None)
        sizes = [n_input_dims] + [width] * depth + [n_output_dims]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in zip(sizes[:-1], sizes[1:]))
        self.register_load_state_dict_pre_hook(with_activations_counted)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.layers[0].weight.dtype)
            for layer in self.layers[:-1]:
                x = self.activation(layer(x))
            return self.output_activation(self.layers[-1](x))


class SphereInitVanillaMLP(nn.Module):
    """A network that starts as the signed distance to a sphere (Atzmon and Lipman 2020, SAL, theorem 1).

    Keys: n_neurons, n_hidden_layers, sphere_init_radius (default 0.5), sphere_init (default true), inside_out
    (default false), weight_norm (default true), output_activation. The first three inputs must be the position
    (include_xyz).
    """

    KEYS = (
        "activation",
        "output_activation",
        "n_neurons",
        "n_hidden_layers",
        "sphere_init",
        "sphere_init_radius",
        "inside_out",
        "weight_norm",
    )

    def __init__(self, n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_known(config, self.KEYS)
        width, depth = _layer_sizes(config)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.output_activation = activation(config, "output_activation", None)
        sizes = [n_input_dims] + [width] * depth + [n_output_dims]
        layers = [nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:])]
        if config.get("sphere_init", True):
            _sphere_init(layers, number(config, "sphere_init_radius", 0.5), bool(config.get("inside_out", False)))
        if config.get("weight_norm", True):
            layers = [nn.utils.parametrizations.weight_norm(layer) for layer in layers]
        self.layers = nn.ModuleList(layers)
        self.register_load_state_dict_pre_hook(with_activations_counted)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.layers[0].weight.dtype)
            for layer in self.layers[:-1]:
                x = F.softplus(layer(x), beta=100)
            return self.output_activation(self.layers[-1](x))


def _sphere_init(layers: Iterable[nn.Linear], radius: float, inside_out: bool) -> None:
    *hidden, last = layers
    for k, layer in enumerate(hidden):
        nn.init.zeros_(layer.bias)
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.out_features))
        if k == 0:  # only the position speaks at first
            nn.init.zeros_(layer.weight[:, 3:])
    sign = -1.0 if inside_out else 1.0
    nn.init.normal_(last.weight, sign * math.sqrt(math.pi / last.in_features), 1e-4)
    nn.init.constant_(last.bias, -sign * radius)


NETWORKS: dict[str, type] = {
    "VanillaMLP": VanillaMLP,
    "SphereInitVanillaMLP": SphereInitVanillaMLP,
    # tiny-cuda-nn's two networks are bias-free linear layers too; here they run as such.
    "FullyFusedMLP": VanillaMLP,
    "CutlassMLP": VanillaMLP,
}


def get_mlp(n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> nn.Module:
    """Network [N, n_input_dims] -> [N, n_output_dims] from its config: ``otype`` and that type's keys.

    Raises UserError as `get_encoding` does.
    """
    options = plain(config)
    otype = options.pop("otype", None)
    with errors_under(config, "mlp_network_config"):
        if otype not in NETWORKS:
            raise UserError(with_suggestion(f"otype: unknown network {otype!r}", str(otype), NETWORKS))
        return NETWORKS[otype](n_input_dims, n_output_dims, options)


class NetworkWithInputEncoding(nn.Module, Updateable):
    def __init__(self, encoding: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoding, self.network = encoding, network
        self.n_input_dims, self.n_output_dims = encoding.n_input_dims, network.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.encoding(x))


def create_network_with_input_encoding(
    n_input_dims: int, n_output_dims: int, encoding_config: Mapping[str, Any], network_config: Mapping[str, Any]
) -> NetworkWithInputEncoding:
    """Encoding and network in one module: [N, n_input_dims] in [0, 1] -> [N, n_output_dims]."""
    encoding = get_encoding(n_input_dims, encoding_config)
    return NetworkWithInputEncoding(encoding, get_mlp(encoding.n_output_dims, n_output_dims, network_config))
