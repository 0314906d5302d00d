"""What a round of Picard iterations costs besides its gradients, by parameters, window and optimizer.

    python benchmarks/picard_overhead.py --write

The engine and a real Adam move states of hash grids along; gradients are ready-made and cost nothing. What is timed
are the parts of a round (guesses, updates of the rollout, copies, distances, checks that gradients are finite, and the
rest) and the true steps that a trainer makes with the accepted gradients. Any guess is near enough here, so strides are
full: a round of a shorter stride makes fewer guesses and fewer true steps.

Shares are of a round of P gradients of --gradient-seconds each, without the true steps, which training step by step
makes too. On one device gradients are computed in turn. On P ranks they are computed at once; a rank checks its own
gradient and rolls out its shard of the state, of which the largest is timed by itself. It sends and receives
N (P - 1) / P elements twice, of its guess and of its gradient, at a speed that was measured between two processes over
gloo on this machine, copies into and out of rows of bytes included, or at --bandwidth, of a better wire.

"Adam" is torch's default, "Adam, fused" has `fused: true` among the optimizer's arguments: both roll out by the fused
kernel, but true steps are the optimizer's own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from reporting import given_command, machine, table, write_report
from timing import synchronize

from threestudio.ops.hash_grid import HashGridLayout
from threestudio.utils.extensions import load_extensions
from threestudio.utils.memory import keep_freed_memory

TABLES = {"0.1 M": 12, "1 M": 15, "12.6 M": 19}  # log2 of the largest level of the hash grid
OPTIMIZERS = {"Adam": {}, "Adam, fused": {"fused": True}}
LABELS = ("parameters", "optimizer", "window")
PARTS = ("guesses", "updates", "copies", "distances", "finiteness", "rest")


class Clock:
    """Seconds by part. What a watched function calls belongs to its part."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._inside = device, dict.fromkeys((*PARTS, "round", "true steps"), 0.0), False

    def now(self) -> float:
        """On a processor its own time, which other programs on the machine leave alone, if not its caches."""
        synchronize(self.device)
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = self.now()
        yield
        self.seconds[name] += self.now() - begin

    def watch(self, owner: Any, function: str, name: str) -> None:
        original = getattr(owner, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._inside = True
            try:
                with self.part(name):
                    return original(*args, **kwargs)
            finally:
                self._inside = False

        setattr(owner, function, timed)


def shapes_of(log2_table: int) -> dict[str, tuple]:
    """Shapes of the parameters of a hash grid of 16 levels and of the networks of a NeRF beside it."""
    layout = HashGridLayout(log2_hashmap_size=log2_table, per_level_scale=1.4472692012786865)
    return {"grid": (layout.n_entries, 2), "density.0": (64, 32), "density.1": (4, 64), "background.0": (16, 16)}


def elements_of(shapes: dict[str, tuple]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def largest_shard(shapes: dict[str, tuple], ranks: int) -> dict[str, tuple]:
    from turboprop.picard.processes.sharding import Sharding

    sharding = Sharding({name: torch.empty(shape) for name, shape in shapes.items()}, ranks)
    pieces = max(map(sharding.owned, range(ranks)), key=lambda found: sum(piece.elements for piece in found))
    return {piece.name: tuple(sharding.shape_of(piece)) for piece in pieces}


def measure_round(shapes: dict[str, tuple], window: int, settings: dict, rounds: int, device: torch.device) -> dict:
    """Median seconds of a round by part, after one that is not counted."""
    from turboprop.picard.engine import window as engine
    from turboprop.picard.engine.state import Evaluation, State
    from turboprop.picard.engine.thresholds import FixedThreshold

    generator = torch.Generator(device).manual_seed(0)
    ready = [
        {name: 1e-3 * torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    parameters = {name: torch.nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
    groups = [[name for name in shapes if name != "background.0"], [name for name in shapes if name == "background.0"]]
    optimizer = torch.optim.Adam(
        [{"params": [parameters[name] for name in names], "lr": lr} for names, lr in zip(groups, (0.01, 0.001))],
        betas=(0.9, 0.99),
        eps=1e-15,
        **settings,
    )

    def evaluate(points: list[Any]) -> list[Any]:
        return [Evaluation.of(ready[point.step % len(ready)]) for point in points]

    picard = engine.PicardWindow(
        evaluate, engine.OptimizerUpdate(optimizer, groups), window, FixedThreshold(float("inf"))
    )
    found = []
    step = 0
    for _ in range(rounds + 1):
        clock = Clock(device)
        moments = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
        base = State(step, {name: parameter.data for name, parameter in parameters.items()}, {}, moments)
        with watched(clock), clock.part("round"):
            result = picard.round(base)
        for evaluation in result.accepted:
            for name, parameter in parameters.items():
                parameter.grad = evaluation.gradients[name]
            with clock.part("true steps"):
                optimizer.step()
        step += result.stride
        clock.seconds["rest"] = clock.seconds["round"] - sum(clock.seconds[part] for part in PARTS)
        found.append(clock.seconds)
    if result.stride != window:
        raise RuntimeError(f"expected full strides of {window}, got {result.stride}")
    return {part: statistics.median(row[part] for row in found[1:]) for part in found[0]}


@contextlib.contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """The engine's functions under the clock, and afterwards as they were."""
    from turboprop.picard.engine import state
    from turboprop.picard.engine import window as engine

    watches = (
        (engine.PicardWindow, "_points", "guesses"),
        (engine.OptimizerUpdate, "_step", "updates"),
        (state.State, "clone", "copies"),
        (state.State, "point", "copies"),
        (engine, "squared_differences", "distances"),
        (engine.PicardWindow, "_compared", "distances"),
        (state, "all_finite", "finiteness"),
    )
    originals = [(owner, function, getattr(owner, function)) for owner, function, _ in watches]
    for owner, function, name in watches:
        clock.watch(owner, function, name)
    try:
        yield
    finally:
        for owner, function, original in originals:
            setattr(owner, function, original)


def _exchange(rank: int, port: int, repeats: int, answer: Any) -> None:
    """One of two ranks, each with one slot of a window of two."""
    from turboprop.picard.engine.state import Evaluation, Point
    from turboprop.picard.processes.communication import Communication
    from turboprop.picard.processes.exchange import collect, distribute
    from turboprop.picard.processes.sharding import Sharding

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    communication = Communication()
    whole = {name: torch.ones(shape) for name, shape in shapes_of(TABLES["12.6 M"]).items()}
    sharding = Sharding(whole, 2)
    points = [Point(step, {n: v.clone() for n, v in sharding.part(whole, rank).items()}) for step in (0, 1)]
    evaluation = Evaluation(whole)
    seconds, sent = [], communication.sent
    for _ in range(repeats + 1):
        dist.barrier()
        begin = time.perf_counter()
        collect(communication, sharding, points)
        distribute(communication, sharding, [evaluation], 2)
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        answer.put((communication.sent - sent) / (repeats + 1) / statistics.median(seconds[1:]))
    dist.destroy_process_group()


def _exchange_process(*args: Any) -> None:
    keep_freed_memory()
    load_extensions()
    _exchange(*args)


def measure_exchange(repeats: int) -> float:
    """Bytes a second that a rank sends to another over gloo on this machine, while it receives as many."""
    context = multiprocessing.get_context("spawn")
    answer, port = context.SimpleQueue(), 29400 + os.getpid() % 500
    processes = [context.Process(target=_exchange_process, args=(rank, port, repeats, answer)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("the exchange between two processes failed")
    return answer.get()


def measure_copies(repeats: int, device: torch.device) -> float:
    """Bytes a second that are read and written where parameters are copied."""
    clock, source = Clock(device), torch.ones(12_600_000, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(repeats + 1):
        begin = clock.now()
        target.copy_(source)
        seconds.append(clock.now() - begin)
    return 2 * 4 * source.numel() / statistics.median(seconds[1:])


def measure(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    speeds = {
        "gloo_bytes_a_second": measure_exchange(args.rounds),
        "copy_bytes_a_second": measure_copies(args.rounds, device),
    }
    rows = []
    for size, name, window in itertools.product(args.sizes, args.optimizers, args.windows):
        shapes = shapes_of(TABLES[size])
        whole = measure_round(shapes, window, OPTIMIZERS[name], args.rounds, device)
        shard = measure_round(largest_shard(shapes, window), window, OPTIMIZERS[name], args.rounds, device)
        row = {"size": size, "elements": elements_of(shapes), "window": window, "optimizer": name}
        row.update(seconds=whole, shard_seconds=shard)
        wires = {"gloo": speeds["gloo_bytes_a_second"], "wire": args.bandwidth}
        rows.append({**row, **shares(row, wires, args.gradient_seconds)})
        print(one_device(rows[-1:])[-1], flush=True)
    return {**speeds, "bandwidth": args.bandwidth, "gradient_seconds": args.gradient_seconds, "rows": rows}


def shares(row: dict, wires: dict[str, float], gradient: float) -> dict:
    """Shares of a round, without true steps: on one device (there with them, too) and on P ranks, by wire."""
    whole, shard, window = row["seconds"], row["shard_seconds"], row["window"]
    steps = whole["round"] + whole["true steps"]
    rank = shard["round"] - shard["finiteness"] + whole["finiteness"] / window
    found = {
        "share": whole["round"] / (whole["round"] + window * gradient),
        "share_with_true_steps": steps / (steps + window * gradient),
        "rank_seconds": rank,
    }
    for wire, speed in wires.items():
        exchange = 2 * 4 * row["elements"] * (window - 1) / window / speed
        found[f"{wire}_exchange_seconds"] = exchange
        found[f"{wire}_share"] = (rank + exchange) / (rank + exchange + gradient)
    return found


def one_device(rows: list[dict]) -> list[str]:
    titles = [*PARTS, "round (ms)", "share", "true steps (ms)", "share with them"]
    lines = []
    for row in rows:
        seconds = row["seconds"]
        cells = [*map(ms, (seconds[part] for part in (*PARTS, "round"))), f"{row['share']:.1%}"]
        lines.append([*labels(row), *cells, ms(seconds["true steps"]), f"{row['share_with_true_steps']:.1%}"])
    return table([*LABELS, *titles], lines, text_columns=2)


def many_ranks(rows: list[dict], bandwidth: float) -> list[str]:
    wires = (("gloo", "gloo here"), ("wire", f"{bandwidth / 1e9:g} GB/s"))
    titles = ["a rank's rollout (ms)", "its true steps (ms)"]
    titles += [title for _, name in wires for title in (f"exchange, {name} (ms)", "share")]
    lines = []
    for row in rows:
        cells = [ms(row["rank_seconds"]), ms(row["shard_seconds"]["true steps"])]
        for wire, _ in wires:
            cells += [ms(row[f"{wire}_exchange_seconds"]), f"{row[f'{wire}_share']:.1%}"]
        lines.append([*labels(row), *cells])
    return table([*LABELS, *titles], lines, text_columns=2)


def labels(row: dict) -> list[str]:
    return [row["size"], row["optimizer"], str(row["window"])]


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--windows", nargs="+", type=int, default=[4, 7, 16, 32])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many")
    parser.add_argument("--gradient-seconds", type=float, default=1.0, help="of a guided step, an assumption")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes/s of another wire; PCIe 4.0 x16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard_overhead.{md,json}")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)  # whose processor time is the wall clock of a machine with nothing else to do
    load_extensions()
    result = measure(args)
    command = given_command()
    where = f"{machine(torch.device(args.device))}; torch {torch.__version__} with one thread"
    page = [
        "# What a round costs besides its gradients",
        "",
        __doc__.split("\n\n", 2)[2].strip(),
        "",
        f"`{command}` on {where}; seed 0; medians of {args.rounds} rounds; load average {os.getloadavg()[0]:.1f}; a "
        f"gradient is taken for {args.gradient_seconds} s; over gloo ranks exchanged "
        f"{result['gloo_bytes_a_second'] / 1e9:.2f} GB/s each way; memory is copied at "
        f"{result['copy_bytes_a_second'] / 1e9:.1f} GB/s, read and written.",
        "",
        "On one device:",
        "",
        *one_device(result["rows"]),
        "",
        "On P ranks, whose gradients are computed at once:",
        "",
        *many_ranks(result["rows"], args.bandwidth),
        "",
    ]
    print("\n".join(page))
    if args.write:
        write_report("picard_overhead", "\n".join(page), {"command": command, "machine": where, "seed": 0, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
