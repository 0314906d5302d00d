"""Wall clock of Picard iterations in two processes of one thread, beside one process, and beside training step by step.

    python benchmarks/picard_processes.py --write

Runs launch.py's training by turns: step by step, by Picard iterations in one process, and in two under torchrun. Timed
are the steps after a warm-up, from the first round that begins there to the end of training; start, validation and test
are left out. Two runs step by step at once tell what this machine gives two processes that share nothing but
its memory and caches: no way of sharing out the work is faster by more than that.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reporting import ROOT, given_command, processor, table, write_report

LIGHT = {  # of each job: what the end of training need not do here
    "fit-nerf": ["data.n_test_views=1"],
    "asd-nerf": ["data.n_test_views=1", "data.n_val_views=1", "data.eval_width=8", "data.eval_height=8"],
}
WAYS = ("step by step", "one process", "two processes")


def work(arguments: list[str], clock_file: str) -> None:
    """One process of a run: launch.py, with a clock that is mixed into the system."""
    import threestudio
    from launch import main

    @threestudio.register("benchmark-clock")
    class Clock:
        """Times the trainer's own steps: it stands before Picard's mixin, which computes slots behind it."""

        times: list[float] = []

        def on_train_batch_start(self, batch: Any, batch_idx: int, *rest: Any) -> Any:
            self.times.append(time.perf_counter())
            return super().on_train_batch_start(batch, batch_idx, *rest)

        def on_train_end(self) -> None:
            self.times.append(time.perf_counter())
            if self.trainer.is_global_zero:
                Path(clock_file).write_text(json.dumps(self.times))
            super().on_train_end()

    sys.exit(main(arguments))


def start(args: argparse.Namespace, way: str, folder: Path) -> subprocess.Popen:
    processes, picard = (2 if way == "two processes" else 1), way != "step by step"
    mixins = "benchmark-clock,picard" if picard else "benchmark-clock"
    config, base = small_config(args.job, folder)
    given = ["use_timestamp=false", "name=run", "tag=run", "trainer.enable_progress_bar=false", *LIGHT[args.job]]
    given += [f"exp_root_dir={folder}", f"trainer.max_steps={args.warm_up + args.steps}", f"seed={args.seed}"]
    given += ["checkpoint.every_n_train_steps=1000000", f"system_type={base}:{mixins}"]
    given += [f"system.picard.window={args.window}", *(f"system.picard.{key}" for key in args.picard)] if picard else []
    task = json.dumps([["--config", str(config), "--train", *given, *args.overrides], str(folder / "clock.json")])
    command = [sys.executable, str(Path(__file__).resolve()), "--task", task]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*torchrun, *command[1:]]
    log = open(folder / "log.txt", "w")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def small_config(job: str, folder: Path) -> tuple[Path, str]:
    """The job's config without the evaluation of its end, and its system's name without mixins."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(ROOT / "configs" / f"{job}.yaml")
    del config.system["evaluation"]
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    return folder / "config.yaml", config.system_type.split(":")[0]


def finish(process: subprocess.Popen, folder: Path, warm_up: int) -> dict[str, float]:
    """Seconds a step after the warm-up, and of Picard's rounds there what they were like and where the time went."""
    if process.wait() != 0:
        raise SystemExit(f"{folder / 'log.txt'} ended with {process.returncode}")
    times = json.loads((folder / "clock.json").read_text())
    steps = len(times) - 1
    rounds = rounds_of(folder)
    begin = warm_up if rounds is None else next(int(row["step"]) for row in rounds if int(row["step"]) >= warm_up)
    seconds = times[-1] - times[begin]
    result = {"seconds": seconds / (steps - begin)}
    if rounds is not None:
        timed = [row for row in rounds if int(row["step"]) >= begin]
        result["stride"] = sum(int(row["stride"]) for row in timed) / len(timed)
        result["gradients_a_step"] = sum(int(row["window"]) for row in timed) / (steps - begin)
        for part in ("gradients", "waiting", "rest"):
            result[part] = sum(float(row[f"{part}_s"]) for row in timed) / seconds
        result["gradients"] -= result["waiting"]
        result["true_steps"] = 1 - result["gradients"] - result["waiting"] - result["rest"]
    return result


