"""Magic123 (Qian et al. 2023): a picture, a prompt, and two guidances, one of text and one of other views."""

from dataclasses import dataclass, field

from torch import Tensor

import threestudio
from threestudio.systems.image_reference import cameras_of, needed, random_cameras_of
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import scene_losses, scene_weights
from threestudio.systems.reference_losses import color_loss, mask_cross_entropy, normal_smoothness
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("magic123-system")
class Magic123(ScoreDistillationSystem):
    """Losses: rgb and mask of the picture; X of `guidance`; 3d_X of `guidance_3d`; those of the scene."""

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        refinement: bool = False  # the second stage: a mesh, made from `geometry_convert_from`
        guidance_3d_type: str = ""  # registered name of the guidance that knows the picture; asked without a prompt
        guidance_3d: dict = field(default_factory=dict)
        # registered name of the background that `guidance` sees the object before; "": the scene's own, as
        # `guidance_3d` does. Novel-view models know white alone, before which white haze is not seen.
        guidance_background_type: str = ""
        guidance_background: dict = field(default_factory=dict)

    cfg: Config
    parts = (*ScoreDistillationSystem.parts, "guidance_3d", "guidance_background")
    guidance_parts = {"": "guidance", "3d_": "guidance_3d"}

    def own_weights(self) -> LossWeights:
        return scene_weights(self.cfg.refinement).with_(
            required=("lambda_rgb", "lambda_mask"), optional=("lambda_normal_smoothness_2d",)
        )

    def configure(self) -> None:
        super().configure()
        named = self.cfg.guidance_background_type
        self.guidance_background = self._build("guidance_background") if named else None

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        reference, cameras = self(cameras_of(batch)), random_cameras_of(batch)
        out = self(cameras)
        losses = {
            "loss_rgb": color_loss(reference["comp_rgb"], reference["comp_rgb_bg"], batch["rgb"], batch["mask"]),
            "loss_mask": mask_cross_entropy(reference["opacity"], batch["mask"]),
            **self.guide(self._seen_by_guidance(out, cameras), cameras),
            **self._guide_3d(out["comp_rgb"], cameras),
        }
        losses.update(scene_losses(out, self.cfg.refinement, self.weight))
        if not self.cfg.refinement and self.weight("normal_smoothness_2d") > 0:
            normal = needed(out, "comp_normal", "normal_smoothness_2d")
            losses["loss_normal_smoothness_2d"] = normal_smoothness(normal)
        return self.weighted_sum(losses)

    def _seen_by_guidance(self, out: dict, cameras: dict) -> Tensor:
        """What `guidance` is shown of a render: [B, H, W, 3]."""
        if self.guidance_background is None:
            return out["comp_rgb"]
        background = self.guidance_background(dirs=cameras["rays_d"])
        return out["comp_rgb"] + (1.0 - out["opacity"]) * (background - out["comp_rgb_bg"])

    def _guide_3d(self, images: Tensor, cameras: dict) -> dict[str, Tensor]:
        guidance_out = self.guidance_3d(images, **cameras, rgb_as_latents=False)
        losses = {}
        for key, value in guidance_out.items():
            if key.startswith("loss_"):
                losses[key.replace("loss_", "loss_3d_", 1)] = value
            else:
                self._log_scalar(f"train/{key}_3d", value)
        return losses
