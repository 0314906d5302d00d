"""Meshes from level sets: marching cubes (scikit-image) and differentiable marching tetrahedra (torch).

Both take a level at each grid vertex, negative inside, and give a mesh with outward triangles in [0, 1]^3.
The mesh is closed where the level is positive on the grid's border; ``close_border`` makes it so.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.memory import check_memory
from threestudio.utils.value_checks import check_at_least


class EmptyFieldError(UserError):
    """The field has no surface at the threshold asked for."""


class IsosurfaceHelper(nn.Module, ABC):
    """Base: a fixed set of grid vertices in ``points_range`` and a way from levels on them to a mesh."""

    points_range: tuple[float, float] = (0.0, 1.0)

    @property
    @abstractmethod
    def grid_vertices(self) -> Tensor:
        """Grid vertices [N, 3] in ``points_range``."""

    @abstractmethod
    def forward(self, level: Tensor, deformation: Tensor | None = None) -> Mesh:
        """level [N] or [N, 1], negative inside; deformation [N, 3] in grid units or None."""

    def close_border(self, level: Tensor) -> Tensor:
        """Turns every border vertex that is inside to outside, so that the mesh is closed. level [N, 1]."""
        vertices = self.grid_vertices.to(level.device)
        border = ((vertices <= 0.0) | (vertices >= 1.0)).any(-1, keepdim=True)
        return torch.where(border & (level <= 0), level.abs().clamp(min=1e-6), level)


class MarchingCubeCPUHelper(IsosurfaceHelper):
    """Marching cubes (Lewiner) on resolution^3 vertices. The mesh carries no gradient."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        check_resolution("mc-cpu", resolution)
        self.resolution = resolution

    @property
    def grid_vertices(self) -> Tensor:
        return _regular_grid(self.resolution)

    def forward(self, level: Tensor, deformation: Tensor | None = None) -> Mesh:
        from skimage.measure import marching_cubes

        if deformation is not None:
            raise UserError("isosurface_deformable_grid: mc-cpu has a fixed grid, use isosurface_method=mt")
        check_surface(level)
        volume = level.detach().float().cpu().reshape(3 * (self.resolution,))
        # The same as MARGIN does below: no level is tiny beside its neighbours'.
        least = MARGIN * F.max_pool3d(volume.abs()[None], 3, stride=1, padding=1)[0]
        volume = torch.where(volume < 0, -volume.abs().maximum(least), volume.maximum(least))
        vertices, faces, _, _ = marching_cubes(volume.numpy(), 0.0, gradient_direction="descent")
        v_pos = torch.from_numpy(vertices / (self.resolution - 1.0)).to(level.device, torch.float32)
        return Mesh(v_pos, torch.from_numpy(faces.astype("int64")).to(level.device))


class MarchingTetrahedraHelper(IsosurfaceHelper):
    """Marching tetrahedra on a body-centred cubic lattice; differentiable in the level and the deformation.

    The lattice is generated, not read from a file: any resolution works. ``resolution`` counts half cells
    along an axis (edges are 2 / resolution along the axes and sqrt(3) / resolution along the diagonals).
    """

    def __init__(self, resolution: int, tets_path: str = "") -> None:
        super().__init__()
        del tets_path  # upstream's third-party callers name a file of tetrahedra; none is needed
        check_resolution("mt", resolution)
        self.resolution = resolution
        # Non-persistent: the lattice follows the module's device but stays out of checkpoints.
        vertices, tets = tetrahedral_lattice(resolution)
        self.register_buffer("_grid_vertices", vertices, persistent=False)
        self.register_buffer("indices", tets, persistent=False)
        self._all_edges: Tensor | None = None

    @property
    def grid_vertices(self) -> Tensor:
        return self._grid_vertices

    @property
    def all_edges(self) -> Tensor:
        """Each edge of the lattice once [Ne, 2], for regularisers on the level's sign changes."""
        if self._all_edges is None or self._all_edges.device != self.indices.device:
            self._all_edges = lattice_edges(self.resolution).to(self.indices.device)
        return self._all_edges

    def normalize_grid_deformation(self, deformation: Tensor) -> Tensor:
        """Limits a displacement [N, 3] to one grid unit, so that no tetrahedron can turn inside out by much."""
        return (self.points_range[1] - self.points_range[0]) / self.resolution * torch.tanh(deformation)

    def forward(self, level: Tensor, deformation: Tensor | None = None) -> Mesh:
        check_surface(level)
        vertices = self.grid_vertices
        if deformation is not None:
            vertices = vertices + self.normalize_grid_deformation(deformation)
        v_pos, t_pos_idx = marching_tetrahedra(vertices, self.indices, level.reshape(-1))
        return Mesh(
            v_pos,
            t_pos_idx,
            grid_vertices=vertices,
            tet_edges=self.all_edges if torch.is_grad_enabled() and level.requires_grad else None,
            grid_level=level,
            grid_deformation=deformation,
        )


