"""`diff-gaussian-rasterizer`: pictures of Gaussians, and its variants with a background module, normals and light.

All take the host's whole batch and answer images by the names of other renderers, beside what density control needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import Rasterizer
from threestudio.ops.gaussian_rasterization import BACKENDS, GaussianImage, rasterize_gaussians_batch
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov
from threestudio.utils.devices import sent
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

from .depth_normals import camera_directions, normals_from_depth
from .geometry import GaussianSplatting
from .spherical_harmonics import view_colors

OPAQUE = 0.99  # with light: from this opacity on, losses of depth and normals act


class TrainingViews(NamedTuple):
    """What density control reads of a batch of views, once their loss has gone backwards."""

    means2d: Tensor  # [B, N, 2] pixels, keeps its gradient
    radii: Tensor  # [B, N] pixels
    visible: Tensor  # [B, N] bool
    height: int
    width: int


class GaussianRasterizer(Rasterizer):
    """One plain colour behind the Gaussians, or the batch's `bg_color`; the background module is not asked."""

    @dataclass
    class Config(Rasterizer.Config):
        debug: bool = False  # check every picture for NaN and infinity
        invert_bg_prob: float = 1.0  # while training: how often the colour is used as it is, else inverted
        back_ground_color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # sRGB in [0, 1]
        near: float = 0.01  # Gaussians whose mean is nearer to the camera are left out; world units
        backend: str = "auto"  # auto, torch, warp or gsplat

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        if not isinstance(geometry, GaussianSplatting):
            raise UserError(
                f"system.renderer_type: this renderer draws Gaussians, set system.geometry_type=gaussian-splatting "
                f"(got {type(geometry).__name__})"
            )
        check_choice("renderer.backend", self.cfg.backend, BACKENDS)
        if len(self.cfg.back_ground_color) != 3:
            raise UserError(f"renderer.back_ground_color: expected 3 numbers, got {list(self.cfg.back_ground_color)}")
        if not 0 <= self.cfg.invert_bg_prob <= 1:
            raise UserError(f"renderer.invert_bg_prob: expected between 0 and 1, got {self.cfg.invert_bg_prob}")
        super().configure(geometry, material, background)
        color = torch.tensor([float(c) for c in self.cfg.back_ground_color])
        self.register_buffer("back_ground_color", color, persistent=False)
        self._views: list[TrainingViews] = []

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self._views = []  # of a step that nobody took them from

    def take_training_views(self) -> list[TrainingViews]:
        """The views drawn since the last call, for density control."""
        views, self._views = self._views, []
        return views

    def batch_forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """threestudio-3dgs's name for a whole batch."""
        return self(**batch)

    def forward(
        self,
        c2w: Tensor,  # [B, 4, 4]
        fovy: Tensor,  # [B] radians
        height: int,
        width: int,
        rays_d: Tensor | None = None,  # [B, H, W, 3] any length; only a background module needs them
        bg_color: Tensor | None = None,  # [3], [B, 3] or [B, H, W, 3], in place of the background
        light_positions: Tensor | None = None,  # [B, 3]; only shading needs them
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """Images [B, H, W, C] and, by Gaussian, viewspace_points [B, N, 2], radii and visibility_filter [B, N].

        comp_rgb; comp_rgb_fg, multiplied by opacity; comp_rgb_bg; opacity; depth, world units along the ray, multiplied
        by opacity. Outside training and where the variant gives them: comp_normal ((n + 1) / 2 times opacity) of the
        depth, and with learned normals comp_pred_normal of these; comp_depth, as depth, along the view axis.
        """
        c2w = c2w.float()
        intrinsics = intrinsics_from_fov(fovy.to(c2w), height, width)
        with torch.autocast(c2w.device.type, enabled=False):
            image = self._rasterize(c2w, intrinsics, height, width)
            directions = camera_directions(intrinsics, height, width)
            output = self._images(image, directions, c2w, light_positions)
        background = self._background_image(output["opacity"], rays_d, bg_color)
        output["comp_rgb_bg"] = background
        output["comp_rgb"] = output["comp_rgb_fg"] + background * (1 - output["opacity"])
        if self.training and image.means2d.requires_grad:
            self._views.append(TrainingViews(image.means2d, image.radii, image.visible, height, width))
        if self.cfg.debug:
            _check_finite(output)
        return {**output, "viewspace_points": image.means2d, "radii": image.radii, "visibility_filter": image.visible}

    def _rasterize(self, c2w: Tensor, intrinsics: Tensor, height: int, width: int) -> GaussianImage:
        gaussians = self.geometry.gaussians()
        colors = view_colors(gaussians.means, gaussians.sh, c2w[:, :3, 3], self.geometry.active_sh_degree)
        if self.geometry.cfg.pred_normal:
            normals = F.normalize(self.geometry.normals, dim=-1)
            colors = torch.cat([colors, normals.expand(c2w.shape[0], -1, -1)], -1)
        means, scales, quaternions, opacities, _ = gaussians
        return rasterize_gaussians_batch(
            means, quaternions, scales, opacities, colors, c2w, intrinsics, height, width,
            near=self.cfg.near, backend=self.cfg.backend,
            # A step on a GPU must not wait for values; one that is not finite is found by its gradient.
            check_values=not (self.training and means.is_cuda),
        )  # fmt: skip

    def _images(
        self, image: GaussianImage, directions: Tensor, c2w: Tensor, light_positions: Tensor | None
    ) -> dict[str, Tensor]:
        output = {
            "comp_rgb_fg": image.color[..., :3],
            "opacity": image.opacity,
            "depth": image.depth * directions.norm(dim=-1, keepdim=True),
        }
        if self.gives_normals or not self.training:
            normal = normals_from_depth(image.depth / image.opacity.clamp(min=1e-6), directions, c2w)
            output["comp_normal"] = (normal + 1) / 2 * image.opacity
            if self.geometry.cfg.pred_normal:
                normal = F.normalize(image.color[..., 3:6], dim=-1)
                output["comp_pred_normal"] = (normal + 1) / 2 * image.opacity
            output["normal"] = normal
            output["comp_depth"] = image.depth
        return output

    gives_normals = False  # in training too

    def _background_image(self, opacity: Tensor, rays_d: Tensor | None, bg_color: Tensor | None) -> Tensor:
        """[B, H, W, 3]"""
        shape = (*opacity.shape[:3], 3)
        if bg_color is None:
            return self._own_background(shape, rays_d)
        bg_color = bg_color.to(opacity)
        return (bg_color[:, None, None] if bg_color.dim() == 2 else bg_color).expand(shape)

    def _own_background(self, shape: tuple[int, ...], rays_d: Tensor | None) -> Tensor:
        color = self.back_ground_color.expand(shape)
        if not self.training:
            return color
        # Each view has a draw of its own, as in threestudio-3dgs, which renders them one by one. Where nothing can be
        # inverted there is one alone: more would move the draws that follow.
        draws = torch.rand(shape[0] if self.cfg.invert_bg_prob < 1 else 1)
        if self.cfg.invert_bg_prob == 1:
            return color
        inverted = sent((draws >= self.cfg.invert_bg_prob).float(), color)[:, None, None, None]
        return color + inverted * (1 - 2 * color)


def _check_finite(output: dict[str, Tensor]) -> None:
    for name, value in output.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"renderer.debug: {name} has values that are not finite")


