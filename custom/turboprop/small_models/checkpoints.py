"""Checkpoints of a training: written whole or not at all, read without executing anything."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from threestudio.utils.atomic_checkpoint import write_atomically


def save_checkpoint(path: Path, held: dict[str, Any], identity: dict[str, Any]) -> None:
    """Writes modules, averages, optimizer and state. A run that dies while it writes leaves the file of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "identity": identity,
        "modules": {name: module.state_dict() for name, module in held["modules"].items()},
        "averages": {name: module.state_dict() for name, module in held["averages"].items()},
        "optimizer": held["optimizer"].state_dict(),
        "state": dataclasses.asdict(held["state"]),
    }
    write_atomically(str(path), lambda file: torch.save(content, file))


def load_checkpoint(path: Path, held: dict[str, Any], identity: dict[str, Any]) -> None:
    """Puts a checkpoint into `held`, in place. Raises ValueError where it was written by another recipe or with another
    seed."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key, value in identity.items():
        if content["identity"].get(key) != value:
            raise ValueError(f"{path}: a checkpoint of {key} {content['identity'].get(key)!r}, expected {value!r}")
    for name, module in held["modules"].items():
        module.load_state_dict(content["modules"][name])
        held["averages"][name].load_state_dict(content["averages"][name])
    held["optimizer"].load_state_dict(content["optimizer"])
    for name, value in content["state"].items():
        setattr(held["state"], name, value)
