"""Picard iterations against training step by step: stride, distance to the sequential run, and quality.

    python benchmarks/picard.py --write
    python benchmarks/picard.py --jobs fit-nerf --points 7:fixed --seeds 0 -- data.size=24 trainer.max_steps=100

Runs launch.py for each job, seed, window and threshold rule, one process after another; what follows `--` goes to all
of them. Distances are PSNRs between the final test renders of two runs: of a Picard run and the sequential run of its
seed; to compare, of the sequential runs of two seeds, and of a sequential run whose guidance scale is larger by a
millionth: how far this training carries what is hardly more than rounding. A finished run in --outputs is not run
again, so several processes can share the work, each with some of the jobs, and a last one writes the page: with
--write, the table goes to docs/benchmarks/picard.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from launching import launch
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from reporting import ROOT, default_device, given_command, machine, table, write_report

KINDS = ("nerf", "sdf", "dmtet", "gaussians")
LONGER = ("nerf", "dmtet", "gaussians")  # what configs/longer/ has
SDS = ["system.guidance_type=turboprop-sds-guidance", "system.loss.lambda_sds=1.0"]
VSD = ["system.guidance_type=turboprop-vsd-guidance", "system.loss.lambda_vsd=1.0", "system.loss.lambda_lora=1.0",
       "system.optimizer.params.guidance={lr: 0.001, eps: 1.0e-8}"]  # fmt: skip
JOBS: dict[str, tuple[list[str], list[str]]] = {  # name: configs, and what makes another job of them
    **{name: ([name], []) for name in (f"{job}-{kind}" for job in ("fit", "asd") for kind in KINDS)},
    **{f"longer-{kind}": ([f"asd-{kind}", f"longer/asd-{kind}"], []) for kind in LONGER},
    "sds-nerf": (["asd-nerf"], SDS),
    "vsd-nerf": (["asd-nerf"], VSD),
}
THRESHOLDS = {  # by window, as far as the noise of gradients carries a state; of some representations and jobs others
    2: {"": 3.0},
    4: {"": 3.0},
    7: {"": 3.0, "sdf": 4.0},
    16: {"": 30.0, "dmtet": 15.0, "gaussians": 15.0},
    32: {"": 150.0, "dmtet": 60.0, "gaussians": 60.0},
}
THRESHOLDS[16] |= {"longer-nerf": 15.0, "longer-dmtet": 10.0, "longer-gaussians": 15.0}
THRESHOLDS[32] |= {"longer-nerf": 80.0, "longer-dmtet": 25.0, "longer-gaussians": 30.0}
RULES = {  # name: keys of system.picard
    "fixed": {"rule": "fixed"},  # with the threshold of THRESHOLDS
    "fixed 2": {"rule": "fixed", "threshold": 2},
    "fixed 0.5": {"rule": "fixed", "threshold": 0.5},
    "fixed 0.1": {"rule": "fixed", "threshold": 0.1},
    "fixed 2, copied guesses": {"rule": "fixed", "threshold": 2, "guess": "copy"},
    "fixed 2, last gradient": {"rule": "fixed", "threshold": 2, "guess": "last_gradient"},
    "median": {"rule": "median", "threshold": 2},
    "mean": {"rule": "mean", "threshold": 2},
    "published": {"speedup": "{P: WINDOW, threshold: 5, ema_decay: 0.9, adaptivity_type: median}"},
    "none": {"rule": "fixed", "threshold": 1e30},
    "adaptive window": {"rule": "fixed", "adapt_window": True},  # with the threshold of its largest window
}
POINTS = [f"{window}:fixed" for window in THRESHOLDS]  # window:rule
POINTS += ["7:published", "7:median", "7:mean", "16:adaptive window"]
OTHER_POINTS = {"sds-nerf": ["7:fixed"], "vsd-nerf": ["7:fixed"]}
OTHER_POINTS |= {f"longer-{kind}": ["16:fixed", "32:fixed"] for kind in LONGER}
ANOTHER_SEED, NUDGED = "another seed", "guidance scale times 1.000001"
QUALITY = ("psnr", "r_at_1_world", "iou", "color_error", "front_back", "chamfer_share")


def config_files(job: str) -> list[Path]:
    return [ROOT / "configs" / f"{name}.yaml" for name in JOBS[job][0]]


def config_of(job: str) -> DictConfig:
    return OmegaConf.merge(*map(OmegaConf.load, config_files(job)))


def threshold_of(job: str, window: int) -> float:
    values = THRESHOLDS[window]
    return values.get(job, values.get(job.split("-")[1], values[""]))


def nudged_scale(scale: float | ListConfig) -> str:
    """A guidance scale, or a schedule of it from one step to another, larger by a millionth."""
    if not isinstance(scale, ListConfig):
        return f"{scale * (1 + 1e-6):.9f}"
    first, start, end, last = scale
    return f"[{first}, {start * (1 + 1e-6):.9f}, {end * (1 + 1e-6):.9f}, {last}]"


class Unfinished(Exception):
    """A run that has not been done, and is not to be."""


def run(job: str, folder: Path, overrides: list[str], args: argparse.Namespace) -> dict:
    """One launch, unless it has been done: its folder, its figures, and of a Picard run its rounds."""
    if not (folder / "done").is_file():
        if args.finished:
            raise Unfinished(str(folder))
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off: its trial would be refused
        folder.mkdir(parents=True)
        fixed = ["use_timestamp=false", "trainer.enable_progress_bar=false", f"exp_root_dir={folder}"]
        configs = [word for file in config_files(job) for word in ("--config", str(file.relative_to(ROOT)))]
        arguments = [*configs, "--train", *fixed, *overrides]
        code, seconds = launch(arguments, folder, args.threads)
        if code != 0:
            raise SystemExit(f"launch.py {' '.join(arguments)}\nended with {code}, see {folder / 'log.txt'}")
        (folder / "done").write_text(f"{seconds:.1f}")
    result: dict = {"folder": folder, "quality": {}, "seconds": float((folder / "done").read_text())}
    reports = ("held_out.json", "evaluation.json")
    for file in [path for name in reports for path in folder.glob(f"*/*/save/*-evaluation/{name}")]:
        figures = json.loads(file.read_text())
        figures = figures.get("mean", figures)
        result["quality"] = {name: figures[name] for name in QUALITY if figures.get(name) is not None}
    for file in folder.glob("*/*/save/picard.csv"):
        with file.open() as table:
            rows = list(csv.DictReader(table))
        result["steps"] = sum(int(row["stride"]) for row in rows)
        result["rounds"], result["gradients"] = len(rows), sum(int(row["window"]) for row in rows)
        result["stride"] = result["steps"] / result["rounds"]
    return result


def renders(folder: Path) -> np.ndarray:
    """The colour pictures of the test views [V, S, S, 3] in [0, 1]."""
    (views,) = folder.glob("*/*/save/it*-test")
    found = []
    for file in sorted(views.glob("*.png"), key=lambda path: int(path.stem)):
        with Image.open(file) as picture:
            side = picture.height
            found.append(np.asarray(picture.convert("RGB").crop((0, 0, side, side)), dtype=np.float64) / 255)
    return np.stack(found)


def psnr(a: Path, b: Path) -> float:
    """Between the renders of two runs, dB; of pictures of 8 bits, so about 59 where they differ by rounding."""
    error = float(((renders(a) - renders(b)) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def picard_overrides(job: str, window: int, rule: dict) -> list[str]:
    keys = {"window": window, **rule}
    found = [f"system.picard.{name}={str(value).replace('WINDOW', str(window))}" for name, value in keys.items()]
    base = config_of(job).system_type
    return [f"system_type={base}{',' if ':' in base else ':'}picard", *found]


def settings_of(args: argparse.Namespace, job: str) -> list[str]:
    """What all runs of a job have, without its seed."""
    return [*JOBS[job][1], *args.overrides]


def plain_run(args: argparse.Namespace, job: str, seed: int, name: str = "sequential", extra: tuple = ()) -> dict:
    folder = args.outputs / job / f"seed{seed}" / name
    return run(job, folder, [*settings_of(args, job), f"seed={seed}", *extra], args)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    for job, (turn, seed) in itertools.product(args.jobs, enumerate(args.seeds)):
        for make in rows_of_seed(args, job, turn, seed):
            try:
                yield make()
            except Unfinished as missing:
                print(f"not done: {missing}", flush=True)


def rows_of_seed(args: argparse.Namespace, job: str, turn: int, seed: int) -> Iterator[Callable[[], dict]]:
    """What makes the rows: runs are done when they are asked for."""

    def another() -> dict:
        other = args.seeds[(turn + 1) % len(args.seeds)] if len(args.seeds) > 1 else seed + 1
        plain = plain_run(args, job, seed)
        found = row_of(job, seed, plain, plain_run(args, job, other), ANOTHER_SEED)
        return {**found, "quality": plain["quality"], "seconds": plain["seconds"]}

    def nudged() -> dict:
        scale = nudged_scale(config_of(job).system.guidance.guidance_scale)
        changed = plain_run(args, job, seed, "nudged", (f"system.guidance.guidance_scale={scale}",))
        return row_of(job, seed, plain_run(args, job, seed), changed, NUDGED)

    def picard(window: int, name: str) -> dict:
        rule = dict(RULES[name])
        if name in ("fixed", "adaptive window"):
            rule["threshold"] = threshold_of(job, window)
        place = f"window{window}-{slug(name)}" + (f"-{rule['threshold']:g}" if name == "fixed" else "")
        given = [*settings_of(args, job), f"seed={seed}", *picard_overrides(job, window, rule)]
        result = run(job, args.outputs / job / f"seed{seed}" / place, given, args)
        return row_of(job, seed, plain_run(args, job, seed), result, name, window, rule.get("threshold"))

    yield another
    if turn == 0 and not job.startswith("fit"):
        yield nudged
    for window, name in points_of(args, job):
        yield partial(picard, window, name)


def row_of(
    job: str, seed: int, plain: dict, result: dict, rule: str, window: int | None = None, threshold: float | None = None
) -> dict:
    """One line of the report: a run's figures, and its distance to the sequential one, `plain`."""
    labels = {"job": job, "seed": seed, "window": window, "rule": rule, "threshold": threshold}
    figures = {key: value for key, value in result.items() if key != "folder"}
    return {**labels, "psnr_to_sequential": psnr(result["folder"], plain["folder"]), **figures}


