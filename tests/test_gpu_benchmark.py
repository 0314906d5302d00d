"""The part of benchmarks/gpu.py that compares ops: what a row says of rounding, and what of a fault."""

import time

import pytest
import torch

from benchmarks.gpu_parts import ops
from benchmarks.gpu_parts.shared import Setting


def setting() -> Setting:
    return Setting(torch.device("cpu"), True, time.monotonic() + 60)


def test_every_op_is_near_float64_and_its_backends_near_torch():
    pytest.importorskip("warp")
    found = {row.what: row for row in ops.rows(setting())}
    assert set(found) == {f"{name}, {backend}" for name in ops.OPS for backend in ("torch", "warp")}
    for what, row in found.items():
        assert row.error is None, (what, row.error)
        assert row.figures["beyond 1e-04"] < 1e-3, (what, row.figures)
        assert ("times faster than torch" in row.figures) == what.endswith("warp")
    assert found["hash grid, torch"].figures["largest difference"] > 0  # from float64


def test_one_number_in_a_million_that_jumps_is_told_from_many():
    expected = torch.ones(1000, 1000)
    got = expected.clone()
    got[3, 4] += 0.01
    found = ops.differences([got], [expected])
    assert found["largest difference"] == pytest.approx(1e-2, rel=1e-3)
    assert found["beyond 1e-04"] == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        ops.differences([got[1:]], [expected])
