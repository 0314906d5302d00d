"""A trial's folder belongs to one run: others are refused, or get one of their own."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.host.launches import PLUGINS, ROOT, TINY_CONFIG, can_mount
from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError
from threestudio.utils.trial_folder import check_unused, owned_trial_folder

TRIAL = Path("outputs/tiny/run")


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_checkpoints_of_an_earlier_run_are_not_overwritten(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=9") == 0
    last = TRIAL / "ckpts/last.ckpt"
    before = last.read_bytes()
    for more in ([], ["--dry-run"]):
        capsys.readouterr()
        assert launch_here("--train", *more, "trainer.max_steps=2", "seed=7") == 2
        assert f"tag: {TRIAL} has checkpoints of an earlier run; resume={last} goes on with it" in error_of(capsys)
    assert last.read_bytes() == before
    assert launch_here("--train", "trainer.max_steps=11", f"resume={last}") == 0
    assert torch.load(last, weights_only=True)["global_step"] == 11
    for mode in ("--test", "--validate", "--export"):
        assert launch_here(mode, f"resume={last}") == 0


def test_a_checkpoint_of_another_trial_does_not_mix_with_this_ones(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    assert launch_here("--train", "trainer.max_steps=4", "tag=other") == 0
    capsys.readouterr()
    other = "outputs/tiny/other/ckpts/last.ckpt"
    assert launch_here("--train", f"resume={other}") == 2
    assert f"resume: {other} is of another trial, and {TRIAL} has checkpoints" in error_of(capsys)
    assert launch_here("--train", f"resume={other}", "tag=third", "trainer.max_steps=5") == 0  # a new folder is fine


def test_a_parsed_config_does_not_begin_its_trial_anew(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=4", "use_timestamp=true") == 0
    (parsed,) = Path("outputs/tiny").glob("run@*/configs/parsed.yaml")
    capsys.readouterr()
    assert launch_here("--train", config=str(parsed)) == 2
    assert "has checkpoints of an earlier run" in error_of(capsys)


def test_a_folder_is_locked_while_its_run_trains(launch_here, start_launch, tmp_path, capsys):
    first = start_launch(
        "--train", "system.slow_s=0.2", "trainer.max_steps=1000", "checkpoint.every_n_train_steps=1000"
    )
    trial = Path("elsewhere") / TRIAL
    while not (trial / "cmd.txt").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    same = ["--train", "exp_root_dir=elsewhere/outputs", "trainer.max_steps=2"]
    try:
        for more in ([], ["--dry-run"]):
            capsys.readouterr()
            assert launch_here(*same, *more) == 2
            assert f"tag: another run is training in {trial} (process {first.pid} on " in error_of(capsys)
    finally:
        first.kill()
        first.communicate()
    assert (trial / "cmd.txt").read_text().count("launch.py") == 1
    assert launch_here(*same) == 0  # the lock has gone with its process


def test_starts_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [load_config(TINY_CONFIG, cli_args=["use_timestamp=true"]) for _ in range(8)]
    for config in configs:  # as if all had been read in the same second
        config.timestamp, config.trial_name = "@20250101-000000", "run@20250101-000000"
        config.trial_dir = f"{config.exp_dir}/{config.trial_name}"
    entered, failed = threading.Barrier(8), []

    def start(config):
        try:
            with owned_trial_folder(config, trains=True):
                entered.wait(timeout=30)
        except (UserError, threading.BrokenBarrierError) as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len({config.trial_dir for config in configs}) == 8
    assert {Path(config.trial_dir).name for config in configs} == {p.name for p in Path("outputs/tiny").iterdir()}
    assert "run@20250101-000000-2" in {config.trial_name for config in configs}
    assert all(config.trial_name == config.tag + config.timestamp for config in configs)


def test_the_parsed_config_knows_the_folder_that_the_run_got(launch_here, tmp_path, monkeypatch):
    class Stopped:  # one clock for both
        @staticmethod
        def now():
            import datetime

            return datetime.datetime(2025, 1, 1)

    monkeypatch.setattr("threestudio.utils.config.datetime", Stopped)
    for _ in range(2):
        assert launch_here("--train", "trainer.max_steps=2", "use_timestamp=true") == 0
    second = tmp_path / "outputs/tiny/run@20250101-000000-2"
    assert (second / "ckpts/last.ckpt").is_file() and (second / "save/it2-test/0.json").is_file()
    assert OmegaConf.load(second / "configs/parsed.yaml").timestamp == "@20250101-000000-2"
    again = ["--train", "trainer.max_steps=3", f"resume={second}/ckpts/last.ckpt"]
    assert launch_here(*again, config=str(second / "configs/parsed.yaml")) == 0
    assert sorted(p.name for p in second.parent.iterdir()) == ["run@20250101-000000", second.name]


def test_a_restart_by_torchrun_is_no_second_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (TRIAL / "ckpts").mkdir(parents=True)
    (TRIAL / "ckpts/epoch=0-step=4.ckpt").write_bytes(b"")
    config = load_config(TINY_CONFIG)
    with pytest.raises(UserError, match="has checkpoints of an earlier run"):
        check_unused(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    check_unused(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("RANK", "1")
    check_unused(config)  # rank 0 looks after the folder


def test_a_folder_that_cannot_be_made_is_one_line(launch_here, tmp_path, capsys):
    (tmp_path / "outputs").write_text("a file")
    assert launch_here("--train") == 2
    assert f"exp_root_dir: cannot make the folder {TRIAL}: Not a directory" in error_of(capsys)


@pytest.mark.parametrize("name", [".lock", "cmd.txt", "ckpts", "csv_logs", "configs"])
def test_what_stands_where_a_run_writes_is_one_line(launch_here, capsys, name):
    """A folder for a file of the run, or a file for its folder."""
    if name in (".lock", "cmd.txt"):
        (TRIAL / name).mkdir(parents=True)
    else:
        TRIAL.mkdir(parents=True)
        (TRIAL / name).write_text("")
    assert launch_here("--train", "trainer.max_steps=4") == 1
    assert f"{TRIAL}/{name}, at step " in error_of(capsys)


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a disk in a namespace of its own")
@pytest.mark.parametrize("mode, code", [("--train", 2), ("--export", 2)])
def test_a_disk_for_reading_only_is_one_line_before_any_work(launch_here, tmp_path, mode, code):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom/tiny_field.py").write_bytes((PLUGINS / "tiny_field.py").read_bytes())
    run = [sys.executable, str(ROOT / "launch.py"), "--config", TINY_CONFIG, mode, f"resume={TRIAL}/ckpts/last.ckpt"]
    command = 'mount --bind outputs outputs && mount -o remount,bind,ro outputs && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", *run],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert f"error: exp_root_dir: cannot write into {TRIAL}: Read-only file system" in done.stderr


def test_a_run_that_does_not_start_leaves_nothing_behind(launch_here, tmp_path):
    assert launch_here("--train", "trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=1") == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
