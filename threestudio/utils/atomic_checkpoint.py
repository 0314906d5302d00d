"""Checkpoints that a crash at any moment leaves whole: the old one, or the new one."""

import os
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO


def write_atomically(path: str, write: Callable[[Any], None]) -> None:
    """Calls `write(file)` on a file beside `path`, and puts it in its place when it is on disk."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name itself outlives a power cut
    finally:
        os.close(folder)


class AtomicCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Optional[Any] = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for stale in Path(path).parent.glob(f".{Path(path).name}.*.part"):
            stale.unlink(missing_ok=True)  # of a run that was killed while it wrote
        write_atomically(path, lambda file: torch.save(checkpoint, file))
