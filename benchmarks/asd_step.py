"""Splits a training step of the main job into generator, render, eikonal points and teacher, for 1 and 4 prompts.

    python benchmarks/asd_step.py [--config configs/asd-3dconv.yaml] [--steps 8] [--against CHECKOUT] [--write]

CPU seconds on one thread, each number of prompts in a process of its own, whose peak memory counts. The step is cut at
the generator's features and at the pictures, so that each part's forward and backward pass is timed by itself; the sum
is the step. The eikonal points share one look-up with the samples: their part is what a render with them takes beyond
one without. ``--against`` measures another checkout in turns with this one. ``--write`` puts the tables into
docs/benchmarks/asd_step.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "generator, forward",
    "render, forward",
    "teacher (encode, denoise)",
    "teacher, backward (encode)",
    "render, backward",
    "generator, backward",
)
# The published network (ScaleDreamer, arXiv 2407.02040) with an eighth of its widths, and its samples a ray.
PUBLISHED = (
    "system.geometry.channels=[64,64,64,32,16,8]",
    "system.geometry.feature_dim=32",
    "system.geometry.hidden_dim=64",
    "system.geometry.constant_bias_up_to=64",
    "system.geometry.constant_bias=between",
    "system.geometry.layer_noise=true",
    "system.renderer.num_samples_per_ray=128",
    "system.renderer.num_samples_per_ray_importance=64",
    "system.renderer.eikonal_at=samples",
    "system.renderer.min_weight=1e-4",
    "data.n_view=1",
)
# name: overrides of the config, steps as a share of --steps
WORKLOADS = {"the config": ((), 1.0), "published network, widths / 8, 128^3, 1 view": (PUBLISHED, 0.25)}
PROMPTS = (1, 4)


class Stopwatch:
    """CPU seconds of this process between its calls."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def __call__(self) -> float:
        now = time.process_time()
        lap, self.last = now - self.last, now
        return lap


def render(system, batch: dict, made, eikonal_points: int):
    """The pictures of a cut field, the cut and the sum of what regularises them; eikonal_points 0: without."""
    from turboprop.amortized.field import Field
    from turboprop.amortized.voxel_sampling import VoxelSpace

    from threestudio.systems.losses import eikonal_loss, sparsity_loss

    space = VoxelSpace(made.space.table.detach().requires_grad_(), made.space.resolution)
    system.renderer.cfg.eikonal_points = eikonal_points
    rest = {key: value for key, value in batch.items() if key != "noise"}
    out = system.renderer(**rest, space_cache=Field(made.heads, space, made.radius))
    regularizers = 20 * sparsity_loss(out["opacity"])
    if eikonal_points:
        regularizers = regularizers + 5 * eikonal_loss(out["sdf_grad"])
    return space, out, regularizers


def timed_step(system, batch: dict, eikonal_points: int) -> list[float]:
    """One step's seconds by part (PARTS), then those of a render and its backward pass without eikonal points."""
    import torch

    prompts = system.prompt_processor(batch["prompt"])
    lap, seconds = Stopwatch(), []
    made = system.geometry.generate_space_cache(batch["noise"], prompts.global_embeddings)
    seconds.append(lap())
    space, out, regularizers = render(system, batch, made, eikonal_points)
    seconds.append(lap())
    rgb = out["comp_rgb"].detach().requires_grad_()
    guided = system.guidance(rgb, prompts, **batch)
    seconds.append(lap())
    (value,) = [v for k, v in guided.items() if k.startswith("loss_")]
    value.backward()
    seconds.append(lap())
    torch.autograd.backward([out["comp_rgb"], regularizers], [rgb.grad, torch.ones_like(regularizers)])
    seconds.append(lap())
    gradient, picture_gradient = space.table.grad, rgb.grad
    del space, out, regularizers, guided, value
    made.space.table.backward(gradient)
    seconds.append(lap())
    del gradient
    _, out, regularizers = render(system, batch, made, 0)
    torch.autograd.backward([out["comp_rgb"], regularizers], [picture_gradient, torch.ones_like(regularizers)])
    return [*seconds, lap()]


def measure(config: str, overrides: list[str], steps: int) -> dict:
    """Median seconds by part over `steps` steps after one to warm up, and the peak memory in GB."""
    import torch

    import threestudio
    from threestudio.utils.config import load_config
    from threestudio.utils.extensions import load_extensions
    from threestudio.utils.keyed_random import seed_step
    from threestudio.utils.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    load_extensions()
    cfg = load_config(config, cli_args=overrides)
    data = threestudio.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    system = threestudio.find(cfg.system_type)(cfg.system)
    system.build_prompts_and_guidance()
    system.train()
    with torch.no_grad():  # the heads' last layers start at zero, where half of a backward pass has nothing to do
        for head in (system.geometry.heads.sdf, system.geometry.heads.color):
            head[-1].weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    points, rows = system.renderer.cfg.eikonal_points, []
    for step in range(steps + 1):
        data.train_dataset.update_step(0, step)
        seed_step(cfg.seed, step, 0, "step")
        rows.append(timed_step(system, data.train_dataset.collate(None), points))
        system.zero_grad()
    columns = [statistics.median(column) for column in zip(*rows[1:])]
    seconds = dict(zip(PARTS, columns))
    eikonal = seconds["render, forward"] + seconds["render, backward"] - columns[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "step": sum(seconds.values()), "eikonal": eikonal, "peak_gb": peak, "steps": steps}


