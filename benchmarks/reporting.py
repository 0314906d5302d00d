"""What the benchmarks share: this checkout on the path, the machine's name, tables, and where pages go."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script has its own folder there, not its checkout

from threestudio.utils.markdown import table  # noqa: E402,F401 (the scripts take it from here)


def machine(device: torch.device) -> str:
    """The processor and its cores, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {os.cpu_count()} cores"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def conditions(device: torch.device) -> dict[str, Any]:
    """What times are read with: the machine, and what torch and other programs had of it."""
    return {
        "machine": machine(device),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def where(result: dict[str, Any]) -> str:
    """The command and the conditions of a result, as a sentence."""
    return (
        f"`{result['command']}` on {result['machine']}; torch {result['torch']} with {result['torch_threads']} "
        f"thread(s); load average {result['load_average']:.1f}, of which the ratios say more than the times."
    )


def given_command() -> str:
    """The command that this process was started with."""
    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and in brackets the least and the largest value where there are several."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else text


def quiet() -> None:
    """Without warnings, and without what Lightning and the host say of each run."""
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "threestudio"):
        logging.getLogger(name).setLevel(logging.ERROR)


def written(name: str) -> Path:
    """Where `write_report` puts all that was measured."""
    return ROOT / "docs" / "benchmarks" / f"{name}.json"


def write_report(name: str, text: str, result: dict) -> None:
    """docs/benchmarks/{name}.md, the page, and .json, all that was measured."""
    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
