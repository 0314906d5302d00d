"""Which prompts' objects are being lost while a generator trains: none left, or the whole volume full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

FORGETTING = 0.7  # share of the old estimate that a new step keeps
STEPS_BEFORE = 5  # steps of a prompt before it is judged: a field begins as a ball


def covered_shares(prompts: int, opacity: Tensor) -> Tensor:  # [P * V, H, W, 1] -> [P]
    """The share of its pictures that each prompt's object covers."""
    return opacity.detach().mean(dim=(1, 2, 3)).reshape(prompts, -1).mean(1)


@dataclass
class LostObjects:
    """A running share of the picture that each prompt's object covers; which are outside `least`..`most`."""

    least: float
    most: float
    covered: dict[str, float] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # prompt: what became of it

    def update(self, prompts: Sequence[str], shares: Sequence[float]) -> list[str]:
        """Takes the shares that one step's prompts covered. Returns lines about what has just changed."""
        lines = []
        for prompt, share in zip(prompts, shares):
            self.seen[prompt] = self.seen.get(prompt, 0) + 1
            before = self.covered.get(prompt, share)
            now = self.covered[prompt] = FORGETTING * before + (1 - FORGETTING) * share
            if self.seen[prompt] < STEPS_BEFORE:
                continue
            state = "vanished" if now < self.least else "fills its volume" if now > self.most else ""
            if state and prompt not in self.lost:
                self.lost[prompt] = state
                lines.append(f'"{prompt}" is lost: it {state} (it covers {now:.1%} of its pictures)')
            elif not state and prompt in self.lost:
                del self.lost[prompt]
                lines.append(f'"{prompt}" is back (it covers {now:.1%} of its pictures)')
        return lines
