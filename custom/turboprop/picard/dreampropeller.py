"""`speedup:` at the top of a config: one of DreamPropeller's, which trains here by Picard iterations as it is.

    speedup: {P: 7, threshold: 30, ema_decay: 0.9, adaptivity_type: median}

Facts of its configs and launchers: arXiv 2311.17082, and github.com/alexzhou907/DreamPropeller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import threestudio
from threestudio.utils.errors import UserError

from .settings import SPEEDUP

MIXINS = ("picard", "turboprop-picard")
ITS_TRAINER_KEYS = ("visualize_progress", "display_time")  # of its own loop, which has no trainer
HALF_PRECISION = ("16", "16-mixed", "16-true")


@threestudio.register("turboprop-speedup-block")
class SpeedupBlock:
    """What the bundled host asks about blocks at the top of a config."""

    config_block = "speedup"

    @staticmethod
    def apply_config_block(config: Any) -> None:
        """Raises ValueError for an unknown key, naming it."""
        block = config.pop("speedup")
        if not isinstance(block, Mapping):
            raise UserError(f"speedup: expected a mapping with keys {', '.join(SPEEDUP)}, got {block!r}")
        for key in block:
            if key not in SPEEDUP:
                raise UserError(f"speedup.{key}: expected one of {', '.join(SPEEDUP)}")
        config.system_type = with_mixin(config.get("system_type", ""))
        config.merge_with({"system": {"picard": {"speedup": block}}})
        _one_optimizer(config.system)
        left_out = _plain_trainer(config.get("trainer") or {})
        threestudio.info(
            "speedup: trains by Picard iterations (DreamPropeller's rule and distance). trainer.val_check_interval "
            f"counts steps here, there seconds{left_out}"
        )


def with_mixin(system_type: str) -> str:
    main, _, mixins = system_type.partition(":")
    if not main or any(name in MIXINS for name in mixins.split(",")):
        return system_type
    return f"{main}:{','.join(filter(None, (MIXINS[0], mixins)))}"


def _plain_trainer(trainer: Any) -> str:
    """Leaves out what only its launchers have, and what they do not heed; says so."""
    said = ""
    unknown = [key for key in ITS_TRAINER_KEYS if key in trainer]
    for key in unknown:
        trainer.pop(key)
    if unknown:
        said = f"; left out: {', '.join(f'trainer.{key}' for key in unknown)}"
    if str(trainer.get("precision")) in HALF_PRECISION:
        said += f"; trainer.precision {trainer.precision} is 32, as there"
        trainer.precision = 32
    return said


def _one_optimizer(system: Any) -> None:
    """`base` and `guidance`, ProlificDreamer's two optimizers in its configs, as the groups of one."""
    optimizer = system.get("optimizer") or {}
    if "base" not in optimizer:
        return
    base, guidance = optimizer.base, optimizer.get("guidance")
    if guidance is not None:
        for key in ("name", "args"):
            if guidance.get(key) != base.get(key):
                raise UserError(
                    f"system.optimizer.guidance.{key}: expected that of system.optimizer.base, {base.get(key)}"
                )
        if not base.get("params"):
            raise UserError(
                "system.optimizer.base.params: expected the groups that train beside system.optimizer.guidance"
            )
        base.params.merge_with(guidance.params)
    system.optimizer = base
