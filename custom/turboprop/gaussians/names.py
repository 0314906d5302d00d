"""Names of Gaussians that outlast changes of number, and random numbers that go by them.

Drawn in a row, the random numbers of all halves would change with every single decision to split: two runs that differ
in one Gaussian would differ in all. Drawn by name, they differ in that one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mixed(x: Tensor) -> Tensor:  # int64 of any shape
    """A bijection of 64 bits that leaves no pattern: the finalizer of SplitMix64 (Steele, Lea and Flood 2014, Fast
    Splittable Pseudorandom Number Generators, figure 17), with int64 that wraps around."""
    x = (x ^ _shifted(x, 30)) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    x = (x ^ _shifted(x, 27)) * -7723592293110705685  # 0x94d049bb133111eb
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left, as of unsigned integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def first_names(count: int, device: torch.device) -> Tensor:
    """[count] int64"""
    return torch.arange(count, device=device)


def children(names: Tensor, event: int, number: int) -> Tensor:  # [N] int64
    """[N] int64, other names for child `number` (0, 1, ...) of an event (a step)."""
    return mixed(mixed(names) + 2 * event + number + 1)


def normals_by_name(names: Tensor, key: int, columns: int) -> Tensor:  # [N] int64
    """[N, columns] float32, standard normal, a function of (name, key, column); Box and Muller 1958."""
    column = torch.arange(2 * columns, device=names.device)
    bits = mixed(mixed(names[:, None] ^ mixed(torch.tensor(key, device=names.device))) + column)
    uniform = (_shifted(bits, 11).double() + 0.5) / 2**53  # in (0, 1)
    radius = torch.sqrt(-2 * torch.log(uniform[:, :columns]))
    return (radius * torch.cos(2 * math.pi * uniform[:, columns:])).float()
