"""A run that is killed at any moment and resumed ends as one that was not, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.host.launches import LAST, final_state
from tests.saved_states import assert_same
from threestudio.utils.atomic_checkpoint import write_atomically


def test_stopped_and_resumed_runs_end_the_same(launch_here, tmp_path):
    assert launch_here("--train", "exp_root_dir=whole/outputs") == 0
    whole = final_state(tmp_path / "whole")
    assert whole["global_step"] == 30
    for stop in (5, 13, 29):
        part = f"exp_root_dir=part{stop}/outputs"
        assert launch_here("--train", part, f"trainer.max_steps={stop}") == 0
        assert launch_here("--train", part, f"resume=part{stop}/{LAST}") == 0
        assert_same(whole, final_state(tmp_path / f"part{stop}"))


def test_the_seed_decides_the_run(launch_here, tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert launch_here("--train", f"exp_root_dir={folder}/outputs", f"seed={seed}", "trainer.max_steps=4") == 0
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "c"))


def test_settings_that_a_resumed_optimizer_keeps_are_said(launch_here, caplog):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    assert launch_here("--train", f"resume={LAST}", "trainer.max_steps=5") == 0
    assert "keeps the checkpoint's settings" not in caplog.text
    changed = ["system.optimizer.params.field.lr=0.5", "system.optimizer.args.betas=[0.5,0.99]"]
    assert launch_here("--train", f"resume={LAST}", "trainer.max_steps=6", *changed) == 0
    assert "field: lr stays 0.02, the config has 0.5" in caplog.text
    assert "field: betas stays [0.9, 0.99], the config has [0.5, 0.99]" in caplog.text
    assert launch_here("--train", f"resume={LAST}", "trainer.max_steps=7", "system.optimizer.name=Adam") == 0
    assert "field: decoupled_weight_decay stays True, the config has False" in caplog.text


def test_an_optimizers_state_in_other_shapes_is_one_line(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    checkpoint = torch.load(LAST)
    moments = next(iter(checkpoint["optimizer_states"][0]["state"].values()))
    moments["exp_avg"] = moments["exp_avg"].reshape(1, -1)
    torch.save(checkpoint, "rows.ckpt")
    assert launch_here("--train", "resume=rows.ckpt", "exp_root_dir=other/outputs") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        line.startswith("error: resume: the optimizer's state is of weights of shape [1,") and "system.weights" in line
    )


@pytest.mark.parametrize("stop", [5, 8, 11])
def test_a_shuffled_set_goes_on_where_it_stopped(launch_here, tmp_path, stop):
    """Epochs of 8 batches: in the middle of one, at the end of one, and in the second."""
    options = ["data.sized=true", "trainer.val_check_interval=null", "trainer.max_steps=20"]
    assert launch_here("--train", *options, "exp_root_dir=whole/outputs") == 0
    assert launch_here("--train", *options[:2], "exp_root_dir=part/outputs", f"trainer.max_steps={stop}") == 0
    assert launch_here("--train", *options, "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "part"))


def test_accumulated_gradients_resume(launch_here, tmp_path):
    options = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=100"]
    assert launch_here("--train", *options, "exp_root_dir=whole/outputs") == 0
    assert launch_here("--train", *options, "exp_root_dir=part/outputs", "trainer.max_steps=7") == 0
    assert launch_here("--train", *options, "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "part"))


def test_validation_does_not_disturb_training(launch_here, tmp_path):
    assert launch_here("--train", "exp_root_dir=a/outputs", "trainer.max_steps=12") == 0
    assert launch_here("--train", "exp_root_dir=b/outputs", "trainer.max_steps=12", "trainer.val_check_interval=5") == 0
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def kill_and_resume(start_launch, folder: Path, kills: int, rng: random.Random) -> None:
    """Kills a run `kills` times, each time a random while after it has written a checkpoint."""
    slow = ["--train", "system.slow_s=0.03", "checkpoint.every_n_train_steps=1"]
    last = folder / LAST
    for _ in range(kills):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start_launch(*slow, *([f"resume={LAST}"] if last.exists() else []))
        deadline = time.monotonic() + 120
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    process = start_launch("--train", f"resume={LAST}")
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_runs_end_the_same(launch_here, start_launch, tmp_path, kills):
    assert launch_here("--train", "exp_root_dir=whole/outputs") == 0
    kill_and_resume(start_launch, tmp_path / "elsewhere", kills, random.Random(kills))
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "elsewhere"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(str(path), fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_skipped_steps_touch_nothing_and_survive_a_resume(launch_here, tmp_path, caplog):
    """NaN at steps 6 and 20: both counted, and the run resumed between them is the same."""
    nan = "system.nan_at=[6,20]"
    assert launch_here("--train", nan, "exp_root_dir=whole/outputs") == 0
    assert "field.layers.0.weight" in caplog.text
    whole = final_state(tmp_path / "whole")
    steps = {float(s["step"]) for s in whole["optimizer_states"][0]["state"].values()}
    assert steps == {28.0}  # Adam has not counted the two
    assert all(torch.isfinite(v).all() for v in whole["state_dict"].values())
    assert launch_here("--train", nan, "exp_root_dir=part/outputs", "trainer.max_steps=13") == 0
    assert launch_here("--train", nan, "exp_root_dir=part/outputs", f"resume=part/{LAST}") == 0
    assert_same(whole, final_state(tmp_path / "part"))
    metrics = (tmp_path / "part/outputs/tiny/run/csv_logs/version_1/metrics.csv").read_text()
    column = metrics.splitlines()[0].split(",").index("train/skipped_steps")
    logged = [float(r.split(",")[column]) for r in metrics.splitlines()[1:] if r.split(",")[column]]
    assert logged[-1] == 2.0
