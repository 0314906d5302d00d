"""What is built for a run lies on the device that the trainer takes."""

import pytest
import torch

import threestudio
from launch import main
from tests.config_runs import ROOT
from tests.cuda.simulated_runtime import simulated_cuda
from threestudio.utils.devices import get_device, running_on, trainer_device


@pytest.fixture()
def four_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "accelerator, devices, local_rank, expected",
    [
        ("cpu", 1, 0, "cpu"),
        ("gpu", -1, 0, "cuda:0"),
        ("gpu", -1, 3, "cuda:3"),
        ("gpu", 1, 0, "cuda:0"),
        ("gpu", "auto", 2, "cuda:2"),
        ("auto", "auto", 0, "cuda:0"),
        ("cuda", [1], 0, "cuda:1"),
        ("gpu", [1, 3], 1, "cuda:3"),
        ("gpu", "2,", 0, "cuda:2"),
        ("gpu", "0,2", 1, "cuda:2"),
    ],
)
def test_the_trainers_device(four_devices, monkeypatch, accelerator, devices, local_rank, expected):
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert trainer_device(accelerator, devices) == torch.device(expected)


def test_it_holds_for_the_run_alone(four_devices):
    assert get_device() == torch.device("cuda:0")
    with running_on(torch.device("cuda:1")):
        assert get_device() == threestudio.find("no-material")({}).device == torch.device("cuda:1")
    assert get_device() == torch.device("cuda:0")


def test_a_run_on_the_cpu_leaves_cuda_alone(models, tmp_path, monkeypatch, text_cache):
    """trainer.accelerator=cpu where there is a CUDA device: the guidance lies where the scene does."""
    from omegaconf import OmegaConf

    from tests.config_runs import tiny_overrides

    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / "dreamfusion-sd.yaml"
    config = OmegaConf.load(path)
    arguments = [f"exp_root_dir={tmp_path}", *models(config), *tiny_overrides(config), "trainer.accelerator=cpu"]
    with simulated_cuda() as seen:
        assert main(["--config", str(path), "--train", *arguments]) == 0
    assert seen.counter.count == 0 and not seen.kernels
