import pytest
import torch
from turboprop.distillation.weighting import weight

ABAR = torch.tensor([0.81, 0.25])
TIMESTEPS = torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("sds", [0.75, 0.19]),
        ("uniform", [1.0, 1.0]),
        ("fantasia3d", [0.5 * 0.75, 0.9 * 0.19]),
        ("unified_dreamfusion", [0.5, 0.1]),
        ("unified_fantasia3d", [0.5**0.5 * 0.5, 0.9**0.5 * 0.1]),
    ],
)
def test_weights(strategy, expected):
    got = weight(ABAR, TIMESTEPS, strategy)
    assert got.shape == (2, 1, 1, 1)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected))


def test_unknown_strategy():
    with pytest.raises(ValueError, match="weighting_strategy: expected one of sds, uniform, fantasia3d, .*, got 'dds'"):
        weight(ABAR, TIMESTEPS, "dds")
