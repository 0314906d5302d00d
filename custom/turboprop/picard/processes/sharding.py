"""Who rolls out what: the elements of all parameters, one after another, cut into a shard for each rank.

An elementwise update of a slice is the slice of the update, so each rank moves its shard alone, moments included. What
is cut are the parameters one after another, not each of them, so that a rank has few tensors to update.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence

import torch
from torch import Tensor

from ..engine.distances import BLOCK
from ..engine.state import Moments, State, Tensors


class Piece(NamedTuple):
    """Elements of a parameter that a rank owns; none where start is stop."""

    name: str
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return self.stop - self.start


class Sharding:
    """The shards of all ranks. A shard has all parameters by name: whole ones in their shape, slices flat, and those
    that it has nothing of empty.

    Inside a parameter cuts lie at multiples of `block`, the piece that squared differences are summed by: so errors are
    the same bit for bit for any number of ranks.
    """

    def __init__(self, parameters: Tensors, ranks: int, block: int = BLOCK) -> None:
        self.shapes = {name: value.shape for name, value in parameters.items()}
        self.dtypes = {name: value.dtype for name, value in parameters.items()}
        self.device = next(iter(parameters.values())).device
        sizes = [shape.numel() for shape in self.shapes.values()]
        cuts = [cut(sizes, rank * sum(sizes) // ranks, block) for rank in range(1, ranks)]
        bounds = [0, *cuts, sum(sizes)]
        self.pieces: List[List[Piece]] = []  # by rank; one for each parameter, in their order
        for low, high in zip(bounds, bounds[1:]):
            begin, pieces = 0, []
            for name, size in zip(self.shapes, sizes):
                start, stop = (min(max(bound - begin, 0), size) for bound in (low, high))
                pieces.append(Piece(name, start, stop))
                begin += size
            self.pieces.append(pieces)

    def owned(self, rank: int) -> List[Piece]:
        """What a rank has something of; parameters without any element are rank 0's."""
        whole = [] if rank else [name for name, shape in self.shapes.items() if shape.numel() == 0]
        return [piece for piece in self.pieces[rank] if piece.elements > 0 or piece.name in whole]

    def shape_of(self, piece: Piece) -> torch.Size:
        shape = self.shapes[piece.name]
        return shape if piece.elements == shape.numel() else torch.Size([piece.elements])

    def is_shaped(self, value: Any, shape: torch.Size) -> bool:
        """Whether a moment is of elements; a count of steps is not, nor anything kept on another device."""
        return isinstance(value, Tensor) and value.shape == shape and value.device == self.device

    def slice(self, value: Tensor, piece: Piece) -> Tensor:
        """A rank's slice of a whole tensor, shaped as the parameter; it shares its memory."""
        if piece.elements == self.shapes[piece.name].numel():
            return value.detach()
        return value.detach().reshape(-1)[piece.start : piece.stop]

    def part(self, tensors: Tensors, rank: int) -> Tensors:
        """A rank's slices of whole tensors, by parameter; they share their memory."""
        return {piece.name: self.slice(tensors[piece.name], piece) for piece in self.pieces[rank]}

    def part_of_moments(self, moments: Moments, rank: int) -> Moments:
        """A rank's, copied: what is shaped as its parameter is cut as that, and the rest, a count of steps, is not."""
        found: Moments = {}
        for piece in self.owned(rank):
            if piece.name in moments:
                shape = self.shapes[piece.name]
                found[piece.name] = {
                    key: copied(self.slice(value, piece) if self.is_shaped(value, shape) else value)
                    for key, value in moments[piece.name].items()
                }
        return found

    def part_of_state(self, state: State, rank: int) -> State:
        """A rank's copy of its part; auxiliaries are all ranks'."""
        parameters = {name: value.clone() for name, value in self.part(state.parameters, rank).items()}
        return State(state.step, parameters, state.auxiliaries, self.part_of_moments(state.moments, rank))

    def join(self, parts: Sequence[Tensor], name: str) -> Tensor:
        """The whole parameter, or a tensor shaped as it, of its slices of the ranks that have some, in their order."""
        flat = parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
        return flat.view(self.shapes[name])


def cut(sizes: Sequence[int], target: int, block: int) -> int:
    """Where to cut tensors of these sizes, one after another, near `target`: between two or at a multiple of `block`
    in one."""
    begin = 0
    for size in sizes:
        if target < begin + size:
            inside = round((target - begin) / block) * block
            return begin + min(inside, size)
        begin += size
    return begin


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
