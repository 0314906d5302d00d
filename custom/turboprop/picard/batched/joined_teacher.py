"""A teacher whose calls by several slots are one call."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any, Callable, Hashable, List, Optional, Sequence

import torch
from torch import Tensor

from ...teachers.contract import Teacher
from .context import TorchModes


class TeacherCall:
    """A question of one slot. Those of one key differ in their samples only."""

    patient = False

    def __init__(self, method: Callable[..., Tensor], arguments: Sequence[Any], modes: TorchModes) -> None:
        self.method = method
        self.arguments = arguments  # tensors [B, ...], conditions of B samples, or None
        self.key: Hashable = (method, tuple(map(signature, arguments)), modes)

    @property
    def count(self) -> int:
        """B."""
        return self.arguments[0].shape[0]


def signature(argument: Any) -> Hashable:
    """What has to be equal for two arguments to be put together along the batch."""
    if isinstance(argument, Tensor):
        return argument.shape[1:], argument.dtype, argument.device
    if is_dataclass(argument):
        return type(argument), tuple(signature(getattr(argument, field.name)) for field in fields(argument))
    if isinstance(argument, int):  # as the number of views of a set
        return argument
    return type(argument)


def joined(arguments: Sequence[Any]) -> Any:
    """The arguments of several calls at one place, along the batch."""
    first = arguments[0]
    if first is None or len(arguments) == 1:
        return first
    return torch.cat(list(arguments)) if isinstance(first, Tensor) else first.cat(arguments[1:])


def answer_calls(calls: Sequence[TeacherCall]) -> List[Tensor]:
    """One call for all; each gets its samples' part [B, ...], a tensor of its own.

    Raises RuntimeError where the teacher draws random numbers: nobody could say which slot's.
    """
    method = calls[0].method
    arguments = [joined(place) for place in zip(*(call.arguments for call in calls))]
    before = random_states(arguments[0].device)
    answer = method(*arguments)
    if not all(map(torch.equal, before, random_states(arguments[0].device))):
        teacher = type(method.__self__).__name__
        raise RuntimeError(
            f"picard: {teacher}.{method.__name__} draws random numbers, which slots that ask together cannot share; "
            f"define {teacher}.encoding_noise, or set system.picard.executor=in_process"
        )
    # Clones, as a slot may change its answer in place.
    return [part.clone() for part in answer.split([call.count for call in calls])]


def random_states(device: torch.device) -> List[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def joined_teacher(teacher: Teacher, ask: Callable[[Callable[..., Tensor], Sequence[Any]], Tensor]) -> Teacher:
    """A teacher to stand in another one's place: `ask` answers what its networks are asked, all else is as it was."""

    def encode(images: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        return ask(teacher.encode, (images, teacher.encoding_noise(images) if noise is None else noise))

    joined = copy.copy(teacher)
    joined.encode = encode
    joined.decode = lambda latents: ask(teacher.decode, (latents,))
    joined.predict_noise = lambda noisy, times, condition: ask(teacher.predict_noise, (noisy, times, condition))
    return joined