class GaussianRasterizerWithBackground(GaussianRasterizer):
    """The background module behind the Gaussians, by the direction of each ray."""

    def _own_background(self, shape: tuple[int, ...], rays_d: Tensor | None) -> Tensor:
        if rays_d is None:
            raise ValueError("diff-gaussian-rasterizer-background: the batch has no rays_d")
        return self.background(dirs=F.normalize(rays_d, dim=-1))


class GaussianRasterizerWithNormals(GaussianRasterizer):
    """Normals in training too: `normal`, unit vectors with a gradient, learned ones where there are, and pictures."""

    gives_normals = True


class GaussianRasterizerWithShading(GaussianRasterizerWithBackground):
    """The material lights each pixel: colours are its features, normals and places come from the depth.

    Pictures of normals n are n / 2 times opacity before grey, as threestudio-3dgs's: there a smoothness loss does not
    care where an outline's normals point, while before black it would turn them all to one corner of the world.
    """

    gives_normals = True

    def _images(
        self, image: GaussianImage, directions: Tensor, c2w: Tensor, light_positions: Tensor | None
    ) -> dict[str, Tensor]:
        output = super()._images(image, directions, c2w, light_positions)
        if light_positions is None:
            raise ValueError("diff-gaussian-rasterizer-shading: the batch has no light_positions")
        opacity = image.opacity.clamp(min=1e-6)
        view = torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], directions)
        camera = c2w[:, None, None, :3, 3]
        lit = self.material(
            features=image.color[..., :3] / opacity,
            viewdirs=F.normalize(view, dim=-1),
            positions=camera + view * image.depth / opacity,
            shading_normal=output["normal"],
            light_positions=light_positions[:, None, None].to(view).expand_as(view),
        )
        for name in ("comp_normal", "comp_pred_normal"):
            if name in output:
                output[name] = output[name] + 0.5 * (1 - image.opacity)
        output["comp_albedo"] = output["comp_rgb_fg"]
        output["comp_rgb_fg"] = lit * image.opacity
        # As in threestudio-3dgs: where a pixel is not opaque, losses on depth and normals would fade the outline.
        solid = image.opacity > OPAQUE
        for name in ("depth", "comp_depth", "comp_normal"):
            output[name] = torch.where(solid, output[name], output[name].detach())
        return output


RENDERERS = {
    "diff-gaussian-rasterizer": GaussianRasterizer,
    "diff-gaussian-rasterizer-background": GaussianRasterizerWithBackground,
    "diff-gaussian-rasterizer-advanced": GaussianRasterizerWithNormals,
    "diff-gaussian-rasterizer-shading": GaussianRasterizerWithShading,
}
for _name, _renderer in RENDERERS.items():
    # threestudio-3dgs brings its own.
    if _name not in threestudio.__modules__:
        threestudio.register(_name)(_renderer)
    threestudio.register(_name.replace("diff-", "turboprop-"))(_renderer)
