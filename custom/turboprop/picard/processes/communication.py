"""What ranks tell one another: every collective of Picard iterations is one of the few here.

All ranks of the group must call the same ones in the same order.
"""

from __future__ import annotations

import pickle
from typing import Any, List, NamedTuple, Optional, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 8  # bytes; every tensor in a row of bytes begins at a multiple


class Expected(NamedTuple):
    """A tensor that another rank sends."""

    elements: int
    dtype: torch.dtype


class Communication:
    """The ranks of a torch.distributed group, as one of them sees them; it counts what it sends."""

    def __init__(self, group: Optional[dist.ProcessGroup] = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0  # bytes to other ranks so far

    def exchange(
        self,
        parts: Sequence[Sequence[Tensor]],  # for each rank, what goes to it: tensors of any shape and type
        expected: Sequence[Sequence[Expected]],  # for each rank, what it sends
        device: torch.device,  # of all of them; the group's backend must know it
    ) -> List[List[Tensor]]:
        """What each rank has for this one, flat. All goes at once, as rows of bytes."""
        rows = [[as_bytes(tensor) for tensor in part] for part in parts]
        given = [sum(row.numel() for row in part) for part in rows]
        lengths = [sum(byte_length(*of) for of in part) for part in expected]
        self.sent += sum(given) - given[self.rank]
        sent = torch.cat([torch.empty(0, dtype=torch.uint8, device=device), *(row for part in rows for row in part)])
        received = sent.new_empty(sum(lengths))
        dist.all_to_all_single(received, sent, lengths, given, group=self.group)
        return [tensors_of(row, part) for row, part in zip(received.split(lengths), expected)]

    def gather_objects(self, mine: Any) -> List[Any]:
        """What each rank gives, by rank: small things that can be pickled, with tensors on the CPU."""
        self.sent += (self.size - 1) * len(pickle.dumps(mine))
        found: List[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' values, of any shape, in the order of the ranks: every rank gets the same bits."""
        self.sent += (self.size - 1) * values.numel() * values.element_size()
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values.contiguous(), group=self.group)
        return torch.stack(found).sum(0)


def as_bytes(values: Tensor) -> Tensor:
    """The numbers of a tensor as uint8 [byte_length]."""
    flat = values.detach().reshape(-1).view(torch.uint8)
    return F.pad(flat, (0, -flat.numel() % ALIGNMENT)) if flat.numel() % ALIGNMENT else flat


def byte_length(elements: int, dtype: torch.dtype) -> int:
    size = elements * dtype.itemsize
    return size + -size % ALIGNMENT


def tensors_of(row: Tensor, expected: Sequence[Expected]) -> List[Tensor]:
    """Flat views of the row's bytes."""
    found, start = [], 0
    for elements, dtype in expected:
        found.append(row[start : start + elements * dtype.itemsize].view(dtype))
        start += byte_length(elements, dtype)
    return found
