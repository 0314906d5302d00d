"""The systems of threestudio-mvdream and ScaleDreamer for one prompt take a signed distance field too."""

import pytest
import torch

import threestudio
from threestudio.utils.errors import UserError

OUT = {"opacity": torch.ones(1, 1, 1, 1), "sdf_grad": torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.6, 0.8]])}


@pytest.mark.parametrize("name", ["mvdream-system", "scaledreamer-system"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_weight_of_the_eikonal_loss_is_read(name, weight, monkeypatch):
    """Gradients of lengths 3 and 1: the mean of (|g| - 1)^2 is (4 + 0) / 2. A weight of 0 asks for no distances."""
    system_class = threestudio.find(name)
    system = system_class.__new__(system_class)
    monkeypatch.setattr(system_class, "weight", lambda self, loss: weight if loss == "eikonal" else 0.0)
    assert "lambda_eikonal" in system.own_weights().optional
    losses = system.scene_losses(OUT)
    assert ("loss_eikonal" in losses) == (weight > 0)
    if weight > 0:
        assert losses["loss_eikonal"].item() == pytest.approx(2.0)
        with pytest.raises(UserError, match="lambda_eikonal needs signed distances"):
            system.scene_losses({"opacity": OUT["opacity"]})
