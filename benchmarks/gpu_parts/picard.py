"""A window of Picard iterations with one call of the teacher for all its slots, at Stable Diffusion 2.1's size."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import threestudio
from benchmarks import picard_batched
from benchmarks.gpu_parts.shared import Row, Setting, existing_keys, guarded
from benchmarks.gpu_parts.teacher import RandomPrompts, random_teacher
from benchmarks.gpu_parts.training import CONFIGS, TINY
from threestudio.utils.base import BaseObject
from threestudio.utils.config import load_config
from threestudio.utils.devices import running_on

CONFIG = CONFIGS / "asd-nerf.yaml"
WINDOW, BATCHES = 4, (1, 2, 4)


def register(setting: Setting) -> None:
    """One teacher for all runs of this process, and prompts of its width."""
    teacher = random_teacher(setting.tiny, setting.device)
    threestudio.register("benchmark-gpu-teacher")(lambda cfg: teacher)

    @threestudio.register("benchmark-gpu-prompts")
    class Prompts(BaseObject):
        @dataclass
        class Config(BaseObject.Config):  # the config's keys, which have no part in it
            pretrained_model_name_or_path: str = ""
            prompt: str = ""

        def __call__(self) -> RandomPrompts:
            return RandomPrompts(teacher.unet.config.cross_attention_dim, setting.device)


def compared(setting: Setting, batch: int) -> dict[str, Any]:
    small = existing_keys(load_config(str(CONFIG)), TINY) if setting.tiny else ["data.width=64", "data.height=64"]
    ours = ["system.guidance.teacher_type=benchmark-gpu-teacher", "system.prompt_processor_type=benchmark-gpu-prompts"]
    window = 2 if setting.tiny else WINDOW
    args = Namespace(
        config=CONFIG, size="mini-sd", overrides=[*ours, *small], seed=0, clock="wall", rounds=1 if setting.tiny else 3
    )
    seconds, figures = {}, {}
    for way, executor in picard_batched.WAYS.items():
        with running_on(setting.device):
            found = picard_batched.run(args, batch, window, executor)
        seconds[way] = statistics.median(found["seconds"])
        figures[f"{way} (ms a step)"] = 1e3 * seconds[way]
    return {**figures, "batched: faster than step by step": seconds["step by step"] / seconds["batched"]}


def rows(setting: Setting) -> Iterator[Row]:
    register(setting)
    for batch in BATCHES[:1] if setting.tiny else BATCHES:
        yield guarded(f"batch {batch}", setting, lambda batch=batch: compared(setting, batch))
