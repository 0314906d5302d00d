"""Encodings and small networks, made from config dictionaries in the form of tiny-cuda-nn.

Every encoding maps [N, n_input_dims] in [0, 1] to [N, n_output_dims]. All run in plain torch on any device;
the hash grid also has a Warp kernel and uses tinycudann where that is installed (see ops/hash_grid/).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.ops.hash_grid import HashGridLayout, hash_grid
from threestudio.ops.spherical_harmonics import real_spherical_harmonics
from threestudio.utils.base import Updateable
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import shown


class Identity(nn.Module):
    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check_keys("encoding", config, ())
        self.n_input_dims = self.n_output_dims = n_input_dims

    def forward(self, x: Tensor) -> Tensor:
        return x


class Frequency(nn.Module):
    """sin and cos of 2^k pi x for k < n_frequencies, input by input (NeRF eq. 4, in tiny-cuda-nn's order)."""

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check_keys("encoding", config, ("n_frequencies",))
        self.n_input_dims = n_input_dims
        self.n_frequencies = int(config.get("n_frequencies", 12))
        self.n_output_dims = n_input_dims * self.n_frequencies * 2

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
        _check_keys("encoding", config, ("n_frequencies", "n_masking_step"))
        self.n_masking_step = int(config.get("n_masking_step", 0))
        self.n_frequencies = int(config["n_frequencies"])
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
        _check_keys("encoding", config, ("degree",))
        self.degree = int(config.get("degree", 4))
        if n_input_dims != 3 or self.degree < 1:
            raise UserError(
                f"SphericalHarmonics: expected 3 inputs and degree >= 1, got {n_input_dims} and {self.degree}"
            )
        self.n_input_dims, self.n_output_dims = n_input_dims, self.degree**2

    def forward(self, x: Tensor) -> Tensor:
        return real_spherical_harmonics(x * 2.0 - 1.0, self.degree)


def _renamed_weights(old: str, new: str) -> Callable[..., None]:
    """A hook before loading that takes the weights of one name for those of another: a hash grid's and a banded one's
    are the same, so each loads the other's, as in upstream."""

    def rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)

    return rename


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
        _check_keys("encoding", config, self.KEYS)
        if n_input_dims != 3:
            raise UserError(f"HashGrid: expected 3 inputs, got {n_input_dims}")
        if config.get("interpolation", "Linear") != "Linear" or config.get("type", "Hash") != "Hash":
            raise UserError("HashGrid: interpolation=Linear and type=Hash are what is supported")
        self.layout = HashGridLayout(
            n_levels=int(config.get("n_levels", 16)),
            n_features=int(config.get("n_features_per_level", 2)),
            log2_hashmap_size=int(config.get("log2_hashmap_size", 19)),
            base_resolution=int(config.get("base_resolution", 16)),
            per_level_scale=float(config.get("per_level_scale", 2.0)),
        )
        self.backend = str(config.get("backend", "auto"))
        self.n_input_dims = n_input_dims
        self.n_output_dims = self.layout.n_levels * self.layout.n_features
        # Mueller et al. 2022, section 3: uniform in [-1e-4, 1e-4].
        self.params = nn.Parameter(torch.empty(self.layout.n_entries, self.layout.n_features).uniform_(-1e-4, 1e-4))
        self.register_load_state_dict_pre_hook(_renamed_weights("encoding.params", "params"))

    def forward(self, x: Tensor, n_active_levels: int | None = None) -> Tensor:
        return hash_grid(x, self.params, self.layout, n_active_levels, backend=self.backend)


