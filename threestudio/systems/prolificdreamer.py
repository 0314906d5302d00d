"""ProlificDreamer (Wang et al. 2023): variational score distillation in three stages, field to textured mesh."""

from dataclasses import dataclass

from torch import Tensor

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import (
    SURFACE_WEIGHTS,
    VOLUME_WEIGHTS,
    eikonal_loss,
    surface_losses,
    volume_losses,
)
from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.utils.errors import UserError, key_of_errors
from threestudio.utils.value_checks import check_choice

STAGES = ("coarse", "geometry", "texture")


@threestudio.register("prolificdreamer-system")
class ProlificDreamer(ScoreDistillationSystem):
    """Its guidance is built at once, not before training: it may have weights, which train and are saved."""

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        # coarse: a field; geometry: its surface, taught by its normals; texture: the colours of that surface
        stage: str = "coarse"
        visualize_samples: bool = False  # show samples of the guidance's two models beside validation views

    cfg: Config
    shown_figures = ("train/inv_std",)

    def own_weights(self) -> LossWeights:
        of_stage = {"coarse": VOLUME_WEIGHTS, "geometry": SURFACE_WEIGHTS, "texture": LossWeights()}[self.cfg.stage]
        each = (*VOLUME_WEIGHTS.keys, *SURFACE_WEIGHTS.keys, "lambda_eikonal")
        return of_stage.with_(optional=each)

    def configure(self) -> None:
        check_choice("system.stage", self.cfg.stage, STAGES)
        if self.cfg.visualize_samples:
            self._check_samples(self.cfg.guidance_type)
        super().configure()
        if not self._guidance_trains():
            self.build_prompts_and_guidance()

    def _check_samples(self, name: str) -> None:
        """Raises UserError where the guidance of that name has no samples to show: a validation would find it out."""
        with key_of_errors("guidance_type"):
            guidance = threestudio.find(name)
        if getattr(guidance, "sample_lora", None) is None:
            raise UserError(f"system.visualize_samples: {name} draws no samples; expected false, got true")

    def open_teacher(self) -> None:
        """Has been opened by `configure`."""

    def forward(self, batch: dict) -> dict:
        if self.cfg.stage == "geometry":
            return self.renderer(**batch, render_rgb=False)
        return self.renderer(**batch)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        shown = out["comp_normal"] if self.cfg.stage == "geometry" else out["comp_rgb"]
        return self.weighted_sum({**self.guide(shown, batch), **self._regularizers(out)})

    def _regularizers(self, out: dict) -> dict[str, Tensor]:
        if self.cfg.stage == "texture":
            return {}
        if self.cfg.stage == "geometry":
            return surface_losses(out["mesh"], self.weight)
        losses = volume_losses(out, self.weight)
        if "sdf_grad" in out:
            losses["loss_eikonal"] = eikonal_loss(out["sdf_grad"])
            self.log("train/inv_std", out["inv_std"].detach().mean())
        return losses

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.cfg.visualize_samples:
            self._save_samples(batch)

    def _save_samples(self, batch: dict) -> None:
        """One sample of the frozen model beside one of the model of the renders."""
        prompts, step = self.prompt_processor(), self.true_global_step
        samples = (
            self.guidance.sample(prompts, **batch, seed=step),
            self.guidance.sample_lora(prompts, **batch),
        )
        cells = [{"type": "rgb", "img": s[0], "kwargs": {"data_format": "HWC"}} for s in samples]
        filename = f"it{step}-{int(batch['index'][0])}-sample.png"
        self.save_image_grid(filename, cells, name="validation_step_samples", step=step)
