"""Configs as DreamPropeller has them: a `speedup` block at the top, its trainer's keys, VSD's two optimizers."""

import pytest
from omegaconf import OmegaConf
from turboprop.picard.dreampropeller import with_mixin

from launch import main
from tests.config_runs import ROOT
from tests.picard.trials import COMMON, STEPS, Trial
from threestudio.utils.config import load_config

BLOCK = {"threshold": 30, "ema_decay": 0.9, "P": 3, "adaptivity_type": "median"}


def its_form(name: str) -> OmegaConf:
    """One of our configs with what its configs have besides."""
    config = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
    config.speedup = dict(BLOCK)
    config.trainer.merge_with({"visualize_progress": True, "display_time": True, "precision": "16-mixed"})
    config.system.renderer.ema_decay = 0.85
    if name == "prolificdreamer":
        optimizer = config.system.optimizer
        guidance = {key: optimizer[key] for key in ("name", "args")}
        own = {"params": {"guidance": optimizer.params.pop("guidance")}}
        config.system.optimizer = {"base": optimizer, "guidance": {**guidance, **own}}
    return config


@pytest.mark.parametrize("name", ["dreamfusion-sd", "prolificdreamer"])
def test_it_trains_by_picard_iterations(name, runs, tmp_path, caplog):
    config = its_form(name)
    path = tmp_path / "its.yaml"
    OmegaConf.save(config, path)
    plain = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
    given = [key for key in runs.arguments(name) if not key.startswith("exp_root_dir")]
    assert main(["--config", str(path), "--train", *given, *COMMON, f"exp_root_dir={tmp_path}"]) == 0
    trial = Trial(tmp_path / plain.name / "trial")
    rows = trial.checkpoint()["picard"]["history"]
    assert sum(row[2] for row in rows) == STEPS and max(row[1] for row in rows) == 3
    assert rows[0][4] == 30.0
    (line,) = [line for line in caplog.messages if line.startswith("speedup: ")]
    for said in (
        "val_check_interval counts steps",
        "trainer.visualize_progress, trainer.display_time",
        "16-mixed is 32",
    ):
        assert said in line
    read = OmegaConf.load(trial.folder / "configs" / "parsed.yaml")
    assert read.system_type == f"{plain.system_type}:picard" and "speedup" not in read
    assert read.system.picard.speedup == BLOCK and read.system.renderer.ema_decay == 0.85
    assert dict(read.system.optimizer.params) == dict(plain.system.optimizer.params)
    again = load_config(str(trial.folder / "configs" / "parsed.yaml"))  # as a later stage does
    assert again.system == read.system


def test_the_mixin_is_named_once():
    assert with_mixin("dreamfusion-system") == "dreamfusion-system:picard"
    assert with_mixin("dreamfusion-system:turboprop-evaluated") == "dreamfusion-system:picard,turboprop-evaluated"
    for name in ("a:picard", "a:b,turboprop-picard", ""):
        assert with_mixin(name) == name


WRONG = [
    ({"speedup.Q": 7}, "speedup.Q: expected one of P, threshold, ema_decay, adaptivity_type"),
    ({"speedup": 7}, "speedup: expected a mapping with keys P, threshold, ema_decay, adaptivity_type, got 7"),
    (
        {"system.optimizer.guidance.name": "SGD"},
        "system.optimizer.guidance.name: expected that of system.optimizer.base",
    ),
    ({"system.optimizer.base.params": None}, "system.optimizer.base.params: expected the groups"),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_what_is_wrong_is_named(changes, message):
    config = its_form("prolificdreamer")
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_config(OmegaConf.to_yaml(config), from_string=True)


@pytest.mark.parametrize(
    "block, message",
    [
        ("{P: 0}", "system.picard.window: expected at least 1, got 0"),
        ("{P: 2.5}", "system.picard.speedup.P: expected int, got 2.5 (float)"),
        ("{threshold: x}", "system.picard.speedup.threshold: expected float, got 'x' (str)"),
        ("{adaptivity_type: mode}", "system.picard.rule"),
    ],
)
def test_impossible_values_are_one_line(block, message, runs, tmp_path, capsys):
    arguments = [*runs.arguments("dreamfusion-sd"), f"exp_root_dir={tmp_path}", f"speedup={block}"]
    assert main(["--config", str(ROOT / "configs/dreamfusion-sd.yaml"), "--train", *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error


def test_without_the_block_nothing_changes():
    text = (ROOT / "configs" / "prolificdreamer.yaml").read_text()
    given = ["system.prompt_processor.prompt=a car", "use_timestamp=false"]
    config = load_config(text, from_string=True, cli_args=given)
    assert config.system_type == "prolificdreamer-system" and "picard" not in config.system
    assert "name" in config.system.optimizer
