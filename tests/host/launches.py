"""A working folder with the tiny plugin, and launches in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from threestudio.utils.extensions import load_extensions

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = Path(__file__).parent / "plugins"
TINY_CONFIG = str(PLUGINS / "tiny.yaml")
LAST = "outputs/tiny/run/ckpts/last.ckpt"  # of the tiny run


def can_mount() -> bool:
    """Whether this process may mount disks in a namespace of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"], capture_output=True
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def final_state(folder: Path) -> dict:
    """What a run that was started in `folder` ends with."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    keys = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers")
    return {key: checkpoint[key] for key in keys}


@pytest.fixture(scope="session")
def tiny_plugin() -> None:
    """Registers the tiny data module and system in this process, as launches from here need."""
    load_extensions(PLUGINS)


@pytest.fixture()
def launch_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_plugin: None) -> Callable[..., int]:
    """Runs the command line in this process, in an empty working folder; gives the exit code."""
    from launch import main

    monkeypatch.chdir(tmp_path)

    def launch(*arguments: str, config: str = TINY_CONFIG) -> int:
        return main(["--config", config, *arguments])

    return launch


@pytest.fixture()
def start_launch(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts launch.py as a process in a folder `elsewhere`, whose custom/ has the tiny plugin."""
    folder = tmp_path / "elsewhere" / "custom"
    folder.mkdir(parents=True)
    (folder / "tiny_field.py").write_bytes((PLUGINS / "tiny_field.py").read_bytes())

    def start(*arguments: str, config: str = TINY_CONFIG) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "--config", config, *arguments],
            cwd=tmp_path / "elsewhere",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
