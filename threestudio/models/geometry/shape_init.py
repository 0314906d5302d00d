"""Shapes that a surface can start from: sphere, ellipsoid, or a mesh read from a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import AXES, load_mesh_file
from threestudio.utils.value_checks import check_choice

SignedDistance = Callable[[Tensor], Tensor]  # points [..., 3] -> distance [..., 1], negative inside

_WORLD_UP, _WORLD_FRONT = "+z", "+x"


@dataclass
class ShapeInitConfig:
    shape_init: str | None = None  # what training starts from: sphere, ellipsoid, mesh:<file>; null: nothing given
    shape_init_params: Any | None = None  # radius | three half axes | size of the mesh, null: as in its file
    shape_init_mesh_up: str = _WORLD_UP  # the mesh file's axis that points up
    shape_init_mesh_front: str = _WORLD_FRONT  # the mesh file's axis that points to the front


def sphere_distance(points: Tensor, radius: float) -> Tensor:
    """points [..., 3] -> signed distance [..., 1] to a sphere around the origin."""
    return (points.square().sum(-1, keepdim=True) + 1e-12).sqrt() - radius


def ellipsoid_distance(points: Tensor, half_axes: tuple[float, float, float]) -> Tensor:
    """points [..., 3] -> signed distance [..., 1] to an ellipsoid around the origin, exact to first order on it.

    An implicit function over the length of its gradient (Taubin 1994): with k0 = |p / a| and k1 = |p / a^2|,
    k0 (k0 - 1) / k1; the gradient on the surface has length one. At the centre it is minus the least half axis.
    """
    a = points.new_tensor(half_axes)
    k0 = ((points / a).square().sum(-1, keepdim=True) + 1e-12).sqrt()
    k1 = ((points / a.square()).square().sum(-1, keepdim=True) + 1e-12 / a.min().square()).sqrt()
    return k0 * (k0 - 1.0) / k1


def parametric_distance(name: str, params: Any, key: str) -> SignedDistance:
    """The distance function of "sphere" (params: radius) or "ellipsoid" (params: three half axes), world units."""
    if name == "sphere":
        if not isinstance(params, (int, float)) or isinstance(params, bool) or not params > 0:
            raise UserError(f"geometry.{key}_params: of a sphere: expected a radius > 0, got {params!r}")
        return lambda points: sphere_distance(points, float(params))
    numbers = None if params is None or isinstance(params, (int, float, str)) else [float(x) for x in params]
    if numbers is None or len(numbers) != 3 or not min(numbers) > 0:
        raise UserError(f"geometry.{key}_params: of an ellipsoid: expected three half axes > 0, got {params!r}")
    return lambda points: ellipsoid_distance(points, tuple(numbers))


def check_shape_init(cfg: ShapeInitConfig) -> None:
    """Raises UserError where the configured start is impossible; a mesh's file is looked for, not read."""
    shape_init, params = cfg.shape_init, cfg.shape_init_params
    if not shape_init:
        return
    if shape_init in ("sphere", "ellipsoid"):
        parametric_distance(shape_init, params, "shape_init")
    elif shape_init.startswith("mesh:"):
        path = shape_init.partition(":")[2]
        if not os.path.isfile(path):
            raise UserError(f"geometry.shape_init: mesh file not found: {path or '(no path)'}")
        if params is not None and (not isinstance(params, (int, float)) or isinstance(params, bool) or not params > 0):
            raise UserError(
                "geometry.shape_init_params: of a mesh: expected its size > 0 (largest coordinate, world units) or "
                f"null, got {params!r}"
            )
        _check_axes(cfg.shape_init_mesh_up, cfg.shape_init_mesh_front)
    else:
        raise UserError(f"geometry.shape_init: expected sphere, ellipsoid, mesh:<file> or null, got {shape_init!r}")


class StartsFromShape:
    """Goes before the base class of a geometry with the keys above and `force_shape_init`: it takes the shape once."""

    def expect_shape(self) -> None:
        """Called when the geometry is built. Weights that are loaded later are a shape: shape_init leaves it alone."""
        check_shape_init(self.cfg)
        self.shape_is_given = self._shape_initialized = False
        self.register_load_state_dict_pre_hook(_note_given_shape)

    def initialize_shape(self) -> None:
        """Takes the distances of ``shape_init``: a start for training.

        Does nothing without shape_init, the second time, or (but with force_shape_init) where weights were given.
        """
        cfg = self.cfg
        if not cfg.shape_init or self._shape_initialized or (self.shape_is_given and not cfg.force_shape_init):
            return
        self.take_shape(shape_distance(cfg, cfg.radius, self.bbox.device))
        self.note_shape()

    def take_shape(self, distance: SignedDistance) -> None:
        raise TypeError(f"{type(self).__name__} does not define take_shape")

    def note_shape(self) -> None:
        """The geometry has its shape: shape_init is left alone from now on."""
        self.shape_is_given = self._shape_initialized = True


