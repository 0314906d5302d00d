"""Times the hash grid's backends side by side: values, first and second derivatives.

    python benchmarks/hash_grid.py [--device cpu] [--points 65536] [--repeats 5] [--threads 1] [--write]

Beside the backends stand two naive forms, the paper's equations written down in torch without a thought of speed: one
looks up a level's eight corners together, one a corner at a time, as tutorials do. Their gradients differ widely in
cost. All take turns in every round, so that other load on the machine falls on all of them; what counts is the ratio to
naive torch, of medians over the rounds. ``--write`` puts the table into docs/benchmarks/hash_grid.{md,json}.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from reporting import machine, write_report  # noqa: E402

from threestudio.ops.hash_grid import HashGridLayout, available_backends, hash_grid  # noqa: E402
from threestudio.ops.hash_grid.reference import entry_index  # noqa: E402
from threestudio.utils.memory import keep_freed_memory  # noqa: E402

SEED = 0
LAYOUT = HashGridLayout(
    n_levels=16, n_features=2, log2_hashmap_size=19, base_resolution=16, per_level_scale=1.447269237440378
)
PASSES = ("forward", "forward, backward", "forward, backward, double backward")


def naive_hash_grid(positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Mueller et al. 2022, section 3, as written: on each level the eight corners [N, 8, 3] of a point's cell, their
    entries by indexing, their weights as products; the gradient is left to autograd. Differs from the ``torch`` backend
    in how entries are fetched, on which the cost of the gradient hangs."""
    corners = torch.cartesian_prod(*[torch.arange(2, device=positions.device)] * 3)
    levels = []
    for level in LAYOUT.levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.floor()
        fraction = (scaled - cell)[:, None]
        weights = torch.where(corners.bool(), fraction, 1.0 - fraction).prod(-1)
        entries = entry_index(cell.long()[:, None] + corners, level)
        levels.append((weights[..., None] * table[entries]).sum(1))
    return torch.cat(levels, -1)


def naive_hash_grid_by_corner(positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The grid's features by one look-up [N, F] a corner."""
    corners = torch.cartesian_prod(*[torch.arange(2, device=positions.device)] * 3)
    levels = []
    for level in LAYOUT.levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.floor()
        fraction = scaled - cell
        total = torch.zeros(positions.shape[0], LAYOUT.n_features, device=positions.device)
        for corner in corners:
            weight = torch.where(corner.bool(), fraction, 1.0 - fraction).prod(-1)
            total = total + weight[:, None] * table[entry_index(cell.long() + corner, level)]
        levels.append(total)
    return torch.cat(levels, -1)


NAIVE = {"naive": naive_hash_grid, "naive, by corner": naive_hash_grid_by_corner}


def encode(backend: str, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    if backend in NAIVE:
        return NAIVE[backend](positions, table)
    return hash_grid(positions, table, LAYOUT, backend=backend)


def passes(backend: str, positions: torch.Tensor, table: torch.Tensor) -> dict[str, Callable[[], None]]:
    x = positions.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            encode(backend, positions, table)

    def backward() -> None:
        torch.autograd.grad(encode(backend, x, table).sum(), [x, table])

    def double_backward() -> None:
        """What a loss on analytic normals costs."""
        (normal,) = torch.autograd.grad(encode(backend, x, table).sum(), x, create_graph=True)
        torch.autograd.grad(normal.square().sum(), table)

    return dict(zip(PASSES, (forward, backward, double_backward)))


def seconds(function: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(device: torch.device, n_points: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by pass and backend; a first round, with compilation, is not counted."""
    generator = torch.Generator().manual_seed(SEED)
    positions = torch.rand(n_points, 3, generator=generator).to(device)
    table = torch.randn(LAYOUT.n_entries, LAYOUT.n_features, generator=generator).to(device).requires_grad_()
    work = {backend: passes(backend, positions, table) for backend in [*available_backends(device), *NAIVE]}
    times: dict[str, dict[str, list[float]]] = {name: {backend: [] for backend in work} for name in PASSES}
    for round_index in range(repeats + 1):
        for name in PASSES:
            for backend in work:
                taken = seconds(work[backend][name], device)
                if round_index > 0:
                    times[name][backend].append(taken)
    return times


def report(arguments: argparse.Namespace, device: torch.device) -> dict:
    times = measure(device, arguments.points, arguments.repeats)
    return {
        "command": f"python benchmarks/hash_grid.py --device {device.type} --points {arguments.points} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}",
        "machine": machine(device),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "seed": SEED,
        "levels": LAYOUT.n_levels,
        "features": LAYOUT.n_features,
        "entries": LAYOUT.n_entries,
        "points": arguments.points,
        "repeats": arguments.repeats,
        "seconds": times,
        "ratio_to_naive": {
            name: {b: statistics.median(by_backend["naive"]) / statistics.median(t) for b, t in by_backend.items()}
            for name, by_backend in times.items()
        },
    }


def markdown(result: dict) -> str:
    backends = list(result["seconds"][PASSES[0]])
    rows = [
        "# Hash grid",
        "",
        f"{result['points']:,} random points, {result['levels']} levels of {result['features']} features, "
        f"{result['entries']:,} entries, seed {result['seed']}. How many times faster than naive torch, by the medians "
        f"of {result['repeats']} rounds in which the backends take turns; in brackets the median time.",
        "",
        f"`{result['command']}` on {result['machine']}; torch {result['torch']} with {result['torch_threads']} "
        f"thread(s); load average {result['load_average']:.1f}, of which the ratios say more than the times.",
        "",
        "| | " + " | ".join(backends) + " |",
        "|---|" + "---|" * len(backends),
    ]
    for name, by_backend in result["seconds"].items():
        cells = [
            f"{result['ratio_to_naive'][name][b]:.1f}x ({statistics.median(by_backend[b]):.3f} s)" for b in backends
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--points", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of Warp's launches")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/hash_grid.{md,json}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as launch.py does
    result = report(arguments, torch.device(arguments.device))
    text = markdown(result)
    print(text)
    if arguments.write:
        write_report("hash_grid", text, result)


if __name__ == "__main__":
    main()