class ProgressiveBandHashGrid(nn.Module, Updateable):
    """A hash grid whose finer levels open one after another; levels still closed give zeros and cost nothing.

    Keys beside HashGrid's: start_level (open levels at first), start_step, update_steps (steps for each level).
    """

    def __init__(self, n_input_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        own = ("start_level", "start_step", "update_steps")
        _check_keys("encoding", config, (*HashGrid.KEYS, *own))
        for key in own:
            if key not in config:
                raise UserError(f"ProgressiveBandHashGrid: {key} is missing")
        self.start_level, self.start_step, self.update_steps = (int(config[key]) for key in own)
        if self.update_steps < 1:
            raise UserError(f"ProgressiveBandHashGrid: update_steps: expected >= 1, got {self.update_steps}")
        self.encoding = HashGrid(n_input_dims, {k: v for k, v in config.items() if k not in own})
        self.n_input_dims, self.n_output_dims = n_input_dims, self.encoding.n_output_dims
        self.n_level = self.encoding.layout.n_levels
        self.register_load_state_dict_pre_hook(_renamed_weights("params", "encoding.params"))
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


ENCODINGS: dict[str, type] = {
    "Identity": Identity,
    "Frequency": Frequency,
    "ProgressiveBandFrequency": ProgressiveBandFrequency,
    "SphericalHarmonics": SphericalHarmonics,
    "HashGrid": HashGrid,
    "ProgressiveBandHashGrid": ProgressiveBandHashGrid,
}


def get_encoding(n_input_dims: int, config: Mapping[str, Any]) -> CompositeEncoding:
    """Encoding from its config: ``otype`` and that type's keys, and ``include_xyz`` (default false)."""
    options = _plain(config)
    otype = options.pop("otype", None)
    include_xyz = bool(options.pop("include_xyz", False))
    if otype in ENCODINGS:
        encoding = ENCODINGS[otype](n_input_dims, options)
    elif torch.cuda.is_available() and importlib.util.find_spec("tinycudann") is not None:
        encoding = TinyCudaNNEncoding(n_input_dims, {"otype": otype, **options})
    else:
        message = f"unknown encoding otype {otype!r} (other encodings of tiny-cuda-nn need tinycudann and CUDA)"
        raise UserError(with_suggestion(message, str(otype), ENCODINGS))
    return CompositeEncoding(encoding, include_xyz)


def _layer_sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Width and number of the hidden layers. Raises UserError."""
    sizes = []
    for name, default, least in (("n_neurons", 64, 1), ("n_hidden_layers", 1, 0)):
        size = config.get(name, default)
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise UserError(f"mlp_network_config.{name}: expected a whole number from {least}, got {shown(size)}")
        sizes.append(size)
    return sizes[0], sizes[1]


class VanillaMLP(nn.Module):
    """Linear layers without bias. Runs in float32 under autocast too: fields are sensitive to rounding.

    Keys: n_neurons, n_hidden_layers, activation (a torch.nn.functional name in any case), output_activation.
    """

    def __init__(self, n_input_dims: int, n_output_dims: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check_keys("mlp_network_config", config, ("activation", "output_activation", "n_neurons", "n_hidden_layers"))
        width, depth = _layer_sizes(config)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.activation = get_activation(str(config.get("activation", "ReLU")).lower())
        self.output_activation = get_activation(config.get("output_activation"))
        sizes = [n_input_dims] + [width] * depth + [n_output_dims]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in zip(sizes[:-1], sizes[1:]))

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
        _check_keys("mlp_network_config", config, self.KEYS)
        width, depth = _layer_sizes(config)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.output_activation = get_activation(config.get("output_activation"))
        sizes = [n_input_dims] + [width] * depth + [n_output_dims]
        layers = [nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:])]
        if config.get("sphere_init", True):
            _sphere_init(layers, float(config.get("sphere_init_radius", 0.5)), bool(config.get("inside_out", False)))
        if config.get("weight_norm", True):
            layers = [nn.utils.parametrizations.weight_norm(layer) for layer in layers]
        self.layers = nn.ModuleList(layers)

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
    """Network [N, n_input_dims] -> [N, n_output_dims] from its config: ``otype`` and that type's keys."""
    options = _plain(config)
    otype = options.pop("otype", None)
    if otype not in NETWORKS:
        raise UserError(with_suggestion(f"unknown network otype {otype!r}", str(otype), NETWORKS))
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


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)


def _check_keys(owner: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in config:
        if key not in known:
            raise UserError(with_suggestion(f"unknown key in {owner} {key!r}", str(key), known))