# Most bytes that making and marching a grid takes, measured at resolutions of 128 and 192.
BYTES_A_VOXEL = 30  # of marching cubes' grid
BYTES_A_CELL = 480  # of the lattice, which has 12 tetrahedra a cell


def check_resolution(method: str, resolution: int) -> None:
    """Raises UserError for a resolution that makes no grid, or one that this machine's memory cannot hold.

    method: mt or mc-cpu.
    """
    check_at_least("isosurface_resolution", resolution, 2)
    cells = {"mt": BYTES_A_CELL * ((resolution + 1) // 2) ** 3, "mc-cpu": BYTES_A_VOXEL * resolution**3}
    bytes_needed = cells[method]
    check_memory(bytes_needed, torch.device("cpu"), "geometry.isosurface_resolution", resolution)


def check_surface(level: Tensor) -> None:
    """Raises EmptyFieldError unless the level has both signs."""
    low, high = torch.stack(level.aminmax()).tolist()  # one wait for a GPU
    if not low < 0:
        raise EmptyFieldError(
            "isosurface: the field is empty: no grid vertex is inside "
            f"(level in [{low:.4g}, {high:.4g}], inside is < 0)"
        )
    if not high > 0:
        raise EmptyFieldError(
            f"isosurface: every grid vertex is inside (level in [{low:.4g}, {high:.4g}], outside is > 0)"
        )


# Surface vertices keep this share of an edge from its ends. Where the surface meets a grid vertex, those of all its
# edges would otherwise be one point: triangles without area and, once a reader merges equal points, holes.
MARGIN = 1e-3

_TET_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def marching_tetrahedra(vertices: Tensor, tets: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Zero level set of a level that is linear in each tetrahedron (Doi and Koide 1991).

    Args:
        vertices: [N, 3]; tets: [T, 4] indices, each of positive volume; level: [N], negative inside.
    Returns:
        v_pos [Nv, 3], differentiable in vertices and level; t_pos_idx [Nf, 3], outward.
    """
    table = _tetrahedron_table(level.device)
    inside = level < 0
    case = torch.zeros(tets.shape[0], dtype=torch.uint8, device=level.device)
    flags = inside.to(torch.uint8)
    for corner in range(4):
        case.add_(flags.index_select(0, tets[:, corner]), alpha=1 << corner)
    crossed = ((case != 0) & (case != 15)).nonzero()[:, 0]
    case, tets = case[crossed].long(), tets[crossed].long()

    a, b = (tets.index_select(1, ends) for ends in table.ends)  # [T', 6]
    n = vertices.shape[0]
    key = torch.minimum(a, b) * n + torch.maximum(a, b)
    on_surface = (inside[a] != inside[b]).view(-1).nonzero()[:, 0]  # each mask is looked through once: that is a wait
    keys, inverse = key.view(-1)[on_surface].unique(return_inverse=True)
    vertex_of_edge = torch.full_like(key, -1)
    vertex_of_edge.view(-1)[on_surface] = inverse

    i, j = keys // n, keys % n
    # l_i and l_j have opposite signs, so the denominator is never zero.
    weight = (level[j] / (level[j] - level[i])).clamp(MARGIN, 1 - MARGIN)[:, None]
    v_pos = vertices[i] * weight + vertices[j] * (1 - weight)

    first = vertex_of_edge.gather(1, table.triangles[case, 0])
    two = (table.n_triangles[case] == 2).nonzero()[:, 0]
    second = vertex_of_edge[two].gather(1, table.triangles[case[two], 1])
    return v_pos, torch.cat([first, second])


class _TetrahedronTable(NamedTuple):
    triangles: Tensor  # [16, 2, 3] the edges that make the triangles of each of the 16 sign cases
    n_triangles: Tensor  # [16] how many triangles there are
    ends: Tensor  # [2, 6] the corners at the two ends of each edge


@lru_cache(maxsize=8)
def _tetrahedron_table(device: torch.device) -> _TetrahedronTable:
    """What marching asks for on a device.

    Made by geometry, not typed in: the triangles of the reference tetrahedron's edge midpoints are turned so
    that their normal points from the inside corners to the outside ones.
    """
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    middle = torch.stack([(corners[a] + corners[b]) / 2 for a, b in _TET_EDGES])
    table = torch.zeros(16, 2, 3, dtype=torch.long)
    count = torch.zeros(16, dtype=torch.long)
    edge = {frozenset(e): k for k, e in enumerate(_TET_EDGES)}
    for case in range(1, 15):
        inner = [c for c in range(4) if case >> c & 1]
        outer = [c for c in range(4) if not case >> c & 1]
        if len(inner) == 2:
            (p, q), (r, s) = inner, outer
            quad = [edge[frozenset(e)] for e in ((p, r), (p, s), (q, s), (q, r))]
            faces = [quad[:3], [quad[0], quad[2], quad[3]]]
        else:
            faces = [[edge[frozenset((i, o))] for i in inner for o in outer]]
        outward = corners[outer].mean(0) - corners[inner].mean(0)
        for k, face in enumerate(faces):
            x, y, z = middle[face]
            if torch.linalg.cross(y - x, z - x).dot(outward) < 0:
                face = face[::-1]
            table[case, k] = torch.tensor(face)
        count[case] = len(faces)
    ends = torch.tensor(_TET_EDGES).T.contiguous()
    return _TetrahedronTable(table.to(device), count.to(device), ends.to(device))


@lru_cache(maxsize=2)
def tetrahedral_lattice(resolution: int) -> tuple[Tensor, Tensor]:
    """Body-centred cubic lattice that fills [0, 1]^3: vertices [N, 3] and tetrahedra [T, 4] of positive volume.

    Two neighbouring cell centres and an edge of the face between them span one tetrahedron; faces on the
    border belong to one cell only and are cut into two. All tetrahedra inside are congruent.
    """
    n = (resolution + 1) // 2  # cells along an axis
    corner_axis = torch.arange(n + 1) / n
    centre_axis = (torch.arange(n) + 0.5) / n
    vertices = torch.cat([torch.cartesian_prod(*[axis] * 3) for axis in (corner_axis, centre_axis)])
    corner = torch.arange((n + 1) ** 3, dtype=torch.int32).reshape(3 * (n + 1,))
    centre = torch.arange(n**3, dtype=torch.int32).reshape(n, n, n) + (n + 1) ** 3

    parts = []
    for axis in range(3):
        # Move ``axis`` to the front: corners of the face plane k are c[k], the cells beside it m[k-1] and m[k].
        c, m = corner.movedim(axis, 0), centre.movedim(axis, 0)
        ring = [c[:, :-1, :-1], c[:, 1:, :-1], c[:, 1:, 1:], c[:, :-1, 1:]]  # each [n+1, n, n]
        for s in range(4):
            p, q = ring[s][1:-1], ring[(s + 1) % 4][1:-1]
            parts.append(torch.stack([m[:-1], m[1:], p, q], -1).reshape(-1, 4))
        for plane, cell in ((0, 0), (n, n - 1)):
            r = [x[plane] for x in ring]
            for triangle in ((r[0], r[1], r[2]), (r[0], r[2], r[3])):
                parts.append(torch.stack([m[cell], *triangle], -1).reshape(-1, 4))
    tets = torch.cat([_turn_positive(vertices, part) for part in parts])
    return vertices, tets.T.contiguous().T  # corner by corner in memory, as marching_tetrahedra reads them


def lattice_edges(resolution: int) -> Tensor:
    """Each edge of ``tetrahedral_lattice(resolution)`` once [Ne, 2], the smaller index first."""
    n = (resolution + 1) // 2
    corner = torch.arange((n + 1) ** 3).reshape(3 * (n + 1,))
    centre = torch.arange(n**3).reshape(n, n, n) + (n + 1) ** 3
    pairs = []
    for axis in range(3):
        c, m = corner.movedim(axis, 0), centre.movedim(axis, 0)
        pairs += [(c[:-1], c[1:]), (m[:-1], m[1:])]  # along the cells' sides, and between neighbouring cells
        pairs += [(c[plane, :-1, :-1], c[plane, 1:, 1:]) for plane in (0, n)]  # where border faces are cut in two
    for octant in itertools.product((slice(None, -1), slice(1, None)), repeat=3):
        pairs.append((corner[octant], centre))
    return torch.cat([torch.stack([a.reshape(-1), b.reshape(-1)], 1) for a, b in pairs])


def _turn_positive(vertices: Tensor, tets: Tensor) -> Tensor:
    """The tetrahedra of one part are translated copies, so the first one's sign is everyone's."""
    if tets.shape[0] == 0:
        return tets
    p = vertices[tets[0].long()]
    return tets if torch.linalg.det(p[1:] - p[:1]) > 0 else tets[:, [0, 1, 3, 2]]


def _regular_grid(resolution: int) -> Tensor:
    return torch.cartesian_prod(*[torch.linspace(0, 1, resolution)] * 3)
