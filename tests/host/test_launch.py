"""The command line: what each mode writes, and that bad input is one clear line."""

import os
import pickle
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from launch import select_gpus, wait_asleep
from tests.host.launches import ROOT, TINY_CONFIG

TRIAL = Path("outputs/tiny/run")


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; sys.argv=['launch.py','--help']; import launch; launch.main(); " + (
        "assert not {'torch','numpy','omegaconf','threestudio'} & set(sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout and "--dry-run" in done.stdout
    assert time.monotonic() - start < 30  # hangs, not speed


def test_training_fills_the_trial_folder(launch_here):
    assert launch_here("--train", "trainer.max_steps=9") == 0
    files = files_in(TRIAL)
    for name in (
        "ckpts/epoch=0-step=4.ckpt",
        "ckpts/epoch=0-step=8.ckpt",
        "ckpts/last.ckpt",
        "configs/parsed.yaml",
        "configs/raw.yaml",
        "cmd.txt",
        "csv_logs/version_0/metrics.csv",
        "save/it9-test/0.json",
        "save/it9-test/1.json",
        "code/launch.py",
    ):
        assert name in files, files
    assert any(name.startswith("tb_logs/version_0/events") for name in files)
    header, *rows = (TRIAL / "csv_logs/version_0/metrics.csv").read_text().splitlines()
    rates = [row.split(",")[header.split(",").index("train/steps_per_second")] for row in rows]
    assert any(float(rate) > 0 for rate in rates if rate)
    assert torch.load(TRIAL / "ckpts/last.ckpt", weights_only=True)["global_step"] == 9
    assert OmegaConf.load(TRIAL / "configs/parsed.yaml").trainer.max_steps == 9
    assert (TRIAL / "configs/raw.yaml").read_text() == Path(TINY_CONFIG).read_text()


def test_further_config_files_override_the_first_and_arguments_override_all(launch_here, tmp_path, capsys):
    (tmp_path / "longer.yaml").write_text("trainer: {max_steps: 7}\nseed: 5\ncheckpoint: {every_n_train_steps: 3}\n")
    (tmp_path / "other.yaml").write_text("seed: 6\n")
    files = ["--config", "longer.yaml", "--config", "other.yaml"]
    assert launch_here(*files, "--train", "checkpoint.every_n_train_steps=7") == 0
    parsed = OmegaConf.load(TRIAL / "configs/parsed.yaml")
    found = (parsed.trainer.max_steps, parsed.seed, parsed.checkpoint.every_n_train_steps)
    assert found == (7, 6, 7) and parsed.name == OmegaConf.load(TINY_CONFIG).name
    assert (TRIAL / "configs/raw.yaml").read_text() == Path(TINY_CONFIG).read_text()
    assert (TRIAL / "configs/raw-2.yaml").read_text() == (tmp_path / "longer.yaml").read_text()
    assert (TRIAL / "configs/raw-3.yaml").read_text() == "seed: 6\n"
    whole = (TRIAL / "configs/parsed.yaml").read_text()
    again = ["--train", "trainer.max_steps=9", f"resume={TRIAL}/ckpts/last.ckpt"]
    assert launch_here(*again, config=str(TRIAL / "configs/parsed.yaml")) == 0
    assert torch.load(TRIAL / "ckpts/last.ckpt", weights_only=True)["global_step"] == 9
    assert OmegaConf.load(TRIAL / "configs/parsed.yaml").seed == 6
    raw = {path.name: path.read_text() for path in (TRIAL / "configs").glob("raw*.yaml")}
    assert raw == {"raw.yaml": whole}  # of this launch alone
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    for name, reason in (("missing.yaml", "config not found"), ("list.yaml", "a mapping of keys to values")):
        capsys.readouterr()
        assert launch_here("--config", name, "--train") == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert name in line and reason in line


