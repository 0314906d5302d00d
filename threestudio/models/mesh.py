"""Triangle mesh as differentiable tensors, with the attributes that renderers, losses and exporters ask for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.ops.mesh_antialias.edges import Edges, mesh_edges
from threestudio.utils.devices import constant, sent
from threestudio.utils.errors import UserError


class Mesh:
    """Triangles over shared vertices. Derived attributes are computed at first use and then kept.

    Args:
        v_pos: vertex positions [Nv, 3].
        t_pos_idx: vertex indices of each triangle [Nf, 3], counter-clockwise seen from outside.
        extras: anything else that belongs to the mesh (``mesh.extras[name]``).
    """

    def __init__(self, v_pos: Tensor, t_pos_idx: Tensor, **extras: Any) -> None:
        if v_pos.ndim != 2 or v_pos.shape[1] != 3:
            raise UserError(f"v_pos: expected [Nv, 3], got {list(v_pos.shape)}")
        if t_pos_idx.ndim != 2 or t_pos_idx.shape[1] != 3:
            raise UserError(f"t_pos_idx: expected [Nf, 3], got {list(t_pos_idx.shape)}")
        self.v_pos = v_pos
        self.t_pos_idx = t_pos_idx
        self.extras: dict[str, Any] = dict(extras)
        self._v_nrm: Tensor | None = None
        self._v_tng: Tensor | None = None
        self._v_tex: Tensor | None = None
        self._t_tex_idx: Tensor | None = None
        self._uv_given = False
        self._v_rgb: Tensor | None = None
        self._edge_faces: Edges | None = None

    def add_extra(self, name: str, value: Any) -> None:
        self.extras[name] = value

    @property
    def requires_grad(self) -> bool:
        return self.v_pos.requires_grad

    @property
    def v_nrm(self) -> Tensor:
        """Unit vertex normals [Nv, 3], faces weighted by their area."""
        if self._v_nrm is None:
            self._v_nrm = vertex_normals(self.v_pos, self.t_pos_idx)
        return self._v_nrm

    @property
    def v_tng(self) -> Tensor:
        """Unit vertex tangents along the texture's u axis [Nv, 3], orthogonal to the normals."""
        if self._v_tng is None:
            self._v_tng = vertex_tangents(self.v_pos, self.t_pos_idx, self.v_tex, self.t_tex_idx, self.v_nrm)
        return self._v_tng

    @property
    def has_own_uv(self) -> bool:
        """Whether it was given texture coordinates, and not unwrapped here."""
        return self._uv_given

    @property
    def v_tex(self) -> Tensor:
        """Texture coordinates [Nt, 2] in [0, 1]; v grows downwards, as image rows do."""
        if self._v_tex is None:
            self.unwrap_uv()
        return self._v_tex

    @property
    def t_tex_idx(self) -> Tensor:
        """Indices into ``v_tex`` of each triangle [Nf, 3]."""
        if self._t_tex_idx is None:
            self.unwrap_uv()
        return self._t_tex_idx

    @property
    def v_rgb(self) -> Tensor | None:
        """Vertex colours [Nv, 3] in [0, 1], or None where none were set."""
        return self._v_rgb

    def set_vertex_color(self, v_rgb: Tensor) -> None:
        if v_rgb.shape[0] != self.v_pos.shape[0]:
            raise UserError(f"v_rgb: expected {self.v_pos.shape[0]} colours, got {v_rgb.shape[0]}")
        self._v_rgb = v_rgb

    def set_uv(self, v_tex: Tensor, t_tex_idx: Tensor) -> None:
        """Texture coordinates [Nt, 2], v growing downwards, and their triangles [Nf, 3].

        Each belongs to one vertex, and to triangles that all are mirrored in the picture, or none: a normal map has
        one tangent there.
        """
        if t_tex_idx.shape != self.t_pos_idx.shape:
            raise UserError(f"t_tex_idx: expected {list(self.t_pos_idx.shape)}, got {list(t_tex_idx.shape)}")
        self._v_tex, self._t_tex_idx, self._uv_given = v_tex, t_tex_idx, True

    @property
    def edges(self) -> Tensor:
        """Each undirected edge once [Ne, 2] int64, the smaller index first."""
        return self.edge_faces.vertices

    @property
    def edge_faces(self) -> Edges:
        """The edges and the faces on each of them."""
        if self._edge_faces is None:
            self._edge_faces = mesh_edges(self.t_pos_idx, self.v_pos.shape[0])
        return self._edge_faces

    def remove_outlier(self, outlier_n_faces_threshold: int | float) -> Mesh:
        """Drops connected components with too few faces; gradients to ``v_pos`` are kept.

        Args:
            outlier_n_faces_threshold: int: the least number of faces that a component may have;
                float: the same as a fraction of the largest component's faces.
        """
        if self.t_pos_idx.shape[0] == 0:
            return self
        # On the CPU, where the components are found: a GPU is waited for once where nothing is dropped.
        t_pos_idx = self.t_pos_idx.cpu()
        component = face_components(t_pos_idx, self.v_pos.shape[0])  # [Nf]
        n_faces = torch.bincount(component)
        threshold = outlier_n_faces_threshold
        least = threshold if isinstance(threshold, int) else int(n_faces.max().item() * threshold)
        return self._faces_kept((n_faces >= least)[component])

    def remove_cavities(self) -> Mesh:
        """Drops closed components that look inwards: hollows in a solid, which nobody sees from outside.

        Every component has to be closed, with its faces turned away from the solid, as isosurfaces are. Such a one
        has a negative volume. Gradients to ``v_pos`` are kept.
        """
        if self.t_pos_idx.shape[0] == 0:
            return self
        t_pos_idx, v_pos = self.t_pos_idx.cpu(), self.v_pos.detach().double().cpu()
        component = face_components(t_pos_idx, v_pos.shape[0])  # [Nf]
        # of the tetrahedron between a face and a point in the middle, where sums lose least
        a, b, c = (v_pos - v_pos.mean(0))[t_pos_idx].unbind(1)
        volumes = torch.linalg.det(torch.stack([a, b, c], -1)) / 6  # [Nf]
        volume = volumes.new_zeros(int(component.max()) + 1).index_add(0, component, volumes)
        return self._faces_kept((volume > 0)[component])

    def _faces_kept(self, keep: Tensor) -> Mesh:  # [Nf] bool, on the CPU
        """The mesh of some of the faces, and of the vertices that they use."""
        if keep.all():
            return self
        used, t_pos_idx = self.t_pos_idx.cpu()[keep].unique(return_inverse=True)
        used = sent(used, self.t_pos_idx)
        mesh = Mesh(self.v_pos[used], sent(t_pos_idx, self.t_pos_idx), **self.extras)
        if self._v_rgb is not None:
            mesh.set_vertex_color(self._v_rgb[used])
        return mesh

    def unwrap_uv(
        self,
        xatlas_chart_options: dict[str, Any] | None = None,
        xatlas_pack_options: dict[str, Any] | None = None,
    ) -> None:
        """Makes one texture atlas with xatlas. Raises UserError as `atlas_options`, and where charts need several."""
        import numpy as np
        import xatlas

        atlas = xatlas.Atlas()
        atlas.add_mesh(
            self.v_pos.detach().float().cpu().numpy(),
            self.t_pos_idx.cpu().numpy().astype(np.uint32),
        )
        chart, pack = atlas_options(xatlas_chart_options or {}, xatlas_pack_options or {})
        atlas.generate(chart, pack)
        if atlas.atlas_count > 1:  # coordinates do not say in which: charts would lie over one another
            raise UserError(
                f"xatlas_pack_options: the charts fill {atlas.atlas_count} textures of {pack.resolution} texels, "
                "expected one; lower texels_per_unit, or leave it out"
            )
        _, indices, uvs = atlas.get_mesh(0)
        device = self.v_pos.device
        self._v_tex = torch.from_numpy(uvs.astype(np.float32)).to(device)
        self._t_tex_idx = torch.from_numpy(indices.astype(np.int64)).to(device)
        self._uv_given = False

    def normal_consistency(self) -> Tensor:
        """Mean of 1 - cos between the normals at the two ends of each edge, by the edges' lengths, a scalar.

        Normals of tiny faces, of which marching tetrahedra makes many, turn by the inverse of their size. Weighted by
        lengths, which are constants to the gradient, their pull on a vertex is no larger than others'; where all edges
        are equally long it is the plain mean, upstream's.
        """
        n = self.v_nrm[self.edges]  # [Ne, 2, 3]
        lengths = (self.v_pos[self.edges[:, 0]] - self.v_pos[self.edges[:, 1]]).norm(dim=-1).detach()
        bends = 1.0 - F.cosine_similarity(n[:, 0], n[:, 1], dim=-1)
        return (lengths * bends).sum() / lengths.sum().clamp(min=1e-12)

    def laplacian(self) -> Tensor:
        """Mean length over the vertices of the rows of (D - A) v, a scalar: uniform Laplacian, not divided by valence.

        D - A is the graph's Laplacian, which Nealen et al. 2006 (Laplacian mesh optimization, section 2) divide by each
        vertex's valence. threestudio's is this one, so weights from its configs mean here what they mean there.
        """
        i, j = self.edges.unbind(1)
        ones = torch.ones_like(i, dtype=self.v_pos.dtype)
        degree = torch.zeros_like(self.v_pos[:, 0]).index_add(0, i, ones).index_add(0, j, ones)
        total = torch.zeros_like(self.v_pos).index_add(0, i, self.v_pos[j]).index_add(0, j, self.v_pos[i])
        return (total - degree[:, None] * self.v_pos).norm(dim=1).mean()


