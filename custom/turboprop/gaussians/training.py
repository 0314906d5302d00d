"""`turboprop-gaussian-training`: what training Gaussians needs of a system, mixed into any by its registered name,

    system_type: "dreamfusion-system:turboprop-gaussian-training"

The optimizer gets one group for each kind of parameter, with the geometry's schedules; after each optimizer step the
number of Gaussians changes as is due. That happens before a checkpoint can be written, with the step's own random
draws, and all that it goes by is in the checkpoint: a resumed run changes the same Gaussians at the same steps.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

import threestudio
from threestudio.systems.utils import parse_optimizer, with_guidance_groups
from threestudio.utils.errors import UserError
from threestudio.utils.trainer_settings import UNSCALED_PRECISIONS

from ..picard.contract import StepsTogether
from .densification import Statistics, observe
from .geometry import GaussianSplatting

OTHER_PARTS = ("material", "background", "renderer")


def optimizer_config(system: Any) -> Any:
    """The system's optimizer config with a group for each parameter of the geometry, and one for each other part that
    has parameters and no group in the config. A config that names no optimizer has Adam, as in Kerbl et al. 2023."""
    config = OmegaConf.to_container(system.cfg.optimizer, resolve=True)
    if "name" not in config:
        config = {"name": "Adam", "args": {"lr": 0.001, "eps": 1.0e-15}, **config}
    groups = dict(config.get("params") or {})
    wrong = [name for name in groups if name.split(".")[0] == "geometry"]
    if wrong:
        raise UserError(
            f"optimizer.params.{wrong[0]}: the learning rates of Gaussians are system.geometry.position_lr, "
            "scaling_lr, rotation_lr, opacity_lr, feature_lr"
        )
    for part in OTHER_PARTS:
        trainable = any(parameter.requires_grad for parameter in getattr(system, part).parameters())
        if trainable and not any(name.split(".")[0] == part for name in groups):
            groups[part] = {}
    rates = system.geometry.learning_rates(0, 0)
    own = {f"geometry.{name}": {"lr": rate} for name, rate in rates.items()}
    return OmegaConf.create({**config, "params": {**own, **groups}})


def within_pictures(out: dict[str, Any]) -> dict[str, Any]:
    """A render whose comp_rgb is cut to [0, 1], as threestudio-3dgs's: no gradient drives a colour past white."""
    return {**out, "comp_rgb": out["comp_rgb"].clamp(0, 1)}


class GaussianTraining:
    """Mixed with a system that has a GaussianSplatting geometry and a renderer of this folder."""

    def configure_optimizers(self) -> dict[str, Any]:
        if not isinstance(self.geometry, GaussianSplatting):
            raise UserError(f"system.geometry_type: expected gaussian-splatting, got a {type(self.geometry).__name__}")
        if self.cfg.scheduler is not None:
            raise UserError(
                "system.scheduler: Gaussians have schedules of their own, system.geometry.position_lr, feature_lr, ..."
            )
        return {"optimizer": parse_optimizer(with_guidance_groups(optimizer_config(self), self), self)}

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1 and not isinstance(self, StepsTogether):
            raise UserError(
                "Gaussians change in number while training, which takes a single device (--gpu 0), or Picard "
                "iterations on several (system_type=...:picard)"
            )
        if str(self.trainer.precision) not in UNSCALED_PRECISIONS:
            raise UserError(f"trainer.precision: Gaussians train in 32 or bf16-mixed, got {self.trainer.precision}")
        super().on_fit_start()

    def on_after_backward(self) -> None:
        super().on_after_backward()
        # A step may have several renders. They are summed first and added once, as Picard iterations add a step's sum.
        seen = Statistics.zeros(self.geometry.statistics.gradient_sum)
        for views in self.renderer.take_training_views():
            if views.means2d.grad is not None:
                seen = observe(seen, views.means2d.grad, views.radii, views.visible, views.height, views.width)
        self.geometry.set_statistics(self.geometry.statistics.plus(seen))

    def set_learning_rates(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> None:
        """Sets the rates of the geometry's groups for the optimizer step that follows `step` finished ones."""
        rates = {f"geometry.{name}": rate for name, rate in self.geometry.learning_rates(epoch, step).items()}
        for group in optimizer.param_groups:
            group["lr"] = rates.get(group["name"], group["lr"])

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        finished = self.true_global_step
        plain: torch.optim.Optimizer = self.optimizers(use_pl_optimizer=False)
        self.set_learning_rates(plain, epoch, finished)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.geometry.density_step(plain, epoch, finished + 1)
        self.log("train/gaussians", float(self.geometry.count))

    def save_gaussians_ply(self, filename: str, geometry: GaussianSplatting) -> str:
        """Writes a 3D Gaussian PLY into the save folder: an exporter asks for it by save_type "gaussians_ply"."""
        path = self.get_save_path(filename)
        geometry.export_gaussians_ply(path)
        return path


threestudio.register("turboprop-gaussian-training")(GaussianTraining)
