"""A system without a teacher: shapes fill their pictures and turn red. For tests of geometries and hand-over."""

from dataclasses import dataclass

import torch

import threestudio
from threestudio.systems.base import BaseLift3DSystem


@threestudio.register("silhouette-system")
class SilhouetteSystem(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        pass

    cfg: Config

    def training_step(self, batch, batch_idx):
        out = self.renderer(**batch)
        disc = (batch["rays_d"] * -torch.nn.functional.normalize(batch["camera_positions"], dim=-1)[:, None, None]).sum(
            -1
        ) > 0.95
        red = torch.tensor([1.0, 0.0, 0.0]).to(out["comp_rgb"])
        loss = ((out["opacity"][..., 0] - disc.float()) ** 2).mean() + ((out["comp_rgb"] - red) ** 2).mean()
        if "mesh" in out:
            loss = loss + 0.1 * out["mesh"].normal_consistency() + 0.1 * out["mesh"].laplacian()
        self.log("train/loss", loss.detach())
        return {"loss": loss}

    def test_step(self, batch, batch_idx):
        out = self.renderer(**batch)
        self.save_rgb_image(f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", out["comp_rgb"][0])

    validation_step = test_step
