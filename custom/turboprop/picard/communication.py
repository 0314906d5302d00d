"""What ranks tell one another: every collective of Picard iterations is one of the few here.

All ranks of the group must call the same ones in the same order.
"""

from __future__ import annotations

import pickle
from typing import Any, List, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Communication:
    """The ranks of a torch.distributed group, as one of them sees them; it counts what it sends."""

    def __init__(self, group: Optional[dist.ProcessGroup] = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0  # bytes to other ranks so far

    def exchange(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> List[Tensor]:
        """Part r, one-dimensional, any length, goes to rank r; back comes what rank r has for this one.

        `lengths`: of what comes from each rank. All parts have one type and device.
        """
        given = [part.numel() for part in parts]
        self.sent += (sum(given) - given[self.rank]) * parts[0].element_size()
        received = parts[0].new_empty(sum(lengths))
        sent = torch.cat(list(parts))
        dist.all_to_all_single(received, sent, list(lengths), given, group=self.group)
        return list(received.split(list(lengths)))

    def gather_objects(self, mine: Any) -> List[Any]:
        """Of all ranks, by rank; small things that can be pickled, with tensors on the CPU."""
        self.sent += (self.size - 1) * len(pickle.dumps(mine))
        found: List[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """Of all ranks' values, of any shape, in the order of the ranks: so it is the same bit for bit everywhere."""
        self.sent += (self.size - 1) * values.numel() * values.element_size()
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values.contiguous(), group=self.group)
        return torch.stack(found).sum(0)
