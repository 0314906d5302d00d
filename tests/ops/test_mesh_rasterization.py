"""Visibility and interpolation on meshes: by hand, by rays solved against triangles, and Warp against torch."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.meshes import camera_batch, flat_camera, icosphere, join, ray_triangle_hits, rectangle, soup
from tests.ops.running import skips_without
from threestudio.ops.mesh_rasterization import available_backends, interpolate, invert_camera, rasterize
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_projection_matrix

BACKENDS = ["torch", "warp"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


need = skips_without(available_backends)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slanting_triangle_by_hand(backend):
    need(backend)
    # Seen by a camera at the origin that looks along -z with a right angle's view: x_clip = x, y_clip = -y, w = -z.
    mvp = get_projection_matrix(torch.tensor([math.pi / 2]), 1.0, 0.5, 10.0)
    v_pos = torch.tensor([[-4.0, -4.0, -4.0], [4.0, -4.0, -4.0], [0.0, 1.0, -1.0]])
    fragments = rasterize(v_pos, torch.tensor([[0, 1, 2]]), mvp, 8, 8, backend)
    # The ray (x, y, -1) t meets the plane 5 z = -3 y - ... through the corners: y = 1 + (z + 1) 5 / 3.
    row, column = 5, 4  # y = -0.375, x = 0.125
    x, y = 0.125, -0.375
    w = (1 + 5 / 3) / (y + 5 / 3)
    point = torch.tensor([x * w, y * w, -w])
    corners = v_pos.T
    expected = torch.linalg.solve(corners, point)
    assert fragments.face[0, row, column] == 0
    torch.testing.assert_close(fragments.barycentric[0, row, column], expected, atol=1e-5, rtol=0)
    depth = (-(10.5 / 9.5) * -w - 10 / 9.5) / w
    torch.testing.assert_close(fragments.depth[0, row, column].item(), depth, atol=1e-5, rtol=0)
    assert (
        fragments.face[0, 0, 0] == -1
        and fragments.barycentric[0, 0, 0].abs().sum() == 0
        and fragments.depth[0, 0, 0] == 1
    )
    # z up in the world is up in the picture: the apex is above the base.
    rows = (fragments.face[0] >= 0).sum(1)
    assert rows[0] == 0 and rows[-1] > rows[2] > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(24, 24), (20, 33)])
def test_masks_by_rays_and_by_matrix_are_one(backend, shape):
    need(backend)
    height, width = shape
    batch = camera_batch(3, height, width, distance=2.0)
    v_pos, faces = soup(20, seed=3)
    fragments = rasterize(v_pos, faces, batch["mvp_mtx"], height, width, backend)
    expected = ray_triangle_hits(batch["rays_o"], batch["rays_d"], v_pos, faces)
    assert 0.1 < (expected >= 0).float().mean() < 0.95
    assert (fragments.face != expected).sum() <= 2  # a centre on an edge may fall to either side


@pytest.mark.parametrize("backend", BACKENDS)
def test_interpolated_positions_lie_on_the_rays_and_the_depth_is_theirs(backend):
    need(backend)
    batch = camera_batch(2, 24, 24)
    v_pos, faces = icosphere(2, 0.8)
    fragments = rasterize(v_pos, faces, batch["mvp_mtx"], 24, 24, backend)
    points = interpolate(v_pos, faces, fragments, backend)
    seen = fragments.face >= 0
    off = torch.linalg.cross(points - batch["rays_o"], batch["rays_d"])
    assert off[seen].norm(dim=-1).max() < 1e-5
    clip = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ batch["mvp_mtx"].transpose(1, 2)[:, None]
    torch.testing.assert_close((clip[..., 2] / clip[..., 3])[seen], fragments.depth[seen], atol=1e-5, rtol=0)
    assert (fragments.barycentric >= 0).all()
    torch.testing.assert_close(fragments.barycentric.sum(-1), seen.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangles_through_the_near_plane_and_behind_the_camera(backend):
    need(backend)
    # A floor from behind the camera to far in front of it: the horizon is in the middle.
    mvp = get_projection_matrix(torch.tensor([math.pi / 2]), 1.0, 0.1, 100.0)
    v_pos = torch.tensor([[-50.0, -1.0, 20.0], [50.0, -1.0, 20.0], [0.0, -1.0, -2000.0]])
    fragments = rasterize(v_pos, torch.tensor([[0, 1, 2]]), mvp, 16, 16, backend)
    assert (fragments.face[0, :8] == -1).all()
    assert (fragments.face[0, 9:] == 0).all()
    points = interpolate(v_pos, torch.tensor([[0, 1, 2]]), fragments, backend)[0, 9:]
    torch.testing.assert_close(points[..., 1], torch.full((7, 16), -1.0), atol=1e-4, rtol=0)
    y = -(torch.arange(9, 16) + 0.5) / 8 + 1
    torch.testing.assert_close(points[..., 2], (1 / y)[:, None].expand(7, 16), atol=1e-4, rtol=1e-4)
    # Nearer than the near plane, or beyond the far one: not seen. z_world in (-100, -0.1).
    near = torch.tensor([[-1.0, -1, -0.05], [1, -1, -0.05], [0, 1, -0.05]])
    far = near * torch.tensor([1e5, 1e5, 1e4])
    for v_pos in (near, far, near * torch.tensor([1.0, 1, -1])):
        assert (rasterize(v_pos, torch.tensor([[0, 1, 2]]), mvp, 8, 8, backend).face == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_wins_from_both_sides_in_a_parallel_projection(backend):
    need(backend)
    mesh = join(
        rectangle((-0.5, -0.5), (0.5, 0.5), 0.0), rectangle((-1, -1), (0, 1), -0.5), rectangle((0.25, -1), (1, 1), 0.5)
    )
    face = rasterize(*mesh, flat_camera(), 8, 8, backend).face[0] // 2
    assert (face[:, :4] == 1).all()
    assert (face[2:6, 4:6] == 0).all()
    assert (face[2:6, 6:] == 2).all() and (face[:2, 5:] == 2).all()
    assert (face[:2, 4] == -1).all()
    flipped = rasterize(mesh[0], mesh[1].flip(1), flat_camera(), 8, 8, backend).face[0] // 2
    assert torch.equal(face, flipped)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sphere", "soup", "tiny"])
def test_warp_agrees_with_the_torch_reference(name, device):
    need("warp", device)
    mesh = {"sphere": icosphere(3, 0.9), "soup": soup(80), "tiny": icosphere(5, 0.7)}[name]
    batch = camera_batch(2, 24, 24, distance=1.6 if name == "soup" else 2.5)
    results = []
    for backend, dtype in (("torch", torch.float64), ("warp", torch.float32)):
        v_pos = mesh[0].to(device, dtype).requires_grad_()
        faces, mvp = mesh[1].to(device), batch["mvp_mtx"].to(device, dtype)
        fragments = rasterize(v_pos, faces, mvp, 24, 24, backend)
        attributes = torch.sin(3 * v_pos.detach() + torch.arange(3).to(v_pos)).requires_grad_()
        image = interpolate(attributes, faces, fragments, backend)
        results.append((v_pos, attributes, fragments, image))
    same = results[0][2].face == results[1][2].face
    assert same.float().mean() > 0.995
    grads = []
    for v_pos, attributes, fragments, image in results:
        # Pixels on an edge may see either face: they are left out of the comparison.
        loss = (image * torch.cos(torch.arange(3).to(image)) * same[..., None]).sum() + (fragments.depth * same).sum()
        grads.append(
            [
                image.detach() * same[..., None],
                fragments.depth.detach() * same,
                *torch.autograd.grad(loss, [v_pos, attributes]),
            ]
        )
    tolerance = {"sphere": 1e-4, "soup": 1e-4, "tiny": 2e-3}[name]
    for a, b in zip(*grads):
        assert (a - b).abs().max() < tolerance * (1 + a.abs().max())


def test_the_reference_is_the_derivative_of_itself():
    v_pos, faces = soup(6, seed=5, size=1.0)
    v_pos = v_pos.double().requires_grad_()
    mvp = camera_batch(1, 6, 6, distance=2.5)["mvp_mtx"].double().requires_grad_()
    attributes = torch.rand(
        len(v_pos), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()

    def images(v_pos, mvp, attributes):
        fragments = rasterize(v_pos, faces, mvp, 6, 6, "torch")
        return interpolate(attributes, faces, fragments, "torch"), fragments.depth

    assert (rasterize(v_pos, faces, mvp, 6, 6, "torch").face >= 0).sum() > 10
    assert torch.autograd.gradcheck(images, (v_pos, mvp, attributes), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_nonmanifold_and_unused_parts_do_no_harm(backend):
    need(backend)
    v_pos, faces = icosphere(1, 0.9)
    v_pos = torch.cat([v_pos, torch.tensor([[5.0, 5, 5], [0, 0, 2], [0, 0, 1.5]])])
    n = len(v_pos)
    strange = torch.tensor(
        [[0, 0, 0], [1, 1, 2], [0, 1, n - 1], [0, 1, n - 2]]
    )  # points, a line, a fin on an edge of two faces
    v_pos = v_pos.requires_grad_()
    batch = camera_batch(2, 20, 20)
    plain = rasterize(v_pos, faces, batch["mvp_mtx"], 20, 20, backend)
    fragments = rasterize(v_pos, torch.cat([faces, strange]), batch["mvp_mtx"], 20, 20, backend)
    assert ((fragments.face == plain.face) | (fragments.face >= len(faces) + 2)).all()
    (grad,) = torch.autograd.grad(fragments.barycentric[..., 0].sum() + fragments.depth.sum(), v_pos)
    assert grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_seen_from_its_edge_gives_finite_gradients(backend):
    need(backend)
    angle = 1e-6
    v_pos = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, -0.5 + math.sin(angle), 0.9]]).requires_grad_()
    fragments = rasterize(v_pos, torch.tensor([[0, 1, 2]]), flat_camera(), 5, 5, backend)
    values = interpolate(torch.rand(3, 2), torch.tensor([[0, 1, 2]]), fragments, backend)
    assert values.isfinite().all()
    (grad,) = torch.autograd.grad(values.sum() + fragments.depth.sum(), v_pos)
    assert grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_attributes_may_differ_by_view_and_have_their_own_indices(backend):
    need(backend)
    v_pos, faces = icosphere(1, 0.9)
    batch = camera_batch(2, 12, 12)
    fragments = rasterize(v_pos, faces, batch["mvp_mtx"], 12, 12, backend)
    both = interpolate(torch.stack([v_pos, 2 * v_pos]), faces, fragments, backend)
    once = interpolate(v_pos, faces, fragments, backend)
    torch.testing.assert_close(both, torch.stack([once[0], 2 * once[1]]))
    corners = v_pos[faces].reshape(-1, 3)  # every face has corners of its own
    torch.testing.assert_close(interpolate(corners, torch.arange(len(corners)).view(-1, 3), fragments, backend), once)


def test_warp_repeats_bit_for_bit_on_a_cpu():
    need("warp")
    v_pos, faces = icosphere(3, 0.8)
    mvp = camera_batch(2, 24, 24)["mvp_mtx"]

    def run():
        v = v_pos.clone().requires_grad_()
        fragments = rasterize(v, faces, mvp, 24, 24, "warp")
        image = interpolate(v.sin(), faces, fragments, "warp")
        return [*fragments, image, torch.autograd.grad(image.square().sum(), v)[0]]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_one_clear_line(backend):
    need(backend)
    v_pos, faces = icosphere(0)
    mvp = camera_batch(2, 8, 8)["mvp_mtx"]
    nan = v_pos.clone()
    nan[3, 1] = float("nan")
    singular = mvp.clone()
    singular[1, :, 2] = 0
    cases = [
        (v_pos, faces[:0], mvp, 8, "empty.*0 faces"),
        (nan, faces, mvp, 8, "1 of 12 vertices are NaN"),
        (v_pos, faces + 1, mvp, 8, "1 to 12, the mesh has 12"),
        (v_pos, faces - 1, mvp, 8, "-1 to 10"),
        (v_pos, faces, singular, 8, "view 1 is degenerate"),
        (v_pos, faces, mvp * float("nan"), 8, "view 0 is degenerate"),
        (v_pos, faces, mvp, 10**7, "GiB.*lower the resolution"),
        (v_pos, faces, mvp, 0, "at least 1 x 1"),
    ]
    for v, t, m, size, message in cases:
        with pytest.raises(UserError, match=message) as error:
            rasterize(v, t, m, size, size, backend)
        assert "\n" not in str(error.value)
    fragments = rasterize(v_pos, faces, mvp, 8, 8, backend)
    with pytest.raises(UserError, match="different meshes"):
        interpolate(v_pos[:5], faces, fragments, backend)
    with pytest.raises(UserError, match="different meshes"):
        interpolate(v_pos, faces[:1], fragments, backend)
    with pytest.raises(UserError, match="backend.*warp.*'gl'"):
        rasterize(v_pos, faces, mvp, 8, 8, "gl")
    with pytest.raises(ValueError, match=r"\[V, 3\]"):
        rasterize(v_pos[None], faces, mvp, 8, 8, backend)


def test_a_camera_is_inverted_in_double_precision():
    mvp = camera_batch(2, 8, 8)["mvp_mtx"]
    product = invert_camera(mvp) @ mvp.double()
    torch.testing.assert_close(product, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), atol=1e-10, rtol=0)


DEBUG_RUN = """
import sys, torch
import threestudio.ops.warp_runtime as runtime
runtime.wp.config.mode = "debug"
runtime.wp.config.kernel_cache_dir = sys.argv[1]
from tests.ops.meshes import camera_batch, icosphere, join, soup
from threestudio.ops.mesh_antialias import antialias
from threestudio.ops.mesh_rasterization import interpolate, rasterize
v_pos, faces = join(icosphere(1, 0.9), soup(10, size=3.0))  # some reach behind the cameras and beyond all sides
for height, width in ((7, 9), (1, 1), (1, 5)):
    v = v_pos.clone().requires_grad_()
    mvp = camera_batch(2, height, width, distance=1.2)["mvp_mtx"]
    fragments = rasterize(v, faces, mvp, height, width, "warp")
    image = antialias(interpolate(v, faces, fragments, "warp"), fragments, v, faces, mvp, "warp")
    (image.square().sum() + fragments.depth.sum()).backward()
    assert v.grad.isfinite().all() and fragments.face.max() >= 0
print("within bounds", flush=True)

wp = runtime.wp

@wp.kernel
def beyond(x: wp.array(dtype=wp.float32)):
    x[wp.tid()] = 1.0

wp.launch(beyond, 3, [wp.zeros(2, dtype=wp.float32, device="cpu")], device="cpu")  # what the mode is there to catch
print("not caught")
"""


def test_kernels_stay_within_bounds_in_warps_debug_mode(tmp_path):
    need("warp")
    root = Path(__file__).resolve().parents[2]
    script = tmp_path / "run.py"  # Warp reads kernels from files
    script.write_text(DEBUG_RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "WARP_CACHE_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "within bounds" in done.stdout, done.stderr
    assert done.returncode != 0 and "not caught" not in done.stdout and "Assertion failed" in done.stderr, done.stderr
