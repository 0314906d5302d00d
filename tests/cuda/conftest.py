"""Each test of this folder runs on a simulated CUDA device, and where there is one, marked gpu, on a real one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from launch import main
from tests.config_runs import ROOT, small_overrides
from tests.cuda.simulated_runtime import simulated_cuda

SHORT = [
    "use_timestamp=false", "tag=trial", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
]  # fmt: skip


class OnCuda:
    """The device that a test runs on; `was_used` is asked after the work."""

    def __init__(self, was_used: Callable[[], bool], is_simulated: bool) -> None:
        self.was_used, self.is_simulated = was_used, is_simulated


def allocations() -> int:
    """How often memory was taken on the device so far. What a test takes may be what an earlier one gave back."""
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def on_cuda(request: pytest.FixtureRequest) -> Iterator[OnCuda]:
    if request.param == "simulated":
        with simulated_cuda() as seen:
            yield OnCuda(lambda: seen.counter.count > 1000, True)
        return
    before = allocations()
    yield OnCuda(lambda: allocations() > before + 1000, False)


@pytest.fixture()
def launch(models, tmp_path, monkeypatch, text_cache) -> Callable[..., Path]:
    """Runs a config at small size in this process, in the project's folder; gives the trial's folder."""
    monkeypatch.chdir(ROOT)

    def run(name: str, mode: str, *more: str) -> Path:
        path = ROOT / "configs" / f"{name}.yaml"
        config = OmegaConf.load(path)
        arguments = [f"exp_root_dir={tmp_path}", *small_overrides(config), *models(config), *SHORT, *more]
        assert main(["--config", str(path), mode, *arguments]) == 0
        named = [word.removeprefix("name=") for word in more if word.startswith("name=")]
        return tmp_path / (named or [config.name])[-1] / "trial"

    return run
