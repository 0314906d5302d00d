"""Metal or not, rough or smooth, under a light from all around (Fantasia3D, Chen et al. 2023, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.ops import environment_light as environment
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation, linear_to_srgb, srgb_to_linear
from threestudio.utils.picture_files import local_path
from threestudio.utils.radiance_hdr import read_hdr

STUDIO = "studio"
DIELECTRIC = 0.04  # reflectance at a right angle of what is no metal (Karis 2013)


@threestudio.register("pbr-material")
class PBRMaterial(BaseMaterial):
    """Features are albedo (3), metallic (1), roughness (1) and, with `use_bump`, a bend of the normal (3).

    The bend is a vector of the world, of which the part along the surface is added to the normal. So it needs no
    texture coordinates while it is learned, and it is baked into the normal map of whatever atlas an export has.
    """

    @dataclass
    class Config(BaseMaterial.Config):
        material_activation: str = "sigmoid"  # from features to values in [0, 1], see utils.ops.get_activation
        # the light: a panorama as a Radiance file (.hdr), whose top row is +z and whose middle column is +x, with -y to
        # the right of it; or studio, which is built in
        environment_texture: str = STUDIO
        environment_scale: float = 2.0  # factor on the light
        min_metallic: float = 0.0  # of values in [0, 1]
        max_metallic: float = 0.9
        min_roughness: float = 0.08
        max_roughness: float = 0.9
        use_bump: bool = True  # the normal is bent
        # albedo and pictures are sRGB and light is linear, as viewers of glTF have it; false: threestudio's, where the
        # light's numbers are the picture's
        srgb: bool = False
        # each training step turns the light around z by an angle of its own, so that shadows are not learned as colours
        random_rotation: bool = False

    cfg: Config
    requires_normal = True

    def configure(self) -> None:
        cfg = self.cfg
        self.activation = get_activation(cfg.material_activation, "material.material_activation")
        for name in ("metallic", "roughness"):
            low, high = getattr(cfg, f"min_{name}"), getattr(cfg, f"max_{name}")
            if not 0 <= low <= high <= 1:
                raise UserError(f"material.min_{name}: expected 0 <= min <= max <= 1, got {low:g} and {high:g}")
        if not 0 < cfg.environment_scale < math.inf:
            raise UserError(f"material.environment_scale: expected more than 0, got {cfg.environment_scale:g}")
        panorama = self._panorama() * cfg.environment_scale
        # They follow from the config, so no checkpoint needs them.
        self.register_buffer("reflected", environment.reflected_light(panorama), persistent=False)
        self.register_buffer("diffused", environment.diffused_light(panorama)[None], persistent=False)
        self.register_buffer("table", environment.reflectance_table(), persistent=False)

    def _panorama(self) -> Tensor:
        name = self.cfg.environment_texture
        if name == STUDIO:
            return environment.studio_panorama()
        path = local_path(name)
        if not path.is_file():
            raise UserError(
                f"material.environment_texture: no file {name}; expected a panorama as a Radiance picture (.hdr), "
                f"or {STUDIO}"
            )
        return read_hdr(path, "material.environment_texture")

    def forward(
        self, features: Tensor, viewdirs: Tensor, shading_normal: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Colours [..., 3] in [0, 1].

        Args:
            features: [..., 5], or [..., 8] with `use_bump`; more are not looked at.
            viewdirs: [..., 3], of length 1, from the camera.
            shading_normal: [..., 3], of length 1, outwards. UserError without: a field may be set to have none.
        """
        if shading_normal is None:
            raise UserError(
                "system.geometry.normal_type: pbr-material needs normals; expected one that gives some, such as "
                "analytic, got none"
            )
        rows = (values.reshape(-1, values.shape[-1]).float() for values in (features, viewdirs, shading_normal))
        # Half precision blurs what is mirrored, and directions beside the poles have gradients that are not finite.
        with torch.autocast(features.device.type, enabled=False):
            return self._shaded(*rows).view(*features.shape[:-1], 3)

    def _shaded(self, features: Tensor, viewdirs: Tensor, shading_normal: Tensor) -> Tensor:  # [N, ...] -> [N, 3]
        albedo, metallic, roughness, bend = self._values(features)
        normal, view = self._bent(shading_normal, bend), -viewdirs
        cosine = (normal * view).sum(-1)
        mirrored = 2.0 * cosine[:, None] * normal - view
        if self.cfg.srgb:
            albedo = srgb_to_linear(albedo)
        at_right_angle = DIELECTRIC * (1.0 - metallic) + metallic * albedo
        scale, bias = environment.reflectance(self.table, cosine.clamp(0.0, 1.0), roughness[:, 0])
        turn = self._turn(normal)
        diffuse = albedo * (1.0 - metallic) * environment.light_towards(self.diffused, normal @ turn)
        light = environment.light_towards(self.reflected, mirrored @ turn, roughness[:, 0])
        color = diffuse + (at_right_angle * scale[:, None] + bias[:, None]) * light
        if self.cfg.srgb:
            color = linear_to_srgb(color)
        return color.clamp(0.0, 1.0)

    def _values(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features [..., F] as albedo [..., 3], metallic and roughness [..., 1], and the bend [..., 3]."""
        needed = 8 if self.cfg.use_bump else 5
        if features.shape[-1] < needed:
            bump = "with use_bump" if self.cfg.use_bump else "without use_bump"
            raise UserError(f"geometry.n_feature_dims: pbr-material {bump} takes {needed}, got {features.shape[-1]}")
        values, cfg = self.activation(features[..., :needed]), self.cfg
        metallic = cfg.min_metallic + (cfg.max_metallic - cfg.min_metallic) * values[..., 3:4]
        roughness = cfg.min_roughness + (cfg.max_roughness - cfg.min_roughness) * values[..., 4:5]
        return values[..., :3], metallic, roughness, values[..., 5:8] * 2.0 - 1.0 if cfg.use_bump else None

    def _bent(self, normal: Tensor, bend: Tensor | None) -> Tensor:  # [..., 3] each -> [..., 3]
        """The normal plus the part of the bend that lies along the surface: at most a right angle away."""
        if bend is None:
            return normal
        along = bend - (bend * normal).sum(-1, keepdim=True) * normal
        return F.normalize(normal + along, dim=-1)

    def _turn(self, like: Tensor) -> Tensor:
        """The matrix [3, 3] that directions [N, 3] are multiplied by, to be looked up in the turned light."""
        if not (self.cfg.random_rotation and self.training):
            return torch.eye(3).to(like)
        angle = 2 * math.pi * torch.rand(()).item()
        c, s = math.cos(angle), math.sin(angle)
        return like.new_tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    def export(self, features: Tensor, shading_normal: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        """albedo [..., 3], metallic, roughness [..., 1], and with `use_bump` the normals [..., 3] that are shaded, of
        those given."""
        albedo, metallic, roughness, bend = self._values(features)
        exported = {"albedo": albedo.clamp(0, 1), "metallic": metallic, "roughness": roughness}
        if bend is not None and shading_normal is not None:
            exported["shading_normal"] = self._bent(shading_normal, bend)
        return exported
