"""A window of Picard iterations on one device: its slots one by one, and with one call of the teacher for all.

    python benchmarks/picard_batched.py --write
    python benchmarks/picard_batched.py --size sd21 --write        # Stable Diffusion 2.1's size, on a GPU

Trains configs/asd-nerf.yaml by batch and window: step by step, by Picard with `executor: in_process` and with
`executor: batched`. Every guess is near enough here, so strides are full: figures are the wall clock of a step in the
best case, and a shorter stride divides the gain. Runs alternate, --repeats times; medians over rounds. `--size sd21`
has random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from reporting import ROOT, default_device, given_command, machine, quiet, table, write_report
from timing import synchronize

import threestudio
from threestudio.utils.config import load_config
from threestudio.utils.extensions import load_extensions
from threestudio.utils.memory import keep_freed_memory

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
WAYS = {"step by step": None, "in_process": "in_process", "batched": "experimental_batched"}
SIZES = ("mini-sd", "sd21")  # of the teacher


class Times(pl.Callback):
    """When the steps ended."""

    def __init__(self, device: torch.device, clock: str) -> None:
        self.device, self.clock, self.ends = device, CLOCKS[clock], []

    def on_train_batch_end(self, *args: Any) -> None:
        synchronize(self.device)
        self.ends.append(self.clock())


def run(args: argparse.Namespace, batch: int, window: int, executor: str | None) -> dict[str, Any]:
    """Seconds a step, of each round but the first; and on a GPU the most memory, in bytes."""
    given = [f"data.batch_size={batch}", f"seed={args.seed}"]
    base = load_config(str(args.config)).system_type
    if executor:
        given.append(f"system_type={base}{',' if ':' in base else ':'}picard")
        keys = {"window": window, "threshold": 1e30, "executor": executor, "report": "false"}
        given += [f"system.picard.{key}={value}" for key, value in keys.items()]
    cfg = load_config(str(args.config), cli_args=[*given, *args.overrides])
    device = default_device()
    data = threestudio.find(cfg.data_type)(cfg.data)
    system = threestudio.find(cfg.system_type)(cfg.system)
    system.run_seed = args.seed
    times = Times(device, args.clock)
    trainer = pl.Trainer(
        max_steps=window * (args.rounds + 1), callbacks=[times], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, accelerator=device.type, devices=1,
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(system, datamodule=data)
    ends = times.ends[window - 1 :: window]
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"seconds": [(later - ended) / window for ended, later in zip(ends, ends[1:])], "memory": memory}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for batch, window in itertools.product(args.batches, args.windows):
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(args.repeats):
            for way, executor in WAYS.items():
                found[way].append(run(args, batch, window, executor))
        seconds = {way: statistics.median(s for one in runs for s in one["seconds"]) for way, runs in found.items()}
        memory = {way: runs[0]["memory"] for way, runs in found.items()}
        rows.append({"batch": batch, "window": window, "seconds": seconds, "memory": memory})
        print(rows[-1], flush=True)
    return rows


def ways_table(rows: list[dict[str, Any]]) -> list[str]:
    head = ["batch", "window", *(f"{way} (s)" for way in WAYS), "batched: faster by", "memory (GiB)"]
    lines = []
    for row in rows:
        plain, alone, together = (row["seconds"][way] for way in WAYS)
        memory = ", ".join(f"{value / 2**30:.1f}" for value in row["memory"].values() if value is not None)
        seconds = [f"{value:.4f}" for value in (plain, alone, together)]
        lines.append([str(row["batch"]), str(row["window"]), *seconds, f"{plain / together:.2f}", memory])
    return table(head, lines, text_columns=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini-sd", help="of the teacher")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "asd-nerf.yaml")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 2 4; of sd21 1 2 3 4")
    parser.add_argument("--windows", nargs="+", type=int, default=[4, 7])
    parser.add_argument("--rounds", type=int, default=5, help="timed, of each run; one more to warm up")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: the processor's time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard_batched[_sd21].{md,json}")
    parser.add_argument("overrides", nargs="*", help="after --: keys of the config, key=value")
    args = parser.parse_args()
    if args.size == "sd21" and not torch.cuda.is_available():
        raise SystemExit("--size sd21 takes a GPU: a step takes minutes without one")
    args.batches = args.batches or ([1, 2, 3, 4] if args.size == "sd21" else [1, 2, 4])
    quiet()
    keep_freed_memory()
    load_extensions()
    command, device = given_command(), default_device()
    if args.size == "sd21":
        import random_teacher  # needs the plugin

        random_teacher.register(False, device)
        args.overrides = [*random_teacher.CONFIG_KEYS, "data.width=64", "data.height=64", *args.overrides]
    rows = measure(args)
    memory = "; memory: the most allocated, in the same order" if device.type == "cuda" else ""
    text = [
        f"# A window of Picard iterations on one device, {args.size}", "",
        f"Command: `{command}` ({machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}; seed "
        f"{args.seed}; medians of {args.repeats * args.rounds} rounds, seconds a step by the {args.clock} clock at "
        f"full strides{memory}).", "",
        *ways_table(rows), "",
    ]  # fmt: skip
    print("\n".join(text))
    if args.write:
        name = "picard_batched" if args.size == "mini-sd" else f"picard_batched_{args.size}"
        write_report(name, "\n".join(text), {"command": command, "machine": machine(device), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
