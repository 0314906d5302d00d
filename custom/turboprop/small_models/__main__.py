"""Trains one of the models that this project ships.

    python -m custom.turboprop.small_models mini-mv --device cuda

A training that is stopped (Ctrl-C, a signal, a crash) goes on from its last checkpoint when the same command is
given again, and ends with the same weights.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# name: (module in recipes/, folder that is written)
MODELS = {
    "mini-vae": ("mini_vae", "assets/teachers/mini-sd/vae"),
    "mini-sd": ("mini_sd", "assets/teachers/mini-sd"),
    "mini-mv": ("mini_mv", "assets/teachers/mini-mv"),
    "mini-clip": ("judge", "assets/judges/mini-clip"),
    "mini-dino": ("mini_dino", "assets/encoders/mini-dino"),
    "mini-novelview": ("mini_novelview", "assets/novelview/mini-novelview"),
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m custom.turboprop.small_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=MODELS, help="which model")
    parser.add_argument("--output", type=Path, help="folder to write; default: where the project ships it")
    parser.add_argument(
        "--work", type=Path, help="folder of checkpoints and pictures; default: outputs/small_models/MODEL"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--steps", type=int, help="optimizer steps in all; more than before goes on from the plateau")
    parser.add_argument("--minutes", type=float, help="train for so long, in place of --steps")
    parser.add_argument("--batch", type=int, help="pictures a step")
    parser.add_argument("--learning-rate", type=float, help="on the plateau")
    parser.add_argument("--views", type=Path, help="a saved view bank; default: one is traced into the work folder")
    parser.add_argument("--view-count", type=int, default=1024, help="views of each kind to trace")
    parser.add_argument("--workers", type=int, default=1, help="processes that trace")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the denoiser (mini-sd, mini-mv, mini-novelview), meant for GPUs; minutes at the start",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    import torch

    from threestudio.utils.memory import keep_freed_memory

    from .settings import Clock, Settings

    module, shipped = MODELS[options.model]
    settings = Settings(
        output=options.output or Path(shipped),
        work=options.work or Path("outputs/small_models") / options.model,
        device=torch.device(options.device),
        seed=options.seed,
        steps=options.steps,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=options.learning_rate,
        views=options.views,
        view_count=options.view_count,
        workers=options.workers,
        compiled=options.compile,
        command="python -m custom.turboprop.small_models " + " ".join(arguments),
        report=Clock(),
    )
    keep_freed_memory()
    try:
        finished = import_module(f".recipes.{module}", __package__).run(settings)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
