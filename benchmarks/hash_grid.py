"""Times the hash grid's backends side by side: values, first and second derivatives.

    python benchmarks/hash_grid.py [--device cpu] [--points 65536] [--repeats 5] [--threads 1] [--write]

Beside the backends stand two naive forms, the paper's equations written down in torch without a thought of speed: one
looks up a level's eight corners together, one a corner at a time, as tutorials do. Their gradients differ widely in
cost. All take turns in every round, so that other load on the machine falls on all of them; what counts is the ratio to
naive torch, of medians over the rounds. ``--write`` puts the table into docs/benchmarks/hash_grid.{md,json}.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from reporting import conditions, default_device, table, where, write_report
from timing import take_turns

from threestudio.ops.hash_grid import HashGridLayout, available_backends, hash_grid
from threestudio.ops.hash_grid.reference import entry_index
from threestudio.utils.memory import keep_freed_memory

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


def measure(device: torch.device, n_points: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by pass and backend."""
    generator = torch.Generator().manual_seed(SEED)
    positions = torch.rand(n_points, 3, generator=generator).to(device)
    entries = torch.randn(LAYOUT.n_entries, LAYOUT.n_features, generator=generator).to(device).requires_grad_()
    backends = [*available_backends(device), *NAIVE]
    work = {backend: passes(backend, positions, entries) for backend in backends}
    times = take_turns({(name, b): work[b][name] for name in PASSES for b in backends}, repeats, device)
    return {name: {b: times[name, b] for b in backends} for name in PASSES}


def report(arguments: argparse.Namespace, device: torch.device) -> dict:
    times = measure(device, arguments.points, arguments.repeats)
    return {
        "command": f"python benchmarks/hash_grid.py --device {device.type} --points {arguments.points} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}",
        **conditions(device),
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
        [name, *(f"{ratios[b]:.1f}x ({statistics.median(result['seconds'][name][b]):.3f} s)" for b in backends)]
        for name, ratios in result["ratio_to_naive"].items()
    ]
    lines = [
        "# Hash grid",
        "",
        f"{result['points']:,} random points, {result['levels']} levels of {result['features']} features, "
        f"{result['entries']:,} entries, seed {result['seed']}. How many times faster than naive torch, by the medians "
        f"of {result['repeats']} rounds in which the backends take turns; in brackets the median time.",
        "",
        where(result),
        "",
        *table(["", *backends], rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--points", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of Warp's launches")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/hash_grid.{md,json}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as launch.py does
    result = report(arguments, arguments.device)
    text = markdown(result)
    print(text)
    if arguments.write:
        write_report("hash_grid", text, result)


if __name__ == "__main__":
    main()