def _note_given_shape(geometry: Any, state_dict: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    if any(key.startswith(prefix) for key in state_dict):
        geometry.shape_is_given = True


def shape_distance(cfg: ShapeInitConfig, radius: float, device: torch.device) -> SignedDistance:
    """The signed distance that ``shape_init`` names; queries lie on ``device``."""
    check_shape_init(cfg)
    if not cfg.shape_init.startswith("mesh:"):
        return parametric_distance(cfg.shape_init, cfg.shape_init_params, "shape_init")
    return mesh_distance(load_mesh(cfg, radius), device)


def load_mesh(cfg: ShapeInitConfig, radius: float) -> Mesh:
    """The mesh that ``shape_init`` names, in the world's axes, inside the box of half side ``radius``.

    In .glb and .gltf files the defaults of the axes, +z and +x, mean glTF's own up (+y) and front (+z).
    Raises UserError where the file cannot be read, has no triangles, or does not fit.
    """
    path, axes = cfg.shape_init.partition(":")[2], (cfg.shape_init_mesh_up, cfg.shape_init_mesh_front)
    # None: the axes of the file's format.
    given = (None, None) if axes == (_WORLD_UP, _WORLD_FRONT) else axes
    mesh = load_mesh_file(path, *given, colors=False, key="geometry.shape_init")
    warn_if_open(mesh, path)
    if cfg.shape_init_params is not None:
        mesh.v_pos = centred_on_vertices(mesh.v_pos, float(cfg.shape_init_params))
    check_in_box(mesh.v_pos, radius, path, "geometry.shape_init", "geometry.shape_init_params")
    return mesh


def mesh_distance(mesh: Mesh, device: torch.device) -> SignedDistance:
    from threestudio.ops.mesh_distance import MeshDistance

    return MeshDistance(mesh.v_pos.to(device), mesh.t_pos_idx.to(device))


def centred_on_vertices(v_pos: Tensor, size: float) -> Tensor:  # [V, 3]
    """The vertices moved so that their mean is the origin, then scaled so that their largest coordinate is `size`.

    Vertices at one place count once. This is threestudio's rule, so `shape_init_params` of its command lines means here
    what it means there.
    """
    v_pos = v_pos - torch.unique(v_pos, dim=0).mean(0)
    return v_pos * (size / float(v_pos.abs().max()))


def centred_on_box(v_pos: Tensor, size: float) -> Tensor:  # [V, 3]
    """The vertices moved so that the origin is in the middle of their box, whose longest half side becomes `size`."""
    low, high = v_pos.amin(0), v_pos.amax(0)
    return (v_pos - (low + high) / 2) * (2 * size / float((high - low).max()))


def check_in_box(
    v_pos: Tensor,  # [V, 3]
    radius: float,  # half the side of the box, around the origin
    path: str,
    key: str,
    size_key: str,
) -> None:
    """Raises UserError, which names `key` and what to set `size_key` to, where the vertices do not lie in the box."""
    largest = float(v_pos.abs().max())
    if largest > radius * (1 + 1e-6):
        raise UserError(
            f"{key}: the mesh {path} reaches to {largest:.4g}, beyond geometry.radius={radius:g}; "
            f"{size_key}={0.8 * radius:g} centres it and scales it to fit"
        )


def warn_if_open(mesh: Mesh, path: str) -> None:
    """Says how a mesh that is not closed is understood."""
    import trimesh

    if not trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False).is_watertight:
        threestudio.warn(
            f"the mesh {path} is not closed: its inside is where the winding number exceeds one half, "
            "which closes small holes; a mere sheet has no inside"
        )


def _check_axes(up: str, front: str) -> None:
    for key, axis in (("shape_init_mesh_up", up), ("shape_init_mesh_front", front)):
        check_choice(f"geometry.{key}", axis, AXES)
    if up[1] == front[1]:
        raise UserError(
            f"geometry.shape_init_mesh_front: expected an axis other than shape_init_mesh_up's, got {front} and {up}"
        )
