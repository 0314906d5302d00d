"""Counts what a training step asks of a CUDA device, by part of the step: operations, and where Python waits.

    python benchmarks/launches.py [NAMES ...] [--steps 16] [--lines 0] [--write]

The steps are real ones at the config's own size, on the CUDA device that the tests simulate (tests/cuda): the backends
and branches are those of CUDA, the values are computed on the CPU. So these are counts and no times, the same on every
machine. A step of small work takes a GPU about as long as Python takes to ask for its operations, and each wait lets
the device run out of work. ``--lines`` also names the lines of code with the most operations and waits. ``--write``
puts the table into docs/benchmarks/launches.{md,json}. Needs requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

NAMES = ("asd-3dconv", "asd-nerf", "asd-sdf", "asd-dmtet", "asd-gaussians")
SKIPPED = 2  # first steps, which build what later ones keep
STEPS = 16  # an occupancy grid is updated every 16th
# The part of the step that a file belongs to: of the innermost function whose file has one of these in its path. What
# only helps others (threestudio/utils/ops.py) is in none of them, and counts for who called it.
PARTS = {
    "camera and data": ("threestudio/data/", "amortized/data.py", "turboprop/multi_view/"),
    "prompts": ("prompt_processors/", "teachers/prompts/"),
    "ray marching": ("models/estimators.py", "ops/ray_marching/", "ops/ray_sampling.py", "amortized/volsdf.py"),
    "generator or field": (
        "models/geometry/", "models/networks.py", "ops/hash_grid/", "models/isosurface.py", "gaussians/geometry.py",
        "gaussians/parameters.py", "amortized/field.py", "amortized/geometry.py", "amortized/conv_generator.py",
        "amortized/modulated_conv.py", "amortized/voxel_sampling.py", "models/mesh.py", "models/materials/",
        "gaussians/spherical_harmonics.py",
    ),
    "rendering": (
        "renderers/", "background", "renderer.py", "ops/", "utils/rasterize.py", "gaussians/depth_normals.py",
    ),
    "teacher": ("turboprop/teachers/", "/diffusers/", "/transformers/"),
    "distillation": ("turboprop/distillation/",),
    "density control": ("gaussians/densification.py", "gaussians/training.py"),
    "losses": ("systems/losses.py", "amortized/losses.py", "gaussians/losses.py", "utils/loss.py"),
    "check of gradients": ("systems/keyed_steps.py",),
    "optimizer": ("torch/optim/", "systems/adan.py"),
    "system": ("threestudio/systems/", "amortized/system.py", "amortized/lost_objects.py", "gaussians/system.py"),
    "trainer and logging": ("/pytorch_lightning/", "lightning/fabric/", "utils/callbacks.py"),
}  # fmt: skip
BACKWARD = "backward"
OTHER = "elsewhere"
COLUMNS = {
    "launches": "operations that put work on the device: all but views and empty tensors",
    "views": "operations that only make a view of a tensor, or an empty one",
    "kernels": "Warp's kernels",
    "waits": "how often Python waits for the device: for values, sizes, or a copy to or from it",
    "on the CPU": "operations on tensors of the CPU",
}
IGNORED = ("/tests/cuda/", "benchmarks/launches.py", "/warp/", "ops/warp_runtime.py", "torch/utils/")


@dataclass
class Ledger:
    """What was counted."""

    parts: dict[str, Counter] = field(default_factory=dict)  # column: part
    lines: dict[str, Counter] = field(default_factory=dict)  # column: line of code
    open: bool = False

    def note(self, column: str) -> None:
        """Counts one for the part of the step, and the line of code, that Python is in."""
        if self.open:
            part, line = where()
            self.parts.setdefault(column, Counter())[part] += 1
            self.lines.setdefault(column, Counter())[f"{part}: {line}"] += 1


def part_of(path: str) -> str | None:
    return next((part for part, marks in PARTS.items() if any(mark in path for mark in marks)), None)


def where() -> tuple[str, str]:
    """The part of the step that Python is in, and the line: of the innermost function that a part has."""
    part, line = None, ""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith("torch/autograd/graph.py") and frame.f_code.co_name == "_engine_run_backward":
            return BACKWARD, line or "torch's own"
        if part is None and not any(mark in path for mark in IGNORED):
            part = part_of(path)
            if part is not None:
                line = f"{'/'.join(Path(path).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return part or OTHER, line


def counting_mode(ledger: Ledger) -> Any:
    """A dispatch mode that notes every operation."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from tests.cuda.simulated_tensors import CudaTensor

    aten = torch.ops.aten
    # Of a view that matmul makes, the schema does not say so.
    free = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view}

    def is_view(func: Any) -> bool:
        returns = func._schema.returns
        aliases = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
        return bool(returns) and all(aliases) or func.overloadpacket in free

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if any(isinstance(x, CudaTensor) for x in tree_leaves((args, kwargs, out))):
                ledger.note("views" if is_view(func) else "launches")
            elif not is_view(func):
                ledger.note("on the CPU")
            return out

    return Counting()


