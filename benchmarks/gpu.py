"""All that waits for a GPU, in one command of under eight minutes.

    python benchmarks/gpu.py              # on a machine with a CUDA device; writes docs/benchmarks/gpu.{md,json}
    python benchmarks/gpu.py --dry-run    # the same way at tiny sizes on a CPU, writes nothing

Each part runs in a process of its own, with a time of its own, and gives its rows as it goes: what fails, or comes too
late, says so in the table in its figures' place, and the rest stands. The exit code is 0 where every row of a dry run
has figures, and in a real run where there is any.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

LIMIT = 470  # seconds, for all parts together
# Part, what it is, and its most seconds.
PARTS = {
    "ops": ("Ops by backend", 70),
    "training": ("Training, beside the CPU", 120),
    "teacher": ("A guided step at Stable Diffusion 2.1's size", 70),
    "picard": ("Picard, batched, at Stable Diffusion 2.1's size", 80),
    "tests": ("Tests marked gpu", 150),
}
GRACE = 15  # seconds that a part has beyond its own deadline to end by itself, before it is ended


def run_part(part: str, args: argparse.Namespace) -> None:
    """In the part's own process: its rows, one JSON object a line."""
    import torch
    from reporting import quiet

    from benchmarks.gpu_parts.shared import Row, Setting
    from threestudio.utils.extensions import load_extensions

    quiet()
    deadline = time.monotonic() + args.seconds
    setting = Setting(torch.device("cpu" if args.dry_run else "cuda"), args.dry_run, deadline)
    with args.result.open("a", encoding="utf-8") as file:

        def written(row: Row) -> None:
            file.write(json.dumps(row.as_dict()) + "\n")
            file.flush()

        try:
            load_extensions()
            for row in importlib.import_module(f"benchmarks.gpu_parts.{part}").rows(setting):
                written(row)
        except Exception as error:  # what none of its rows has caught: the part is shown as broken, others go on
            written(Row("the part", error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def started(part: str, seconds: float, dry_run: bool, folder: Path) -> list[dict[str, Any]]:
    """The rows of a part, run in a process that is ended when its time is over."""
    result, errors = folder / f"{part}.jsonl", folder / f"{part}.log"
    command = [sys.executable, __file__, "--part", part, "--result", str(result), "--seconds", f"{seconds:.0f}"]
    why = None
    with errors.open("w") as log:
        process = subprocess.Popen(command + ["--dry-run"] * dry_run, cwd=ROOT, stdout=log, stderr=log)
        try:
            code = process.wait(seconds + GRACE)
            why = f"the process ended with code {code}: {last_line(errors)}" if code else None
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            why = f"ended after {seconds + GRACE:.0f} s; last heard: {last_line(errors)}"
    rows = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
    return [*rows, {"what": "the part", "figures": {}, "error": why}] if why else rows


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "nothing"


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value).replace("|", "/")
    return f"{value:.2e}" if value and abs(value) < 1e-2 else f"{value:.4g}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = [f"| | {' | '.join(columns)} |", f"| --- {'| ---: ' * len(columns)}|"] if columns else ["| |", "| --- |"]
    for row in rows:
        if row["error"]:
            lines.append(f"| {row['what']} | {shown(row['error'])} {'|' * max(len(columns), 1)}")
        else:
            lines.append(f"| {row['what']} | {' | '.join(shown(row['figures'].get(name, '')) for name in columns)} |")
    return lines


def versions() -> str:
    """torch, and the libraries that ops can take."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "warp-lang", "diffusers", "gsplat", "nerfacc", "tinycudann"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def report(parts: dict[str, list[dict[str, Any]]], seconds: float, where: str) -> str:
    lines = ["# On a GPU", "", f"`python benchmarks/gpu.py` on {where}; {versions()}; {seconds:.0f} s in all."]
    lines += ["A row with words in its figures' place did not go through."]
    for part, rows in parts.items():
        source = (ROOT / "benchmarks" / "gpu_parts" / f"{part}.py").read_text()
        description = ast.get_docstring(ast.parse(source)) or ""  # a broken import must not cost the report
        lines += ["", f"## {PARTS[part][0]}", "", description, "", *table(rows)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; nothing is written")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts; nothing is written")
    parser.add_argument("--skip", nargs="+", choices=list(PARTS), default=[], help="not these parts; the page says so")
    for name, kind in (("--part", str), ("--result", Path), ("--seconds", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # of a part's own process
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args)
        os._exit(0)  # its rows are written: threads and libraries that hang in ending must not cost the others' time
    import torch

    if not args.dry_run and not torch.cuda.is_available():
        print("error: no CUDA device here; --dry-run goes through the parts on the CPU", file=sys.stderr)
        return 2
    from reporting import machine, write_report

    where = machine(torch.device("cpu" if args.dry_run else "cuda"))
    start, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in args.only or PARTS:
            if part in args.skip:
                found[part] = [{"what": "the part", "figures": {}, "error": "left out by --skip"}]
                continue
            left = LIMIT - GRACE - (time.monotonic() - start)
            if left < 10:
                found[part] = [{"what": "the part", "figures": {}, "error": "left out: the command's time was over"}]
                continue
            found[part] = started(
                part, left if args.dry_run else min(PARTS[part][1], left), args.dry_run, Path(scratch)
            )
            print("\n".join([PARTS[part][0], *table(found[part]), ""]), flush=True)
            seconds = time.monotonic() - start
            if (
                not args.dry_run and not args.only
            ):  # after each part, so that a run that is cut short leaves its figures
                data = {"machine": where, "versions": versions(), "seconds": seconds, "parts": found}
                write_report("gpu", report(found, seconds, where), data)
    failed = [row for rows in found.values() for row in rows if row["error"]]
    n_rows = sum(map(len, found.values()))
    print(f"{n_rows - len(failed)} of {n_rows} rows went through, in {time.monotonic() - start:.0f} s")
    if args.dry_run:
        return 1 if failed else 0
    return 0 if len(failed) < n_rows else 1


if __name__ == "__main__":
    sys.exit(main())
