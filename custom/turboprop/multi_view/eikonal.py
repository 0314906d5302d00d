"""The eikonal regulariser of one scene, for the systems of threestudio-mvdream and of ScaleDreamer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import eikonal_loss
from threestudio.utils.errors import UserError


class WithEikonal:
    """Mixed with a system of volume losses: `lambda_eikonal`, where the config has it, for signed distance fields."""

    def own_weights(self) -> LossWeights:
        return super().own_weights().with_(optional=("lambda_eikonal",))

    def scene_losses(self, out: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().scene_losses(out)
        if self.weight("eikonal") > 0:
            if "sdf_grad" not in out:
                raise UserError("loss.lambda_eikonal needs signed distances: set system.geometry_type=implicit-sdf")
            losses["loss_eikonal"] = eikonal_loss(out["sdf_grad"])
        return losses
