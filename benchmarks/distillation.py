"""What each distillation method buys: methods by seeds, teachers, systems and captions, against exact objects.

    python benchmarks/distillation.py --dry-run          # what would run, and what is done or stale
    python benchmarks/distillation.py                    # run what is missing, then print the tables
    python benchmarks/distillation.py --write            # and write docs/benchmarks/distillation.md and .json
    python benchmarks/distillation.py --systems nerf --teachers mini-mv --captions kind --methods sds asd-0 --seeds 0

It can be stopped at any moment; the same command goes on with the run that it was at. A finished run is kept in
--outputs with the config that it was of and the digests of the teacher and the judge: where any of these changes, the
run is stale, is not in the tables, and is run again. The page keeps the tables of which a command has no run. Each
method has the guidance scale that is best for it, found on two prompts that no table has, for each system, teacher and
form of caption; "SDS at 100" and the like have theirs. A caption that leaves out colours is measured against the
nearest object that it allows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from threestudio.utils.extensions import load_extensions  # noqa: E402

load_extensions()

from distillation_page import Cell, page, recorded_cells, tables  # noqa: E402
from distillation_runs import (  # noqa: E402
    CAPTIONS,
    METHODS,
    SYSTEMS,
    TEACHERS,
    Run,
    Settings,
    changes_since,
    execute,
    fingerprint,
    record_of,
    specs_of,
)
from reporting import machine, write_report, written  # noqa: E402

from threestudio.utils.errors import UserError  # noqa: E402

SCALES = (1.5, 2.0, 5.0, 7.5, 15.0, 30.0)


class Bench:
    """The runs that were asked for: their states, and the records of those that are finished."""

    def __init__(self, args: argparse.Namespace, settings: Settings) -> None:
        self.args, self.settings = args, settings
        self.digests: dict[str, str] = {}
        self.failed: list[str] = []
        self.machine = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def runs(
        self, system: str, teacher: str, captions: str, method: str, scale: float, seed: int, search: bool
    ) -> list[Run]:
        """A method's launches for one seed: of a generator one for all prompts, of NeRF one a prompt."""
        specs = specs_of(system, search, self.args.prompts)
        texts = tuple(CAPTIONS[captions](spec) for spec in specs)
        groups = [texts] if system == "3dconv" else [(text,) for text in texts]
        return [Run(system, teacher, captions, method, scale, seed, group, search) for group in groups]

    def record(self, run: Run) -> tuple[dict | None, str]:
        """The record of a run that is finished and holds, and its state in words."""
        record = record_of(run, self.settings)
        if record is None:
            return None, "missing"
        changed = changes_since(record, fingerprint(run, self.settings, self.digests))
        if not changed:
            return record, "finished"
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return None, f"stale: {', '.join(changed[:3])}{more} changed"

    def done(self, run: Run) -> dict | None:
        """The record of a run, which is launched if there is none that holds; None if it fails, or in a dry run."""
        record, state = self.record(run)
        if self.args.dry_run:
            fingerprint(run, self.settings, self.digests)  # its config is checked
            print(f"{state}: {run}", flush=True)
        if record is not None or self.args.dry_run or self.args.table_only:
            return record
        print(f"{run} ({state}) ...", flush=True)
        now = fingerprint(run, self.settings, self.digests)
        try:
            record = execute(run, self.settings, now, self.machine)
        except RuntimeError as error:
            self.failed.append(f"{run}: {error}")
            print(f"  failed: {error}", flush=True)
            return None
        figures = ", ".join(f"{key} {value:.3f}" for key, value in record["mean"].items() if isinstance(value, float))
        print(f"  {record['seconds']:.0f} s: {figures}", flush=True)
        return record

    def best_scale(self, system: str, teacher: str, captions: str, method: str) -> float | None:
        """The scale of a method: its own, the only one asked for, or the best on the two prompts of the search."""
        if METHODS[method].scale is not None:
            return METHODS[method].scale
        if len(self.args.scales) == 1:
            return self.args.scales[0]
        if self.args.search_on != "own":
            system = self.args.search_on
            recorded = recorded_scale(system, teacher, captions, method)
            if recorded is not None:
                return recorded
        scores = {}
        for scale in self.args.scales:
            records = [self.done(run) for run in self.runs(system, teacher, captions, method, scale, 0, True)]
            if all(record is not None for record in records):
                scores[scale] = search_score(records)
        if len(scores) < len(self.args.scales):
            return None  # a search that is not finished has no winner
        return max(scores, key=scores.get)

    def cells(self) -> Iterator[Cell]:
        """Each method's records for each system, teacher and form of caption; runs what is missing, seed by seed."""
        args = self.args
        for captions in args.captions:
            for teacher in args.teachers:
                for system in args.systems:
                    yield from self.table(system, teacher, captions)

    def table(self, system: str, teacher: str, captions: str) -> list[Cell]:
        scales = {method: self.best_scale(system, teacher, captions, method) for method in self.args.methods}
        records: dict[str, dict[int, list[dict]]] = {method: {} for method in self.args.methods}
        for seed in self.args.seeds:
            for method, scale in scales.items():
                if scale is None:
                    if self.args.dry_run:
                        print(f"after its search: {system}, {teacher}, {captions}, {method}, seed {seed}")
                    continue
                found = [self.done(run) for run in self.runs(system, teacher, captions, method, scale, seed, False)]
                if all(record is not None for record in found):
                    records[method][seed] = found
        return [Cell(system, teacher, captions, m, scales[m], records[m]) for m in self.args.methods if records[m]]


