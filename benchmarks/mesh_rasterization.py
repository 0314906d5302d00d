"""Times mesh rasterization in Warp and in plain torch: by part, against the number of faces and against the resolution.

    python benchmarks/mesh_rasterization.py [--device cpu] [--views 4] [--repeats 5] [--most-faces 1000000] [--write]

A sphere of ever smaller triangles is seen by four cameras. Backends take turns in every round, so that other load on
the machine falls on both. Slopes are those of log time against log size between the two largest sizes: 1 is linear.
``--write`` puts the tables into docs/benchmarks/mesh_rasterization.{md,json}.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import conditions, default_device, table, where, write_report
from timing import take_turns
from torch import Tensor

from threestudio.data.cameras import (
    batch_of_cameras,
    look_at,
    spherical_to_cartesian,
    unit_focal_directions,
)
from threestudio.ops.mesh_antialias import antialias
from threestudio.ops.mesh_rasterization import available_backends, interpolate, rasterize

FACES = (1_000, 10_000, 100_000, 1_000_000)
SIZES = (64, 128, 256, 512)  # pixels along each side
PART_FACES, PART_SIZE = 15_000, 64  # a tetrahedral grid of resolution 64 to 80 has about as many faces
MOST_FACES_OF_TORCH, MOST_PIXELS_OF_TORCH = 100_000, 256  # beyond, plain torch is left out: it takes minutes
PARTS = ("visibility and interpolation", "and outlines", "and backward")


def sphere(n_faces: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and about n_faces faces [F, 3] of a sphere in rings of a radius that waves a little."""
    n = max(2, round(math.sqrt(n_faces / 4)))
    polar, azimuth = torch.meshgrid(
        torch.linspace(0, math.pi, n + 1), torch.arange(2 * n) * (math.pi / n), indexing="ij"
    )
    radius = 0.6 + 0.05 * torch.sin(6 * azimuth) * torch.sin(5 * polar)
    ring = radius * polar.sin()
    v_pos = torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), radius * polar.cos()], -1).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(n), torch.arange(2 * n), indexing="ij")
    a, b = row * 2 * n + column, row * 2 * n + (column + 1) % (2 * n)
    faces = torch.stack([torch.stack([a, a + 2 * n, b], -1), torch.stack([b, a + 2 * n, b + 2 * n], -1)], 2)
    return v_pos.to(device), faces.reshape(-1, 3).to(device)


def cameras(n_views: int, size: int, device: torch.device) -> Tensor:
    """mvp [B, 4, 4] of cameras around the object."""
    azimuth = torch.arange(n_views) * (2 * math.pi / n_views) + 0.3
    positions = spherical_to_cartesian(torch.full_like(azimuth, 0.4), azimuth, torch.full_like(azimuth, 2.0))
    c2w = look_at(positions, torch.zeros(n_views, 3), torch.tensor([0.0, 0.0, 1.0]).expand(n_views, 3))
    fovy = torch.full((n_views,), 0.9)
    return batch_of_cameras(c2w, fovy, unit_focal_directions(size, size), True)["mvp_mtx"].to(device)


def passes(backend: str, n_faces: int, size: int, n_views: int, device: torch.device) -> dict[str, Callable[[], None]]:
    v_pos, faces = sphere(n_faces, device)
    mvp = cameras(n_views, size, device)
    v_pos.requires_grad_()

    def images() -> tuple:
        fragments = rasterize(v_pos, faces, mvp, size, size, backend)
        normals = interpolate(v_pos, faces, fragments, backend)  # any three channels
        return torch.cat([(fragments.face >= 0).float()[..., None], normals], -1), fragments

    def visibility() -> None:
        with torch.no_grad():
            images()

    def outlines() -> None:
        with torch.no_grad():
            image, fragments = images()
            antialias(image, fragments, v_pos, faces, mvp, backend)

    def backward() -> None:
        image, fragments = images()
        image = antialias(image, fragments, v_pos, faces, mvp, backend)
        torch.autograd.grad(image.square().sum(), v_pos)

    return dict(zip(PARTS, (visibility, outlines, backward)))


