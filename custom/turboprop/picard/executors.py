"""Who computes the gradients of a window: this process alone, or all ranks of a torch.distributed group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .state import Change, Changes, Evaluation, Gradients, Point, Tensors, all_finite


class InProcess:
    """The slots one after another, on this process's device."""

    def __init__(self, evaluate: Callable[[Point], Evaluation]) -> None:
        self._evaluate = evaluate

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        return [self._evaluate(point) for point in points]

    def bind(self, trained: Dict[str, nn.Parameter], values: Tensors) -> Dict[str, nn.Parameter]:
        """Gives a slot's values to the system's parameters. Returns those that the slot's gradients come to."""
        for name, parameter in trained.items():
            parameter.data = values[name]
        return trained

    def backward(self, loss: Tensor) -> None:
        """Of a slot's loss; its gradients are there afterwards."""
        loss.backward()


class Distributed:
    """Slot i is computed by rank i modulo the number of ranks; then every rank has the gradients of all slots.

    All ranks must call with the same points. Every rank computes, and every rank rolls out: none is a controller.
    """

    def __init__(
        self,
        evaluate: Callable[[Point], Evaluation],
        dtype: Optional[torch.dtype] = None,  # of gradients on their way; None: as they are
        group: Optional[dist.ProcessGroup] = None,
    ) -> None:
        self._evaluate = evaluate
        self._dtype = dtype
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        mine = [self._evaluate(point) for point in points[self.rank :: self.size]]
        layout = Layout(points[0].parameters)
        notes = self._gather_objects([Note.of(evaluation) for evaluation in mine])
        rows = -(-len(points) // self.size)  # a rank's slots, and empty ones up to the same number for all
        dtype = self._dtype or layout.dtype
        sent = torch.zeros(rows, layout.elements, dtype=dtype, device=layout.device)
        for row, evaluation in zip(sent, mine):
            layout.flatten(evaluation.gradients, row)
        gathered = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(gathered, sent, group=self._group)
        return [
            notes[slot % self.size][slot // self.size].evaluation(layout, gathered[slot % self.size][slot // self.size])
            for slot in range(len(points))
        ]

    def _gather_objects(self, mine: List["Note"]) -> List[List["Note"]]:
        found: List[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self._group)
        return found


class Layout:
    """Where each parameter's gradient lies in a flat row."""

    def __init__(self, parameters: Tensors) -> None:
        self._shapes = {name: value.shape for name, value in parameters.items()}
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self._dtypes = {name: value.dtype for name, value in parameters.items()}
        self.elements = sum(shape.numel() for shape in self._shapes.values())

    def flatten(self, gradients: Gradients, row: Tensor) -> None:  # [elements]
        start = 0
        for name, shape in self._shapes.items():
            value = gradients.get(name)
            if value is not None:
                row[start : start + shape.numel()].copy_(value.reshape(-1))
            start += shape.numel()

    def gradients(self, row: Tensor, present: Sequence[str]) -> Gradients:
        found: Gradients = {}
        start = 0
        for name, shape in self._shapes.items():
            part = row[start : start + shape.numel()].view(shape).to(self._dtypes[name])
            found[name] = part if name in present else None
            start += shape.numel()
        return found


@dataclass
class Note:
    """Of an evaluation, all but the numbers of the gradients; tensors lie on the CPU."""

    present: List[str]
    changes: Dict[str, Any]
    extra: Any

    @staticmethod
    def of(evaluation: Evaluation) -> "Note":
        present = [name for name, value in evaluation.gradients.items() if value is not None]
        cpu = torch.device("cpu")
        return Note(present, moved(evaluation.changes, cpu), moved(evaluation.extra, cpu))

    def evaluation(self, layout: Layout, row: Tensor) -> Evaluation:
        gradients = layout.gradients(row, self.present)
        changes: Changes = moved(self.changes, layout.device)
        return Evaluation(gradients, changes, all_finite(gradients), moved(self.extra, layout.device))


def moved(value: Any, device: torch.device) -> Any:
    """Tensors in mappings, lists, tuples, changes and things with a method `to`, moved."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Change):
        return Change(value.kind, value.value.to(device))
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    if type(value) is tuple:
        return tuple(moved(item, device) for item in value)
    return value.to(device) if isinstance(value, Movable) else value


class Movable:
    """Something that an evaluation carries along and that has tensors."""

    def to(self, device: torch.device) -> Any:
        raise TypeError(f"{type(self).__name__} does not say how it moves to {device}")


def checksum(parameters: Tensors) -> int:
    """Of the bits of all tensors."""
    total = 0
    for value in parameters.values():
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        weights = torch.arange(flat.numel(), device=flat.device) % 65521 + 1
        total = (total * 31 + int((flat.long() * weights).sum())) % 2**63
    return total


def check_agreement(parameters: Tensors, step: int, group: Optional[dist.ProcessGroup] = None) -> None:
    """Raises RuntimeError, naming the ranks, where not all ranks have the same bits."""
    found: List[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, checksum(parameters), group=group)
    apart = [rank for rank, value in enumerate(found) if value != found[0]]
    if apart:
        names = ", ".join(map(str, apart))
        raise RuntimeError(f"picard: at step {step} the parameters of rank {names} are not those of rank 0")
