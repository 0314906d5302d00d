"""`gaussian-splatting-system`: one scene of Gaussians for one prompt, taught by any guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

import threestudio
import torch
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.errors import UserError
from torch import Tensor

from .losses import GAUSSIAN_LOSSES, PICTURE_LOSSES
from .training import GaussianTraining


class GaussianSplattingSystem(GaussianTraining, BaseLift3DSystem):
    """Losses, each times its lambda_X: the guidance's loss_X; position, opacity, scales, tv_loss, depth_tv_loss,
    sparsity, opaque."""

    @dataclass
    class Config(BaseLift3DSystem.Config):
        exporter_type: str = "gaussian-mesh-exporter"
        visualize_samples: bool = False  # also write what the guidance makes of the renders, at each validation

    cfg: Config
    # For a host that refuses weights of losses that nobody has.
    loss_keys = tuple(f"lambda_{name}" for name in (*GAUSSIAN_LOSSES, *PICTURE_LOSSES))

    def configure(self) -> None:
        if not any(name.startswith("lambda_") for name in self.cfg.loss):
            raise UserError("system.loss: expected at least one lambda_X, e.g. lambda_sds")
        super().configure()
        if self._guidance_trains():
            self.build_prompts_and_guidance()

    def _guidance_trains(self) -> bool:
        """Whether the guidance has weights of its own, which the optimizer and checkpoints need from the start."""
        name = self.cfg.guidance_type
        return bool(name) and issubclass(threestudio.find(name), torch.nn.Module)

    def build_prompts_and_guidance(self) -> None:
        """Opens the model's folders; called before training, and by a dry run."""
        self.prompt_processor = threestudio.find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.guidance = threestudio.find(self.cfg.guidance_type)(self.cfg.guidance)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self._guidance_trains():
            self.build_prompts_and_guidance()

    def forward(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        return self.renderer.batch_forward(batch)

    # ------------------------------------------------------------------------------ train

    def training_step(self, batch: Dict[str, Any], batch_idx: int) -> Dict[str, Tensor]:
        out = self(batch)
        guidance_out = self.guidance(out["comp_rgb"], self.prompt_processor(), **batch, rgb_as_latents=False)
        losses = {key[len("loss_") :]: value for key, value in guidance_out.items() if key.startswith("loss_")}
        for key, value in guidance_out.items():
            if not key.startswith("loss_"):
                self._log_scalar(f"train/{key}", value)
        losses.update(self._regularizers(out))
        total = sum(value * self._weight(name, required=True) for name, value in losses.items())
        for name, value in losses.items():
            self._log_scalar(f"train/loss_{name}", value)
        for name, value in self.cfg.loss.items():
            self._log_scalar(f"train_params/{name}", self.C(value))
        return {"loss": total}

    def _weight(self, name: str, required: bool = False) -> float:
        key = f"lambda_{name}"
        if required and key not in self.cfg.loss:
            raise UserError(f"system.loss.{key}: the guidance has a loss_{name} and needs it")
        return self.C(self.cfg.loss.get(key, 0.0))

    def _regularizers(self, out: Dict[str, Any]) -> Dict[str, Tensor]:
        gaussians = self.geometry.gaussians()
        losses = {name: loss(gaussians) for name, loss in GAUSSIAN_LOSSES.items() if self._weight(name) != 0}
        losses.update({name: loss(out) for name, loss in PICTURE_LOSSES.items() if self._weight(name) != 0})
        return losses

    def _log_scalar(self, name: str, value: Any) -> None:
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            self.log(name, value.detach() if isinstance(value, Tensor) else float(value))

    # ------------------------------------------------------------------------- evaluation

    def _save_views(self, filename: str, out: Dict[str, Any], name: str) -> None:
        cells = [
            {"type": "rgb", "img": out[key][0], "kwargs": {"data_format": "HWC"}}
            for key in ("comp_rgb", "comp_normal")
            if key in out
        ]
        gray = {"cmap": None, "data_range": (0, 1)}
        cells.append({"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": gray})
        self.save_image_grid(filename, cells, name=name, step=self.true_global_step)

    def validation_step(self, batch: Dict[str, Any], batch_idx: int) -> None:
        out = self(batch)
        index = int(batch["index"][0])
        self._save_views(f"it{self.true_global_step}-{index}.png", out, "validation_step")
        if self.cfg.visualize_samples and index == 0:
            with torch.no_grad():
                seen = self.guidance(out["comp_rgb"], self.prompt_processor(), **batch, guidance_eval=True)
            self.guidance_evaluation_save(out["comp_rgb"], seen["eval"])

    def test_step(self, batch: Dict[str, Any], batch_idx: int) -> None:
        out = self(batch)
        self._save_views(f"it{self.true_global_step}-test/{int(batch['index'][0])}.png", out, "test_step")

    def on_test_epoch_end(self) -> None:
        folder = f"it{self.true_global_step}-test"
        self.save_img_sequence(
            folder, folder, r"(\d+)\.png", save_format="mp4", fps=30, name="test", step=self.true_global_step
        )


threestudio.register("turboprop-gaussian-splatting-system")(GaussianSplattingSystem)
# threestudio-3dgs brings its own.
if "gaussian-splatting-system" not in threestudio.__modules__:
    threestudio.register("gaussian-splatting-system")(GaussianSplattingSystem)
