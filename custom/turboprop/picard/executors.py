"""Who computes the gradients of a window: this process alone, or all ranks of a torch.distributed group."""

from __future__ import annotations

import importlib.util
import zlib
from dataclasses import replace
from typing import Callable, Dict, List, Optional, Protocol, Sequence

import torch
from torch import Tensor, nn

from threestudio.utils.errors import UserError

from .engine.state import Evaluation, Gradients, Point, Tensors, all_finite
from .processes.communication import Communication
from .processes.exchange import collect, distribute
from .processes.sharding import Sharding


class SlotExecutor(Protocol):
    """Computes the slots that are one process's own."""

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        """The gradients at all points."""

    def bind(self, trained: Dict[str, nn.Parameter], values: Tensors) -> Dict[str, nn.Parameter]:
        """Gives a slot's values to the system's parameters. Returns those that the slot's gradients come to."""

    def backward(self, loss: Tensor) -> None:
        """Goes back from a slot's loss []; its gradients are there afterwards."""


def local_executor(name: str, system: nn.Module, evaluate: Callable[[Point], Evaluation]) -> SlotExecutor:
    """The executor of `system.picard.executor`."""
    if name == "in_process":
        return InProcess(evaluate)
    if importlib.util.find_spec("greenlet") is None:
        raise UserError(f"system.picard.executor: {name} needs the package greenlet: pip install greenlet")
    from .batched.executor import Batched

    return Batched(system, evaluate)


class InProcess:
    """The slots one after another, on this process's device."""

    def __init__(self, evaluate: Callable[[Point], Evaluation]) -> None:
        self._evaluate = evaluate

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        return [self._evaluate(point) for point in points]

    def bind(self, trained: Dict[str, nn.Parameter], values: Tensors) -> Dict[str, nn.Parameter]:
        for name, parameter in trained.items():
            parameter.data = values[name]
        return trained

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Distributed:
    """Slot i is computed by rank i modulo the number of ranks. All ranks must call with points of the same steps.

    Points are this rank's shards of the states, and so are the gradients of the answer: before the evaluation a rank
    collects the parameters of its own slots, whole, and after it the gradients' slices go to the ranks that own them.
    Every rank computes, and every rank rolls out: none is a controller.
    """

    def __init__(
        self,
        evaluate: Callable[[Sequence[Point]], List[Evaluation]],  # whole points of this rank's own slots
        communication: Communication,
        sharding: Sharding,  # to be exchanged where the parameters are
        dtype: Optional[torch.dtype] = None,  # of gradients on their way; None: as they are
    ) -> None:
        self.sharding = sharding
        self._evaluate = evaluate
        self._communication = communication
        self._dtype = dtype

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        mine = collect(self._communication, self.sharding, points)
        evaluations = [self._on_its_way(evaluation) for evaluation in self._evaluate(mine)] if mine else []
        return distribute(self._communication, self.sharding, evaluations, len(points))

    def _on_its_way(self, evaluation: Evaluation) -> Evaluation:
        """With gradients rounded to the type that they travel in, for the rank too that has computed them."""
        if self._dtype is None:
            return evaluation
        rounded: Gradients = {
            name: None if value is None else value.to(self._dtype) for name, value in evaluation.gradients.items()
        }
        return replace(evaluation, gradients=rounded, finite=evaluation.finite and all_finite(rounded))


def checksum(parameters: Tensors) -> int:
    """A CRC-32 of the bits of all tensors."""
    total = 0
    for value in parameters.values():
        flat = value.detach().reshape(-1).view(torch.uint8).cpu()
        total = zlib.crc32(flat.numpy(), total)
    return total


def check_agreement(communication: Communication, tensors: Tensors, step: int, what: str = "parameters") -> None:
    """Raises RuntimeError, naming the ranks, where not all ranks have the same bits."""
    found = communication.gather_objects(checksum(tensors))
    apart = [rank for rank, value in enumerate(found) if value != found[0]]
    if apart:
        names = ", ".join(map(str, apart))
        raise RuntimeError(f"picard: at step {step} the {what} of rank {names} are not those of rank 0")
