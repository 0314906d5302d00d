"""A run that is stopped and resumed on a CUDA device, and one in a process group of NCCL with one rank."""

import os
import subprocess
import sys

import pytest
import torch

from tests.config_runs import ROOT, small_overrides

SILENT = ["trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "checkpoint.every_n_train_steps=1",
          "system.scheduler.args.T_max=4"]  # fmt: skip


def weights(trial) -> dict[str, torch.Tensor]:
    state = torch.load(trial / "ckpts/last.ckpt", weights_only=True, map_location="cpu")
    assert state["global_step"] == 4
    return {key: value.cpu() for key, value in state["state_dict"].items() if value.is_floating_point()}


def test_it_resumes(launch, on_cuda):
    """To the same weights, bit for bit where sums have one order: on a real device they have none."""
    whole = launch("fit-nerf", "--train", *SILENT, "trainer.max_steps=4", "tag=trial", "name=whole")
    part = launch("fit-nerf", "--train", *SILENT, "trainer.max_steps=2", "name=part")
    launch("fit-nerf", "--train", *SILENT, "trainer.max_steps=4", "name=part", f"resume={part}/ckpts/last.ckpt")
    whole, part = weights(whole), weights(part)
    for key, value in whole.items():
        if on_cuda.is_simulated:
            assert torch.equal(value, part[key]), key
        else:
            torch.testing.assert_close(value, part[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.gpu
def test_nccl_with_one_rank(tmp_path):
    from omegaconf import OmegaConf

    config = ROOT / "configs" / "fit-nerf.yaml"
    given = [*small_overrides(OmegaConf.load(config)), *SILENT, "trainer.max_steps=2", "trainer.strategy=ddp"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "launch.py"]
    command += ["--config", str(config), "--train", "use_timestamp=false", "tag=trial"]
    command += [f"exp_root_dir={tmp_path}", *given]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "NCCL_DEBUG": "VERSION"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nccl" in (done.stdout + done.stderr).lower()
    (checkpoint,) = tmp_path.glob("*/trial/ckpts/last.ckpt")
    assert torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"] == 2
