"""Callbacks of a run: its snapshots of code and config, and its lines of progress."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks.progress.progress_bar import ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import threestudio
from threestudio.utils.config import dump_config
from threestudio.utils.program import program_words

_CODE_SUFFIXES = (".py", ".yaml", ".yml", ".json", ".txt", ".ini", ".toml", ".sh", ".md")
_CODE_ROOT = Path(__file__).resolve().parents[2]


class CodeSnapshotCallback(pl.Callback):
    """Keeps which code runs: a checkout's files that git tracks, or would if told to; else the package's version."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _code_files(self) -> list[str]:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=_CODE_ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [name for name in listed if name.endswith(_CODE_SUFFIXES)]

    @rank_zero_only
    def save_code_snapshot(self) -> None:
        if not (_CODE_ROOT / ".git").exists():  # a repository further up is another project's
            self._save_version()
            return
        for name in self._code_files():
            source = _CODE_ROOT / name
            if source.is_file():
                target = Path(self.folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _save_version(self) -> None:
        """`installed.txt`: the package that this code is of, as pip takes it; nothing where pip did not install it."""
        owners = sorted(set(packages_distributions().get(threestudio.__name__, [])))
        if owners:
            os.makedirs(self.folder, exist_ok=True)
            lines = "".join(f"{name}=={version(name)}\n" for name in owners)
            Path(self.folder, "installed.txt").write_text(lines, encoding="utf-8")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        try:
            self.save_code_snapshot()
        except (OSError, subprocess.CalledProcessError) as error:
            threestudio.debug(f"no code snapshot: {error}")  # git is missing


class ConfigSnapshotCallback(pl.Callback):
    """Writes `parsed.yaml`, the resolved config, and `raw.yaml`, the file as given; of several files also
    `raw-2.yaml` and so on."""

    def __init__(self, config_paths: Sequence[str], config: Any, folder: str) -> None:
        self.config_paths = list(config_paths)
        self.config = config
        self.folder = folder

    @rank_zero_only
    def save_config_snapshot(self) -> None:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Before any is written: they may be of this folder.
        given = [Path(path).read_bytes() for path in self.config_paths]
        dump_config(str(folder / "parsed.yaml"), self.config)
        for old in folder.glob("raw-*.yaml"):
            old.unlink()
        for number, content in enumerate(given, start=1):
            (folder / ("raw.yaml" if number == 1 else f"raw-{number}.yaml")).write_bytes(content)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save_config_snapshot()


class CommandSnapshot(pl.Callback):
    """Keeps the command lines that this trial was run with, one a line, as a shell takes them."""

    def __init__(self, path: str) -> None:
        self.path = path

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(shlex.join([*program_words(sys.argv[0]), *sys.argv[1:]]) + "\n")


class StepRate:
    """Steps a second over the last 50 that were counted."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, int]] = deque(maxlen=50)

    def count(self, step: int) -> None:
        """`step` steps are done now."""
        self._times.append((time.monotonic(), step))

    def forget(self) -> None:
        """What comes next is no step: its time is not to count."""
        self._times.clear()

    def per_second(self) -> float | None:
        if len(self._times) < 2:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / (end - start) if end > start else None


class LogsStepRate(pl.Callback):
    """Logs `train/steps_per_second`, without the time of validations."""

    def __init__(self) -> None:
        self._rate = StepRate()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._rate.forget()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._rate.count(trainer.global_step)
        rate = self._rate.per_second()
        if rate is not None:
            pl_module.log("train/steps_per_second", rate)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._rate.forget()


def duration(seconds: float) -> str:
    """65 -> "1:05"; 3700 -> "1:01:40"."""
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class CustomProgressBar(ProgressBar):
    """One line: steps done, rate, time left, losses by name, skipped steps.

    On a terminal the line is rewritten; into a file it is a new line every `line_interval` seconds.
    """

    def __init__(self, terminal_interval: float = 0.2, line_interval: float = 15.0) -> None:
        super().__init__()
        self._enabled = True
        self._terminal = sys.stderr.isatty()
        self._interval = terminal_interval if self._terminal else line_interval
        self._last_print = float("-inf")
        self._rate = StepRate()
        self._open_line = False

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def _print(self, line: str, last: bool = False) -> None:
        now = time.monotonic()
        if not self._enabled or (now - self._last_print < self._interval and not last):
            return
        self._last_print = now
        width = shutil.get_terminal_size().columns - 1
        if self._terminal:
            sys.stderr.write(f"\r{line[:width]:<{width}}" + ("\n" if last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
        self._open_line = self._terminal and not last

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict:
        """Losses by their short names, what else was logged for the bar, and skipped steps."""
        logged = trainer.callback_metrics
        chosen = [key for key in logged if key.startswith("train/loss")]
        chosen += [key for key in pl_module.shown_figures if key in logged]
        metrics = {key.removeprefix("train/"): float(logged[key]) for key in chosen}
        bar = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        skipped = float(logged.get("train/skipped_steps", 0.0))
        if skipped > 0:
            metrics["skipped"] = int(skipped)
        return {**metrics, **{k: v for k, v in bar.items() if not k.startswith("train/loss")}}

    def _train_line(self, trainer: pl.Trainer, pl_module: Any) -> str:
        step, total = trainer.global_step, trainer.max_steps
        parts = [f"step {step}/{total}" if total > 0 else f"step {step}"]
        rate = self._rate.per_second()
        if rate:
            parts.append(f"{rate:.2f} it/s" if rate >= 1 else f"{1 / rate:.2f} s/it")
            if total > 0:
                parts.append(f"{duration((total - step) / rate)} left")
        for name, value in self.get_metrics(trainer, pl_module).items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, (int, float)) else f"{name} {value}")
        return "  ".join(parts)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._rate.forget()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._rate.count(trainer.global_step)
        last = trainer.global_step == trainer.max_steps
        if last or time.monotonic() - self._last_print >= self._interval:
            self._print(self._train_line(trainer, pl_module), last=last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._rate.forget()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._print_share("test", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._print_share("export", batch_idx + 1, trainer.num_predict_batches[dataloader_idx])

    def _print_share(self, work: str, done: int, total: int) -> None:
        self._print(f"{work} {done}/{total}", last=done == total)

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False
        print(*args, **kwargs)
