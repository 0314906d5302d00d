"""A run by Picard iterations, killed between two checkpoints and resumed, ends as one that was not, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.picard.runs import (
    COMMON,
    DATA,
    GEOMETRY,
    ROOT,
    SYSTEMS,
    checkpoint,
    fit,
    small_config,
    state_of,
)
from tests.saved_states import assert_same

KEYS = ("window=4", "threshold=2", "report=false")
STEPS, EVERY = 24, 4
SAVES = [f"checkpoint.every_n_train_steps={EVERY}", "checkpoint.save_top_k=-1", "trainer.limit_test_batches=1"]


@pytest.mark.parametrize("kind", ["nerf", pytest.param("gaussians", marks=pytest.mark.slow)])
def test_a_killed_run_ends_the_same(kind, tmp_path):
    whole = fit(kind, tmp_path / "whole", *SAVES, picard=KEYS, steps=STEPS)
    killed = tmp_path / "killed"
    given = [*COMMON, *DATA, *GEOMETRY[kind], *SAVES, f"exp_root_dir={killed}", "trainer.max_steps=4000"]
    mixin = [f"system_type={SYSTEMS[kind]}:picard", *(f"system.picard.{key}" for key in KEYS)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "--config", small_config(kind, killed), "--train", *given, *mixin],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen, deadline = killed / f"fit/run/ckpts/epoch=0-step={EVERY}.ckpt", time.monotonic() + 120
    while not seen.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.Random(0).uniform(0.0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert EVERY <= checkpoint(killed)["global_step"] < STEPS
    last = f"resume={killed}/fit/run/ckpts/last.ckpt"
    resumed = fit(kind, killed, *SAVES, last, picard=KEYS, steps=STEPS)
    assert_same(state_of(resumed), state_of(whole))
    strides = [row[2] for row in resumed["picard"]["history"]]
    assert sum(strides) == STEPS and max(strides) > 1
