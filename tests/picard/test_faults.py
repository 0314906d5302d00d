"""Ranks that are killed, stopped, slow, or that fail: real processes, real signals."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from turboprop.picard.engine.state import Evaluation
from turboprop.picard.engine.window import Round
from turboprop.picard.history import History
from turboprop.picard.processes.pace import Pace, RoundSeconds, timed
from turboprop.picard.processes.ranks import RankLost, RankWatch
from turboprop.picard.settings import picard_config

from launch import select_gpus
from tests.host.test_resume import assert_same
from tests.picard.processes import free_port
from tests.picard.runs import (
    COMMON,
    DATA,
    GEOMETRY,
    ROOT,
    checkpoint,
    small_config,
    state_of,
)
from threestudio.utils.config import ExperimentConfig
from threestudio.utils.restarts import checkpoint_to_restart_from

FAULT_STEP = 16
DEAD_AFTER = 2.0  # seconds; far less than a run would have


@dataclass
class Outcome:
    exit_code: int | None
    seconds: float  # from the fault to the end of all that can end
    said: str  # on stderr


def work(rank: int, size: int, fault: str, victim: int, folder: Path) -> None:
    """Rounds of an exchange, in which `victim` has its fault at FAULT_STEP."""
    sys.stderr = open(folder / f"{rank}.log", "w", buffering=1)
    torch.set_num_threads(1)
    meeting = f"tcp://127.0.0.1:{(folder / 'port').read_text()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    watch = RankWatch(DEAD_AFTER)
    watch.start()
    try:
        with watch.guard():
            for watch.step in range(FAULT_STEP + 5):
                time.sleep(0.05)
                if watch.step == FAULT_STEP and rank == victim:
                    (folder / "fault").touch()
                    happen(fault)
                dist.all_reduce(torch.ones(1))
    except (RankLost, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    watch.stop()
    os._exit(0)


def happen(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(2.5 * DEAD_AFTER)
    elif fault == "error":
        raise ValueError("bad weather")


SCENARIOS = {  # name: fault, victim, number of ranks
    "kill": ("kill", 1, 3),
    "kill_first": ("kill", 0, 2),
    "stop": ("stop", 1, 2),
    "stop_first": ("stop", 0, 3),
    "sleep": ("sleep", 1, 2),
    "error": ("error", 1, 3),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[Outcome]]:
    """All scenarios at once: they mostly wait."""
    context, running = mp.get_context("fork"), {}
    for name, (fault, victim, size) in SCENARIOS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "port").write_text(str(free_port()))
        given = [(rank, size, fault, victim, folder) for rank in range(size)]
        running[name] = folder, [context.Process(target=work, args=args) for args in given]
        for process in running[name][1]:
            process.start()
    ended, deadline = {}, time.monotonic() + 60
    while time.monotonic() < deadline and len(ended) < sum(s[2] for s in SCENARIOS.values()) - 2:
        for name, (_, processes) in running.items():
            for rank, process in enumerate(processes):
                if (name, rank) not in ended and not process.is_alive():
                    ended[name, rank] = time.time()
        time.sleep(0.05)
    found = {}
    for name, (folder, processes) in running.items():
        begun = (folder / "fault").stat().st_mtime
        found[name] = []
        for rank, process in enumerate(processes):
            code = process.exitcode
            process.kill()  # what is stopped, or still there
            process.join()
            seconds = ended.get((name, rank), float("inf")) - begun
            found[name].append(Outcome(code, seconds, (folder / f"{rank}.log").read_text()))
    return found


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_killed_rank_is_named_by_all_others(outcomes):
    one, killed, other = outcomes["kill"]
    assert killed.exit_code == -signal.SIGKILL
    for rank in (one, other):
        assert rank.exit_code == 3 and rank.seconds < 20
        line = last_line(rank.said)
        assert line.startswith("RankLost: picard: rank 1 (process ") and "is dead: not heard of for" in line
        assert re.search(r"at step 1?\d before", line)
        assert line.endswith("The run ends; its last checkpoint is whole")


def test_the_first_rank_is_named_though_the_store_goes_with_it(outcomes):
    _, other = outcomes["kill_first"]
    assert other.exit_code == 3 and other.seconds < 20
    assert last_line(other.said).startswith("RankLost: picard: rank 0 (process ")


@pytest.mark.parametrize("name, stopped", [("stop", 1), ("stop_first", 0)])
def test_a_rank_that_hangs_counts_as_dead_after_a_while(outcomes, name, stopped):
    """The others wait in a collective that does not fail: their process is ended by the watch."""
    for rank, outcome in enumerate(outcomes[name]):
        if rank != stopped:
            assert outcome.exit_code == 1 and DEAD_AFTER < outcome.seconds < 30
            assert f"error: picard: rank {stopped} (process " in last_line(outcome.said)


def test_a_slow_rank_is_not_dead(outcomes):
    assert [rank.exit_code for rank in outcomes["sleep"]] == [0, 0]
    assert all(rank.seconds > 2 * DEAD_AFTER for rank in outcomes["sleep"])


def test_an_error_of_a_rank_is_told_to_the_others(outcomes):
    one, failed, other = outcomes["error"]
    assert failed.exit_code == 3 and last_line(failed.said) == "ValueError: bad weather"
    for rank in (one, other):
        assert rank.exit_code == 3 and "rank 1 (process " in rank.said
        assert "has ended at step 16 with ValueError: bad weather" in last_line(rank.said)


def test_the_limits_are_checked():
    with pytest.raises(ValueError, match=r"system.picard.dead_after: expected at least 5 \(seconds\), got 1.0"):
        picard_config({"dead_after": 1.0})
    with pytest.raises(ValueError, match="system.picard.slow_ratio: expected above 1, got 1.0"):
        picard_config({"slow_ratio": 1.0})


# -------------------------------------------------------------------------------- slow ranks


def test_a_slow_rank_is_named_once_and_with_figures():
    pace, told = Pace(ranks=3, slow_ratio=1.5), {}
    for number in range(99):
        slots = [1.0, 1.6, 1.1, 1.0, 1.6, 1.1, 1.0]  # of ranks 0 1 2 0 1 2 0: rank 0 has more of them, and is not slow
        told.update({number: line for line in pace.warnings(slots)})
    assert list(told) == [9]  # the tenth round
    assert "rank 1 is slow: now 1.6 s for a gradient, the others 1.05 s (median)" in told[9]
    assert "more than 1.5 times theirs for 10 rounds running" in told[9]
    assert len(pace.warnings(slots)) == 1  # told again at the hundredth


def test_a_rank_that_is_slow_now_and_then_is_not_named():
    pace = Pace(ranks=2, slow_ratio=1.5)
    assert [pace.warnings([1.0, 1.0 if number % 9 == 8 else 9.0]) for number in range(50)] == [[]] * 50
    for ranks in (1, 3):  # nothing to compare with
        assert Pace(ranks, slow_ratio=1.5, slow_rounds=1).warnings([1.0, 5.0]) == []


def test_the_seconds_of_a_round_are_told_apart():
    seconds = Pace(ranks=2, slow_ratio=1.5).of_round([1.0, 2.0, 1.0, 2.0, 1.0], 5.5)  # 3 s and 4 s
    assert seconds == RoundSeconds(gradients=4.0, waiting=0.5, rest=1.5)
    found = timed(lambda points: [Evaluation({}) for _ in points if time.sleep(0.02) is None], [None] * 3)
    assert 0.02 <= found[0].seconds < 1 and len({evaluation.seconds for evaluation in found}) == 1


def test_the_table_of_a_run_has_its_seconds(tmp_path):
    history = History()
    seconds = RoundSeconds(2.0, 0.5, 0.25)
    history.add(Round(0, 3, [Evaluation({}), Evaluation({})], [0.25, 1.0], 0.5, "geometry.encoding"), seconds)
    history.save(str(tmp_path / "picard.csv"))
    header, row = (tmp_path / "picard.csv").read_text().splitlines()
    assert header == "step,window,stride,error,threshold,ended_by,gradients_s,waiting_s,rest_s"
    assert row == "0,3,2,0.25,0.5,geometry.encoding,2.0,0.5,0.25"
    assert "3 gradients computed, windows cut short by geometry.encoding (1); of the time" in history.summary_line()
    assert history.summary_line().endswith("of the time 67% gradients, 22% waiting for others, 11% the rest")
    again = History.of(history.rows_as_lists(), history.seconds_as_lists())
    assert (again.rows, again.seconds) == (history.rows, history.seconds)
    of_before = History.of([[0, 3, 2, 0.25, 0.5]], [[2.0, 0.5, 0.25]])  # as older checkpoints have it
    assert of_before.rows[0].ended_by == "" and of_before.mean_stride() == 2
    history.take_back(0, "a checkpoint")
    assert history.rows[0].ended_by == "geometry.encoding"
    history.take_back(1, "a checkpoint")
    assert (history.rows[0].stride, history.rows[0].ended_by) == (1, "a checkpoint")


# ------------------------------------------------------------------------------------ launches


def test_under_torchrun_every_process_has_a_device_by_default(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert select_gpus(None) == 3 and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert select_gpus("1") == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert select_gpus(None) == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_restart_takes_up_its_own_checkpoint_alone(monkeypatch, tmp_path):
    """Not one that an earlier run has left in the same folder."""
    last = tmp_path / "last.ckpt"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")

    def start(count: int) -> str | None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        return checkpoint_to_restart_from(str(tmp_path))

    assert start(0) is None and start(1) is None  # killed before the first checkpoint
    last.write_bytes(b"of the first run")
    assert start(2) == str(last)
    assert start(0) is None and start(1) is None  # another run, which has written none yet
    os.utime(last, ns=(0, last.stat().st_mtime_ns + 1))
    assert start(1) == str(last)


def test_processes_of_one_run_have_one_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert ExperimentConfig(tag="a").trial_name == "a"
    with pytest.raises(ValueError, match="tag: a run of several processes has no timestamp"):
        ExperimentConfig()
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert ExperimentConfig(tag="a").trial_name.startswith("a@")

KEYS = ["system_type=dreamfusion-system:picard", "system.picard.window=4", "checkpoint.every_n_train_steps=5"]


def launch(folder: Path, *extra: str, restarts: int = 0, timeout: float = 300) -> subprocess.CompletedProcess:
    """launch.py in two processes under torchrun, in a working folder with the plugin that has faults."""
    plugin = folder / "custom" / "failing_guidance.py"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text((ROOT / "tests/picard/failing_guidance.py").read_text())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = [*COMMON, *DATA, *GEOMETRY["nerf"], *KEYS, f"exp_root_dir={folder}", "trainer.max_steps=18"]
    given += ["system.guidance_type=test-failing-guidance", *extra]
    command = [*torchrun, f"--max-restarts={restarts}", str(ROOT / "launch.py"), "--train", *given]
    process = subprocess.Popen(
        [*command, "--config", small_config("nerf", folder)], cwd=folder, start_new_session=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes, which have sessions of their own
            process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The state that a run ends in which nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    process = launch(folder)
    assert process.returncode == 0, process.stdout
    return state_of(checkpoint(folder))


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_or_restarts_it(whole, tmp_path):
    fault = ["system.guidance.fault=kill", "system.guidance.at_step=12", "system.guidance.on_rank=1"]
    ended = launch(tmp_path / "ended", *fault)
    assert ended.returncode != 0
    assert "error: picard: rank 1 (process " in ended.stdout
    assert checkpoint(tmp_path / "ended")["global_step"] in (5, 10)  # whole, and from before
    restarted = launch(tmp_path / "restarted", *fault, restarts=1)
    assert restarted.returncode == 0, restarted.stdout
    last = tmp_path / "restarted/fit/run/ckpts/last.ckpt"
    assert restarted.stdout.count(f"Restart 1 by torchrun: going on from {last}") == 1
    assert_same(state_of(checkpoint(tmp_path / "restarted")), whole)


@pytest.mark.slow
def test_a_rank_killed_while_it_saves_leaves_the_last_checkpoint_whole(whole, tmp_path):
    fault = ["system.guidance.fault=kill_saving", "system.guidance.at_step=8", "system.guidance.on_rank=0"]
    process = launch(tmp_path, *fault, restarts=1)
    assert process.returncode == 0, process.stdout
    assert "fault kill_saving" in process.stdout and "Restart 1 by torchrun: going on from" in process.stdout
    assert_same(state_of(checkpoint(tmp_path)), whole)
    assert not list(tmp_path.glob("fit/run/ckpts/.last.ckpt.*.part"))  # what was half written is gone
