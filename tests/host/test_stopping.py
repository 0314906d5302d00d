"""A run that is stopped by SIGINT or SIGTERM: its step is saved, its line resumes it, and it ends as any other."""

import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.host.launches import LAST, final_state
from tests.saved_states import assert_same
from threestudio.utils.stopping import StoppedByHand, StopSignals

TRIAL = Path("outputs/tiny/run")
SLOW = ["--train", "system.slow_s=0.05", "checkpoint.every_n_train_steps=1000"]


def wait_for(process, path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stopped(start_launch, folder: Path, signum: int, *arguments: str) -> str:
    """Stops a run in its first steps; what it has said."""
    process = start_launch(*SLOW, *arguments)
    wait_for(process, folder / TRIAL / "cmd.txt")
    time.sleep(0.3)
    process.send_signal(signum)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    return messages


def test_a_stopped_run_resumes_by_the_line_that_it_prints(launch_here, start_launch, tmp_path):
    assert launch_here("--train", "exp_root_dir=whole/outputs") == 0
    folder = tmp_path / "elsewhere"
    messages = stopped(start_launch, folder, signal.SIGINT)
    (line,) = [line for line in messages.splitlines() if line.startswith("Stopped by hand")]
    step, command = re.fullmatch(r"Stopped by hand at step (\d+); go on with: (.*)", line).groups()
    assert final_state(folder)["global_step"] == int(step) < 30
    program, launcher, *arguments = shlex.split(command)
    assert program == "python" and launcher.endswith("launch.py")
    assert arguments == ["--config", f"{TRIAL}/configs/parsed.yaml", "--train", f"resume={LAST}"]
    process = start_launch(*arguments[2:], "system.slow_s=0", config=arguments[1])
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert_same(final_state(tmp_path / "whole"), final_state(folder))


def test_sigterm_saves_as_well_even_where_the_config_saves_nothing(launch_here, tmp_path, capsys):
    assert launch_here("--train", "exp_root_dir=whole/outputs") == 0
    none = ["checkpoint.save_last=false", "checkpoint.save_top_k=0"]
    capsys.readouterr()
    stop = ["system.interrupt_at=11", f"system.interrupt_with={int(signal.SIGTERM)}"]
    assert launch_here("--train", "exp_root_dir=part/outputs", *none, *stop) == 130
    assert "Stopped by hand at step 12; go on with: python " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "part" / TRIAL / "ckpts").iterdir()] == ["last.ckpt"]
    assert launch_here("--train", "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "part"))


def test_a_second_signal_ends_at_once(start_launch, tmp_path):
    process = start_launch("--train", "system.slow_s=60")
    wait_for(process, tmp_path / "elsewhere" / TRIAL / "cmd.txt")
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the step is not done
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)  # a shell says 130 of both
    assert time.monotonic() - began < 20


def test_before_the_first_step_there_is_nothing_to_save(start_launch, tmp_path):
    process = start_launch("--train", "system.slow_build_s=60")
    wait_for(process, tmp_path / "elsewhere" / "building")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in messages
    assert "Stopped by hand before its first step; there is no checkpoint to go on from." in messages
    assert not (tmp_path / "elsewhere/outputs").exists()


def test_a_stop_during_validation_is_no_other_than_one_after_a_step(launch_here, tmp_path, monkeypatch):
    assert launch_here("--train", "exp_root_dir=whole/outputs") == 0
    assert launch_here("--train", "exp_root_dir=part/outputs", "system.interrupt_validation_at=14") == 130
    assert final_state(tmp_path / "part")["global_step"] == 14
    assert launch_here("--train", "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "part"))


def test_gradients_that_are_accumulated_belong_to_one_step(launch_here, tmp_path):
    options = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=100"]
    assert launch_here("--train", *options, "exp_root_dir=whole/outputs") == 0
    assert launch_here("--train", *options, "exp_root_dir=part/outputs", "system.interrupt_at=4") == 130
    assert final_state(tmp_path / "part")["global_step"] == 5
    assert launch_here("--train", *options, "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "part"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["--test", "--export"])
def test_a_test_or_an_export_ends_at_once(launch_here, tmp_path, capsys, what, signum):
    assert launch_here("--train") == 0
    capsys.readouterr()
    stop = ["system.interrupt_afterwards=true", f"system.interrupt_with={int(signum)}", f"resume={LAST}"]
    assert launch_here(what, "exp_root_dir=again/outputs", *stop) == 130
    assert "Stopped by hand." in capsys.readouterr().err
    assert not list((tmp_path / "again").rglob("0.json"))


def test_outside_of_training_a_signal_ends_at_once():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    signals = StopSignals()
    signals.install()
    try:
        for signum in before:
            with pytest.raises(StoppedByHand):
                signal.raise_signal(signum)
        assert not signals.asked
    finally:
        signals.restore()
    assert {signum: signal.getsignal(signum) for signum in before} == before
