"""A batch of the host, and renderers of small scenes."""

import math

import torch
from turboprop.gaussians.geometry import GaussianSplatting

import threestudio
from threestudio.data.cameras import batch_of_cameras, look_at, unit_focal_directions


def batch_of(size: int = 24, count: int = 2, width: int = 0) -> dict:
    positions = torch.tensor([[2.5, 0.0, 0.0], [0.0, 2.0, 1.5], [-1.0, 1.0, 2.0]])[:count]
    c2w = look_at(positions, torch.zeros(count, 3), torch.tensor([0.0, 0, 1]).expand(count, 3))
    batch = batch_of_cameras(
        c2w, torch.full((count,), math.radians(45)), unit_focal_directions(size, width or size), False
    )
    return {**batch, "light_positions": positions}


def parts(geometry=None, background: str = "solid-color-background", material: str = "no-material"):
    torch.manual_seed(0)
    return {
        "geometry": geometry or GaussianSplatting({"init_num_pts": 200, "opacity_init": 0.5}),
        "material": threestudio.find(material)({}),
        "background": threestudio.find(background)({}),
    }


def renderer_of(name: str = "diff-gaussian-rasterizer", geometry=None, cfg=None, **kwargs):
    return threestudio.find(name)(cfg or {}, **parts(geometry, **kwargs))


def one_ball(**cfg) -> GaussianSplatting:
    """An opaque ball of standard deviation 0.3, dark red, at the origin."""
    geometry = GaussianSplatting({"init_num_pts": 1, **cfg})
    with torch.no_grad():
        geometry.means.zero_()
        geometry.log_scales.fill_(math.log(0.3))
        geometry.opacity_logits.fill_(9.0)
        geometry.sh_dc.copy_((torch.tensor([[[0.6, 0.2, 0.1]]]) - 0.5) / math.sqrt(1 / (4 * math.pi)))
    return geometry
