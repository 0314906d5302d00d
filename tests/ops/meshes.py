"""Small meshes and cameras for the tests of mesh rasterization."""

import torch

from threestudio.data.cameras import batch_of_cameras, look_at, spherical_to_cartesian, unit_focal_directions

FOVY = 0.9  # radians


def camera_batch(n=2, height=32, width=32, distance=2.5, elevation=0.4, fovy=FOVY):
    azimuth = torch.arange(n) * (2 * torch.pi / n) + 0.3
    positions = spherical_to_cartesian(torch.full((n,), elevation), azimuth, torch.full((n,), distance))
    c2w = look_at(positions, torch.zeros(n, 3), torch.tensor([0.0, 0, 1]).expand(n, 3))
    batch = batch_of_cameras(c2w, torch.full((n,), fovy), unit_focal_directions(height, width), True)
    return {**batch, "light_positions": positions}


def flat_camera():
    """Clip space is world space: x to the right, y down, z in [-1, 1] away from the viewer. [1, 4, 4]"""
    return torch.eye(4)[None]


def icosphere(subdivisions=2, radius=1.0):
    """Vertices [V, 3] on a sphere and outward faces [F, 3]."""
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(sphere.vertices.copy(), dtype=torch.float32), torch.tensor(
        sphere.faces.copy(), dtype=torch.long
    )


def soup(n=60, seed=0, size=0.5):
    """Unconnected triangles in the unit cube."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(n, 1, 3, generator=generator) * 1.6 - 0.8
    v_pos = centres + (torch.rand(n, 3, 3, generator=generator) - 0.5) * 2 * size
    return v_pos.reshape(-1, 3), torch.arange(3 * n).view(n, 3)


def rectangle(low, high, z=0.0):
    """Two triangles that fill [low, high] (x, y) at depth z."""
    (x0, y0), (x1, y1) = low, high
    return torch.tensor([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]]), torch.tensor([[0, 1, 2], [0, 2, 3]])


def join(*meshes):
    v_pos, faces, count = [], [], 0
    for v, t in meshes:
        v_pos.append(v)
        faces.append(t + count)
        count += len(v)
    return torch.cat(v_pos), torch.cat(faces)


def ray_triangle_hits(rays_o, rays_d, v_pos, t_pos_idx):
    """Nearest face behind each ray [...], -1 where none: by solving o + t d = a + u (b - a) + v (c - a), float64."""
    shape = rays_o.shape[:-1]
    o, d = rays_o.reshape(-1, 1, 3).double(), rays_d.reshape(-1, 1, 3).double()
    a, b, c = v_pos.double()[t_pos_idx].unbind(1)
    matrix = torch.stack([(-d).expand(-1, len(a), 3), (b - a).expand(len(d), -1, 3), (c - a).expand(len(d), -1, 3)], -1)
    t, u, v = torch.linalg.solve(matrix, o - a).unbind(-1)
    t = torch.where((t > 0) & (u >= 0) & (v >= 0) & (u + v <= 1), t, torch.inf)
    best = t.argmin(-1)
    return torch.where(t.amin(-1).isfinite(), best, -1).view(shape)
