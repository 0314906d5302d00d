import torch

from threestudio.ops.uv_rasterize import fill_nearest, rasterize_uv


def test_two_triangles_cover_the_square_once():
    v = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    f = torch.tensor([[0, 1, 2], [0, 2, 3]])
    face, barycentric = rasterize_uv(v, f, 12, 16)
    assert face.shape == (12, 16) and (face >= 0).all() and set(face.unique().tolist()) == {0, 1}
    # Interpolated texture coordinates are the texels' own centres.
    uv = (barycentric[..., None] * v[f[face]]).sum(-2)
    expected = torch.stack(
        torch.meshgrid((torch.arange(16) + 0.5) / 16, (torch.arange(12) + 0.5) / 12, indexing="xy"), -1
    )
    torch.testing.assert_close(uv, expected, atol=1e-6, rtol=0)


def test_covered_area_outside_is_empty_and_slivers_are_harmless():
    v = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [2.0, 2.0], [-1.0, 0.1]])
    f = torch.tensor([[0, 1, 2], [3, 3, 3], [0, 0, 4]])
    face, _ = rasterize_uv(v, f, 64, 64)
    assert set(face.unique().tolist()) == {-1, 0}
    assert abs((face == 0).float().mean().item() - 0.125) < 0.01


def test_orientation_does_not_matter():
    v = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    a, _ = rasterize_uv(v, torch.tensor([[0, 1, 2]]), 32, 32)
    b, _ = rasterize_uv(v, torch.tensor([[0, 2, 1]]), 32, 32)
    assert torch.equal(a, b)


def test_unknown_texels_take_their_nearest():
    image = torch.zeros(5, 5, 1)
    known = torch.zeros(5, 5, dtype=torch.bool)
    known[0, 0], known[4, 4] = True, True
    image[0, 0], image[4, 4] = 1.0, 2.0
    filled = fill_nearest(image, known)
    assert filled[1, 1] == 1 and filled[3, 4] == 2 and filled[0, 0] == 1
    assert torch.equal(fill_nearest(image, torch.zeros_like(known)), image)
