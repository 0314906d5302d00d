"""The whole view at low resolution and one random patch of it at full resolution: training at sizes that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import Renderer, VolumeRenderer
from threestudio.utils.errors import UserError

RAYS = ("rays_o", "rays_d")
PROJECTIONS = ("mvp_mtx", "proj_mtx")


@threestudio.register("patch-renderer")
class PatchRenderer(VolumeRenderer):
    @dataclass
    class Config(VolumeRenderer.Config):
        patch_size: int = 128  # side of the patch, pixels
        base_renderer_type: str = ""  # registered name of the renderer that does the work
        base_renderer: dict | None = None  # its keys
        global_detach: bool = False  # no gradient outside the patch
        global_downsample: int = 4  # the whole view is rendered at this part of the resolution

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        if not self.cfg.base_renderer_type:
            raise UserError(
                "renderer.base_renderer_type: expected the name of a renderer, such as nerf-volume-renderer, got none"
            )
        for key in ("patch_size", "global_downsample"):
            if getattr(self.cfg, key) < 1:
                raise UserError(f"renderer.{key}: expected >= 1, got {getattr(self.cfg, key)}")
        base_class = threestudio.find(self.cfg.base_renderer_type)
        self.base_renderer: Renderer = base_class(
            self.cfg.base_renderer or {}, geometry=geometry, material=material, background=background
        )

    def forward(self, **batch: Any) -> dict[str, Any]:
        """The base renderer's images [B, H, W, C] of a batch of cameras; outside training simply those.

        In training, images are the low-resolution ones enlarged, with the patch put in. What else the base renderer
        gives (samples along rays, the mesh) is the patch's.
        """
        height, width = _size(batch)
        patch_height, patch_width = min(self.cfg.patch_size, height), min(self.cfg.patch_size, width)
        if not self.training or (patch_height, patch_width) == (height, width):
            return self.base_renderer(**batch)
        factor = self.cfg.global_downsample
        low_height, low_width = max(height // factor, 1), max(width // factor, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.global_detach):
            whole = self.base_renderer(**coarse_view(batch, low_height, low_width))
        top = int(torch.randint(height - patch_height + 1, ()))
        left = int(torch.randint(width - patch_width + 1, ()))
        out = self.base_renderer(**patch_of_view(batch, top, left, patch_height, patch_width))
        for key, patch in out.items():
            if not _is_image(patch, patch_height, patch_width) or not _is_image(whole.get(key), low_height, low_width):
                continue
            image = F.interpolate(whole[key].permute(0, 3, 1, 2), (height, width), mode="bilinear").permute(0, 2, 3, 1)
            rows = torch.cat(
                [
                    image[:, top : top + patch_height, :left],
                    patch,
                    image[:, top : top + patch_height, left + patch_width :],
                ],
                2,
            )
            out[key] = torch.cat([image[:, :top], rows, image[:, top + patch_height :]], 1)
        return out

    def set_geometry(self, geometry: BaseGeometry) -> None:
        super().set_geometry(geometry)
        self.base_renderer.set_geometry(geometry)

    def set_material(self, material: BaseMaterial) -> None:
        super().set_material(material)
        self.base_renderer.set_material(material)

    def set_background(self, background: BaseBackground) -> None:
        super().set_background(background)
        self.base_renderer.set_background(background)


def _size(batch: dict[str, Any]) -> tuple:
    if "rays_d" in batch:
        return tuple(batch["rays_d"].shape[1:3])
    return int(batch["height"]), int(batch["width"])


def _is_image(value: Any, height: int, width: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[1:3]) == (height, width)


def coarse_view(batch: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A batch's cameras with an image of height x width pixels: rays through the new pixels' centres."""
    view = {**batch, "height": height, "width": width}
    for key in RAYS:
        if key in batch:
            rays = F.interpolate(batch[key].permute(0, 3, 1, 2), (height, width), mode="bilinear").permute(0, 2, 3, 1)
            length = batch[key].norm(dim=-1).mean()
            unit = key == "rays_d" and (batch[key].norm(dim=-1) - 1.0).abs().max() < 1e-4
            view[key] = F.normalize(rays, dim=-1) if unit and length > 0 else rays
    if _is_image(batch.get("bg_color"), *_size(batch)):
        view["bg_color"] = F.interpolate(batch["bg_color"].permute(0, 3, 1, 2), (height, width), mode="area").permute(
            0, 2, 3, 1
        )
    return view


def patch_of_view(batch: dict[str, Any], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """A batch's cameras with the pixels [top, top + height) x [left, left + width) alone."""
    whole_height, whole_width = _size(batch)
    view = {**batch, "height": height, "width": width}
    for key in (*RAYS, "bg_color"):
        if _is_image(batch.get(key), whole_height, whole_width):
            view[key] = batch[key][:, top : top + height, left : left + width]
    # The patch's part of device coordinates, [2 left / W - 1, ...], becomes the whole of them.
    crop = torch.eye(4)
    crop[0, 0], crop[0, 3] = whole_width / width, (whole_width - 2 * left - width) / width
    crop[1, 1], crop[1, 3] = whole_height / height, (whole_height - 2 * top - height) / height
    for key in PROJECTIONS:
        if key in batch:
            view[key] = crop.to(batch[key]) @ batch[key]
    return view