def in_a_process(checkout: Path, config: str, overrides: list[str], steps: int) -> dict:
    """`measure` of a checkout's code, by this file."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", "--config", config, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [*command, *overrides], cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, list[dict]]) -> str:
    """One workload's columns: for each number of prompts each checkout; found: results by checkout, as in PROMPTS."""
    heads = [f"{count} prompt{'s' * (count > 1)}, {name}" for count in PROMPTS for name in found]
    columns = [found[name][i] for i in range(len(PROMPTS)) for name in found]
    lines = ["| part | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for part in PARTS:
        lines.append(f"| {part} | " + " | ".join(f"{c['seconds'][part]:.3f}" for c in columns) + " |")
    lines.append("| **step** | " + " | ".join(f"{c['step']:.3f}" for c in columns) + " |")
    lines.append("| of render: eikonal points | " + " | ".join(f"{c['eikonal']:.3f}" for c in columns) + " |")
    lines.append("| peak memory, GB | " + " | ".join(f"{c['peak_gb']:.2f}" for c in columns) + " |")
    return "\n".join(lines)


def ratios(found: dict[str, list[dict]]) -> list[str]:
    """What the tables are read for, a line each."""
    most = PROMPTS[-1]
    lines = [
        f"{name}: a step of {most} prompts takes {results[-1]['step'] / (most * results[0]['step']):.2f} "
        f"of the time of {most} steps of one."
        for name, results in found.items()
    ]
    if len(found) == 2:
        new, old = found.values()
        for count, a, b in zip(PROMPTS, new, old):
            time_ratio, memory_ratio = a["step"] / b["step"], a["peak_gb"] / b["peak_gb"]
            prompts = f"{count} prompt{'s' * (count > 1)}"
            lines.append(f"{prompts}: {time_ratio:.2f} of the other's time, {memory_ratio:.2f} of its memory.")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/asd-3dconv.yaml")
    parser.add_argument("--steps", type=int, default=8, help="steps of the config; the published network has a quarter")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/asd_step.{md,json}")
    parser.add_argument("--measure", action="store_true", help="one measurement in this process, as JSON")
    args, overrides = parser.parse_known_args()
    if args.measure:
        sys.path.insert(0, os.getcwd())
        print(json.dumps(measure(args.config, overrides, args.steps)))
        return 0
    checkouts = {"this code": ROOT, **({"the other": args.against.resolve()} if args.against else {})}
    load = os.getloadavg()[0]
    result, sections = {}, []
    for workload, (changes, share) in WORKLOADS.items():
        found: dict[str, list[dict]] = {name: [] for name in checkouts}
        for count in PROMPTS:
            for name, checkout in checkouts.items():
                changed = [*changes, f"data.batch_size={count}", *overrides]
                found[name].append(in_a_process(checkout, args.config, changed, max(2, round(args.steps * share))))
        result[workload] = found
        sections += [f"## {workload}", table(found), "\n".join(f"- {line}" for line in ratios(found))]
        print("\n\n".join(sections[-3:]), flush=True)
    if args.write:
        sys.path.insert(0, str(ROOT))
        write(args, overrides, result, sections, (load, os.getloadavg()[0]))
    return 0


def write(
    args: argparse.Namespace, overrides: list[str], result: dict, sections: list[str], load: tuple[float, float]
) -> None:
    """The page and its JSON; load: the load averages at the start and at the end."""
    import torch

    from benchmarks.reporting import machine, write_report

    options = [f"--steps {args.steps}", *overrides, *(["--against CHECKOUT"] if args.against else []), "--write"]
    command = " ".join(["python benchmarks/asd_step.py", *options])
    state = (
        f"{machine(torch.device('cpu'))}, one thread, torch {torch.__version__}; the load average was {load[0]:.1f} "
        f"at the start and {load[1]:.1f} at the end, with other processes on the same cores."
    )
    published = "\n".join(f"    {line}" for line in PUBLISHED)
    head = (
        f"# A step of the main job\n\n`{command}`\non {state}\n\n"
        f"CPU seconds, not wall time: medians of {args.steps} steps of `{args.config}` and of a quarter as many "
        "(2 at least) of the published network.\nOne process for each column, in turns. Memory is the process's peak, "
        f"the teacher's and Python's share included.\n\nThe published network is the config with\n\n{published}\n"
    )
    result = {"command": command, "state": state, "load_average": load, "workloads": result}
    write_report("asd_step", head + "\n" + "\n\n".join(sections) + "\n", result)


if __name__ == "__main__":
    sys.exit(main())
