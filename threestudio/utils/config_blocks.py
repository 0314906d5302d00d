"""Blocks at the top of a config, beside `system` and `trainer`, that a plugin understands."""

from typing import Protocol, runtime_checkable

from omegaconf import DictConfig

import threestudio


@runtime_checkable
class UnderstandsBlock(Protocol):
    """A registered class to which a block at the top of configs belongs."""

    config_block: str  # its name

    def apply_config_block(self, config: DictConfig) -> None:
        """Takes the block out of a config that has it, and says the same with other keys. Called on the class."""


def apply_blocks(config: DictConfig) -> None:
    """Rewrites, in place, what belongs to plugins; interpolations are not resolved yet."""
    for owner in dict.fromkeys(threestudio.__modules__.values()):
        if isinstance(owner, UnderstandsBlock) and owner.config_block in config:
            owner.apply_config_block(config)