def test_a_resumed_trial_goes_on_in_its_own_folder(launch_here):
    assert launch_here("--train", "trainer.max_steps=5") == 0
    parsed = str(TRIAL / "configs/parsed.yaml")
    again = ["trainer.max_steps=8", f"resume={TRIAL}/ckpts/last.ckpt"]
    assert launch_here("--train", *again, config=parsed) == 0
    names = files_in(TRIAL / "ckpts")
    assert names == ["epoch=0-step=4.ckpt", "epoch=0-step=8.ckpt", "last.ckpt"]
    assert torch.load(TRIAL / "ckpts/last.ckpt", weights_only=True)["global_step"] == 8


def test_evaluation_stands_at_the_step_of_its_checkpoint(launch_here):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    last = f"resume={TRIAL}/ckpts/last.ckpt"
    before = files_in(TRIAL / "ckpts")
    assert launch_here("--export", last) == 0
    assert (TRIAL / "save/it4-export/0.json").is_file()
    (TRIAL / "save/it4-test/0.json").unlink()
    assert launch_here("--test", last) == 0
    assert (TRIAL / "save/it4-test/0.json").is_file()
    assert launch_here("--validate", last) == 0
    assert files_in(TRIAL / "ckpts") == before


def test_last_finds_the_newest_trial(launch_here):
    stamped = ["use_timestamp=true", "trainer.max_steps=4"]
    for stamp in ("@20240101-000000", "@20250101-000000"):
        assert launch_here("--train", *stamped, f"timestamp={stamp}") == 0
    newest = Path("outputs/tiny/run@20250101-000000/save/it4-test")
    (newest / "0.json").unlink()
    last = "resume=outputs/tiny/run@LAST/ckpts/last.ckpt"
    assert launch_here("--test", *stamped, "timestamp=@20250101-000000", last) == 0
    assert (newest / "0.json").is_file()


def test_dry_run_builds_all_prints_the_config_and_writes_nothing(launch_here, tmp_path, capsys):
    assert launch_here("--train", "--dry-run", "trainer.max_steps=7") == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.trainer.max_steps == 7
    assert printed.system_type == "tiny-field-system"
    assert printed.trial_dir == str(TRIAL)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_is_training_unless_said_otherwise(launch_here, tmp_path):
    assert launch_here("--dry-run") == 0
    assert launch_here("--dry-run", "--test") == 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_finds_what_only_building_finds(launch_here, capsys):
    assert launch_here("--dry-run", "system.optimizer.params.fild={lr: 0.1}") == 2
    assert "optimizer.params.fild" in capsys.readouterr().err