def points_of(args: argparse.Namespace, job: str) -> list[tuple[int, str]]:
    given = args.points or OTHER_POINTS.get(job, POINTS)
    return [(int(window), name) for window, _, name in (point.partition(":") for point in given)]


def check_points(parser: argparse.ArgumentParser, points: list[str]) -> None:
    for point in points:
        window, _, name = point.partition(":")
        if name not in RULES:
            parser.error(f"--points {point}: expected a rule of {', '.join(RULES)}, got {name!r}")
        of_table = name in ("fixed", "adaptive window")
        if not window.isdigit() or int(window) < 1 or (of_table and int(window) not in THRESHOLDS):
            expected = f"of {', '.join(map(str, THRESHOLDS))}, as thresholds are known" if of_table else "from 1 on"
            parser.error(f"--points {point}: expected a window {expected}, got {window!r}")


def slug(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def show(row: dict) -> None:
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def spread(values: list[float], digits: int) -> str:
    """Mean, and beside it the standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def rules_table(rows: list[dict]) -> list[str]:
    """A line for each job, window and rule: means over the seeds, and standard deviations."""
    names = [name for name in QUALITY if any(name in row["quality"] for row in rows)]
    head = ["job", "window", "rule", "seeds", "mean stride", "gradients a step", "PSNR to step by step (dB)", *names]
    lines = []
    for (job, window, rule), group in _grouped(rows).items():
        qualities = [[r["quality"][name] for r in group if name in r["quality"]] for name in names]
        quality = [spread(values, 3) if values else "" for values in qualities]
        distance = spread([r["psnr_to_sequential"] for r in group], 1)
        if window is None:
            name = "distance of two seeds" if rule == ANOTHER_SEED else rule
            figures = [f"step by step; {name}", str(len(group)), "1", "1.00"]
        else:
            work = sum(r["gradients"] for r in group) / sum(r["steps"] for r in group)
            stride = statistics.fmean(r["stride"] for r in group)
            name = f"fixed {group[0]['threshold']:g}" if rule == "fixed" else rule
            figures = [name, str(len(group)), f"{stride:.2f}", f"{work:.2f}"]
        lines.append([job, str(window or ""), *figures, distance, *quality])
    return table(head, lines)


def _grouped(rows: list[dict]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["job"], row.get("window"), row["rule"]), []).append(row)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = [f"asd-{kind}" for kind in KINDS] + ["sds-nerf", "vsd-nerf"] + [f"longer-{kind}" for kind in LONGER]
    parser.add_argument("--jobs", nargs="+", default=jobs, choices=JOBS)
    points = f"default: {' '.join(POINTS)}, for some jobs others; rules: {', '.join(RULES)}"
    parser.add_argument("--points", nargs="+", metavar="WINDOW:RULE", help=points)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-picard"))
    parser.add_argument("--finished", action="store_true", help="runs that are not done are left out, not made")
    parser.add_argument("--write", action="store_true", help="write the page and its JSON into docs/benchmarks")
    parser.add_argument("--page", default="picard", help="their name, for another teacher than that of picard.md")
    parser.add_argument("overrides", nargs="*", help="after --: for every run, e.g. data.size=24")
    args = parser.parse_args()
    check_points(parser, args.points or [])
    args.outputs = args.outputs.resolve()
    rows = []
    for row in measure(args):
        rows.append(row)
        show(row)
    command, where = given_command(), machine(default_device())
    seeds = f"seeds {', '.join(map(str, args.seeds))}: mean +- standard deviation"
    given = f"{where}; threads a run: {args.threads}; {seeds}"
    text = [
        "# Picard iterations",
        "",
        f"Command: `{command}` ({given}).",
        "",
        *rules_table(rows),
        "",
    ]
    print("\n".join(text))
    if args.write:
        settings = {job: [*JOBS[job][0], *settings_of(args, job)] for job in args.jobs}
        report = {"command": command, "machine": where, "seeds": args.seeds, "settings": settings, "rows": rows}
        write_report(args.page, "\n".join(text), report)


if __name__ == "__main__":
    main()
