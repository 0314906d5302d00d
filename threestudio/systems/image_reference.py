"""What systems share that make a scene from a picture: one step looks at the picture's camera, and at random ones."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import SURFACE_WEIGHTS, VOLUME_WEIGHTS, scene_losses
from threestudio.systems.reference_losses import (
    color_loss,
    depth_correlation_loss,
    depth_loss,
    mask_loss,
    normal_loss,
    normal_smoothness,
    perturbed_normal_loss,
)
from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import fits, shown

# Of a batch of reference views: what the picture is, not where its camera stands.
PICTURE_KEYS = ("rgb", "mask", "ref_depth", "ref_normal", "random_camera")
PICTURE_WEIGHTS = ("lambda_depth", "lambda_depth_rel", "lambda_normal")
SMOOTHNESS_WEIGHTS = ("lambda_normal_smooth", "lambda_3d_normal_smooth")


def cameras_of(batch: dict) -> dict:
    """The cameras of a batch of reference views, without its pictures."""
    return {key: value for key, value in batch.items() if key not in PICTURE_KEYS}


def random_cameras_of(batch: dict) -> dict:
    """The random cameras of a batch of reference views."""
    if "random_camera" not in batch:
        raise UserError("data: this system needs random cameras beside the picture; set data.use_random_camera=true")
    return batch["random_camera"]


class ImageReferenceSystem(ScoreDistillationSystem):
    """A step sums the losses of two renders: `loss_ref_X` at the picture's camera, `loss_<part>_X` at random ones.

    Each is weighed by `lambda_X`.
    """

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        # guidance_eval: save pictures of what the guidance sees each so many steps, 0 never; ref_only_steps: first
        # steps at which only the picture counts
        freq: dict = field(default_factory=dict)
        refinement: bool = False  # the second stage: a mesh, made from `geometry_convert_from`
        ambient_ratio_min: float = 0.5  # random cameras see at least this share of ambient light, in [0, 1]

    cfg: Config
    view_names = ("comp_rgb", "comp_normal", "depth", "opacity")
    guided_part: ClassVar[str] = "guidance"  # the part's name in logs
    freq_keys: ClassVar[tuple[str, ...]] = ("guidance_eval", "ref_only_steps", "n_ref")

    def own_weights(self) -> LossWeights:
        own = LossWeights(required=("lambda_rgb", "lambda_mask"), optional=(*PICTURE_WEIGHTS, *SMOOTHNESS_WEIGHTS))
        return own.with_(optional=(*VOLUME_WEIGHTS.keys, *SURFACE_WEIGHTS.keys))

    def configure(self) -> None:
        for key, value in self.cfg.freq.items():
            if key not in self.freq_keys:
                raise UserError(f"system.freq.{key}: unknown key; expected one of {', '.join(self.freq_keys)}")
            if key in ImageReferenceSystem.freq_keys and (not fits(value, int) or value < 0):
                raise UserError(f"system.freq.{key}: expected a whole number from 0, got {shown(value)}")
        if not 0 <= self.cfg.ambient_ratio_min <= 1:
            raise UserError(f"system.ambient_ratio_min: expected between 0 and 1, got {self.cfg.ambient_ratio_min:g}")
        super().configure()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._save_dir is not None and self.trainer.is_global_zero:
            pictures = self.trainer.datamodule.train_dataset.get_all_images()
            cells = [{"type": "rgb", "img": picture, "kwargs": {"data_format": "HWC"}} for picture in pictures]
            self.save_image_grid("all_training_images.png", cells, name="on_fit_start", step=self.true_global_step)

    # ------------------------------------------------------------------------------ train

    def reference_losses(self, batch: dict) -> dict[str, Tensor]:
        """Losses `loss_ref_X` of a render at the picture's camera."""
        out = self({**cameras_of(batch), "bg_color": None, "ambient_ratio": 1.0, "shading": "diffuse"})
        mask = batch["mask"]
        losses = {
            "rgb": self.picture_color_loss(out, batch),
            "mask": mask_loss(out["opacity"], mask),
        }
        if self.weight("depth") > 0:
            losses["depth"] = depth_loss(needed(out, "depth", "depth"), reference_map(batch, "depth"), mask)
        if self.weight("depth_rel") > 0:
            depth = needed(out, "depth", "depth_rel")
            losses["depth_rel"] = depth_correlation_loss(depth, reference_map(batch, "depth"), mask)
        if self.weight("normal") > 0:
            losses["normal"] = normal_loss(needed(out, "comp_normal", "normal"), reference_map(batch, "normal"), mask)
        losses.update(self.regularizers(out, of_picture=True))
        return {f"loss_ref_{name}": value for name, value in losses.items()}

    def picture_color_loss(self, out: dict, batch: dict) -> Tensor:
        """How the colours of a render at the picture's camera differ from the picture's."""
        return color_loss(out["comp_rgb"], out["comp_rgb_bg"], batch["rgb"], batch["mask"])

    def guided_losses(self, batch: dict) -> dict[str, Tensor]:
        """Losses `loss_<part>_X` of a render at random cameras: the guidance's, and on the scene."""
        cameras = random_cameras_of(batch)
        low = self.cfg.ambient_ratio_min
        out = self({**cameras, "bg_color": None, "ambient_ratio": low + (1 - low) * torch.rand(()).item()})
        guided = self.guide(out["comp_rgb"], cameras, guidance_eval=self.pictures_guidance_now())
        losses = {name.removeprefix("loss_"): value for name, value in guided.items()}
        losses.update(self.regularizers(out, of_picture=False))
        return {f"loss_{self.guided_part}_{name}": value for name, value in losses.items()}

    def pictures_guidance_now(self) -> bool:
        """Whether this step saves pictures of what the guidance sees."""
        every = self.cfg.freq.get("guidance_eval", 0)
        return every > 0 and self.true_global_step % every == 0

    def regularizers(self, out: dict, of_picture: bool) -> dict[str, Tensor]:
        """Losses by X that know no picture; those of the scene that have a weight."""
        losses = {}
        if self.weight("normal_smooth") > 0:
            losses["normal_smooth"] = normal_smoothness(needed(out, "comp_normal", "normal_smooth"))
        if self.weight("3d_normal_smooth") > 0:
            perturbed = needed(out, "normal_perturb", "3d_normal_smooth")
            losses["3d_normal_smooth"] = perturbed_normal_loss(out["normal"], perturbed)
        for name, value in scene_losses(out, self.cfg.refinement, self.weight).items():
            name = name.removeprefix("loss_")
            if self.weight(name) > 0 and not (of_picture and name == "sparsity"):
                losses[name] = value
        return losses

    def _lambda(self, loss_name: str) -> Any:
        """`loss_ref_rgb` and the like are weighed by `lambda_rgb`."""
        return super()._lambda(f"loss_{loss_name.split('_', 2)[2]}")

    # ------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._save_views(batch, "-val/", "validation_step")

    def on_validation_epoch_end(self) -> None:
        """Makes a video of the orbit, and removes its frames."""
        self._save_orbit("val")
        if self.trainer.is_global_zero:
            shutil.rmtree(Path(self.get_save_dir()) / f"it{self.true_global_step}-val")


def needed(out: dict, name: str, loss: str) -> Tensor:
    """What a loss asks of a render. Raises UserError, naming the loss and what to set, where the render lacks it."""
    if name in out:
        return out[name]
    cures = {
        "comp_normal": "set renderer.return_comp_normal=true and a normal_type of the geometry",
        "normal_perturb": "set renderer.return_normal_perturb=true and a normal_type of the geometry",
        "depth": "take a renderer that gives depth, such as nerf-volume-renderer",
    }
    raise UserError(f"system.loss.lambda_{loss}: the render has no {name}; {cures[name]}, or a weight of 0")


def reference_map(batch: dict, kind: str) -> Tensor:
    """The map of depths or normals of a batch's pictures. Raises UserError where the data has none."""
    values = batch.get(f"ref_{kind}")
    if values is None:
        raise UserError(f"system.loss: a loss of the picture's {kind} needs data.requires_{kind}=true")
    return values
