"""Buffers that steps add to and that no gradient depends on, such as how often a Gaussian was seen.

They are no part of the state that slots begin with. What an accepted step adds stays in the process that has computed
it until totals are asked for. Then each process adds up a share of the elements, in the order of the steps, as one
process does: the bits are the same, and what travels is what a process's own steps have added.
"""

from __future__ import annotations

from torch import Tensor

from ..engine.state import Change, Changes, Tensors, changed
from ..system_buffers import SystemBuffers
from .communication import Communication, Expected
from .exchange import gather_parameters
from .sharding import Sharding

Kinds = dict[str, str]  # buffer's name: sum or max


class Accumulated:
    def __init__(self, communication: Communication | None) -> None:  # None: of one process
        self._communication = communication
        self._slots: dict[int, Changes] = {}  # of this process's slots of the round, by step
        self._kept: dict[int, Changes] = {}  # of accepted steps that this process has computed, by step
        self._missing = False  # in the buffers, something that any process keeps

    def begin_round(self) -> None:
        self._slots = {}

    def of_slot(self, step: int, changes: Changes) -> None:
        self._slots[step] = changes

    def accept(self, step: int, buffers: SystemBuffers) -> None:
        """At the true step, in all processes."""
        changes = self._slots.pop(step, {})
        if self._communication is None:
            buffers.apply(changes)
            return
        self._missing = True
        if changes:
            self._kept[step] = changes

    def add_up(self, buffers: SystemBuffers) -> None:
        """The buffers have all that accepted steps have added. All ranks must call."""
        if self._communication is None or not self._missing:
            return
        kept, self._kept, self._missing = sorted(self._kept.items()), {}, False
        noted = [(step, {name: change.kind for name, change in changes.items()}) for step, changes in kept]
        notes: list[list[tuple[int, Kinds]]] = self._communication.gather_objects(noted)
        named = {name for of in notes for _, kinds in of for name in kinds}
        if named:
            whole = {name: value for name, value in buffers.now().items() if name in named}
            buffers.install(totals(self._communication, whole, [changes for _, changes in kept], notes))


def totals(
    communication: Communication, whole: Tensors, mine: list[Changes], notes: list[list[tuple[int, Kinds]]]
) -> Tensors:
    """`whole` after the changes of all ranks' steps, of which this rank has `mine`; `notes` are of all, by rank."""
    sharding, ranks = Sharding(whole, communication.size), range(communication.size)
    own = sharding.owned(communication.rank)
    parts: list[list[Tensor]] = [
        [
            sharding.slice(changes[piece.name].value.to(sharding.dtypes[piece.name]), piece)
            for changes in mine
            for piece in sharding.owned(to)
            if piece.name in changes
        ]
        for to in ranks
    ]
    expected = [
        [Expected(p.elements, sharding.dtypes[p.name]) for _, kinds in of for p in own if p.name in kinds]
        for of in notes
    ]
    added: dict[int, Changes] = {}
    for of, tensors in zip(notes, map(iter, communication.exchange(parts, expected, sharding.device))):
        for step, kinds in of:
            added[step] = {
                piece.name: Change(kinds[piece.name], next(tensors).view(sharding.shape_of(piece)))
                for piece in own
                if piece.name in kinds
            }
    found = sharding.part(whole, communication.rank)
    for step in sorted(added):
        found = changed(found, added[step])
    return gather_parameters(communication, sharding, found)
