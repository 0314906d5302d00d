"""The command line: trains, validates, tests or exports what a config describes.

    python launch.py --config configs/dreamfusion-sd.yaml --train trainer.max_steps=100
"""

import argparse
import os
import sys
from typing import Optional


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides (key=value) that stand between or after them."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Trains, validates, tests or exports what a config describes.",
        epilog="Further arguments override keys of the config: trainer.max_steps=100 seed=3",
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="YAML",
        help="the config file; given again: further files, each overriding keys of those before it",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train", action="store_true", help="train, then test")
    mode.add_argument("--validate", action="store_true", help="render the validation views")
    mode.add_argument("--test", action="store_true", help="render the test views")
    mode.add_argument("--export", action="store_true", help="write meshes (needs resume=...)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check and build everything, print the resolved config; train and write nothing",
    )
    parser.add_argument(
        "--gpu",
        default=None,
        metavar="IDS",
        help="CUDA devices, as 0 or 0,1; default 0 if any, under torchrun as many as processes",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="debug messages, and full tracebacks of errors"
    )
    parser.add_argument(
        "--typecheck", action="store_true", help="accepted for old command lines; does nothing"
    )
    args, overrides = parser.parse_known_args(argv)
    if not (args.train or args.validate or args.test or args.export):
        if not args.dry_run:
            parser.error("one of --train --validate --test --export is required")
        args.train = True
    return args, overrides


def select_gpus(gpu: Optional[str]) -> int:
    """Shows torch the chosen devices alone; must run before it is imported. Returns their number."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # that torchrun has started here
    default = ",".join(map(str, range(processes)))
    ids = [i for i in (gpu or default).split(",") if i.strip()]
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids)
    else:
        ids = [i for i in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if i.strip()]
    return max(len(ids), 1)


def main(argv: Optional[list[str]] = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        args, overrides = parse_arguments(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # of argparse, which has printed already
        return int(stop.code or 0)
    n_gpus = select_gpus(args.gpu)
    from threestudio.utils import launching

    return launching.run_reporting_errors(args, overrides, n_gpus)


if __name__ == "__main__":
    sys.exit(main())
