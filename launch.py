"""The command line: trains, validates, tests or exports what a config describes.

    python launch.py --config configs/dreamfusion-sd.yaml --train trainer.max_steps=100

Installed, it is the command `turboprop`.
"""

import argparse
import os
import sys


def parse_arguments(argv: list[str], program: str = "launch.py") -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides (key=value) that stand between or after them.

    `program` is the path of the script that was started; errors and hints name it.
    """
    parser = argparse.ArgumentParser(
        prog=os.path.basename(program),
        description="Trains, validates, tests or exports what a config describes.",
        epilog="Further arguments override keys of the config: trainer.max_steps=100 seed=3",
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="YAML",
        help="the config file, a path or the name of one that ships, as asd-nerf; given again: further files, each "
        "overriding keys of those before it",
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
    parser.add_argument("--verbose", action="store_true", help="debug messages, and full tracebacks of errors")
    parser.add_argument("--typecheck", action="store_true", help="accepted for old command lines; does nothing")
    args, overrides = parser.parse_known_args(argv)
    if not (args.train or args.validate or args.test or args.export):
        if not args.dry_run:
            parser.error("one of --train --validate --test --export is required")
        args.train = True
    args.program = program
    return args, overrides


def select_gpus(gpu: str | None) -> int:
    """Shows torch the chosen devices alone; must run before it is imported. Returns their number.

    With CUDA_VISIBLE_DEVICES set, `gpu` counts among the devices that it lists. Raises ValueError.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Lightning starts further processes of a run by the same command line, in an environment that is narrowed already.
    chosen_before = visible is not None and os.environ.get("_LAUNCH_CHOSE_GPUS") == f"{gpu}={visible}"
    if gpu is None or chosen_before:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # that torchrun has started here
        ids = list(map(str, range(processes))) if visible is None else _listed(visible)
    else:
        ids = _listed(gpu)
        if not ids or not all(i.isdecimal() for i in ids) or len(set(ids)) < len(ids):
            raise ValueError(f"--gpu: expected numbers of devices, as 0 or 0,1; got {gpu!r}")
        known = None if visible is None else _listed(visible)
        if known is not None and (not known or known[0].startswith("-")):
            return 1  # all are hidden: the run says that it goes without
        if known is not None:
            if any(int(i) >= len(known) for i in ids):
                raise ValueError(f"--gpu {gpu}: CUDA_VISIBLE_DEVICES={visible} lists {len(known)} devices, from 0 on")
            ids = [known[int(i)] for i in ids]
    if visible is None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if visible is None or gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids)
        os.environ["_LAUNCH_CHOSE_GPUS"] = f"{gpu}={','.join(ids)}"
    return max(len(ids), 1)


def _listed(ids: str) -> list[str]:
    return [i.strip() for i in ids.split(",") if i.strip()]


def wait_asleep() -> None:
    """Lets torch's threads on a CPU wait for one another asleep; must run before it is imported.

    libgomp's threads spin for 300,000 turns of a loop before they sleep. Where another program wants a core too, the
    threads that spin keep it from those that they wait for: a run beside one busy process is thirty times slower so,
    and with 3,000 turns two to three times (docs/benchmarks/busy_machine.md). What the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "3000"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        args, overrides = parse_arguments(sys.argv[1:], sys.argv[0]) if argv is None else parse_arguments(argv)
    except SystemExit as stop:  # of argparse, which has printed already
        return int(stop.code or 0)
    wait_asleep()
    try:
        n_gpus = select_gpus(args.gpu)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        from threestudio.utils import launching

        return launching.run_reporting_errors(args, overrides, n_gpus)
    except KeyboardInterrupt:  # while the libraries are imported; later a run sees to it itself
        print("Stopped by hand.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