def boundary(ledger: Ledger, steps: int) -> Any:
    """A callback that opens the ledger between the end of step SKIPPED and that of the last."""
    import pytorch_lightning as pl

    class Boundary(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            ledger.open = SKIPPED <= batch_idx + 1 < SKIPPED + steps

    return Boundary()


def trainer_of(cfg: Any, folder: str, callbacks: list) -> Any:
    """A run's trainer, with what logs at every step of it."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LearningRateMonitor
    from pytorch_lightning.loggers import CSVLogger

    from threestudio.utils.callbacks import LogsStepRate
    from threestudio.utils.trainer_settings import trainer_arguments

    arguments = trainer_arguments(cfg, on_gpu=True) | {"enable_progress_bar": False}
    return pl.Trainer(
        callbacks=[LearningRateMonitor(logging_interval="step"), LogsStepRate(), *callbacks],
        logger=CSVLogger(folder), default_root_dir=folder, enable_checkpointing=False, **arguments,
    )  # fmt: skip


def counted(name: str, steps: int) -> Ledger:
    """The ledger of `steps` steps of a config on the simulated device."""
    import pytorch_lightning as pl
    import torch
    import warp as wp
    from pytest import MonkeyPatch

    from tests.cuda import simulated_tensors
    from tests.cuda.simulated_runtime import simulated_cuda
    from threestudio.utils.config import load_config
    from threestudio.utils.devices import running_on
    from threestudio.utils.launching import build

    ledger = Ledger()
    silent = [f"trainer.max_steps={SKIPPED + steps}", "trainer.val_check_interval=1000", "trainer.limit_val_batches=0"]
    cfg = load_config(str(ROOT / "configs" / f"{name}.yaml"), cli_args=silent)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(simulated_cuda())
        patch = stack.enter_context(MonkeyPatch.context())
        patch.setattr(simulated_tensors.waits, "note", lambda: ledger.note("waits"), raising=False)
        launch = wp.launch
        patch.setattr(wp, "launch", lambda *args, **kwargs: (ledger.note("kernels"), launch(*args, **kwargs))[1])
        stack.enter_context(running_on(torch.device("cuda:0")))
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        data, system = build(cfg)
        trainer = trainer_of(cfg, folder, [boundary(ledger, steps)])
        stack.enter_context(counting_mode(ledger))
        trainer.fit(system, datamodule=data)
    return ledger


def per_step(ledger: Ledger, steps: int) -> dict[str, dict[str, float]]:
    """part: column: how many a step; parts of most launches first."""
    found = {part for counts in ledger.parts.values() for part in counts}
    rows = {
        part: {column: ledger.parts.get(column, Counter())[part] / steps for column in COLUMNS}
        for part in sorted(found, key=lambda part: -ledger.parts["launches"][part])
    }
    total = {column: sum(row[column] for row in rows.values()) for column in COLUMNS}
    return {"the step": total, **rows}


def shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def parts_table(rows: dict[str, dict[str, float]]) -> list[str]:
    from reporting import table

    lines = []
    for part, row in rows.items():
        cells = [part, *(shown(row[column]) for column in COLUMNS)]
        lines.append([f"**{cell}**" if part == "the step" else cell for cell in cells])
    return table(["", *COLUMNS], lines)


def page(result: dict[str, Any]) -> str:
    import torch

    configs = result["configs"]
    lines = [
        "# Operations of a training step", "",
        f"`python benchmarks/launches.py --steps {result['steps']} --write`; torch {torch.__version__.split('+')[0]}. "
        f"Counts, not times: means of {result['steps']} steps at the config's own size on a simulated CUDA device, "
        f"after {SKIPPED} steps.", "",
        *(f"- **{column}**: {what}." for column, what in COLUMNS.items()), "",
        "A part is where in the code an operation is asked for; all of the backward pass is one.", "",
    ]  # fmt: skip
    summary = {name: rows["the step"] for name, rows in configs.items()}
    lines += [line.replace("**", "") for line in parts_table(summary)] + [""]
    for name, rows in configs.items():
        lines += [f"## {name}", "", *parts_table(rows), ""]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"configs; default {' '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps that are counted; default {STEPS}")
    parser.add_argument("--lines", type=int, default=0, help="also print so many lines of code of each column")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/launches.{md,json}")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps: expected at least 1, got {args.steps}")
    for name in args.names:
        if not (ROOT / "configs" / f"{name}.yaml").is_file():
            parser.error(f"there is no configs/{name}.yaml")
    return args


def main() -> None:
    args = parse_arguments()
    from reporting import quiet, write_report

    quiet()
    from threestudio.utils.extensions import load_extensions

    load_extensions()
    result: dict[str, Any] = {"steps": args.steps, "configs": {}}
    for name in args.names or NAMES:
        ledger = counted(name, args.steps)
        result["configs"][name] = per_step(ledger, args.steps)
        print("\n".join([f"\n{name}", *parts_table(result["configs"][name])]), flush=True)
        for column in COLUMNS if args.lines else ():
            for line, count in ledger.lines.get(column, Counter()).most_common(args.lines):
                print(f"  {column:10} {count / args.steps:8.1f}  {line}", flush=True)
    if args.write:
        write_report("launches", page(result), result)


if __name__ == "__main__":
    main()
