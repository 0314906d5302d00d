"""Plugins may find values of a config before the run is built, and leave what they found in the save folder."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.host.launches import final_state
from threestudio.utils.config_completion import register_config_completion
from threestudio.utils.errors import UserError

TRIAL = Path("outputs/tiny/run")
WORD, WRONG_WORD = "what-the-completion-test-knows", "what-the-completion-test-refuses"


@register_config_completion
def complete_batch_size(cfg):
    """Does nothing to configs without its words, as each completion should."""
    given = cfg.data.get("batch_size")
    if given == WRONG_WORD:
        raise UserError("data.batch_size: cannot be found out")
    if given != WORD:
        return None
    torch.rand(7)  # what it draws has no influence on the run
    cfg.data.batch_size = 16
    return lambda saver: saver.save_json("found.json", {"batch_size": 16})


def test_a_word_is_replaced_and_the_run_is_the_same_as_with_the_value(launch_here, tmp_path, monkeypatch):
    assert launch_here("--train", "trainer.max_steps=3", f"data.batch_size={WORD}") == 0
    assert OmegaConf.load(TRIAL / "configs/parsed.yaml").data.batch_size == 16
    assert json.loads((TRIAL / "save/found.json").read_text()) == {"batch_size": 16}
    found = final_state(tmp_path)["state_dict"]
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    assert launch_here("--train", "trainer.max_steps=3", "data.batch_size=16") == 0
    given = final_state(tmp_path / "second")["state_dict"]
    assert found.keys() == given.keys() and all(torch.equal(found[key], given[key]) for key in found)


def test_other_configs_leave_no_record(launch_here):
    assert launch_here("--train", "trainer.max_steps=1") == 0
    assert not (TRIAL / "save/found.json").exists()


def test_a_dry_run_shows_the_value_and_writes_nothing(launch_here, capsys):
    assert launch_here("--dry-run", "--train", f"data.batch_size={WORD}") == 0
    assert "batch_size: 16" in capsys.readouterr().out and not TRIAL.exists()


@pytest.mark.parametrize("mode", ["--train", "--dry-run"])
def test_what_cannot_be_found_is_one_line(mode, launch_here, capsys):
    assert launch_here(mode, f"data.batch_size={WRONG_WORD}") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: data.batch_size: cannot be found out"] and not TRIAL.exists()
