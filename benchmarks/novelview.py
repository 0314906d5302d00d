"""Efficient-3DiM's claim in the world: time to zero-1-to-3's quality, and what each of the three ideas gives.

    python benchmarks/novelview.py --dry-run             # every variant at a tiny size; writes nothing
    python benchmarks/novelview.py --views BANK          # run what is missing, then print the tables
    python benchmarks/novelview.py --views BANK --write  # and write docs/benchmarks/novelview.md, .json and the plot
    python benchmarks/novelview.py --tables claim --variants zero123 ours --seeds 0 --minutes 30 --device cuda

Two tables: in `claim` all variants train mini-novelview's UNet for the same minutes, in `samplers` for the same steps.
Minutes are those of the processor where the device is the CPU, so that a busy machine does not spoil them; on a GPU
they are the clock's. Neither the pool of encoded pairs, which all runs of a seed share, nor the held-out figures count.

It can be stopped at any moment; the same command goes on with the run that it was at. A finished run is kept in
--outputs and is not run again, unless a size, a seed, a model or the view bank is another one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from threestudio.utils.extensions import load_extensions  # noqa: E402

load_extensions()

import reporting  # noqa: E402
from novelview_page import draw_curves, page, tables  # noqa: E402
from novelview_variants import CLAIM, SAMPLERS, TABLES, Run, Size, Workshop  # noqa: E402
from reporting import machine, write_report  # noqa: E402
from turboprop.small_models.settings import Clock, Settings  # noqa: E402

from threestudio.utils.errors import UserError  # noqa: E402

TINY = Size(
    minutes=0.02, steps=2, batch=2, learning_rate=6e-4, pool=4, measured_objects=2, measured_views=1, sampling_steps=2,
    bins=2, warmup=2,
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--variants", nargs="+", default=[*CLAIM, *SAMPLERS], choices=[*CLAIM, *SAMPLERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=30.0, help="of training of each run of the claim")
    parser.add_argument("--steps", type=int, default=2000, help="of each run of the samplers' table")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--learning-rate", type=float, default=6e-4, help="on the plateau")
    parser.add_argument("--warmup", type=int, default=100, help="steps in which the rate rises, as zero-1-to-3's")
    parser.add_argument(
        "--pool", type=int, default=2048, help="objects from four cameras each, encoded before training"
    )
    parser.add_argument(
        "--measured-objects", type=int, default=17, help="held out; a multiple of 17 has all kinds alike"
    )
    parser.add_argument("--measured-views", type=int, default=2, help="drawn of each of them")
    parser.add_argument("--sampling-steps", type=int, default=10, help="of a drawn view")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--threads", type=int, default=1, help="of torch; minutes of the processor add up over them")
    parser.add_argument("--views", type=Path, help="a saved view bank; default: one is traced into the outputs")
    parser.add_argument("--view-count", type=int, default=1024, help="views of each kind to trace, without --views")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "benchmark-novelview")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes, the first seed, in a folder that is removed"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing; print what is finished")
    parser.add_argument("--write", action="store_true", help="write the page, its figures and the plot")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.dry_run and args.write:
        parser.error("--dry-run measures nothing that --write should keep")
    for key in ("minutes", "steps", "batch", "learning_rate", "pool", "measured_objects", "measured_views", "threads"):
        if getattr(args, key) <= 0:
            parser.error(f"--{key.replace('_', '-')}: expected a number above 0, got {getattr(args, key):g}")
    if args.dry_run:
        args.seeds = args.seeds[:1]
    return args


def command_of(args: argparse.Namespace) -> str:
    """The command without what says where things are, for the page."""
    parser, words = make_parser(), ["python benchmarks/novelview.py"]
    for key, value in vars(args).items():
        if key in ("outputs", "table_only", "write") or value == parser.get_default(key):
            continue
        shown = " ".join(map(str, value)) if isinstance(value, list) else "BANK" if key == "views" else str(value)
        words.append(f"--{key.replace('_', '-')} {shown}")
    return " ".join([*words, "--write"])


def quiet_diffusers() -> None:
    """Without its progress bar and its notes on precision."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def size_of(args: argparse.Namespace) -> Size:
    return Size(
        args.minutes, args.steps, args.batch, args.learning_rate, args.pool, args.measured_objects,
        args.measured_views, args.sampling_steps, warmup=args.warmup,
    )  # fmt: skip


def workshop_of(args: argparse.Namespace, outputs: Path) -> Workshop:
    """Raises UserError for a device that is not there, ValueError or OSError for a file that is no view bank."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: torch finds no CUDA device")
    if args.views is not None and not args.views.is_file():
        raise UserError(f"--views: there is no file {args.views}")
    count = 4 if args.dry_run and args.views is None else args.view_count
    work = outputs / "work"
    settings = Settings(outputs, work, device, seed=0, views=args.views, view_count=count, report=Clock())
    bank = settings.view_bank(1)  # pairs need no sets
    file = args.views or outputs / f"views-{count}x1.npz"
    return Workshop(device, TINY if args.dry_run else size_of(args), bank, file, outputs)


def runs(args: argparse.Namespace) -> list[Run]:
    """Seed by seed, so that the first whole tables come early."""
    return [
        Run(table, name, seed)
        for table in args.tables
        for seed in args.seeds
        for name in TABLES[table]
        if name in args.variants
    ]


def records_of(args: argparse.Namespace, workshop: Workshop) -> list[dict]:
    """The records of all runs that are finished in the end.

    Raises:
        KeyboardInterrupt: one was asked to stop.
    """
    records, name = [], machine(workshop.device)
    for run in runs(args):
        record = workshop.record(run)
        if record is None and not args.table_only:
            print(f"{run} ...", flush=True)
            record = workshop.execute(run, name, Clock())
            if record is None:
                raise KeyboardInterrupt
            last = ", ".join(f"{key} {value:.4g}" for key, value in record["history"][-1].items())
            print(f"  {last}", flush=True)
        if record is not None:
            records.append(record)
    return records


def write(args: argparse.Namespace, records: list[dict], size: Size) -> None:
    picture = reporting.ROOT / "docs" / "images" / "novelview_quality.png"
    has_picture = any(record["table"] == "claim" for record in records)
    if has_picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_curves(records, picture)
    command = command_of(args)
    text = page(records, command, size, "../images/novelview_quality.png" if has_picture else None)
    write_report("novelview", text, {"command": command, "runs": records})


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    quiet_diffusers()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            workshop = workshop_of(args, Path(scratch) if args.dry_run else args.outputs.resolve())
            records = records_of(args, workshop)
    except (UserError, ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    if args.write and not records:
        print("error: --write: no run is finished, so there is nothing to write", file=sys.stderr)
        return 2
    print("\n".join(tables(records)))
    if args.write:
        write(args, records, workshop.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
