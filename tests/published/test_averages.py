"""Moving averages of weights, by hand."""

import pytest
import torch
from turboprop.small_models.training import average_weights


@pytest.mark.parametrize("step, moved", [(0, 0.9), (90, 0.09), (10**6, 0.0001)])
def test_the_average_is_short_at_first(step, moved):
    """Latent diffusion's, and zero-1-to-3's: after n steps an average keeps (1 + n) / (10 + n), at most 0.9999."""
    average, weights = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((average, 0.0), (weights, 1.0)):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, value)
    average_weights({"all": average}, {"all": weights}, step, 0.9999)
    assert average.weight.item() == pytest.approx(moved, rel=1e-3)
