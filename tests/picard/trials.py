"""Runs of six steps of any config, and what they have left."""

import csv
from pathlib import Path

import torch

from tests.picard.runs import state_of

STEPS, HALF = 6, 3
# What a run of STEPS steps goes through: schedules of a weight and of timesteps, validation, checkpoints.
COMMON = [
    "use_timestamp=false", "tag=trial", f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1",
    f"trainer.val_check_interval={HALF}", "trainer.limit_test_batches=0", "trainer.enable_progress_bar=false",
    f"checkpoint.every_n_train_steps={HALF}", "checkpoint.save_top_k=-1", "data.n_val_views=1",
    "system.guidance.max_step_percent=[0,0.9,0.5,4]",
]  # fmt: skip


class Trial:
    """What a run has left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, name: str = "last") -> dict:
        return torch.load(self.folder / "ckpts" / f"{name}.ckpt", weights_only=True)

    def state(self) -> dict:
        return state_of(self.checkpoint())

    def strides(self) -> list[int]:
        return [row[2] for row in self.checkpoint()["picard"]["history"]]

    def logs(self) -> dict[str, list[str]]:
        """What was logged of the steps, by name, without what Picard iterations add and how fast they were."""
        (file,) = self.folder.glob("csv_logs/version_0/metrics.csv")
        rows = list(csv.DictReader(file.open()))
        names = [name for name in rows[0] if not name.startswith("picard/") and name != "train/steps_per_second"]
        return {name: [row[name] for row in rows if row[name]] for name in names}

    def files(self) -> set[str]:
        """Names of checkpoints and results."""
        kept = [*self.folder.glob("ckpts/*"), *self.folder.glob("save/**/*")]
        return {str(path.relative_to(self.folder)) for path in kept if not path.name.startswith("picard.")}
