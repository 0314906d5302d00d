"""What travels between the ranks of a sharded state: a slot's parameters to the rank that evaluates it, slices of its
gradients to the ranks that own them, and all shards to all ranks where whole tensors are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..engine.state import (
    Change,
    Changes,
    Evaluation,
    Gradients,
    Moments,
    Point,
    Tensors,
    cloned,
)
from .communication import Communication, Expected
from .sharding import Sharding


def collect(communication: Communication, sharding: Sharding, points: Sequence[Point]) -> List[Point]:
    """The whole points of this rank's slots, from this rank's shards of all slots' points."""
    rank, ranks = communication.rank, communication.size
    own, mine = sharding.owned(rank), points[rank::ranks]
    parts = [[point.parameters[piece.name] for point in points[to::ranks] for piece in own] for to in range(ranks)]
    expected = [
        [Expected(piece.elements, sharding.dtypes[piece.name]) for _ in mine for piece in sharding.owned(of)]
        for of in range(ranks)
    ]
    arrived = [iter(tensors) for tensors in communication.exchange(parts, expected, sharding.device)]
    return [Point(point.step, joined(sharding, arrived), point.auxiliaries) for point in mine]


def joined(sharding: Sharding, arrived: Sequence[Iterator[Tensor]]) -> Tensors:
    """Whole parameters of the next slices from every rank."""
    slices: Dict[str, List[Tensor]] = {name: [] for name in sharding.shapes}
    for rank, tensors in enumerate(arrived):
        for piece in sharding.owned(rank):
            slices[piece.name].append(next(tensors))
    return {name: sharding.join(found, name) for name, found in slices.items()}


def distribute(
    communication: Communication, sharding: Sharding, evaluations: Sequence[Evaluation], slots: int
) -> List[Evaluation]:
    """All slots' evaluations, with this rank's slices of the gradients, from the evaluations of this rank's slots."""
    rank, ranks = communication.rank, communication.size
    notes: List[List[Note]] = communication.gather_objects([Note.of(evaluation) for evaluation in evaluations])
    parts = [
        [
            sharding.slice(evaluation.gradients[piece.name], piece)
            for evaluation in evaluations
            for piece in sharding.owned(to)
            if evaluation.gradients.get(piece.name) is not None
        ]
        for to in range(ranks)
    ]
    own = sharding.owned(rank)
    expected = [
        [Expected(p.elements, note.present[p.name]) for note in of for p in own if p.name in note.present]
        for of in notes
    ]
    arrived = [iter(tensors) for tensors in communication.exchange(parts, expected, sharding.device)]
    return [
        notes[slot % ranks][slot // ranks].evaluation(sharding, rank, arrived[slot % ranks]) for slot in range(slots)
    ]


@dataclass
class Note:
    """An evaluation without the numbers of its gradients; tensors lie on the CPU."""

    present: Dict[str, torch.dtype]  # names of the parameters that have a gradient, and its type
    finite: bool
    changes: Dict[str, Any]
    extra: Any
    seconds: float

    @staticmethod
    def of(evaluation: Evaluation) -> "Note":
        present = {name: value.dtype for name, value in evaluation.gradients.items() if value is not None}
        cpu = torch.device("cpu")
        changes, extra = moved(evaluation.changes, cpu), moved(evaluation.extra, cpu)
        return Note(present, evaluation.finite, changes, extra, evaluation.seconds)

    def evaluation(self, sharding: Sharding, rank: int, arrived: Iterator[Tensor]) -> Evaluation:
        """With a rank's slices of the gradients, the next ones of those that have arrived."""
        owned = {piece.name for piece in sharding.owned(rank)}
        gradients: Gradients = {}
        for piece in sharding.pieces[rank]:
            value = next(arrived) if piece.name in owned and piece.name in self.present else None
            if value is None and piece.name in self.present:
                value = torch.empty(0, device=sharding.device)
            shape, dtype = sharding.shape_of(piece), sharding.dtypes[piece.name]
            gradients[piece.name] = None if value is None else value.to(dtype).view(shape)
        changes: Changes = moved(self.changes, sharding.device)
        return Evaluation(gradients, changes, self.finite, moved(self.extra, sharding.device), self.seconds)


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


def gather_parameters(communication: Communication, sharding: Sharding, parameters: Tensors) -> Tensors:
    """On every rank the whole parameters, of this rank's shard."""
    own = [parameters[piece.name] for piece in sharding.owned(communication.rank)]
    expected = [
        [Expected(piece.elements, sharding.dtypes[piece.name]) for piece in sharding.owned(of)]
        for of in range(communication.size)
    ]
    arrived = communication.exchange([own] * communication.size, expected, sharding.device)
    return cloned(joined(sharding, [iter(tensors) for tensors in arrived]))


class MomentNote(NamedTuple):
    """A moment of a parameter: the type of its elements, or, where it has none (a count of steps), what it is."""

    name: str
    key: str
    dtype: Optional[torch.dtype]
    value: Any = None
    on_cpu: bool = True


def gather_moments(communication: Communication, sharding: Sharding, moments: Moments) -> Moments:
    """On every rank the whole moments, of this rank's shard."""
    sent: List[Tensor] = []
    noted: List[MomentNote] = []
    pieces = [{piece.name: piece for piece in sharding.owned(rank)} for rank in range(communication.size)]
    for name, piece in pieces[communication.rank].items():
        for key, value in moments.get(name, {}).items():
            if sharding.is_shaped(value, sharding.shape_of(piece)):
                sent.append(value)
                noted.append(MomentNote(name, key, value.dtype))
            else:
                on_cpu = not isinstance(value, Tensor) or value.device.type == "cpu"
                noted.append(MomentNote(name, key, None, moved(value, torch.device("cpu")), on_cpu))
    notes: List[List[MomentNote]] = communication.gather_objects(noted)
    expected = [
        [Expected(pieces[rank][note.name].elements, note.dtype) for note in of if note.dtype is not None]
        for rank, of in enumerate(notes)
    ]
    arrived = communication.exchange([sent] * communication.size, expected, sharding.device)
    found: Dict[Tuple[str, str], Any] = {}
    for of, tensors in zip(notes, map(iter, arrived)):
        for note in of:
            if note.dtype is not None:
                found.setdefault((note.name, note.key), []).append(next(tensors))
            else:
                found[note.name, note.key] = note.value if note.on_cpu else moved(note.value, sharding.device)
    whole: Moments = {}
    for (name, key), value in found.items():
        # Copied: a row that has arrived may hold tensors of several types, which torch.save refuses.
        whole.setdefault(name, {})[key] = sharding.join(value, name).clone() if isinstance(value, list) else value
    return whole
