"""What the command line says about a training, and what all recipes do with it."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from threestudio.utils.markdown import table

from ..world.dataset import ViewBank, build_view_bank, load_view_bank, save_view_bank
from .training import TrainingOptions, TrainingState


@dataclass(frozen=True)
class Settings:
    """The command line of a training."""

    output: Path  # the model's folder
    work: Path  # checkpoints and pictures of the training
    device: torch.device
    seed: int
    steps: int | None = None  # None: the recipe's own
    minutes: float | None = None  # of training, in place of steps
    batch: int | None = None  # None: the recipe's own
    learning_rate: float | None = None  # None: the recipe's own
    views: Path | None = None  # a saved view bank; None: one in the work folder
    view_count: int = 1024  # views of each kind to trace, if the bank is not there
    workers: int = 1  # processes that trace
    compiled: bool = False  # the denoiser is compiled by torch.compile
    command: str = ""  # as it was given, for the card
    report: Callable[[str], None] = print

    def steps_or(self, steps: int) -> int:
        """The steps asked for, else the recipe's own; with minutes given, no limit. Raises ValueError for both steps
        and minutes, or for minutes that are not above 0."""
        if self.minutes is None:
            return self.steps or steps
        if self.steps is not None:
            raise ValueError(f"--steps {self.steps} and --minutes {self.minutes:g}: expected one of them")
        if not self.minutes > 0:
            raise ValueError(f"--minutes: expected a number above 0, got {self.minutes:g}")
        return sys.maxsize

    @property
    def bfloat16(self) -> bool:
        """bf16 is faster on GPUs, and on CPUs that compute it."""
        return self.device.type == "cuda" or computes_bfloat16()

    def view_bank(self, turns: int) -> ViewBank:
        """The view bank of the settings: read, or traced and saved. Raises ValueError where the file is no view bank,
        or its views do not come in `turns`."""
        path = self.views or self.work.parent / f"views-{self.view_count}x{turns}.npz"
        if path.is_file():
            bank = load_view_bank(path)
        else:
            self.report(f"tracing {self.view_count} views of each kind into {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            bank = build_view_bank(
                self.view_count, self.seed, lambda name: self.report(f"traced {name}"), turns, self.workers
            )
            save_view_bank(bank, path)
        if bank.turns % turns:
            raise ValueError(f"{path}: its views come in sets of {bank.turns}, expected {turns}")
        return bank


def denoiser_options(settings: Settings, steps: int, learning_rate: float) -> TrainingOptions:
    """How the small diffusion models are trained; steps and rate are the recipe's where the command gives none."""
    return TrainingOptions(
        steps=settings.steps_or(steps),
        minutes=settings.minutes,
        learning_rate=settings.learning_rate or learning_rate,
        warmup=200,
        average_decay=0.9993,
        bfloat16=settings.bfloat16,
        compiled=settings.compiled,
        seed=settings.seed,
    )


def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bf16; without them it is slower than float32."""
    return (
        bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def machine() -> str:
    """The processor that torch runs on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}"


def pipeline_of(folder: Path, device: torch.device) -> Any:
    """A Stable Diffusion pipeline in float32, frozen, on a device."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.to(device, torch.float32).eval().requires_grad_(False)
    return pipeline


def revision() -> str:
    """The commit that a model was made at, or "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def training_facts(settings: Settings, options: TrainingOptions, state: TrainingState, batch: int) -> dict[str, Any]:
    """What every card says of a training, by the names of its blanks."""
    return {
        "command": settings.command,
        "steps": state.steps,
        "batch": batch,
        "rate": options.learning_rate,
        "warmup": options.warmup,
        "cooldown": options.cooldown,
        "decay": options.average_decay,
        "precision": "bfloat16 autocast" if options.bfloat16 else "float32",
        "seed": options.seed,
        "revision": revision(),
        "minutes": state.seconds / 60,
        "machine": machine(),
        "history": history_table(state),
    }


def write_card(settings: Settings, card: str) -> None:
    """The README of a model's folder, and a line that the model is there."""
    (settings.output / "README.md").write_text(card)
    settings.report(f"wrote {settings.output}")


def millions(module: torch.nn.Module) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def history_table(state: TrainingState) -> str:
    """Held-out figures over a training, as a table in Markdown."""
    if not state.history:
        return "(no figures were taken)\n"
    names = list(state.history[-1])
    rows = [[f"{entry.get(name, float('nan')):.4g}" for name in names] for entry in state.history]
    return "\n".join(table(names, rows, text_columns=0)) + "\n"


class Clock:
    """Lines of progress with the minutes since the start before them."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{(time.monotonic() - self.start) / 60:6.1f} min  {line}", flush=True)
