"""Hyper-iNGP of ScaleDreamer (arXiv 2407.02040, after ATT3D, arXiv 2306.07349): one hash grid, networks by prompt.

All prompts share the features of one hash grid. A hyper-network makes of a prompt's text the weights of the small
networks that read these features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class HyperNetwork(nn.Module):
    """Text [P, T] to the weights of bias-free networks, a list of [P, I, O] for each.

    A linear layer (the first without bias), LayerNorm and SiLU, `hidden_layers` times, then one linear layer to all
    weights.
    """

    def __init__(
        self, text_dim: int, hidden: int, hidden_layers: int, networks: list[list[int]], spectral_norm: bool = False
    ):
        """`networks`: the widths of each network, from its inputs to its outputs."""
        super().__init__()
        self.shapes = [list(zip(widths, widths[1:])) for widths in networks]
        count = sum(i * o for shapes in self.shapes for i, o in shapes)
        layers: list[nn.Module] = []
        for index in range(hidden_layers):
            linear = _linear(hidden if index else text_dim, hidden, index > 0, spectral_norm)
            layers += [linear, nn.LayerNorm(hidden), nn.SiLU()]
        self.layers = nn.Sequential(*layers, _linear(hidden, count, True, spectral_norm))

    def forward(self, text: Tensor) -> list[list[Tensor]]:
        flat, made, start = self.layers(text), [], 0
        for shapes in self.shapes:
            made.append([])
            for inputs, outputs in shapes:
                part = flat[:, start : start + inputs * outputs]
                made[-1].append(part.reshape(-1, inputs, outputs))
                start += inputs * outputs
        return made


def _linear(inputs: int, outputs: int, bias: bool, spectral_norm: bool) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return nn.utils.parametrizations.spectral_norm(layer) if spectral_norm else layer


def network_of_owner(x: Tensor, owner: Tensor, weights: list[Tensor]) -> Tensor:
    """Each row through the network of its prompt, with ReLU between layers.

    x [M, I], owner [M] in [0, P), weights [P, I, H], ..., [P, H, O] -> [M, O].
    """
    prompts = len(weights[0])
    if prompts == 1:
        return _network(x, [layer[0] for layer in weights])
    order = owner.argsort(stable=True)
    parts = x[order].split(torch.bincount(owner, minlength=prompts).tolist())
    out = torch.cat([_network(part, [layer[p] for layer in weights]) for p, part in enumerate(parts)])
    return torch.empty_like(out).index_copy(0, order, out)


def _network(x: Tensor, layers: list[Tensor]) -> Tensor:  # [M, I], [I, H] ... [H, O] -> [M, O]
    for layer in layers[:-1]:
        x = torch.relu(x @ layer)
    return x @ layers[-1]


@dataclass
class PromptHeads:
    """Networks from features to signed distance and colour logits, others for each prompt. The `Heads` of a field."""

    sdf: list[Tensor]  # [P, F, H], ..., [P, H, 1]
    color: list[Tensor]  # [P, F, H], ..., [P, H, C]
    sphere_radius: float  # world units

    def signed_distance(self, points: Tensor, features: Tensor, owner: Tensor) -> Tensor:
        return points.norm(dim=-1) - self.sphere_radius + network_of_owner(features, owner, self.sdf).squeeze(-1)

    def color_logits(self, features: Tensor, owner: Tensor) -> Tensor:
        return network_of_owner(features, owner, self.color)


class SharedSpace:
    """An encoding of the cube whose features are every prompt's. The `Space` of a field."""

    shared = True

    def __init__(self, encoding: nn.Module, prompts: int, resolution: int, like: Tensor):
        """`encoding`: [M, 3] in [0, 1] -> [M, F]. Points have the device and the type of `like`."""
        self.encoding, self.prompts, self.resolution = encoding, prompts, resolution
        self.device, self.dtype = like.device, like.dtype

    def features(self, points: Tensor, owner: Tensor) -> Tensor:
        return self.encoding((points * 0.5 + 0.5).clamp(0, 1)).to(self.dtype)

    def stored(self, resolution: int, first: int, count: int) -> Tensor | None:
        return None