def rounds_of(folder: Path) -> list[dict[str, str]] | None:
    file = folder / "run" / "run" / "save" / "picard.csv"
    if not file.is_file():
        return None
    with file.open() as table:
        return list(csv.DictReader(table))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each repeat the ways by turns, and two runs step by step at once."""
    rows = []
    for repeat in range(args.repeats):
        row: dict[str, Any] = {}
        for way in (*WAYS, "two at once")[:: 1 if repeat % 2 == 0 else -1]:
            kind = "step by step" if way == "two at once" else way
            folders = [fresh(args.outputs / f"{way.replace(' ', '_')}{i}") for i in range(2 if way != kind else 1)]
            running = [(start(args, kind, folder), folder) for folder in folders]
            found = [finish(process, folder, args.warm_up) for process, folder in running]
            row[way] = found[0] if way == kind else {"seconds": max(result["seconds"] for result in found)}
        row["ceiling"] = 2 * row["step by step"]["seconds"] / row["two at once"]["seconds"]
        shown = {way: {key: round(value, 3) for key, value in row[way].items()} for way in WAYS}
        print(shown, round(row["ceiling"], 2), flush=True)
        rows.append(row)
    return rows


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    def middle(way: str, name: str) -> float:
        return statistics.median(row[way][name] for row in rows)

    def times_faster(way: str, than: str) -> str:
        ratios = sorted(row[than]["seconds"] / row[way]["seconds"] for row in rows)
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    rows_of_ways = [["step by step, one process", f"{middle('step by step', 'seconds'):.3f}", "", "", "", "1"]]
    shares = []
    for way in WAYS[1:]:
        faster = [times_faster(way, "step by step"), times_faster(way, "one process") if way != "one process" else ""]
        figures = [f"{middle(way, 'stride'):.2f}", f"{middle(way, 'gradients_a_step'):.2f}"]
        rows_of_ways.append([f"Picard, {way}", f"{middle(way, 'seconds'):.3f}", *faster, *figures])
        parts = ("gradients", "waiting", "rest", "true_steps")
        shares.append([f"Picard, {way}", *(f"{100 * middle(way, part):.0f} %" for part in parts)])
    ceilings = sorted(row["ceiling"] for row in rows)
    ceiling = f"{statistics.median(ceilings):.2f} ({ceilings[0]:.2f} to {ceilings[-1]:.2f})"
    head = ["", "seconds a step", "faster than step by step", "faster than Picard in one process", "mean stride"]
    lines = [
        "# Picard iterations in two processes",
        "",
        f"Command: `{args.command}` ({processor()}, {os.cpu_count()} cores; one thread a process; load of the machine",
        f"before {args.load_before:.1f}). `configs/{args.job}.yaml`, window {args.window}, seed {args.seed}: "
        f"{args.steps} steps after {args.warm_up},",
        f"medians of {args.repeats} repeats by turns, with the smallest and largest ratio.",
        "",
        *table([*head, "gradients a step"], rows_of_ways),
        "",
        f"Two independent runs at once do {ceiling} times the work of one on this machine.",
        "",
        *table(
            ["share of the time", "gradients", "waiting for the other", "exchange, rollout, errors", "true steps"],
            shares,
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", default="asd-nerf", choices=list(LIGHT))
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--warm-up", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picard", nargs="*", default=[], metavar="KEY=VALUE", help="keys of system.picard")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-picard-processes"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard_processes.md and .json")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="after --: for every run, e.g. data.width=24")
    args = parser.parse_args()
    if args.task:
        work(*json.loads(args.task))
        return
    args.outputs = args.outputs.resolve()
    args.command = given_command()
    args.load_before = os.getloadavg()[0]
    rows = measure(args)
    text = report(args, rows)
    print(text)
    if args.write:
        settings = {key: value for key, value in vars(args).items() if key not in ("outputs", "write", "task")}
        write_report("picard_processes", text, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
