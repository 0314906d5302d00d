"""Ranks that are killed, hang, are slow, or fail: real processes, real signals."""

import json
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
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from turboprop.picard.engine.state import Evaluation
from turboprop.picard.engine.window import Round
from turboprop.picard.history import History
from turboprop.picard.processes.heartbeats import RankWatch
from turboprop.picard.processes.pace import Pace, RoundSeconds, timed
from turboprop.picard.settings import picard_config

from launch import main, select_gpus
from tests.picard.faulty_rank import DEAD_AFTER, all_reduce_in_rounds
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
from tests.saved_states import assert_same
from threestudio.utils.config import ExperimentConfig
from threestudio.utils.restarts import checkpoint_to_restart_from

RANK_PROGRAM = Path(__file__).with_name("faulty_rank.py")


@dataclass
class Outcome:
    exit_code: int | None
    seconds: float  # from the fault to the end of all that can end
    said: str  # on stderr


# ----------------------------------------------------- ranks that are killed or fail are torchrun's


def agent(folder: Path, fault: str, victim: int, size: int) -> None:
    """torchrun's own part of a run, and what it reports of the ranks once all of them have ended."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=size, run_id=fault, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    try:  # a program, as torchrun has it: of functions only one failure is reported, whichever is seen first
        elastic_launch(config, sys.executable)(str(RANK_PROGRAM), str(folder), fault, str(victim))
    except ChildFailedError as error:
        report = {rank: {**vars(failure), "message": failure.message} for rank, failure in error.failures.items()}
        (folder / "report.json").write_text(json.dumps(report))


def failures_of(folder: Path, fault: str, victim: int, size: int) -> dict:
    """The report of `victim`."""
    process = mp.get_context("fork").Process(target=agent, args=(folder, fault, victim, size))  # it has threads
    process.start()
    process.join(timeout=90)
    assert process.exitcode == 0
    for rank in range(size):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / f"{rank}.pid").read_text()), 0)
    return json.loads((folder / "report.json").read_text())[str(victim)]


@pytest.mark.parametrize("victim, size", [(1, 3), (0, 2)])
def test_a_killed_rank_is_named_by_torchelastic_and_all_end(victim, size, tmp_path):
    killed = failures_of(tmp_path, "kill", victim, size)
    pid = int((tmp_path / f"{victim}.pid").read_text())
    assert (killed["exitcode"], killed["pid"]) == (-signal.SIGKILL, pid)
    assert killed["message"] == f"Signal 9 (SIGKILL) received by PID {pid}"


def test_an_error_of_a_rank_is_told_by_torchelastic_and_all_end(tmp_path):
    failed = failures_of(tmp_path, "error", 1, 3)
    assert failed["exitcode"] == 1 and "ValueError: bad weather" in str(failed["message"])


# -------------------------------------------------------------- ranks that hang are the watch's


def watched(rank: int, size: int, fault: str, victim: int, folder: Path) -> None:
    sys.stderr = open(folder / f"{rank}.log", "w", buffering=1)
    torch.set_num_threads(1)
    meeting = f"tcp://127.0.0.1:{(folder / 'port').read_text()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    watch = RankWatch(DEAD_AFTER)
    watch.start()
    all_reduce_in_rounds(folder, fault, victim, watch)
    watch.stop(finished=True)
    os._exit(0)


SCENARIOS = {  # name: fault, victim, number of ranks
    "stop": ("stop", 1, 2),
    "stop_first": ("stop", 0, 3),
    "sleep": ("sleep", 1, 2),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[Outcome]]:
    """All scenarios at once: they mostly wait."""
    context, running = mp.get_context("fork"), {}
    for name, (fault, victim, size) in SCENARIOS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "port").write_text(str(free_port()))
        given = [(rank, size, fault, victim, folder) for rank in range(size)]
        running[name] = folder, [context.Process(target=watched, args=args) for args in given]
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


@pytest.mark.parametrize("name, stopped", [("stop", 1), ("stop_first", 0)])
def test_a_rank_that_hangs_counts_as_dead_after_a_while(outcomes, name, stopped):
    """The others wait in a collective that does not fail: their process is ended by the watch."""
    for rank, outcome in enumerate(outcomes[name]):
        if rank != stopped:
            assert outcome.exit_code == 1 and DEAD_AFTER < outcome.seconds < 30
            line = outcome.said.strip().splitlines()[-1]
            assert line.startswith(f"error: picard: rank {stopped} (process ") and ") is dead: " in line
            assert line.endswith(". The run ends; its last checkpoint is whole")


def test_a_slow_rank_is_not_dead(outcomes):
    assert [rank.exit_code for rank in outcomes["sleep"]] == [0, 0]
    assert all(rank.seconds > 2 * DEAD_AFTER for rank in outcomes["sleep"])


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
        for line in pace.warnings(slots):
            told[number] = line
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


def test_torchruns_report_has_the_error_of_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["--config", str(tmp_path / "none.yaml"), "--train"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert "none.yaml" in line and told == f"UserError: {line}"


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
    report = ended.stdout[ended.stdout.index("launch.py FAILED") :]
    assert re.search(r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9", report) and "Signal 9 (SIGKILL)" in report
    assert checkpoint(tmp_path / "ended")["global_step"] in (5, 10)  # whole, and from before
    restarted = launch(tmp_path / "restarted", *fault, restarts=1)
    assert restarted.returncode == 0, restarted.stdout
    last = tmp_path / "restarted/fit/run/ckpts/last.ckpt"
    assert restarted.stdout.count(f"Restart 1 by torchrun: going on from {last}") == 1
    assert_same(state_of(checkpoint(tmp_path / "restarted")), whole)


@pytest.mark.slow
def test_a_failed_rank_is_told_by_torchrun(tmp_path):
    failed = launch(tmp_path, "system.guidance.fault=error", "system.guidance.at_step=12", "system.guidance.on_rank=1")
    assert failed.returncode != 0
    assert "ValueError: a fault on purpose" in failed.stdout[failed.stdout.index("launch.py FAILED") :]


@pytest.mark.slow
def test_a_rank_killed_while_it_saves_leaves_the_last_checkpoint_whole(whole, tmp_path):
    fault = ["system.guidance.fault=kill_saving", "system.guidance.at_step=8", "system.guidance.on_rank=0"]
    process = launch(tmp_path, *fault, restarts=1)
    assert process.returncode == 0, process.stdout
    assert "fault kill_saving" in process.stdout and "Restart 1 by torchrun: going on from" in process.stdout
    assert_same(state_of(checkpoint(tmp_path)), whole)
    assert not list(tmp_path.glob("fit/run/ckpts/.last.ckpt.*.part"))  # what was half written is gone