BAD = [
    (["system_type=tiny-fild-system"], "system_type: unknown registered name", "tiny-field-system"),
    (["data_type=tiny-point-datamodule"], "data_type: unknown", "tiny-points-datamodule"),
    (["data_type=tiny-field-system"], "data_type: 'tiny-field-system' is not a data module", ""),
    (["system_type=tiny-field"], "system_type: 'tiny-field' is not a system", ""),
    (["system_type=''"], "system_type: the registered name of a system is required", ""),
    (["system.field.n_neuron=3"], "unknown key 'system.field.n_neuron'", "n_neurons"),
    (["system.field.n_neurons=wide"], "system.field.n_neurons: expected int, got 'wide'", ""),
    (["data.batchsize=3"], "unknown key 'data.batchsize'", "batch_size"),
    (["data.radius=big"], "data.radius: expected float, got 'big' (str)", ""),
    (["trainer.max_step=3"], "unknown key 'trainer.max_step'", "max_steps"),
    (["trainer.max_steps=ten"], "trainer.max_steps: expected int, got 'ten' (str)", ""),
    (["trainer.precision=17"], "trainer.precision: expected 64 or 32 or 16 or", "got 17 (int)"),
    (
        ["trainer.val_check_interval=0"],
        "trainer.val_check_interval: expected a number of steps more than 0",
        "got 0 (int)",
    ),
    (
        ["trainer.val_check_interval=-3"],
        "trainer.val_check_interval: expected a number of steps more than 0",
        "got -3 (int)",
    ),
    (["trainer.val_check_interval=1-e3"], "trainer.val_check_interval: ", "got '1-e3' (str)"),
    (["trainer.val_check_interval=1.5"], "trainer.val_check_interval: ", "got 1.5 (float)"),
    (["trainer.val_check_interval=0.5"], "trainer.val_check_interval: ", "got 0.5 (float)"),
    (["trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=1"], "trainer: ", "val_check_interval"),
    (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch: expected at least 1, got 0", ""),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches: expected at least 1, got 0", ""),
    (["trainer.log_every_n_steps=often"], "trainer.log_every_n_steps: expected int or null, got 'often'", ""),
    (["trainer.limit_val_batches=-1"], "trainer.limit_val_batches: ", "got -1 (int)"),
    (["trainer.max_steps=-3"], "trainer.max_steps: ", "got -3 (int)"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val: expected at least 0, got -1", ""),
    (["checkpoint.every_n_train_steps=all"], "checkpoint.every_n_train_steps: expected int or null, got 'all'", ""),
    (["checkpoint.every_n_train_steps=-4"], "checkpoint.every_n_train_steps: ", "got -4 (int)"),
    (["checkpoint.filename=a/../../b"], "checkpoint.filename: expected a name inside the trial's ckpts", "a/../../b"),
    (["checkpoint.save_top_k=3"], "checkpoint.save_top_k: ", "got 3 (int)"),
    (["system.loss.lambda_distance=null"], "system.loss.lambda_distance: expected a number", "got null"),
    (["system.loss.lambda_distance='1'"], "system.loss.lambda_distance: expected a number", "got '1' (str)"),
    (["system.loss.lambda_distance=1-e3"], "system.loss.lambda_distance: expected a number", "got '1-e3' (str)"),
    (["system.loss.lambda_distance=[0.0,1.0]"], "system.loss.lambda_distance: ", "got [0.0, 1.0]"),
    (["system.loss.lambda_distance=[0,1.0,2.0,3,4]"], "system.loss.lambda_distance: ", "got [0, 1.0, 2.0, 3, 4]"),
    (["system.loss.lambda_distance=[9,1.0,2.0,3]"], "system.loss.lambda_distance: ", "3 after 9"),
    (["system.loss.lambda_distance=.nan"], "system.loss.lambda_distance: expected numbers", "nan"),
    (["system.field.dropout=[0.1,0.2]"], "system.field.dropout: ", "got [0.1, 0.2]"),
    (["system.optimizer.name=null"], "system.optimizer.name: expected the name of a class, got null", ""),
    (["system.optimizer.nme=Adam"], "unknown key 'system.optimizer.nme'", "name"),
    (["system.optimizer.args.lr='0.01'"], "system.optimizer.args.lr: expected float, got '0.01' (str)", ""),
    (["system.optimizer.args.lr=-1"], "system.optimizer.args.lr: Invalid learning rate: -1", "got -1 (int)"),
    (["system.optimizer.args.betas=[0.9,0.99,0.999]"], "system.optimizer.args.betas: expected", "(0.9, 0.99, 0.999)"),
    (["system.optimizer.args.betas=0.9"], "system.optimizer.args.betas: expected", "got 0.9 (float)"),
    (["system.optimizer.args.betas=[0.9,1.5]"], "system.optimizer.args.betas: Invalid beta", "got [0.9, 1.5]"),
    (["system.optimizer.args.foreach=maybe"], "system.optimizer.args.foreach: expected bool or null, got 'maybe'", ""),
    (["system.optimizer.params.field.lr='0.01'"], "system.optimizer.params.field.lr: expected float, got '0.01'", ""),
    (["system.optimizer.params.field.lr=1-e3"], "system.optimizer.params.field.lr: expected float, got '1-e3'", ""),
    (["system.optimizer.params.field.lr=-0.1"], "system.optimizer.params.field.lr: Invalid learning rate", ""),
    (["system.optimizer.params.field.lrr=1"], "unknown key 'system.optimizer.params.field.lrr' (of AdamW)", "lr"),
    (["system.optimizer.params.field=0.1"], "system.optimizer.params.field: expected arguments", "got 0.1"),
    (
        ["system.optimizer.params.field.grid.lr=1"],
        "unknown key 'system.optimizer.params.field.grid'",
        "[field.grid].lr",
    ),
    (["system.scheduler.args.gamma='0.9'"], "system.scheduler.args.gamma: expected float, got '0.9' (str)", ""),
    (["system.scheduler.args.gama=1"], "unknown key 'system.scheduler.args.gama' (of ExponentialLR)", "gamma"),
    (["system.scheduler.name=StepLR"], "system.scheduler.args.step_size: a value is required by StepLR", ""),
    (
        ["system.scheduler={name: StepLR, args: {step_size: 0}}"],
        "system.scheduler: ZeroDivisionError",
        "'step_size': 0",
    ),
    (["system.scheduler.interval=day"], "system.scheduler.interval: expected 'epoch' or 'step', got 'day'", ""),
    (
        [
            "system.scheduler={name: SequentialLR, milestones: [3], "
            "schedulers: [{name: StepLR, args: {step_size: '5'}}]}"
        ],
        "system.scheduler.schedulers[0].args.step_size: expected int, got '5' (str)",
        "",
    ),
    (["trainer.logger=false"], "trainer.logger: is set by the launcher", ""),
    (["checkpoint.every_n_step=3"], "unknown key 'checkpoint.every_n_step'", "every_n_train_steps"),
    (["system.optimizer.name=Adammm"], "unknown optimizer 'Adammm'", "Adam"),
    (["system.optimizer.args.lrr=1"], "unknown key 'system.optimizer.args.lrr' (of AdamW)", "lr"),
    (["system.scheduler.name=Exponential"], "unknown scheduler 'Exponential'", "ExponentialLR"),
    (["system.optimizer.params.fild={}"], "optimizer.params.fild", "field"),
    (["system.weights=nowhere.ckpt"], "system.weights: checkpoint not found: nowhere.ckpt", ""),
    (["system.loggers.wandb.enable=maybe"], "system.loggers.wandb.enable: expected bool, got 'maybe' (str)", ""),
    (["system.loggers.wand.enable=true"], "unknown key 'system.loggers.wand'", "wandb"),
    (["system.optimizer=[]"], "system.optimizer: expected a mapping of keys to values, got []", ""),
    (["system.optimizer={name: SparseAdam, args: null}"], "system.optimizer.name: SparseAdam", "dense gradients"),
    (["system.scheduler.name=Counter"], "system.scheduler.name: unknown scheduler 'Counter'", ""),
    (["system.scheduler.name=ReduceLROnPlateau"], "system.scheduler.name: unknown scheduler 'ReduceLROnPlateau'", ""),
    (["resume=nowhere.ckpt"], "resume: checkpoint not found: nowhere.ckpt", ""),
    (["resume=outputs/x@LAST/last.ckpt"], "resume: no path matches", ""),
    (["seed=-1"], "seed: expected 0 to 2147483647, got -1", ""),
    (["seed=99999999999"], "seed: expected 0 to 2147483647, got 99999999999", ""),
    (["data.radius=nan"], "data.radius: expected float, got 'nan' (str)", ""),
    (["data.radius=.nan"], "data.radius: expected float, got nan (float)", ""),
    (["name=yes"], "name: expected str, got True (bool); write quotes", ""),
    (["trainer.overfit_batches=1", "trainer.check_val_every_n_epoch=1"], "trainer: ", "val_check_interval"),
    (["tag=../../escape"], "tag: '../../escape' is not a folder name", ""),
    (["seed"], "bad override 'seed'", ""),
    (["--sed=3"], "bad override '--sed=3'", ""),
]


@pytest.mark.parametrize("arguments, message, nearest", BAD, ids=[b[0][0] for b in BAD])
def test_bad_input_is_one_line_before_any_work(launch_here, tmp_path, capsys, arguments, message, nearest):
    assert launch_here("--train", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0] and nearest in errors[0]
    assert "Traceback" not in errors[0]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "argument",
    [
        "trainer.val_check_interval=0",
        "trainer.accelerator=xpu2",
        "system.optimizer.params.field.lr='0.01'",
        "checkpoint.save_top_k=3",
        "system.loss.lambda_distance=[0.0,1.0]",
    ],
)
def test_a_dry_run_finds_values_that_a_step_would_fall_over(launch_here, capsys, argument):
    assert launch_here("--train", "--dry-run", argument) == 2
    assert f"error: {argument.split('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 torn off", pickle.dumps({"a": 1}, 2)])