def vertex_normals(v_pos: Tensor, t_pos_idx: Tensor) -> Tensor:
    """Unit normals [Nv, 3] of v_pos [Nv, 3], t_pos_idx [Nf, 3]; (0, 0, 1) where a vertex has no face of any area."""
    v0, v1, v2 = v_pos[t_pos_idx].unbind(1)
    face = torch.linalg.cross(v1 - v0, v2 - v0, dim=-1)  # twice the area times the unit normal
    normal = torch.zeros_like(v_pos)
    for corner in range(3):
        normal = normal.index_add(0, t_pos_idx[:, corner], face)
    degenerate = (normal.square().sum(-1, keepdim=True) <= 1e-20).expand_as(normal)
    return F.normalize(torch.where(degenerate, constant((0.0, 0.0, 1.0), normal), normal), dim=-1)


def vertex_tangents(v_pos: Tensor, t_pos_idx: Tensor, v_tex: Tensor, t_tex_idx: Tensor, v_nrm: Tensor) -> Tensor:
    """Unit tangents [Nv, 3] along u: solves position = origin + u tangent + v bitangent on each face."""
    p0, p1, p2 = v_pos[t_pos_idx].unbind(1)
    t0, t1, t2 = v_tex[t_tex_idx].unbind(1)
    d1, d2 = t1 - t0, t2 - t0
    determinant = d1[:, :1] * d2[:, 1:] - d1[:, 1:] * d2[:, :1]
    sign = torch.where(determinant >= 0, 1.0, -1.0)
    tangent = ((p1 - p0) * d2[:, 1:] - (p2 - p0) * d1[:, 1:]) / (determinant.abs().clamp(min=1e-6) * sign)
    total = torch.zeros_like(v_pos)
    for corner in range(3):
        total = total.index_add(0, t_pos_idx[:, corner], tangent)
    total = F.normalize(total, dim=-1)
    return F.normalize(total - (total * v_nrm).sum(-1, keepdim=True) * v_nrm, dim=-1)


