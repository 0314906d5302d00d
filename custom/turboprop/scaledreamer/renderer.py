"""The renderer of generators under ScaleDreamer's name, with its keys beside ours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.weight_names import renaming_hook

from ..amortized.renderer import GenerativeVolSDFRenderer
from .keys import only
from .weights import RENDERER


@threestudio.register("generative-space-volsdf-volume-renderer")
class ScaleDreamerVolSDFRenderer(GenerativeVolSDFRenderer):
    """The two keys of samples have each other's roles, as there.

    num_samples_per_ray_importance intervals tile the ray, and num_samples_per_ray further edges follow the weight. The
    eikonal regulariser is a mean over all samples of the rays, in empty space too: here over some drawn of them.
    """

    @dataclass
    class Config(GenerativeVolSDFRenderer.Config):
        num_samples_per_ray: int = 64  # further edges where a first pass finds weight; 0 for none
        num_samples_per_ray_importance: int = 128  # intervals that tile the part of a ray inside the cube
        eikonal_at: str = "rays"  # where the eikonal regulariser looks
        use_volsdf: bool = True  # the only density
        trainable_variance: bool = False  # the density's sharpness is not learned
        learned_variance_init: float | None = None  # v: our inv_std is exp(10 v), as in NeuS
        estimator: str = "importance"  # the only one
        train_chunk_size: int = 0  # not read: only samples with weight are shaded at all
        cos_anneal_end_steps: int = 0  # not read: of NeuS
        grid_prune: bool = True  # not read: of the estimator occgrid
        prune_alpha_threshold: bool = True  # likewise

    cfg: Config
    intervals_key = "num_samples_per_ray_importance"
    further_key = "num_samples_per_ray"

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        cfg = self.cfg
        only("renderer.use_volsdf", cfg.use_volsdf, True)
        only("renderer.trainable_variance", cfg.trainable_variance, False)
        only("renderer.estimator", cfg.estimator, "importance")
        if cfg.learned_variance_init is not None:
            cfg.inv_std = math.exp(10 * cfg.learned_variance_init)
        super().configure(geometry, material, background)
        self.register_load_state_dict_pre_hook(renaming_hook(RENDERER))
