"""Shapes that a surface can start from: sphere, ellipsoid, or a mesh read from a file."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError

SignedDistance = Callable[[Tensor], Tensor]  # points [..., 3] -> distance [..., 1], negative inside

_AXES = ("+x", "+y", "+z", "-x", "-y", "-z")
# glTF 2.0, section 3.4: y is up and models face +z.
_GLTF_UP, _GLTF_FRONT = "+y", "+z"
_WORLD_UP, _WORLD_FRONT = "+z", "+x"


def sphere_distance(points: Tensor, radius: float) -> Tensor:
    """points [..., 3] -> signed distance [..., 1] to a sphere around the origin."""
    return (points.square().sum(-1, keepdim=True) + 1e-12).sqrt() - radius


def ellipsoid_distance(points: Tensor, half_axes: Tuple[float, float, float]) -> Tensor:
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


def check_shape_init(shape_init: Optional[str], params: Any, up: str, front: str) -> None:
    """Raises UserError where the configured start is impossible; a mesh's file is looked for, not read."""
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
                f"geometry.shape_init_params: of a mesh: expected its size > 0 (largest coordinate, world units) or null, got {params!r}"
            )
        _rotation_to_world(up, front)
    else:
        raise UserError(f"geometry.shape_init: expected sphere, ellipsoid, mesh:<file> or null, got {shape_init!r}")


def note_given_shape(geometry: Any, state_dict: Dict[str, Tensor], prefix: str, *unused: Any) -> None:
    """Hook before a geometry's weights are loaded: from then on it has a shape, which shape_init leaves alone."""
    if any(key.startswith(prefix) for key in state_dict):
        geometry.shape_is_given = True


def shape_distance(
    shape_init: str, params: Any, up: str, front: str, radius: float, device: torch.device
) -> SignedDistance:
    """The signed distance that ``shape_init`` names; queries lie on ``device``."""
    check_shape_init(shape_init, params, up, front)
    if not shape_init.startswith("mesh:"):
        return parametric_distance(shape_init, params, "shape_init")
    from threestudio.ops.mesh_distance import MeshDistance

    mesh = load_mesh(shape_init.partition(":")[2], params, up, front, radius)
    return MeshDistance(mesh.v_pos.to(device), mesh.t_pos_idx.to(device))


def load_mesh(path: str, size: Optional[float], up: str, front: str, radius: float) -> Mesh:
    """Reads a mesh (OBJ, PLY, GLB, STL, ...), turns it to the world's axes and places it in the box.

    Args:
        size: the box around the mesh is centred and its largest half side becomes this; None: the mesh stays where
            its file has it.
        up, front: the file's axes that become the world's up (+z) and front (+x). In .glb and .gltf files the
            defaults +z and +x mean glTF's own up (+y) and front (+z).
        radius: half the side of the box that the mesh has to fit in.
    Raises UserError where the file cannot be read, has no triangles, or does not fit.
    """
    import numpy as np
    import trimesh

    try:
        solid = trimesh.load_mesh(path)
        if isinstance(solid, trimesh.Scene):
            solid = solid.to_mesh()
    except Exception as error:  # every format's reader raises its own types; each means an unreadable file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"geometry.shape_init: cannot read the mesh {path}: {reason}") from error
    if not isinstance(solid, trimesh.Trimesh) or len(solid.faces) == 0:
        raise UserError(f"geometry.shape_init: the mesh {path} has no triangles")
    if not np.isfinite(solid.vertices).all():
        raise UserError(f"geometry.shape_init: the mesh {path} has coordinates that are not finite")
    # Readers split vertices at seams of texture and normals; the surface itself goes on there.
    solid = trimesh.Trimesh(solid.vertices, solid.faces, process=True)
    if solid.is_watertight:
        if solid.volume < 0:
            solid.invert()
    else:
        threestudio.warn(
            f"the mesh {path} is not closed: its inside is where the winding number exceeds one half, "
            "which closes small holes; a mere sheet has no inside"
        )
    if path.lower().endswith((".glb", ".gltf")) and (up, front) == (_WORLD_UP, _WORLD_FRONT):
        up, front = _GLTF_UP, _GLTF_FRONT
    v_pos = torch.from_numpy(np.asarray(solid.vertices, dtype=np.float64)) @ _rotation_to_world(up, front).T
    low, high = v_pos.amin(0), v_pos.amax(0)
    if size is not None:
        extent = float((high - low).max())
        if not extent > 0:
            raise UserError(f"geometry.shape_init: the mesh {path} has no extent")
        v_pos = (v_pos - (low + high) / 2) * (2 * float(size) / extent)
    largest = float(v_pos.abs().max())
    if largest > radius * (1 + 1e-6):
        raise UserError(
            f"geometry.shape_init: the mesh {path} reaches to {largest:.4g}, beyond geometry.radius={radius:g}; "
            f"geometry.shape_init_params={0.8 * radius:g} centres it and scales it to fit"
        )
    return Mesh(v_pos.float(), torch.from_numpy(np.array(solid.faces, dtype=np.int64)))


def _rotation_to_world(up: str, front: str) -> Tensor:
    """Matrix [3, 3] that turns the file's front to +x and its up to +z."""
    for key, axis in (("shape_init_mesh_up", up), ("shape_init_mesh_front", front)):
        if axis not in _AXES:
            raise UserError(f"geometry.{key}: expected one of {', '.join(_AXES)}, got {axis!r}")
    if up[1] == front[1]:
        raise UserError(
            f"geometry.shape_init_mesh_front: expected an axis other than shape_init_mesh_up's, got {front} and {up}"
        )
    x, z = _axis(front), _axis(up)
    return torch.stack([x, torch.linalg.cross(z, x), z])


def _axis(name: str) -> Tensor:
    vector = torch.zeros(3, dtype=torch.float64)
    vector["xyz".index(name[1])] = 1.0 if name[0] == "+" else -1.0
    return vector
