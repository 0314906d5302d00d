"""`gaussian-splatting`: 3D Gaussians as a threestudio geometry, with threestudio-3dgs's keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.misc import C, load_module_weights
from threestudio.utils.value_checks import Scheduled, check_at_least

from .densification import Change, DensityControl, GaussianState, Statistics, density_control_step, observe
from .density_field import sample_field
from .initial_points import (
    GREY_SPREAD,
    ColoredPoints,
    ball_points,
    file_points,
    mesh_points,
    point_spacing,
    read_gaussians_or_points,
    sphere_points,
)
from .meshing import gaussian_surface
from .names import first_names
from .optimizer_state import exchange_parameters, read_moments
from .parameters import (
    SHAPES,
    Gaussians,
    Parameters,
    activate,
    base_colors,
    effective,
    from_points,
    parameter_names,
    shape_of,
    with_normals,
    with_sh_degree,
)
from .ply import write_3dgs_ply
from .spherical_harmonics import DC, MAX_DEGREE
from .upstream_weights import take_upstream_names

LEARNING_RATES = {
    "means": ("position_lr", 1.0),
    "log_scales": ("scaling_lr", 1.0),
    "quaternions": ("rotation_lr", 1.0),
    "opacity_logits": ("opacity_lr", 1.0),
    "sh_dc": ("feature_lr", 1.0),
    "sh_rest": ("feature_lr", 1 / 20),  # as in gsplat's documented defaults, shN beside sh0
    "normals": ("normal_lr", 1.0),
}
STATISTICS = ("gradient_sum", "view_count", "max_radius")
BIG_POINT = 0.25  # prune_big_points: largest standard deviation, as a share of the radius


@dataclass
class GaussianSplattingConfig(BaseGeometry.Config):
    radius: float = 1.0  # half the side of the cube that the scene fills, world units
    max_num: int = 500000  # never more Gaussians
    sh_degree: int = 0  # harmonics of the colours, 0 (no dependence on the view) to 3
    sh_degree_interval: int = 1000  # steps until the next degree comes in

    # learning rates, numbers or schedules (exponential between start and end)
    position_lr: Scheduled = 0.001  # of means, world units
    scaling_lr: Scheduled = 0.005  # of log scales
    rotation_lr: Scheduled = 0.005  # of quaternions
    opacity_lr: Scheduled = 0.05  # of opacity logits
    feature_lr: Scheduled = 0.01  # of colours; higher degrees have a twentieth
    normal_lr: Scheduled = 0.001  # of learned normals
    scale_lr: Scheduled = 0.003  # accepted; scaling_lr is used

    # density control; numbers that are thresholds may be schedules
    densification_interval: int = 50  # steps between rounds of cloning and splitting
    densify_from_iter: int = 100
    densify_until_iter: int = 2000
    # mean gradient of the loss by the place on the screen, -1 to 1 over the image
    densify_grad_threshold: Scheduled = 0.01
    split_thresh: Scheduled = 0.02  # standard deviation from which a Gaussian is split, not cloned; world units
    prune_interval: int = 50  # steps between rounds of removal
    prune_from_iter: int = 100
    prune_until_iter: int = 2000
    min_opac_prune: Scheduled = 0.005  # less opaque Gaussians are removed
    radii2d_thresh: Scheduled = 1000.0  # larger ones on the screen are removed; pixels
    prune_big_points: bool = False  # remove those with a standard deviation above a quarter of the radius
    opacity_reset_interval: int = 100000  # steps between resets to almost transparent

    sphere: bool = False  # round Gaussians: one scale for all axes
    # Standard deviation of a round Gaussian that each Gaussian is convolved with, world units; 0: none. About half of
    # the world's share of a training picture's pixel keeps gaps from opening in larger pictures: the 3D smoothing
    # filter of Mip-Splatting (Yu et al. 2023, section 4.1), with one rate of sampling for the scene and opacities as
    # they are.
    smoothing: float = 0.0
    color_clip: Scheduled = 2.0  # largest absolute coefficient of degree 0; 1.77 is all of [0, 1]; a number or schedule
    pred_normal: bool = False  # a learned normal for each Gaussian

    # the first Gaussians
    geometry_convert_from: str = ""  # 3D Gaussian PLY, point PLY, mesh file or checkpoint; "" is shape_init
    load_ply_only_vertex: bool = False  # of a 3D Gaussian PLY take points and colours alone
    shape_init: str = "ball"  # ball, sphere or mesh:<file>
    init_num_pts: int = 100  # how many, for all but point clouds and Gaussians
    pc_init_radius: float = 0.8  # of ball and sphere, world units
    opacity_init: float = 0.1  # in (0, 1)
    shap_e_guidance_config: dict = field(default_factory=dict)  # accepted; Shap-E is not available here

    # meshes out of Gaussians
    isosurface_resolution: int = 128  # grid points along the longest side
    isosurface_threshold: float = 0.5  # sum of opacities at the surface
    isosurface_fill: bool = True  # closed cavities inside are filled
    # pieces with fewer faces than this share of the largest are dropped
    isosurface_outlier_n_faces_threshold: float = 0.02


class GaussianSplatting(BaseGeometry):
    """Gaussians whose number changes. Their raw parameters are this module's, each [N, ...], and so are the statistics
    that density control goes by: a checkpoint holds all of it, and loading one takes over its number."""

    Config = GaussianSplattingConfig
    cfg: GaussianSplattingConfig
    accumulated_buffers = {"gradient_sum": "sum", "view_count": "sum", "max_radius": "max"}  # how views add up

    def configure(self) -> None:
        self._check_config()
        self.register_buffer("bbox", torch.tensor([[-1.0] * 3, [1.0] * 3]) * float(self.cfg.radius), persistent=False)
        parameters = self._initial_parameters()
        for name in parameter_names(self.cfg.sh_degree, self.cfg.pred_normal):
            self.register_parameter(name, nn.Parameter(parameters[name].float()))
        for name, value in zip(STATISTICS, Statistics.zeros(self.means)):
            self.register_buffer(name, value)
        self.register_buffer("names", first_names(self.count, self.means.device))
        self.update_step(0, 0)

    def _check_config(self) -> None:
        cfg = self.cfg
        if not 0 <= cfg.sh_degree <= MAX_DEGREE:
            raise UserError(f"geometry.sh_degree: expected 0 to {MAX_DEGREE}, got {cfg.sh_degree}")
        for key in ("radius", "init_num_pts", "max_num", "pc_init_radius", "densification_interval", "prune_interval",
                    "opacity_reset_interval", "sh_degree_interval"):  # fmt: skip
            if not cfg[key] > 0:
                raise UserError(f"geometry.{key}: expected more than 0, got {cfg[key]}")
        if not (cfg.smoothing >= 0 and math.isfinite(cfg.smoothing)):
            raise UserError(f"geometry.smoothing: expected a number from 0 on, got {cfg.smoothing}")
        if not 0 < cfg.opacity_init < 1:
            raise UserError(f"geometry.opacity_init: expected between 0 and 1, got {cfg.opacity_init}")
        check_at_least("geometry.isosurface_resolution", cfg.isosurface_resolution, 8)
        if not cfg.isosurface_threshold > 0:
            raise UserError(f"geometry.isosurface_threshold: expected more than 0, got {cfg.isosurface_threshold}")
        if cfg.geometry_convert_from.startswith(("shap-e:", "lrm:")):
            raise UserError(
                f"geometry.geometry_convert_from: {cfg.geometry_convert_from.split(':')[0]} is not available here; "
                "expected a PLY, mesh or checkpoint file"
            )
        for key, _ in LEARNING_RATES.values():
            self._schedule(key, 0, 0, "exp")
        self.density_control(0, 0)

    def _schedule(self, key: str, epoch: int, step: int, interpolation: str = "linear") -> float:
        try:
            return float(C(self.cfg[key], epoch, step, interpolation=interpolation))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"geometry.{key}: expected a number or a schedule, got {self.cfg[key]} ({error})"
            ) from error

    # -------------------------------------------------------------------------------- the first Gaussians

    def _initial_parameters(self) -> Parameters:
        cfg = self.cfg
        source = cfg.geometry_convert_from
        if not source:
            return self._at_points(self._shape_init())
        if source.endswith(".ckpt"):
            state, _, _ = load_module_weights(source, module_name="geometry", map_location="cpu")
            take_upstream_names(state)
            missing = [name for name in parameter_names(0, False) if name not in state]
            if missing:
                raise UserError(f"geometry.geometry_convert_from: {source} has no Gaussians (no geometry.{missing[0]})")
            return self._adapted({name: state[name] for name in SHAPES if name in state})
        if cfg.load_ply_only_vertex:
            return self._at_points(file_points(source, cfg.init_num_pts, "geometry.geometry_convert_from"))
        parameters, points = read_gaussians_or_points(source, cfg.init_num_pts, "geometry.geometry_convert_from")
        return self._adapted(parameters) if points is None else self._at_points(points)

    def _shape_init(self) -> ColoredPoints:
        cfg = self.cfg
        kind, _, path = cfg.shape_init.partition(":")
        if kind == "mesh" and path:
            return file_points(path, cfg.init_num_pts, "geometry.shape_init")
        makers = {"ball": ball_points, "sphere": sphere_points}
        if cfg.shape_init not in makers:
            raise UserError(f"geometry.shape_init: expected ball, sphere or mesh:<file>, got {cfg.shape_init!r}")
        # A colour beyond color_clip has no gradient: a clip that starts low would hold all colours as they were drawn.
        clip = self._schedule("color_clip", 0, 0)
        return makers[cfg.shape_init](cfg.init_num_pts, cfg.pc_init_radius, min(GREY_SPREAD, 0.5 * clip * DC))

    def _at_points(self, points: ColoredPoints) -> Parameters:
        cfg = self.cfg
        spacing = point_spacing(points.points)
        return from_points(*points, spacing, cfg.opacity_init, cfg.sh_degree, cfg.pred_normal)

    def _adapted(self, parameters: Parameters) -> Parameters:
        return with_normals(with_sh_degree(parameters, self.cfg.sh_degree), self.cfg.pred_normal)

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, **kwargs: Any) -> GaussianSplatting:
        """Gaussians on the surface of another geometry, with its mesh's colours or grey; or copies of Gaussians."""
        geometry = GaussianSplatting(cfg)
        if isinstance(other, GaussianSplatting):
            geometry.set_parameters(geometry._adapted(other.raw()))
            return geometry
        with torch.no_grad():
            geometry.init_from_mesh(other.isosurface())
        return geometry

    def init_from_mesh(self, mesh: Mesh, material: Any = None, steps: int = 0) -> None:
        """Gaussians at `init_num_pts` points of a mesh's surface, with its colours or grey. Nothing is fitted."""
        self.set_parameters(self._at_points(mesh_points(mesh, self.cfg.init_num_pts)))

    # ---------------------------------------------------------------------------------------- the numbers

    def raw(self) -> dict[str, nn.Parameter]:
        """The trainable numbers by name, each [N, ...]."""
        return {name: self._parameters[name] for name in parameter_names(self.cfg.sh_degree, self.cfg.pred_normal)}

    def gaussians(self) -> Gaussians:
        return activate(self.raw(), self.cfg.sphere, self.color_limit, self.cfg.smoothing)

    @property
    def count(self) -> int:
        return self.means.shape[0]

    @property
    def statistics(self) -> Statistics:
        return Statistics(*(self._buffers[name] for name in STATISTICS))

    def set_statistics(self, statistics: Statistics) -> None:
        for name, value in zip(STATISTICS, statistics):
            self._buffers[name] = value

    def set_parameters(self, parameters: Parameters) -> None:
        """Other Gaussians in the place of these, any number, with statistics of zeros."""
        for name in self.raw():
            self._parameters[name] = nn.Parameter(parameters[name].detach().clone().to(self.means))
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.set_statistics(Statistics.zeros(self.means))
        self.names = first_names(self.count, self.means.device)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes over the number of Gaussians that are loaded; torch calls this for every way of loading. Gaussians
        that were saved without names get new ones."""
        take_upstream_names(state_dict, prefix)
        loaded = state_dict.get(f"{prefix}means")
        if loaded is not None and loaded.shape[0] != self.count:
            n = loaded.shape[0]
            for name, parameter in self.raw().items():
                self._parameters[name] = nn.Parameter(parameter.new_zeros(shape_of(name, n, self.cfg.sh_degree)))
            self._begin_anew()
        if loaded is not None:
            state_dict.setdefault(f"{prefix}names", first_names(loaded.shape[0], loaded.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ------------------------------------------------------------------------------------------- training

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.active_sh_degree = min(self.cfg.sh_degree, global_step // self.cfg.sh_degree_interval)
        self.color_limit = self._schedule("color_clip", epoch, global_step)

    def learning_rates(self, epoch: int, step: int) -> dict[str, float]:
        """By parameter, at the optimizer step that follows `step` finished ones."""
        keys = {name: LEARNING_RATES[name] for name in self.raw()}
        return {name: factor * self._schedule(key, epoch, step, "exp") for name, (key, factor) in keys.items()}

    def density_control(self, epoch: int, step: int) -> DensityControl:
        cfg = self.cfg
        same = ("max_num", "densification_interval", "densify_from_iter", "densify_until_iter", "prune_interval",
                "prune_from_iter", "prune_until_iter", "opacity_reset_interval")  # fmt: skip
        scheduled = ("densify_grad_threshold", "split_thresh", "min_opac_prune", "radii2d_thresh")
        return DensityControl(
            **{key: cfg[key] for key in same},
            **{key: self._schedule(key, epoch, step) for key in scheduled},
            largest_scale=BIG_POINT * cfg.radius if cfg.prune_big_points else float("inf"),
        )

    def next_structure_change(self, epoch: int, step: int) -> int | None:
        """The first number of finished steps after `step` at which Gaussians may be exchanged; None: never again."""
        return self.density_control(epoch, step).next_event(step)

    def observe(self, gradients: Tensor, radii: Tensor, visible: Tensor, height: int, width: int) -> None:
        """Adds B views to the statistics; see densification.observe."""
        self.set_statistics(observe(self.statistics, gradients, radii, visible, height, width))

    def density_step(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> Change | None:
        """Changes the Gaussians as is due after optimizer step number `step`, and the optimizer's state with them."""
        control = self.density_control(epoch, step)
        if not (control.densifies_at(step) or control.prunes_at(step) or control.resets_at(step)):
            return None
        old = self.raw()
        detached = {name: parameter.detach() for name, parameter in old.items()}
        state = GaussianState(detached, read_moments(optimizer, old), self.statistics, self.names)
        state, change = density_control_step(control, state, step, self.cfg.sphere)
        for name, value in state.parameters.items():
            self._parameters[name] = nn.Parameter(value)
        exchange_parameters(optimizer, old, self.raw(), state.moments)
        self.set_statistics(state.statistics)
        self.names = state.names
        return change

    # --------------------------------------------------------------------------------------------- export

    @torch.no_grad()
    def isosurface(self) -> Mesh:
        """A closed mesh with vertex colours. Raises EmptyDensity (a ValueError) where there is no surface."""
        cfg = self.cfg
        gaussians, colors = self.gaussians(), self.colors()
        v_pos, t_pos_idx = gaussian_surface(
            gaussians, colors, cfg.isosurface_resolution, cfg.isosurface_threshold, cfg.isosurface_fill
        )
        mesh = Mesh(v_pos, t_pos_idx).remove_outlier(float(cfg.isosurface_outlier_n_faces_threshold))
        mesh.set_vertex_color(sample_field(mesh.v_pos, gaussians, colors).color.clamp(0, 1))
        return mesh

    def colors(self) -> Tensor:
        """[N, 3] in [0, 1], without what depends on the view."""
        return base_colors(self.raw(), self.color_limit)

    @torch.no_grad()
    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Features at points [P, 3]: the logits of the colours there, of which a material's sigmoid makes colours."""
        color = sample_field(points, self.gaussians(), self.colors()).color
        return {"features": torch.logit(color, eps=1e-4)}

    def export_gaussians_ply(self, path: str) -> None:
        """Writes the 3D Gaussian PLY that viewers read."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_3dgs_ply(path, effective(self.raw(), self.cfg.sphere, self.color_limit, self.cfg.smoothing))


threestudio.register("turboprop-gaussian-splatting")(GaussianSplatting)
# threestudio-3dgs brings its own.
if "gaussian-splatting" not in threestudio.__modules__:
    threestudio.register("gaussian-splatting")(GaussianSplatting)
