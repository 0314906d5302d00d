"""Times the Gaussian rasterizer's backends side by side, and how the cost grows with Gaussians and pixels.

    python benchmarks/gaussian_rasterization.py [--device cpu] [--repeats 5] [--write]

One measurement is forward and backward of all gradients for one camera. Backends take turns in every round, so that
other load on the machine falls on all of them; what counts is the ratio to plain torch, of medians over the rounds. On
a CPU the times are those of the processor (process_time), which other load stretches less than the clock's. A slope is
d log time / d log size, by least squares over the sizes of a row: 1 is linear. ``--write`` puts the tables into
docs/benchmarks/gaussian_rasterization.{md,json}.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial

import torch
from reporting import conditions, default_device, table, where, write_report
from timing import take_turns

from threestudio.ops.gaussian_rasterization import (
    GaussianImage,
    available_backends,
    rasterize_gaussians,
)
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov

SEED = 0
COVERED = 9.0  # pixels: about the area that a Gaussian has on the image within one standard deviation
BASE = (4000, 64)  # Gaussians, pixels along a side: what the other two tables vary
COUNTS = (500, 1000, 2000, 4000, 8000, 16000)
RESOLUTIONS = (32, 64, 128, 256)
LARGE = (100_000, 512)  # too much for plain torch; its Gaussians are COVERED pixels at its own resolution
Case = tuple[int, int]  # Gaussians, pixels along a side


def scene(n: int, resolution: int, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Gaussians in a ball of radius 0.5; at all resolutions but LARGE's they have the size in the world of BASE's."""
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    means = 0.5 * torch.rand(n, 1, generator=generator) ** (1 / 3) * directions
    intrinsics = intrinsics_from_fov(0.6, resolution, resolution)
    c2w = torch.eye(4)
    c2w[2, 3] = 2.0
    sized_at = LARGE[1] if resolution == LARGE[1] else BASE[1]
    sigma = math.sqrt(COVERED / math.pi) * c2w[2, 3] / intrinsics_from_fov(0.6, sized_at, sized_at)[0]
    scales = sigma * torch.exp(0.5 * torch.randn(n, 3, generator=generator))
    gaussians = [means, torch.randn(n, 4, generator=generator), scales]
    gaussians += [0.05 + 0.6 * torch.rand(n, generator=generator), torch.rand(n, 3, generator=generator)]
    return [x.to(device).requires_grad_() for x in gaussians], c2w.to(device), intrinsics.to(device)


def draw(backend: str, resolution: int, inputs: tuple) -> GaussianImage:
    gaussians, c2w, intrinsics = inputs
    return rasterize_gaussians(*gaussians, c2w, intrinsics, resolution, resolution, backend=backend)


def step(backend: str, resolution: int, inputs: tuple) -> None:
    image = draw(backend, resolution, inputs)
    torch.autograd.grad(image.color.square().sum() + image.depth.sum(), inputs[0])


def measure(cases: list[Case], backends: list[str], device: torch.device, repeats: int) -> list[dict]:
    """Seconds of every round by case and backend."""
    clock, rows = time.perf_counter if device.type == "cuda" else time.process_time, []
    for n, resolution in cases:
        inputs = scene(n, resolution, device)
        work = {backend: partial(step, backend, resolution, inputs) for backend in backends}
        times = take_turns(work, repeats, device, clock)
        rows.append({"gaussians": n, "resolution": resolution, "seconds": times})
    return rows


def slope(sizes: list[float], values: list[float]) -> float:
    """The slope of log(values) over log(sizes), by least squares."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


def kept_bytes(backend: str, case: Case, device: torch.device) -> int:
    """Size of all that one forward keeps for backward, each storage once, the Gaussians themselves included."""
    inputs = scene(*case, device)
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        image = draw(backend, case[1], inputs)
    assert image.color.requires_grad
    return sum(storages.values())


def report(arguments: argparse.Namespace, device: torch.device) -> dict:
    backends = list(available_backends(device))
    fast = [backend for backend in backends if backend != "torch"]
    cases = {
        "gaussians": [(n, BASE[1]) for n in COUNTS],
        "resolution": [(BASE[0], resolution) for resolution in RESOLUTIONS],
    }
    tables = {name: measure(rows, backends, device, arguments.repeats) for name, rows in cases.items()}
    return {
        "command": f"python benchmarks/gaussian_rasterization.py --device {device.type} --repeats {arguments.repeats}",
        **conditions(device),
        "seed": SEED,
        "clock": "wall" if device.type == "cuda" else "processor",
        "repeats": arguments.repeats,
        "backends": backends,
        "tables": tables,
        "large": measure([LARGE], fast, device, arguments.repeats),
        "slopes": {
            name: {
                b: slope([row[name] for row in rows], [statistics.median(row["seconds"][b]) for row in rows])
                for b in backends
            }
            for name, rows in tables.items()
        },
        "kept_bytes": {
            f"{n:,} Gaussians, {resolution} x {resolution} pixels": {
                b: kept_bytes(b, (n, resolution), device) for b in present
            }
            for (n, resolution), present in ((BASE, backends), (LARGE, fast))
        },
    }


def times_table(rows: list[dict], backends: list[str], by: str) -> list[str]:
    lines = []
    for row in rows:
        medians = {backend: statistics.median(times) for backend, times in row["seconds"].items()}
        cells = (f"{medians['torch'] / medians[b]:.1f}x ({1e3 * medians[b]:.1f} ms)" for b in backends)
        lines.append([f"{row[by]:,}", *cells])
    return table([by, *backends], lines, text_columns=0)


def markdown(result: dict) -> str:
    backends, (n, resolution) = result["backends"], BASE
    lines = [
        "# Gaussian rasterization",
        "",
        "Forward and backward of all gradients for one camera. How many times faster than plain torch, by the "
        f"medians of {result['repeats']} rounds in which backends take turns; in brackets the median {result['clock']} "
        "time.",
        "",
        where(result),
        "",
        f"At {resolution} x {resolution} pixels, by the number of Gaussians (seed {result['seed']}):",
        "",
        *times_table(result["tables"]["gaussians"], backends, "gaussians"),
        "",
        f"{n:,} Gaussians of one size in the world, by pixels along a side:",
        "",
        *times_table(result["tables"]["resolution"], backends, "resolution"),
        "",
        "Slopes, d log time / d log size:",
        "",
        *table(["", *backends], [[name, *(f"{s[b]:.2f}" for b in backends)] for name, s in result["slopes"].items()]),
        "",
        f"{LARGE[0]:,} Gaussians at {LARGE[1]} x {LARGE[1]} pixels, too much for plain torch:",
        "",
    ]
    for backend, times in result["large"][0]["seconds"].items():
        lines.append(f"- {backend}: {1e3 * statistics.median(times):.0f} ms")
    lines += ["", "Memory kept from forward to backward:", ""]
    for case, by_backend in result["kept_bytes"].items():
        lines.append(f"- {case}: " + ", ".join(f"{b} {size / 2**20:.1f} MiB" for b, size in by_backend.items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gaussian_rasterization.{md,json}")
    arguments = parser.parse_args()
    result = report(arguments, arguments.device)
    text = markdown(result)
    print(text)
    if arguments.write:
        write_report("gaussian_rasterization", text, result)


if __name__ == "__main__":
    main()
