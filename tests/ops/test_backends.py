"""Which backend an op takes, and that Warp starts only where one takes it."""

import subprocess
import sys

import pytest
import torch

from tests.ops.running import CPU
from threestudio.ops.backends import Backends
from threestudio.utils.errors import UserError

OWN = Backends("an op")
WITH_LIBRARY = Backends("an op", "pytest")  # a package that is there, in the place of one with CUDA kernels
FLOAT, DOUBLE = torch.zeros(1), torch.zeros(1, dtype=torch.float64)


def test_the_fastest_is_taken_that_can_compute_in_the_type():
    assert OWN.choose("auto", FLOAT) == OWN.available(CPU)[0]
    assert OWN.choose("auto", DOUBLE) == OWN.choose("auto", FLOAT, DOUBLE) == OWN.choose("torch", DOUBLE) == "torch"


def test_a_library_is_for_cuda_and_for_the_versions_that_can_be_used():
    cuda = torch.device("cuda")
    assert WITH_LIBRARY.available(CPU) == OWN.available(CPU)
    assert WITH_LIBRARY.available(cuda) == ["pytest", *OWN.available(cuda)]
    assert Backends("an op", "pytest", lambda: False).available(cuda) == OWN.available(cuda)
    assert Backends("an op", "no_such_package").available(cuda) == OWN.available(cuda)


@pytest.mark.parametrize(
    "backend, x, message",
    [("gl", FLOAT, "an op: backend: expected one of auto, torch, warp, pytest, got 'gl'"),
     ("pytest", FLOAT, "'pytest' is not available for cpu, torch.float32"),
     ("warp", DOUBLE, "'warp' is not available for cpu, torch.float64 .*all but torch take float32")],
)  # fmt: skip
def test_what_cannot_be_taken_is_said(backend, x, message):
    with pytest.raises(UserError, match=message):
        WITH_LIBRARY.choose(backend, x)


def test_warp_is_not_imported_with_the_ops():
    ops = "gaussian_rasterization, hash_grid, mesh_antialias, mesh_rasterization, ray_marching, volume_rendering"
    code = f"import sys; from threestudio.ops import {ops}; assert 'warp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
