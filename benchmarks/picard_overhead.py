"""What a round of Picard iterations costs besides its gradients, by parameters, window and optimizer.

    python benchmarks/picard_overhead.py --write

The engine and a real Adam move states of hash grids along; gradients are ready-made and cost nothing. What is timed are
the parts of a round (guesses, updates of the rollout, copies, distances, checks that gradients are finite, the rest) and
the true steps that a trainer makes with the accepted gradients. Any guess is near enough here, so strides are full: a
round of a shorter stride makes fewer guesses and fewer true steps.

Shares are of a round of P gradients of --gradient-seconds each. On one device they are computed in turn; on n = P ranks
at once, where each rank rolls out N / P elements (timed by itself), and what it exchanges (two ways, each
N (P - 1) / P elements: its gradient out by shards, its next guess in) is timed between two processes over gloo.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402
from reporting import machine, write_report  # noqa: E402

from threestudio.ops.hash_grid import HashGridLayout  # noqa: E402
from threestudio.utils.extensions import load_extensions  # noqa: E402
from threestudio.utils.memory import keep_freed_memory  # noqa: E402

TABLES = {"0.1 M": 12, "1 M": 15, "12.6 M": 19}  # log2 of the largest level of the hash grid
OPTIMIZERS = {"Adam": {}, "Adam, fused": {"fused": True}}
PARTS = ("guesses", "updates", "copies", "distances", "finiteness", "rest")


class Clock:
    """Seconds by part. What a watched function calls belongs to its part."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._inside = device, dict.fromkeys((*PARTS, "round", "true steps"), 0.0), False

    def now(self) -> float:
        """On a processor its own time, which other programs on the machine leave alone, if not its caches."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

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


def shapes_of(log2_table: int, share: int = 1) -> Dict[str, tuple]:
    """Of a hash grid of 16 levels and the networks of a NeRF beside it, or of the `share`th part of each."""
    layout = HashGridLayout(log2_hashmap_size=log2_table, per_level_scale=1.4472692012786865)
    whole = {"grid": layout.n_entries * 2, "density.0": 32 * 64, "density.1": 64 * 4, "background.0": 16 * 16}
    return {name: (-(-count // share),) for name, count in whole.items()}


def measure_round(shapes: Dict[str, tuple], window: int, settings: dict, rounds: int, device: torch.device) -> dict:
    """Median seconds of a round by part, after one that is not counted."""
    from turboprop.picard import window as engine
    from turboprop.picard.state import Evaluation, State
    from turboprop.picard.thresholds import FixedThreshold

    generator = torch.Generator(device).manual_seed(0)
    ready = [
        {name: 1e-3 * torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    parameters = {name: torch.nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
    groups = [[name for name in shapes if name != "background.0"], ["background.0"]]
    optimizer = torch.optim.Adam(
        [{"params": [parameters[name] for name in names], "lr": lr} for names, lr in zip(groups, (0.01, 0.001))],
        betas=(0.9, 0.99),
        eps=1e-15,
        **settings,
    )

    def evaluate(points: List[Any]) -> List[Any]:
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
    from turboprop.picard import state
    from turboprop.picard import window as engine

    watches = (
        (engine.PicardWindow, "_points", "guesses"),
        (engine.OptimizerUpdate, "__call__", "updates"),
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


def _exchange(rank: int, port: int, elements: int, repeats: int, answer: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    sent, received, seconds = torch.ones(elements), torch.empty(elements), []
    for _ in range(repeats + 1):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_to_all_single(received, sent)
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        answer.put(statistics.median(seconds[1:]))
    dist.destroy_process_group()


def measure_bandwidth(elements: int, repeats: int) -> float:
    """Bytes a second that a process sends to another over gloo on this machine, while it receives as many."""
    context = multiprocessing.get_context("spawn")
    answer, port = context.SimpleQueue(), 29400 + os.getpid() % 500
    processes = [context.Process(target=_exchange, args=(rank, port, elements, repeats, answer)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("the exchange between two processes failed")
    return elements // 2 * 4 / answer.get()


def measure(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    bandwidth = measure_bandwidth(12_600_000, args.rounds)
    rows = []
    for size in args.sizes:
        elements = sum(shape[0] for shape in shapes_of(TABLES[size]).values())
        for name in args.optimizers:
            for window in args.windows:
                whole = measure_round(shapes_of(TABLES[size]), window, OPTIMIZERS[name], args.rounds, device)
                shard = measure_round(shapes_of(TABLES[size], window), window, OPTIMIZERS[name], args.rounds, device)
                row = {"size": size, "elements": elements, "window": window, "optimizer": name}
                rows.append({**row, "seconds": whole, "shard_seconds": shard})
                rows[-1].update(shares(rows[-1], bandwidth, args.gradient_seconds))
                print(line(rows[-1]), flush=True)
    return {"gloo_bytes_a_second": bandwidth, "gradient_seconds": args.gradient_seconds, "rows": rows}


def shares(row: dict, bandwidth: float, gradient: float) -> dict:
    """Of a round on one device, with and without its true steps, and on n = P ranks."""
    whole, shard, window = row["seconds"], row["shard_seconds"], row["window"]
    overhead, steps = whole["round"], whole["true steps"]
    exchange = 2 * 4 * row["elements"] * (window - 1) / window / bandwidth
    # A rank checks the one gradient that it computes, whole.
    ranks = shard["round"] - shard["finiteness"] + whole["finiteness"] / window + exchange
    return {
        "share": overhead / (overhead + window * gradient),
        "share_with_true_steps": (overhead + steps) / (overhead + steps + window * gradient),
        "exchange_seconds": exchange,
        "ranks_seconds": ranks,
        "share_on_ranks": ranks / (ranks + gradient),
    }


def header() -> List[str]:
    parts = " | ".join(PARTS)
    return [
        f"| parameters | optimizer | window | {parts} | round (ms) | share | true steps (ms) | share with them "
        "| P ranks: a rank (ms) | of it exchange | share |",
        "| --- | --- | ---: |" + " ---: |" * (len(PARTS) + 7),
    ]


def line(row: dict) -> str:
    seconds = row["seconds"]
    parts = " | ".join(f"{1e3 * seconds[part]:.1f}" for part in PARTS)
    return (
        f"| {row['size']} | {row['optimizer']} | {row['window']} | {parts} | {1e3 * seconds['round']:.1f} "
        f"| {row['share']:.2%} | {1e3 * seconds['true steps']:.1f} | {row['share_with_true_steps']:.2%} "
        f"| {1e3 * row['ranks_seconds']:.1f} | {1e3 * row['exchange_seconds']:.1f} | {row['share_on_ranks']:.2%} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--windows", nargs="+", type=int, default=[4, 7, 16, 32])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many")
    parser.add_argument("--gradient-seconds", type=float, default=1.0, help="of a guided step, an assumption")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard_overhead.{md,json}")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)  # whose processor time is the wall clock of a machine with nothing else to do
    load_extensions()
    result = measure(args)
    command = " ".join(["python benchmarks/picard_overhead.py", *sys.argv[1:]])
    where = f"{machine(torch.device(args.device))}; torch {torch.__version__} with one thread"
    page = [
        "# What a round costs besides its gradients",
        "",
        __doc__.split("\n\n", 2)[2].strip(),
        "",
        f"`{command}` on {where}; seed 0; medians of {args.rounds} rounds; load average {os.getloadavg()[0]:.1f}; a gradient "
        f"is taken for {args.gradient_seconds} s; gloo brought {result['gloo_bytes_a_second'] / 1e9:.2f} GB/s each way.",
        "",
        *header(),
        *map(line, result["rows"]),
        "",
    ]
    print("\n".join(page))
    if args.write:
        write_report("picard_overhead", "\n".join(page), {"command": command, "machine": where, "seed": 0, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
