"""How fast the main job runs on a machine that does other things too, by how long torch's threads wait awake.

    python benchmarks/busy_machine.py --write

torch's threads (OpenMP, libgomp) wait for one another by spinning, for so many turns of a loop as GOMP_SPINCOUNT says,
before they sleep. Spinning is fast on a quiet machine; where another program wants the cores, it keeps that program's
share and waits for threads that do not run. Each setting runs the main job alone and beside processes that only
compute, settings in turns, and counts the steps made in a stretch of time after the run has begun.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from reporting import ROOT, given_command, machine, table, write_report

STEP = re.compile(r"step (\d+)/\d+")
SPIN = "while True: pass"
OURS = "ours"  # what launch.py sets by itself
DEFAULT = "libgomp's own"


def environment(setting: str) -> dict[str, str]:
    """The environment of a run: a spin count, "passive", libgomp's own default, or what launch.py sets by itself."""
    plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if setting == OURS:
        return plain
    if setting == DEFAULT:
        return {**plain, "GOMP_SPINCOUNT": "300000"}  # libgomp's, where there are no more threads than cores
    if setting == "passive":
        return {**plain, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return {**plain, "GOMP_SPINCOUNT": setting}


def steps_per_second(setting: str, busy: int, seconds: float, config: str) -> float:
    """Runs the main job beside `busy` processes that compute, and counts its steps for `seconds` after the first."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch.py", "--config", config, "--train", f"exp_root_dir={folder}"]
        run = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(setting),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            return _counted(run, seconds)
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            for other in others:
                other.kill()
                other.wait()


def _counted(run: subprocess.Popen, seconds: float) -> float:
    """Steps a second between the first line of progress and the last one within `seconds` of it."""
    first: tuple[int, float] | None = None
    said = []
    for line in run.stdout:
        said.append(line)
        if (found := STEP.search(line)) is None:
            continue
        now = (int(found[1]), time.monotonic())
        if first is None:
            first = now
        elif now[1] - first[1] >= seconds:
            return (now[0] - first[0]) / (now[1] - first[1])
    raise SystemExit("error: the run ended before it was measured:\n" + "".join(said[-5:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=[OURS, DEFAULT, "0", "1000", "10000", "30000", "passive"])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1], help="numbers of processes beside the run")
    parser.add_argument("--seconds", type=float, default=45.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=1, help="how often each is measured; the median counts")
    parser.add_argument("--config", default="configs/asd-3dconv.yaml")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/busy_machine.*")
    args = parser.parse_args()
    rates: dict[str, dict[int, list[float]]] = {s: {b: [] for b in args.busy} for s in args.settings}
    for _ in range(args.turns):
        for busy in args.busy:
            for setting in args.settings:
                rate = steps_per_second(setting, busy, args.seconds, args.config)
                rates[setting][busy].append(rate)
                print(f"{setting}, beside {busy}: {rate:.2f} steps a second", flush=True)
    rows = [
        [f"{setting} turns" if setting.isdigit() else setting, *(f"{statistics.median(by[b]):.2f}" for b in args.busy)]
        for setting, by in rates.items()
    ]
    lines = table(["threads wait awake for", *(f"beside {b} busy" for b in args.busy)], rows)
    print("\n".join(lines))
    if args.write:
        result = {
            "command": given_command(),
            "machine": machine(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "seconds": args.seconds,
            "steps_per_second": rates,
        }
        introduction = " ".join(__doc__.split("\n\n")[2].split())
        text = (
            f"# A busy machine\n\n{introduction}\n\n{result['machine']}; steps a second, medians of {args.turns}.\n\n"
        )
        write_report("busy_machine", text + "\n".join(lines) + f"\n\n`{result['command']}`\n", result)


if __name__ == "__main__":
    main()
