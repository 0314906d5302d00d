"""Times marching and compositing, Warp against plain torch: cost against rays and samples, and memory.

    python benchmarks/ray_marching.py [--device cpu] [--repeats 5] [--threads 1] [--write]

Rays look at a ball of occupied cells in a 32^3 grid, as in training. Backends take turns in every round, so that other
load on the machine falls on both; what counts is the ratio to torch, of medians over the rounds. Memory is the peak of
what one call allocates: on CUDA by torch's counter, on a CPU by its profiler. ``--write`` puts the table into
docs/benchmarks/ray_marching.{md,json}.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from reporting import conditions, default_device, table, where, write_report
from timing import take_turns

from threestudio.ops.ray_marching import march_occupied
from threestudio.ops.ray_sampling import RaySamples, ray_aabb_intersect
from threestudio.ops.volume_rendering import accumulate_along_rays, render_weight_from_density
from threestudio.utils.memory import keep_freed_memory

SEED = 0
BACKENDS = ("torch", "warp")
# Rays, steps over the cube's diagonal: the number of rays grows, then that of samples on each.
SIZES = ((2048, 256), (8192, 256), (32768, 256), (8192, 128), (8192, 512), (8192, 1024))
PASSES = ("marching", "compositing", "compositing, backward")


def scene(
    n_rays: int, n_steps: int, device: torch.device
) -> tuple[Callable[[str], RaySamples], RaySamples, torch.Tensor, torch.Tensor]:
    """The marching itself, its samples [S], and density [S] and colours [S, 3] there."""
    generator = torch.Generator().manual_seed(SEED)
    o = F.normalize(torch.randn(n_rays, 3, generator=generator), dim=-1) * 2.5
    d = F.normalize(torch.randn(n_rays, 3, generator=generator) * 0.4 - o, dim=-1)
    axis = (torch.arange(32) + 0.5) / 16 - 1
    binaries = (torch.cartesian_prod(axis, axis, axis).norm(dim=-1) < 0.5).view(32, 32, 32)
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    o, d, binaries, box = (x.to(device) for x in (o, d, binaries, box))
    t_min, t_max, _ = ray_aabb_intersect(o, d, box)
    step = 2 * 3**0.5 / n_steps

    def march(backend: str) -> RaySamples:
        return march_occupied(o, d, t_min, t_max, step, binaries, box, backend)

    samples = march("torch")
    density, *colors = torch.rand(4, samples.t_starts.shape[0], generator=generator).to(device)
    return march, samples, density * 5, torch.stack(colors, -1)


def passes(n_rays: int, n_steps: int, device: torch.device) -> tuple[dict[str, Callable[[str], None]], int]:
    march, samples, density, colors = scene(n_rays, n_steps, device)
    x, c = density.clone().requires_grad_(), colors.clone().requires_grad_()

    def composite(backend: str, density: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        weights, _, _ = render_weight_from_density(
            samples.t_starts, samples.t_ends, density, samples.ray_indices, backend
        )
        color = accumulate_along_rays(weights, colors, samples.ray_indices, n_rays, backend)
        opacity = accumulate_along_rays(weights, None, samples.ray_indices, n_rays, backend)
        return torch.cat([color, opacity], -1)

    def forward(backend: str) -> None:
        with torch.no_grad():
            composite(backend, density, colors)

    def backward(backend: str) -> None:
        torch.autograd.grad(composite(backend, x, c).sum(), [x, c])

    return dict(zip(PASSES, (march, forward, backward))), samples.t_starts.shape[0]


def megabytes(function: Callable[[str], object], backend: str, device: torch.device) -> float:
    """Peak of the memory that one call allocates, over what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(backend)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(backend)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def measure(device: torch.device, repeats: int) -> list[dict]:
    rows = []
    for n_rays, n_steps in SIZES:
        work, n_samples = passes(n_rays, n_steps, device)
        turns = {(name, b): partial(function, b) for name, function in work.items() for b in BACKENDS}
        taken = take_turns(turns, repeats, device)
        times = {name: {b: taken[name, b] for b in BACKENDS} for name in work}
        memory = {name: {b: megabytes(function, b, device) for b in BACKENDS} for name, function in work.items()}
        rows.append({"rays": n_rays, "steps": n_steps, "samples": n_samples, "seconds": times, "megabytes": memory})
    return rows


def report(arguments: argparse.Namespace, device: torch.device) -> dict:
    return {
        "command": f"python benchmarks/ray_marching.py --device {device.type} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}",
        **conditions(device),
        "seed": SEED,
        "repeats": arguments.repeats,
        "rows": measure(device, arguments.repeats),
    }


def markdown(result: dict) -> str:
    rows = []
    for row in result["rows"]:
        cells = [f"{row['rays']:,}", str(row["steps"]), f"{row['samples']:,}"]
        for name in PASSES:
            warp, torch_ = (statistics.median(row["seconds"][name][b]) for b in ("warp", "torch"))
            memory = " / ".join(f"{row['megabytes'][name][b]:.1f}" for b in ("warp", "torch"))
            cells.append(f"{torch_ / warp:.1f}x ({warp * 1e3:.1f} ms; {memory} MB)")
        rows.append(cells)
    lines = [
        "# Ray marching and compositing",
        "",
        "Rays through a 32^3 grid whose occupied cells fill a ball of a quarter of its side. How many times faster the "
        f"Warp kernels are than plain torch, by the medians of {result['repeats']} rounds in which the two take turns; "
        "in brackets Warp's median time, and the peak of memory that a call allocates, Warp's and torch's.",
        "",
        where(result),
        "",
        *table(["rays", "steps over the diagonal", "samples", *PASSES], rows, text_columns=0),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of Warp's launches")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/ray_marching.{md,json}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as launch.py does
    result = report(arguments, arguments.device)
    text = markdown(result)
    print(text)
    if arguments.write:
        write_report("ray_marching", text, result)


if __name__ == "__main__":
    main()
