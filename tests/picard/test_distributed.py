"""Two processes over gloo: the same run as in one."""

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from turboprop.picard.executors import Distributed, check_agreement, checksum
from turboprop.picard.thresholds import FixedThreshold
from turboprop.picard.window import PicardWindow

from tests.host.test_resume import assert_same
from tests.picard.runs import COMMON, DATA, GEOMETRY, ROOT, checkpoint, fit, small_config, state_of
from tests.picard.test_window import Problem, advance, assert_equal, picard, update_of


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def work(rank: int, size: int, port: int, task: str, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        torch.save(TASKS[task](rank), f"{folder}/{task}{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_picard(rank: int, dtype=None) -> dict:
    problem, update = Problem(), update_of()
    engine = PicardWindow(Distributed(problem.evaluate, dtype), update, 5, FixedThreshold(0.3))
    state, strides = problem.start(), []
    while state.step < 21:
        result = engine.round(state, 21 - state.step)
        for evaluation in result.accepted:
            advance(update, state, evaluation)
        strides.append(result.stride)
        check_agreement(state.parameters, state.step)
    return {"state": state, "strides": strides, "computed": len(problem.seen)}


def disagree(rank: int) -> str:
    parameters = {"a": torch.zeros(3), "b": torch.tensor([1.0, 1.0 + rank * 2.0**-23])}
    try:
        check_agreement(parameters, 7)
    except RuntimeError as error:
        return str(error)
    return ""


TASKS = {"picard": run_picard, "half": lambda rank: run_picard(rank, torch.bfloat16), "disagree": disagree}


def in_processes(task: str, folder, size: int = 2) -> list:
    mp.start_processes(work, (size, free_port(), task, str(folder)), nprocs=size, start_method="fork")
    return [torch.load(folder / f"{task}{rank}.pt", weights_only=False) for rank in range(size)]


def test_two_processes_end_as_one(tmp_path):
    alone = Problem()
    state, rounds = picard(alone, update_of(), 21, 5, 0.3)
    results = in_processes("picard", tmp_path)
    for result in results:
        assert_equal(result["state"], state)
        assert result["strides"] == [r.stride for r in rounds]
    assert sum(result["computed"] for result in results) == len(alone.seen)
    assert min(result["computed"] for result in results) > 0.3 * len(alone.seen)  # nobody idles


def test_gradients_may_travel_in_half_precision(tmp_path):
    one, other = in_processes("half", tmp_path)
    assert_equal(one["state"], other["state"])  # rounded the same for all, the rank that computed them too
    state, _ = picard(Problem(), update_of(), 21, 5, 0.3)
    assert torch.allclose(one["state"].parameters["weight"], state.parameters["weight"], atol=0.05)
    assert not torch.equal(one["state"].parameters["weight"], state.parameters["weight"])


def test_ranks_that_differ_are_named(tmp_path):
    message = "picard: at step 7 the parameters of rank 1 are not those of rank 0"
    assert in_processes("disagree", tmp_path) == [message, message]


@pytest.mark.parametrize("change", [lambda t: t.flip(0), lambda t: t + 2.0**-20, lambda t: -t])
def test_checksums_tell_bits_apart(change):
    value = torch.tensor([1.0, 2.0, 3.0])
    assert checksum({"a": value}) == checksum({"a": value.clone()})
    assert checksum({"a": value}) != checksum({"a": change(value)})


@pytest.mark.slow
def test_a_launch_under_torchrun_ends_as_one_process(tmp_path):
    picard_keys = ("window=4", "threshold=0.5", "check_every=1")
    alone = fit("nerf", tmp_path / "alone", picard=picard_keys, steps=18)
    config = small_config("nerf", tmp_path / "two")
    given = [*COMMON, *DATA, *GEOMETRY["nerf"], f"exp_root_dir={tmp_path / 'two'}", "trainer.max_steps=18"]
    mixin = ["system_type=dreamfusion-system:picard", *(f"system.picard.{key}" for key in picard_keys)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [*torchrun, "launch.py", "--config", config, "--train", *given, *mixin]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    together = checkpoint(tmp_path / "two")
    assert_same(state_of(together), state_of(alone))
    assert together["picard"] == alone["picard"]
