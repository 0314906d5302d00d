"""Splits a training step of the main job into generator, render and teacher.

    python benchmarks/asd_step.py [--config configs/asd-3dconv.yaml] [--steps 30] [--write] [key=value ...]

The step is cut at the generator's features and at the pictures, so that each part's forward and
backward pass is timed by itself; the sum is the step. ``--write`` puts the table into
docs/benchmarks/asd_step.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import threestudio  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.extensions import load_extensions  # noqa: E402
from threestudio.utils.keyed_random import seed_step  # noqa: E402
from threestudio.utils.memory import keep_freed_memory  # noqa: E402

PARTS = (
    "generator, forward",
    "render, forward",
    "teacher (encode, denoise)",
    "teacher, backward (encode)",
    "render, backward",
    "generator, backward",
)


class Stopwatch:
    """Seconds between its calls."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def __call__(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self.last = now - self.last, now
        return lap


def timed_step(system, batch: dict, losses) -> list[float]:
    """One step's seconds by part (PARTS)."""
    from turboprop.amortized.field import SpaceCache

    prompts = system.prompt_processor(batch["prompt"])
    lap, seconds = Stopwatch(), []
    made = system.geometry.generate_space_cache(batch["noise"], prompts.global_embeddings)
    seconds.append(lap())
    cache = SpaceCache(made.table.detach().requires_grad_(), made.resolution)
    out = system.renderer(**{k: v for k, v in batch.items() if k != "noise"}, space_cache=cache)
    regularizers = 20 * losses.sparsity(out["opacity"]) + 5 * losses.eikonal(out["sdf_grad"])
    seconds.append(lap())
    rgb = out["comp_rgb"].detach().requires_grad_()
    guided = system.guidance(rgb, prompts, **batch)
    seconds.append(lap())
    (value,) = [v for k, v in guided.items() if k.startswith("loss_")]
    value.backward()
    seconds.append(lap())
    torch.autograd.backward([out["comp_rgb"], regularizers], [rgb.grad, torch.ones_like(regularizers)])
    seconds.append(lap())
    made.table.backward(cache.table.grad)
    seconds.append(lap())
    return seconds


def measure(config: str, overrides: list[str], steps: int) -> tuple[dict[str, float], dict]:
    """Median seconds by part over `steps` steps after three to warm up, and the resolved config."""
    load_extensions()
    from turboprop.amortized import losses

    cfg = load_config(config, cli_args=overrides)
    data = threestudio.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    system = threestudio.find(cfg.system_type)(cfg.system)
    system.build_prompts_and_guidance()
    system.train()
    rows = []
    for step in range(steps + 3):
        data.train_dataset.update_step(0, step)
        seed_step(cfg.seed, step, 0, "step")
        rows.append(timed_step(system, data.train_dataset.collate(None), losses))
        system.zero_grad()
    return {part: statistics.median(row[i] for row in rows[3:]) for i, part in enumerate(PARTS)}, cfg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/asd-3dconv.yaml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/asd_step.{md,json}")
    args, overrides = parser.parse_known_args()
    keep_freed_memory()
    seconds, cfg = measure(args.config, overrides, args.steps)
    total = sum(seconds.values())
    lines = ["| part | seconds | share |", "| --- | ---: | ---: |"]
    lines += [f"| {part} | {value:.3f} | {value / total:.0%} |" for part, value in seconds.items()]
    lines += [f"| **step** | {total:.3f} | |"]
    table = "\n".join(lines)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    command = "python benchmarks/asd_step.py " + " ".join(sys.argv[1:])
    views = cfg.data.batch_size * cfg.data.n_view
    note = f"{cfg.data.batch_size} prompts x {cfg.data.n_view} views of {cfg.data.width} px ({views} pictures) a step."
    print(table)
    if args.write:
        folder = ROOT / "docs" / "benchmarks"
        page = f"# A step of the main job\n\n`{command}` on {machine}; seed {cfg.seed}; medians of {args.steps} steps.\n{note}\n\n{table}\n"
        (folder / "asd_step.md").write_text(page)
        content = {"command": command, "machine": machine, "seed": cfg.seed, "steps": args.steps, "seconds": seconds}
        (folder / "asd_step.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
