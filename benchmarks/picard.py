"""Picard iterations against training step by step: stride, distance to the sequential run, and quality.

    python benchmarks/picard.py --write
    python benchmarks/picard.py --jobs fit-nerf --windows 7 --seeds 0 -- data.size=24 trainer.max_steps=100

Runs launch.py for each job, seed, window and threshold rule, one process after another; what follows `--` goes to all
of them. Distances are PSNRs between the final test renders of two runs: of a Picard run and the sequential run of its
seed, and, to compare, of sequential runs of two seeds. A finished run in --outputs is not run again. With --write, the
table goes to docs/benchmarks/picard.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
JOBS = tuple(f"{job}-{kind}" for job in ("fit", "asd") for kind in ("nerf", "sdf", "dmtet", "gaussians"))
RULES = {  # name: keys of system.picard
    "fixed 2": {"rule": "fixed", "threshold": 2},
    "fixed 0.5": {"rule": "fixed", "threshold": 0.5},
    "fixed 0.1": {"rule": "fixed", "threshold": 0.1},
    "fixed 2, copied guesses": {"rule": "fixed", "threshold": 2, "guess": "copy"},
    "fixed 2, last gradient": {"rule": "fixed", "threshold": 2, "guess": "last_gradient"},
    "median": {"rule": "median", "threshold": 2},
    "mean": {"rule": "mean", "threshold": 2},
    "published": {"speedup": "{P: WINDOW, threshold: 5, ema_decay: 0.9, adaptivity_type: median}"},
    "none": {"rule": "fixed", "threshold": 1e30},
}
QUALITY = ("psnr", "r_at_1", "iou", "chamfer_share")


def system_type(job: str) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.load(ROOT / "configs" / f"{job}.yaml").system_type


def run(job: str, folder: Path, overrides: list[str], threads: int) -> dict:
    """One launch, unless it has been done: its folder, its figures, and of a Picard run its rounds."""
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fixed = ["use_timestamp=false", "trainer.enable_progress_bar=false", f"exp_root_dir={folder}"]
        command = [sys.executable, "launch.py", "--config", f"configs/{job}.yaml", "--train", *fixed, *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(folder / "log.txt", "w") as log:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        if code != 0:
            raise SystemExit(f"{' '.join(command)}\nended with {code}, see {folder / 'log.txt'}")
        (folder / "done").touch()
    result: dict = {"folder": folder, "quality": {}}
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
    base = system_type(job)
    return [f"system_type={base}{',' if ':' in base else ':'}picard", *found]


def measure(args: argparse.Namespace) -> list[dict]:
    rows = []
    for job, seed in itertools.product(args.jobs, args.seeds):
        folder = args.outputs / job / f"seed{seed}"
        plain, other = (
            run(job, args.outputs / job / f"seed{s}" / "sequential", [f"seed={s}", *args.overrides], args.threads)
            for s in (seed, seed + 1)
        )
        distance = psnr(other["folder"], plain["folder"])
        labels = {"job": job, "seed": seed, "rule": "another seed"}
        rows.append({**labels, "psnr_to_sequential": distance, "quality": plain["quality"]})
        show(rows[-1])
        for window, name in itertools.product(args.windows, args.rules):
            given = [f"seed={seed}", *picard_overrides(job, window, RULES[name]), *args.overrides]
            result = run(job, folder / f"window{window}-{slug(name)}", given, args.threads)
            distance = psnr(result.pop("folder"), plain["folder"])
            labels = {"job": job, "seed": seed, "window": window, "rule": name}
            rows.append({**labels, "psnr_to_sequential": distance, **result})
            show(rows[-1])
    return rows


def slug(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def show(row: dict) -> None:
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def table(rows: list[dict]) -> list[str]:
    """A line for each job, window and rule, with means over the seeds."""
    lines = [
        "| job | window | rule | mean stride | gradients a step | PSNR to the sequential run (dB) | quality |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for (job, window, rule), group in _grouped(rows).items():
        def mean(name: str, group: list[dict] = group) -> float:
            return sum(row[name] for row in group) / len(group)

        totals = {name: sum(float(r["quality"][name]) for r in group) for name in group[0]["quality"]}
        quality = ", ".join(f"{name} {total / len(group):.3f}" for name, total in totals.items())
        if window is None:
            figures = f"| | 1.00 | {mean('psnr_to_sequential'):.1f} | {quality} |"
            lines.append(f"| {job} | | sequential; distance of two seeds {figures}")
        else:
            work = sum(r["gradients"] for r in group) / sum(r["steps"] for r in group)
            figures = f"{mean('stride'):.2f} | {work:.2f} | {mean('psnr_to_sequential'):.1f} | {quality}"
            lines.append(f"| {job} | {window} | {rule} | {figures} |")
    return lines


def _grouped(rows: list[dict]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["job"], row.get("window"), row["rule"]), []).append(row)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = ["fit-nerf", "fit-dmtet", "asd-nerf", "asd-sdf", "asd-dmtet", "asd-gaussians"]
    parser.add_argument("--jobs", nargs="+", default=jobs, choices=JOBS)
    parser.add_argument("--windows", nargs="+", type=int, default=[7, 15])
    parser.add_argument("--rules", nargs="+", default=["fixed 2", "published"], choices=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-picard"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard.md and .json")
    parser.add_argument("overrides", nargs="*", help="after --: for every run, e.g. data.size=24")
    args = parser.parse_args()
    args.outputs = args.outputs.resolve()
    rows = measure(args)
    command = " ".join(["python benchmarks/picard.py", *sys.argv[1:]])
    text = [
        "# Picard iterations",
        "",
        f"Command: `{command}` ({platform.machine()}, {args.threads} threads a run; means over seeds {args.seeds}).",
        "",
        *table(rows),
        "",
    ]
    print("\n".join(text))
    if args.write:
        folder = ROOT / "docs" / "benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "picard.md").write_text("\n".join(text))
        (folder / "picard.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