def test_corrupt_checkpoints(launch_here, tmp_path, capsys, content):
    (tmp_path / "bad.ckpt").write_bytes(content)
    for mode in ("--train", "--export"):
        assert launch_here(mode, "resume=bad.ckpt") == 2
        error = capsys.readouterr().err
        assert "error: resume: checkpoint bad.ckpt is corrupt" in error and "weights_only" not in error
        assert "Traceback" not in error
    assert files_in(tmp_path) == ["bad.ckpt"]


def test_a_torn_checkpoint_of_a_real_run(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    last = TRIAL / "ckpts/last.ckpt"
    last.write_bytes(last.read_bytes()[:-200])
    assert launch_here("--train", f"resume={last}") == 2
    assert "is corrupt" in capsys.readouterr().err


def test_weights_that_do_not_fit(launch_here, capsys, caplog):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    last = TRIAL / "ckpts/last.ckpt"
    again = ["--train", f"system.weights={last}", "exp_root_dir=other/outputs"]
    assert launch_here(*again, "system.field.n_neurons=9") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: system.weights: {last} does not fit this config: size mismatch for field.")
    checkpoint = torch.load(last)
    names = list(checkpoint["state_dict"])
    checkpoint["state_dict"]["more.weight"] = checkpoint["state_dict"].pop(names[0])
    torch.save(checkpoint, "some.ckpt")
    assert launch_here("--train", "system.weights=some.ckpt", "exp_root_dir=third/outputs", "trainer.max_steps=1") == 0
    assert f"1 missing weights, first {names[0]}" in caplog.text and "1 unknown weights, first more.we" in caplog.text
    checkpoint["state_dict"] = {f"more.{name}": value for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, "none.ckpt")
    assert launch_here("--train", "system.weights=none.ckpt", "exp_root_dir=fourth/outputs") == 2
    assert f"none.ckpt: none of its {len(names)} weights is known here, the first is more." in capsys.readouterr().err


def test_a_checkpoint_of_another_system(launch_here, capsys):
    assert launch_here("--train", "trainer.max_steps=4") == 0
    last = f"resume={TRIAL}/ckpts/last.ckpt"
    assert launch_here("--train", last, "system.field.n_neurons=9") == 2
    assert "size mismatch" in capsys.readouterr().err
    torch.save({"some": 1}, "other.ckpt")
    assert launch_here("--train", "resume=other.ckpt") == 2
    assert "not a checkpoint of a run: no state_dict" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value, lacks",
    [
        ("state_dict", 7, "state_dict"),
        ("global_step", "x", "global_step"),
        ("optimizer_states", None, "optimizer_states"),
        ("loops", {}, "fit_loop in loops"),
        (None, torch.zeros(3), "state_dict"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_a_run_is_one_line(launch_here, capsys, key, value, lacks):
    whole = {"state_dict": {}, "epoch": 0, "global_step": 1, "optimizer_states": [], "loops": {"fit_loop": {}}}
    torch.save(value if key is None else {**whole, key: value}, "other.ckpt")
    assert launch_here("--train", "resume=other.ckpt") == 2
    assert f"error: resume: other.ckpt is not a checkpoint of a run: no {lacks}" in capsys.readouterr().err


def test_export_needs_a_checkpoint(launch_here, capsys):
    assert launch_here("--export") == 2
    assert "resume: --export needs resume=<checkpoint>" in capsys.readouterr().err


def test_a_mode_is_required(launch_here, capsys):
    assert launch_here() == 2
    assert "--train" in capsys.readouterr().err
    assert launch_here("--train", "--test") == 2


def test_verbose_shows_the_traceback(launch_here, capsys):
    assert launch_here("--train", "--verbose", "seed=x") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_while_training_is_not_taken_for_bad_input(launch_here):
    with pytest.raises(RuntimeError, match="a bug in step 3"):
        launch_here("--train", "system.fail_at=3")


def test_an_error_while_building_is_taken_for_bad_input_only_if_it_was_raised_for_the_user(launch_here, tmp_path):
    """A ValueError of torch or of ours keeps its traceback, which says where it comes from."""
    with pytest.raises(ValueError, match="a bug in building"):
        launch_here("--train", "system.fail_at=-1")
    assert files_in(tmp_path) == []


def test_cmd_txt_keeps_arguments_as_a_shell_takes_them(launch_here, monkeypatch):
    words = ["launch.py", "--train", "tag=a red chair", "data.caption=", "x='1' \"2\""]
    monkeypatch.setattr("sys.argv", words)
    assert launch_here("--train", "trainer.max_steps=1") == 0
    assert shlex.split((TRIAL / "cmd.txt").read_text()) == ["python", *words]


@pytest.mark.parametrize(
    "visible, gpu, shown, count",
    [
        (None, None, "0", 1),
        (None, "1", "1", 1),
        (None, "0,2", "0,2", 2),
        ("0,1,2,3", None, "0,1,2,3", 4),
        ("0,1,2,3", "0", "0", 1),  # the first of those
        ("4,5,6", "2,0", "6,4", 2),
        ("GPU-aa,GPU-bb", "1", "GPU-bb", 1),
        ("", "0", "", 1),
        ("-1", "0", "-1", 1),
    ],
)
def test_gpu_counts_among_the_devices_that_are_visible(monkeypatch, visible, gpu, shown, count):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "_LAUNCH_CHOSE_GPUS", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for _ in range(2):  # a process that Lightning starts has the same command line and the narrowed environment
        assert select_gpus(gpu) == count
        assert os.environ["CUDA_VISIBLE_DEVICES"] == shown


@pytest.mark.parametrize(
    "gpu, message",
    [("4", "lists 4 devices, from 0 on"), ("a", "got 'a'"), ("-1", "got '-1'"), ("0,0", "got '0,0'"), ("", "got ''")],
)
def test_a_gpu_that_is_not_there_is_one_line(launch_here, monkeypatch, capsys, gpu, message):
    monkeypatch.delenv("_LAUNCH_CHOSE_GPUS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert launch_here("--train", f"--gpu={gpu}") == 2
    assert message in capsys.readouterr().err


def test_what_an_overridden_scheduler_leaves_is_not_read_with_a_word(launch_here, caplog):
    """An override is merged into the config's scheduler, so a new name comes beside the old one's entries."""
    assert launch_here("--train", "system.scheduler.milestones=[3]", "trainer.max_steps=1") == 0
    line = "system.scheduler.milestones: ExponentialLR takes none, so it is not read; SequentialLR would"
    assert caplog.text.count(line) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_gpu_is_ignored_with_a_word_without_one(launch_here, caplog):
    assert launch_here("--train", "--gpu", "0", "trainer.max_steps=1") == 0
    assert "--gpu is ignored" in caplog.text
    assert "precision 16-mixed is for GPUs: 32 on the CPU" in caplog.text


def test_a_plugin_that_fails_to_import_ends_the_run(start_launch, tmp_path):
    broken = tmp_path / "elsewhere/custom/broken.py"
    broken.write_text("def f():\n    raise KeyError('no such part')\n\nf()\n")
    process = start_launch("--train")
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: plugin 'broken'" in messages and "KeyError: 'no such part'" in messages
    assert "Traceback" not in messages
    assert not (tmp_path / "elsewhere/outputs").exists()


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_wait_asleep_unless_the_user_says_otherwise(given, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_asleep()
    assert os.environ.get("GOMP_SPINCOUNT") == (given.get("GOMP_SPINCOUNT") if given else "3000")
