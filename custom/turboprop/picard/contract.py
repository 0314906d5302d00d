"""What parts of a system may tell about themselves, so that windows fit them. All of it is optional."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class AccumulatesBuffers(Protocol):
    """A module with buffers that steps add to and that no gradient depends on."""

    accumulated_buffers: Mapping[str, str]  # buffer's name: "sum" or "max" (of values that are never negative)


@runtime_checkable
class UpdatesBuffersAlone(Protocol):
    """A module whose `update_step` does nothing but change buffers: where a slot's are taken over, it need not run.

    What is said is said of the `update_step` of the same class; one that overrides it has to say it again.
    """

    update_step_changes_buffers_alone: bool


@runtime_checkable
class ChangesStructure(Protocol):
    """A module whose parameters are now and then exchanged for others, of other shapes."""

    def next_structure_change(self, epoch: int, step: int) -> Optional[int]:
        """The first number of finished steps after `step` at which that may happen; None: never again."""


@runtime_checkable
class SetsLearningRates(Protocol):
    """A system that sets learning rates by the step itself, without a torch scheduler."""

    def set_learning_rates(self, optimizer: Any, epoch: int, step: int) -> None:
        """For the optimizer step that follows `step` finished ones; parameter groups are known by their names."""


@runtime_checkable
class LearnsFromRenders(Protocol):
    """A module whose weights learn from the renders of each step, as VSD's second teacher."""

    learns_from_renders: bool


@runtime_checkable
class SharesParameters(Protocol):
    """A module whose parameters others hold too that are no part of the system, such as layers of a frozen network."""

    def sharing_modules(self) -> Iterable[nn.Module]:
        """Those others."""


@runtime_checkable
class ReadsParameters(Protocol):
    """A system, a module or a callback with hooks that look at parameters, or change them, after each true step: in
    several processes they are then gathered after each step, and not where they are known to be asked for alone.

    That is so without a word for what overrides `update_step_end`; False says that it needs none.
    """

    reads_parameters: bool


@runtime_checkable
class StepsTogether(Protocol):
    """A system whose processes make one run, all with the same update at each step."""

    processes_step_together: bool
