"""DreamFusion (Poole et al. 2022): one scene for one prompt, taught by score distillation."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.ops import binary_cross_entropy, dot


def orientation_loss(
    weights: Tensor,  # [N, 1], of samples along rays
    normal: Tensor,  # [N, 3]
    directions: Tensor,  # [N, 3], from the camera
    n_rays: Tensor,  # [], those that hit something
) -> Tensor:
    """Visible normals that face away from the camera (Ref-NeRF, Verbin et al. 2022, eq. 11)."""
    facing_away = dot(normal, directions).clamp(min=0.0) ** 2
    return (weights.detach() * facing_away).sum() / n_rays


def sparsity_loss(opacity: Tensor) -> Tensor:
    """Pulls opacity to zero where nothing holds it up (DreamFusion, appendix A.2)."""
    return (opacity**2 + 0.01).sqrt().mean()


def opaque_loss(opacity: Tensor) -> Tensor:
    """Entropy of opacity: each ray is opaque or empty."""
    clamped = opacity.clamp(1.0e-3, 1.0 - 1.0e-3)
    return binary_cross_entropy(clamped, clamped)


def z_variance_loss(out: dict) -> Tensor:
    """Spread of the depth along rays that hit something (HiFA, Zhu and Zhuang 2023, eq. 11)."""
    opaque = out["opacity"] > 0.5
    if not bool(opaque.any()):
        return out["z_variance"].sum() * 0.0
    return out["z_variance"][opaque].mean()


@threestudio.register("dreamfusion-system")
class DreamFusion(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        pass

    cfg: Config

    def configure(self) -> None:
        for name in ("lambda_sds", "lambda_orient", "lambda_sparsity", "lambda_opaque"):
            if name not in self.cfg.loss:
                raise UserError(
                    with_suggestion(f"system.loss.{name}: a value is required", name, self.cfg.loss)
                )
        super().configure()

    def forward(self, batch: dict) -> dict:
        return self.renderer(**batch)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.build_prompts_and_guidance()

    # ------------------------------------------------------------------------------ train

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        guidance_out = self.guidance(
            out["comp_rgb"], self.prompt_processor(), **batch, rgb_as_latents=False
        )
        losses = {key: value for key, value in guidance_out.items() if key.startswith("loss_")}
        for key, value in guidance_out.items():
            if key not in losses and (not isinstance(value, Tensor) or value.numel() == 1):
                self._log_scalar(f"train/{key}", value)
        losses.update(self._regularizers(out))
        return {"loss": self.weighted_sum(losses)}

    def _weight(self, name: str) -> float:
        return self.C(self.cfg.loss.get(f"lambda_{name}", 0.0))

    def _regularizers(self, out: dict) -> dict[str, Tensor]:
        losses = {}
        if self._weight("orient") > 0:
            if "normal" not in out:
                raise ValueError(
                    "loss.lambda_orient needs normals: set a normal_type of the geometry"
                )
            losses["loss_orient"] = orientation_loss(
                out["weights"], out["normal"], out["t_dirs"], (out["opacity"] > 0).sum().clamp(min=1)
            )
        losses["loss_sparsity"] = sparsity_loss(out["opacity"])
        losses["loss_opaque"] = opaque_loss(out["opacity"])
        if self._weight("z_variance") > 0:
            losses["loss_z_variance"] = z_variance_loss(out)
        return losses

    def weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of `loss_X` times `lambda_X`; every loss of the guidance needs its lambda."""
        total: Any = 0.0
        for key, value in losses.items():
            self._log_scalar(f"train/{key}", value)
            total = total + value * self.C(self._lambda(key))
        for key, value in self.cfg.loss.items():
            self._log_scalar(f"train_params/{key}", self.C(value))
        return total

    def _lambda(self, loss_name: str) -> Any:
        key = loss_name.replace("loss_", "lambda_", 1)
        if key not in self.cfg.loss:
            raise UserError(f"system.loss.{key}: the guidance has a {loss_name} and needs it")
        return self.cfg.loss[key]

    def _log_scalar(self, name: str, value: Any) -> None:
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            self.log(name, value.detach() if isinstance(value, Tensor) else float(value))

    # ------------------------------------------------------------------------- evaluation

    def _save_views(self, filename: str, out: dict, name: str) -> None:
        views = [
            ("rgb", "comp_rgb", {"data_format": "HWC"}),
            ("rgb", "comp_normal", {"data_format": "HWC", "data_range": (0, 1)}),
        ]
        cells = [
            {"type": kind, "img": out[key][0], "kwargs": kwargs}
            for kind, key, kwargs in views
            if key in out
        ]
        opacity = {"cmap": None, "data_range": (0, 1)}
        cells.append({"type": "grayscale", "img": out["opacity"][0, :, :, 0], "kwargs": opacity})
        self.save_image_grid(filename, cells, name=name, step=self.true_global_step)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        out = self(batch)
        index = int(batch["index"][0])
        self._save_views(f"it{self.true_global_step}-{index}.png", out, "validation_step")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        out = self(batch)
        index = int(batch["index"][0])
        self._save_views(f"it{self.true_global_step}-test/{index}.png", out, "test_step")

    def on_test_epoch_end(self) -> None:
        step = self.true_global_step
        self.save_img_sequence(
            f"it{step}-test",
            f"it{step}-test",
            r"(\d+)\.png",
            save_format="mp4",
            fps=30,
            name="test",
            step=step,
        )