def face_components(t_pos_idx: Tensor, n_vertices: int) -> Tensor:
    """Index of the connected component of each face [Nf]; faces are connected that share a vertex."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    t = t_pos_idx.cpu().numpy()
    rows = np.concatenate([t[:, 0], t[:, 1]])
    columns = np.concatenate([t[:, 1], t[:, 2]])
    graph = coo_matrix((np.ones(len(rows), np.uint8), (rows, columns)), shape=(n_vertices, n_vertices))
    _, label = connected_components(graph, directed=False)
    _, label = np.unique(label[t[:, 0]], return_inverse=True)
    return torch.from_numpy(label.astype(np.int64)).to(t_pos_idx.device)


def atlas_options(chart_options: dict[str, Any], pack_options: dict[str, Any]) -> tuple[Any, Any]:
    """xatlas' ChartOptions and PackOptions with these attributes. Raises UserError, naming the key, for others."""
    import xatlas

    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_iterations = 4  # xatlas' own default of 1 gives many small charts on organic shapes
    _set_options(chart, chart_options, "xatlas_chart_options")
    _set_options(pack, pack_options, "xatlas_pack_options")
    return chart, pack


def _set_options(target: Any, options: dict[str, Any], key: str) -> None:
    known = [name for name in dir(target) if not name.startswith("_")]
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{key}: unknown option {name!r}, expected one of {', '.join(known)}")
        try:
            setattr(target, name, value)
        except TypeError as error:
            kind = type(getattr(target, name)).__name__
            raise UserError(f"{key}.{name}: expected {kind}, got {value!r}") from error
