"""Weights in eight bits: an integer for each weight, and a scale for each output channel.

A small model shipped with a repository takes half the room of 16 bits so. It computes in float32 all the same: the
weights are restored where they are read. Rounding moves a weight by at most half a scale, 1/254 of the largest weight
of its channel (of a channel whose weights are all under 0.008, by at most 3e-5). Vectors and small matrices stay in
half precision.
"""

from pathlib import Path

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

SCALE = "_scale"  # a scale's key is its weight's with this behind it
SMALLEST = 4096  # numbers that a tensor needs to be stored so
LARGEST = 127  # of an integer


def to_eight_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each large tensor [O, ...] as int8 of its shape and a scale [O] in half precision; the others in half precision.
    Raises ValueError for a key that ends as a scale's does."""
    stored: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith(SCALE):
            raise ValueError(f"{key}: no weight's name may end with {SCALE}")
        if value.dim() < 2 or value.numel() < SMALLEST:
            stored[key] = value.half()
            continue
        rows = value.float().flatten(1)
        # rounded to what is stored; at least the smallest normal half, so that a row of zeros divides by no zero
        scale = (rows.abs().amax(dim=1) / LARGEST).half().clamp_min(torch.finfo(torch.half).tiny)
        whole = (rows / scale.float()[:, None]).round().clamp(-LARGEST, LARGEST)
        stored[key], stored[key + SCALE] = whole.to(torch.int8).reshape(value.shape), scale
    return stored


def from_eight_bits(stored: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors that `to_eight_bits` was given, in float32; those that have other types are only cast.

    `where` names the file in messages. Raises ValueError for integers without a scale, or with one of another length.
    """
    tensors = {}
    for key, value in stored.items():
        if value.dtype != torch.int8:
            if key.removesuffix(SCALE) == key or key.removesuffix(SCALE) not in stored:
                tensors[key] = value.float()
            continue
        scale = stored.get(key + SCALE)
        if scale is None or scale.shape != value.shape[:1]:
            found = "none" if scale is None else list(scale.shape)
            raise UserError(f"{where}: {key} has int8 weights; expected a scale of shape [{len(value)}], got {found}")
        tensors[key] = value.float() * scale.float().reshape(-1, *[1] * (value.dim() - 1))
    return tensors


def has_eight_bits(path: Path) -> bool:
    """Whether a safetensors file holds int8 weights; it is read no further than its header."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return False
    with safe_open(path, framework="pt") as file:
        return any(file.get_slice(key).get_dtype() == "I8" for key in file.keys())
