"""A window of Picard iterations with one call of the teacher for all its slots, at Stable Diffusion 2.1's size."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks import picard_batched, random_teacher
from benchmarks.gpu_parts.shared import Row, Setting, existing_keys, guarded
from benchmarks.gpu_parts.training import CONFIGS, TINY
from threestudio.utils.config import load_config
from threestudio.utils.devices import running_on

CONFIG = CONFIGS / "asd-nerf.yaml"
WINDOW, BATCHES = 4, (1, 2, 4)


def compared(setting: Setting, batch: int) -> dict[str, Any]:
    small = existing_keys(load_config(str(CONFIG)), TINY) if setting.tiny else ["data.width=64", "data.height=64"]
    window = 2 if setting.tiny else WINDOW
    args = Namespace(
        config=CONFIG,
        size="mini-sd",
        overrides=[*random_teacher.CONFIG_KEYS, *small],
        seed=0,
        clock="wall",
        rounds=1 if setting.tiny else 3,
    )
    seconds, figures = {}, {}
    for way, executor in picard_batched.WAYS.items():
        with running_on(setting.device):
            found = picard_batched.run(args, batch, window, executor)
        seconds[way] = statistics.median(found["seconds"])
        figures[f"{way} (ms a step)"] = 1e3 * seconds[way]
    return {**figures, "batched: faster than step by step": seconds["step by step"] / seconds["batched"]}


def rows(setting: Setting) -> Iterator[Row]:
    random_teacher.register(setting.tiny, setting.device)
    for batch in BATCHES[:1] if setting.tiny else BATCHES:
        yield guarded(f"batch {batch}", setting, lambda batch=batch: compared(setting, batch))