def recorded_scale(system: str, teacher: str, captions: str, method: str) -> float | None:
    """The scale that a method has in a table of the written page; None where the page does not have it."""
    file = written("distillation")
    runs = [record["run"] for record in json.loads(file.read_text())["runs"]] if file.is_file() else []
    place = {"system": system, "teacher": teacher, "captions": captions, "method": method}
    return next((run["scale"] for run in runs if place.items() <= run.items()), None)


def search_score(records: list[dict]) -> float:
    """What the search compares: the mean over prompts of IoU less colour error, which is 1 where nothing is seen."""
    prompts = [entry for record in records for entry in record["prompts"]]
    errors = [1.0 if entry["color_error"] is None else entry["color_error"] for entry in prompts]
    return (sum(entry["iou"] for entry in prompts) - sum(errors)) / len(prompts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), help="names, or NAME=FOLDER")
    parser.add_argument("--captions", nargs="+", default=list(CAPTIONS), choices=CAPTIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scales", nargs="+", type=float, default=list(SCALES), help="guidance scales; one: no search")
    parser.add_argument(
        "--search-on",
        default="own",
        choices=["own", *SYSTEMS],
        help="whose search is taken; of another system's, what the written page has is not sought again",
    )
    parser.add_argument("--prompts", type=int, default=None, help="the first so many of each table")
    parser.add_argument("--set", nargs="+", default=[], metavar="[SYSTEM:]KEY=VALUE", help="changes of the configs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "benchmark-distillation")
    parser.add_argument("--dry-run", action="store_true", help="check every config, say what is missing; run nothing")
    parser.add_argument("--table-only", action="store_true", help="run nothing; print what is finished")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/distillation.md and .json")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    """Raises UserError for an unknown teacher or system, or a folder that is not there."""
    teachers = {}
    for given in args.teachers:
        name, _, folder = given.partition("=")
        if name not in TEACHERS:
            raise UserError(f"--teachers: expected {', '.join(TEACHERS)}, or NAME=FOLDER, got {given!r}")
        teachers[name] = folder or TEACHERS[name][0]
        if not (ROOT / teachers[name]).is_dir():
            raise UserError(f"--teachers: {name} has no folder {teachers[name]}")
    args.teachers = list(teachers)
    changes: dict[str, tuple[str, ...]] = {system: () for system in SYSTEMS}
    for given in args.set:
        system, colon, _ = given.split("=", 1)[0].partition(":")
        if colon and system not in SYSTEMS:
            raise UserError(f"--set: expected a system of {', '.join(SYSTEMS)} before the colon, got {given!r}")
        for name in [system] if colon else SYSTEMS:
            changes[name] += (given.removeprefix(f"{system}:") if colon else given,)
    return Settings(args.outputs.resolve(), args.threads, teachers, changes)


def command_without_places(given: list[str]) -> str:
    """The command as it was given, without where runs are kept and without what only keeps it from running more."""
    words = iter(given)
    kept = []
    for word in words:
        if word == "--outputs":
            next(words, None)
        elif word != "--table-only" and not word.startswith("--outputs="):
            kept.append(word)
    return shlex.join(["python", "benchmarks/distillation.py", *kept])


def has_tables_beside(command: str, cells: list[Cell]) -> bool:
    """Whether an earlier command has tables that none of these cells takes the place of."""
    args = parse(shlex.split(command)[2:])
    new = {(cell.system, cell.teacher, cell.captions) for cell in cells}
    teachers = [given.partition("=")[0] for given in args.teachers]
    return any(table not in new for table in itertools.product(args.systems, teachers, args.captions))


def write(cells: list[Cell], command: str) -> None:
    """The page of these cells, and of the tables of the page before that have none of them."""
    file = written("distillation")
    before = json.loads(file.read_text()) if file.is_file() else {"commands": [], "runs": []}
    kept = recorded_cells(before["runs"], cells)
    commands = [*(made for made in before["commands"] if has_tables_beside(made, cells)), command]
    cells = [*kept, *cells]
    records = [
        {key: value for key, value in record.items() if key != "fingerprint"}  # its hash stays
        for cell in cells for runs in cell.records.values() for record in runs
    ]  # fmt: skip
    write_report("distillation", page(cells, commands), {"commands": commands, "runs": records})


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        bench = Bench(args, settings_of(args))
        cells = list(bench.cells())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if args.dry_run:
        return 0
    print("\n".join(tables(cells)))
    for line in bench.failed:
        print(f"failed: {line}", file=sys.stderr)
    if args.write and not cells:
        print("error: --write: no run of a table is finished, so there is nothing to write", file=sys.stderr)
        return 2
    if args.write:
        write(cells, command_without_places(sys.argv[1:] if argv is None else argv))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    # a run that is under way ends with this process
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
