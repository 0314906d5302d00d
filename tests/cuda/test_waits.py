"""How often a training step makes Python wait for the device, counted on the simulated one."""

from collections import Counter

import pytest

from tests.cuda.simulated_runtime import simulated_cuda

SILENT = [
    "trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "trainer.val_check_interval=100",
    "checkpoint.save_last=false", "trainer.log_every_n_steps=100",
]  # fmt: skip
# At most so many in a step. Each is a point where the processor's queue of kernels for the GPU runs empty.
MOST = {"asd-3dconv": 10, "asd-gaussians": 2}


def waits(launch, name: str, steps: int, *more: str) -> Counter:
    with simulated_cuda() as seen:
        launch(name, "--train", *SILENT, *more, f"trainer.max_steps={steps}", f"tag={steps}")
    return seen.waits


@pytest.mark.parametrize("name", MOST)
def test_of_a_step(name, launch):
    few, more = waits(launch, name, 2), waits(launch, name, 4)
    per_step = {place: (count - few[place]) / 2 for place, count in more.items() if count > few[place]}
    assert sum(per_step.values()) <= MOST[name], sorted(per_step.items(), key=lambda x: -x[1])