def peak_memory(function: Callable[[], None], device: torch.device) -> float:
    """MiB that a call needs above what is held before it; NaN where the system does not tell."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it does not serve this call unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        function()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError):  # not Linux, or not glibc
        return float("nan")


def _status(name: str) -> float:
    """A line of this process's memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def measure(arguments: argparse.Namespace, device: torch.device) -> dict:
    backends = available_backends(device)

    def backward(n_faces: int, size: int) -> dict:
        fits = n_faces <= MOST_FACES_OF_TORCH and size <= MOST_PIXELS_OF_TORCH
        work = {
            b: passes(b, n_faces, size, arguments.views, device)[PARTS[-1]] for b in backends if fits or b != "torch"
        }
        memory = {b: peak_memory(function, device) for b, function in work.items()}
        times = take_turns(work, arguments.repeats, device)
        return {"seconds": {b: statistics.median(t) for b, t in times.items()}, "memory_MiB": memory}

    parts = {}
    for part in PARTS:
        work = {b: passes(b, PART_FACES, PART_SIZE, arguments.views, device)[part] for b in backends}
        parts[part] = {b: statistics.median(t) for b, t in take_turns(work, arguments.repeats, device).items()}
    return {
        "parts": parts,
        "faces": {n: backward(n, PART_SIZE) for n in FACES if n <= arguments.most_faces},
        "resolution": {size: backward(PART_FACES, size) for size in SIZES if size <= arguments.largest},
    }


def slope(rows: dict, backend: str, power: int) -> float:
    """Growth of time with size^power, between the two largest sizes that the backend ran at."""
    sizes = sorted(size for size, row in rows.items() if backend in row["seconds"])[-2:]
    taken = [rows[size]["seconds"][backend] for size in sizes]
    if len(taken) < 2:  # one size has no slope
        return math.nan
    return math.log(taken[1] / taken[0]) / (power * math.log(sizes[1] / sizes[0]))


def report(arguments: argparse.Namespace, device: torch.device) -> dict:
    result = measure(arguments, device)
    backends = list(result["parts"][PARTS[0]])
    command = f"--device {device.type} --views {arguments.views} --repeats {arguments.repeats}"
    return {
        "command": f"python benchmarks/mesh_rasterization.py {command}",
        **conditions(device),
        "views": arguments.views,
        "repeats": arguments.repeats,
        **result,
        "slope_faces": {b: slope(result["faces"], b, 1) for b in backends},
        "slope_pixels": {b: slope(result["resolution"], b, 2) for b in backends},
    }


def markdown(result: dict) -> str:
    backends = list(result["parts"][PARTS[0]])

    def cell(seconds_of: dict[str, float], backend: str) -> str:
        text = f"{seconds_of[backend] * 1000:.1f} ms"
        if backend == "torch" or "torch" not in seconds_of:
            return text
        return f"{text} ({seconds_of['torch'] / seconds_of[backend]:.1f}x torch)"

    lines = [
        "# Mesh rasterization",
        "",
        f"A sphere seen by {result['views']} cameras; medians of {result['repeats']} rounds in which the backends take "
        "turns. Times include the mesh's bounding-volume tree and its edges, which are made anew in every call.",
        "",
        where(result),
        "",
        f"{PART_FACES:,} faces, {PART_SIZE} x {PART_SIZE} pixels:",
        "",
        *table(["", *backends], [[part, *(cell(t, b) for b in backends)] for part, t in result["parts"].items()]),
    ]
    for key, of, name, fixed in (
        ("faces", "faces", "faces", f"{PART_SIZE} x {PART_SIZE} pixels"),
        ("resolution", "pixels", "pixels a side", f"{PART_FACES:,} faces"),
    ):
        rows = []
        for size, row in result[key].items():
            cells = (
                f"{cell(row['seconds'], b)}, {row['memory_MiB'][b]:.0f} MiB" if b in row["seconds"] else ""
                for b in backends
            )
            rows.append([f"{size:,}", *cells])
        slopes = ", ".join(f"{b} {result[f'slope_{of}'][b]:.2f}" for b in backends)
        lines += ["", f"Forward and backward, {fixed}, with the peak of memory:", ""]
        lines += [*table([name, *backends], rows, 0), "", f"Slope in the number of {of}: {slopes}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-faces", type=int, default=FACES[-1])
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="pixels a side")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/mesh_rasterization.{md,json}")
    arguments = parser.parse_args()
    result = report(arguments, arguments.device)
    text = markdown(result)
    print(text)
    if arguments.write:
        write_report("mesh_rasterization", text, result)


if __name__ == "__main__":
    main()
