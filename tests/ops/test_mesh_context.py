"""Upstream's rasterizer surface: images of fragments in its layout, from clip-space vertices alone."""

import pytest
import torch

from tests.ops.meshes import camera_batch, icosphere, rectangle, soup
from threestudio.ops.mesh_antialias import antialias
from threestudio.ops.mesh_rasterization import interpolate, rasterize
from threestudio.utils.errors import UserError
from threestudio.utils.rasterize import NVDiffRasterizerContext, world_of_clip

CPU = torch.device("cpu")


@pytest.mark.parametrize("context_type", ["gl", "cuda"])
@pytest.mark.parametrize("mesh", [icosphere(3, 0.8), soup(30, size=1.5)])  # the second reaches behind the camera
def test_it_gives_what_the_operators_give(context_type, mesh):
    context = NVDiffRasterizerContext(context_type, CPU)
    v_pos, faces = mesh
    mvp = camera_batch(2, 20, 24, distance=1.7)["mvp_mtx"]
    results = []
    v = v_pos.clone().requires_grad_()
    fragments = rasterize(v, faces, mvp, 20, 24)
    image = interpolate(v, faces, fragments)
    results.append(
        (fragments.face + 1, fragments.barycentric[..., :2], image, antialias(image, fragments, v, faces, mvp), v)
    )

    v = v_pos.clone().requires_grad_()
    clip = context.vertex_transform(v, mvp)
    rast, rast_db = context.rasterize(clip, faces.int(), (20, 24))
    image, _ = context.interpolate(v[None], rast, faces.int(), rast_db=rast_db)
    results.append((rast[..., 3].long(), rast[..., :2], image, context.antialias(image, rast, clip, faces.int()), v))
    assert rast.shape == (2, 20, 24, 4)

    same = results[0][0] == results[1][0]
    assert same.float().mean() > 0.99
    for index in (1, 2):
        torch.testing.assert_close(results[0][index][same], results[1][index][same], atol=1e-4, rtol=1e-3)
    assert ((results[0][3] - results[1][3]).abs() > 1e-3).float().mean() < 0.02
    if bool(same.all()):
        grads = [torch.autograd.grad(r[3].sum(), r[4])[0] for r in results]
        torch.testing.assert_close(*grads, atol=1e-2, rtol=1e-2)
    covered = rast[..., 3] > 0
    assert (rast[~covered] == 0).all()
    torch.testing.assert_close(rast[..., 2][covered & same], fragments.depth[covered & same], atol=1e-4, rtol=0)


def test_texture_space_as_bakers_use_it():
    """Texture coordinates as clip space with w = 1 and all at one depth."""
    uv, faces = rectangle((0.25, 0.5), (0.75, 1.0))
    clip = torch.cat([uv[:, :2] * 2 - 1, torch.zeros(4, 1), torch.ones(4, 1)], -1)
    context = NVDiffRasterizerContext("cuda", CPU)
    rast, _ = context.rasterize_one(clip, faces, 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[8:, 4:12] = True
    assert torch.equal(rast[..., 3] > 0, expected)
    positions, _ = context.interpolate_one(uv, rast[None], faces)
    x = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(positions[0, 8:, 4:12, 0], x[4:12].expand(8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(positions[0, 8:, 4:12, 1], x[8:, None].expand(8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flat", [False, True])
def test_a_world_is_found_behind_clip_space(flat):
    v_pos, _ = icosphere(2)
    if flat:
        v_pos = v_pos * torch.tensor([1.0, 1.0, 0.0])
    mvp = camera_batch(1, 8, 8)["mvp_mtx"][0]
    clip = torch.cat([v_pos, torch.ones(len(v_pos), 1)], -1) @ mvp.T
    world, matrix = world_of_clip(clip)
    again = torch.cat([world, torch.ones(len(world), 1)], -1).double() @ matrix.T
    torch.testing.assert_close(again, clip.double(), atol=1e-5, rtol=0)


def test_bad_input_is_one_clear_line():
    with pytest.raises(UserError, match="gl or cuda.*'opengl'"):
        NVDiffRasterizerContext("opengl", CPU)
    context = NVDiffRasterizerContext("gl", CPU)
    with pytest.raises(UserError, match="not a mesh seen by any camera"):
        context.rasterize(
            torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1, 2]]), 8
        )
    with pytest.raises(UserError, match="NaN"):
        context.rasterize(torch.full((1, 3, 4), float("nan")), torch.tensor([[0, 1, 2]]), 8)
    v_pos, faces = icosphere(0)
    rast, _ = context.rasterize(context.vertex_transform(v_pos, camera_batch(1, 8, 8)["mvp_mtx"]), faces, 8)
    with pytest.raises(UserError, match="diff_attrs"):
        context.interpolate(v_pos, rast, faces, diff_attrs="all")
