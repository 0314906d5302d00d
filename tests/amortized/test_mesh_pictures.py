"""Pictures of exported meshes against what a sphere looks like."""

import math

import numpy as np
import torch
import trimesh
from turboprop.amortized.mesh_pictures import mesh_pictures
from turboprop.world.cameras import orbit_c2w

from threestudio.utils.ops import get_mvp_matrix, get_projection_matrix


def test_a_sphere_is_round_red_and_faces_the_camera():
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    mesh.visual.vertex_colors = np.tile(np.uint8([255, 0, 0, 255]), (len(mesh.vertices), 1))
    c2w = orbit_c2w(torch.tensor([0.0, 30.0]), torch.tensor([0.0, 90.0]), torch.tensor([2.5, 2.5]))
    fovy = torch.full((2,), math.radians(40.0))
    mvp = get_mvp_matrix(c2w, get_projection_matrix(fovy, 1.0, 0.1, 100.0))
    rgb, normal = mesh_pictures(mesh, mvp, 64, 64, torch.tensor([0.25, 0.5, 0.75]))
    assert rgb.shape == normal.shape == (2, 64, 64, 3)
    assert torch.allclose(rgb[:, 0, 0], torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(rgb[:, 32, 32], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    # half the angle that a ball of radius r fills at distance d is asin(r / d)
    radius = 32 * math.tan(math.asin(0.5 / 2.5)) / math.tan(math.radians(20))
    covered = (rgb[..., 1] < 0.25).float().sum((1, 2))  # the background's green is 0.5
    assert torch.allclose(covered, torch.full((2,), math.pi * radius**2), rtol=0.02)
    toward = torch.nn.functional.normalize(c2w[:, :3, 3], dim=-1)
    assert torch.allclose(normal[:, 32, 32] * 2 - 1, toward, atol=0.05)
    assert float(normal[:, 0, 0].abs().max()) == 0
