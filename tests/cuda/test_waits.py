"""How often a training step makes Python wait for the device, counted on the simulated one."""

from collections import Counter

import pytest
import torch

from tests.cuda.simulated_runtime import simulated_cuda
from threestudio.utils.devices import Reading, constant, sent

SILENT = [
    "trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "trainer.val_check_interval=100",
    "checkpoint.save_last=false", "trainer.log_every_n_steps=100",
]  # fmt: skip
# At most so many in a step. Each is a point where the GPU's queue of kernels runs empty. One is the check that the
# gradient is finite; the others are sizes: of samples, of lists by tile, of a mesh's parts.
MOST = {"asd-3dconv": 4, "asd-nerf": 3, "asd-sdf": 3, "asd-dmtet": 12, "asd-gaussians": 2}


def waits(launch, name: str, steps: int, *more: str) -> Counter:
    with simulated_cuda() as seen:
        launch(name, "--train", *SILENT, *more, f"trainer.max_steps={steps}", f"tag={steps}")
    return seen.waits


@pytest.mark.parametrize("name", MOST)
def test_of_a_step(name, launch):
    few, more = waits(launch, name, 2), waits(launch, name, 4)
    per_step = {place: (count - few[place]) / 2 for place, count in more.items() if count > few[place]}
    assert sum(per_step.values()) <= MOST[name], sorted(per_step.items(), key=lambda x: -x[1])


def test_what_is_sent_or_read_without_waiting():
    numbers = torch.arange(6.0).view(2, 3)
    with simulated_cuda() as seen:
        like = torch.zeros(1, dtype=torch.float64, device="cuda")
        there = sent(numbers, like)
        assert there.is_cuda and there.dtype == torch.float64
        constant((1.0, 2.0), like)  # the first time it is made, and sent
        before = sum(seen.waits.values())
        reading = Reading(sent(numbers, like) + constant((1.0, 2.0), like)[0])
        assert sum(seen.waits.values()) == before
        assert reading.values() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        torch.tensor(1.0, device="cuda")
        there.cpu()
        assert sum(seen.waits.values()) == before + 2
    assert sent(numbers, torch.zeros(1)) is numbers
    assert Reading(numbers).values() == numbers.tolist()
