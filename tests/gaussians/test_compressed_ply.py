"""Compressed PLY files of 3D Gaussians: packed here by the public layout, read back to within a step of each number."""

import math

import numpy as np
import pytest
import torch
from turboprop.gaussians.geometry import GaussianSplatting
from turboprop.gaussians.ply import points_of, read_3dgs_ply, read_ply_vertices
from turboprop.gaussians.spherical_harmonics import DC

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file

LIMITS = ("x", "y", "z", "scale_x", "scale_y", "scale_z")


def packed(shares, bits):
    """Shares [N, K] in [0, 1] as unsigned numbers of these bits each, the first one highest."""
    result = np.zeros(len(shares), np.uint32)
    for column, n in zip(np.asarray(shares, np.float64).T, bits):
        result = (result << np.uint32(n)) | np.round(column * ((1 << n) - 1)).astype(np.uint32)
    return result


def packed_rotations(quaternions):
    """The largest of four components, wxyz, is left out; the whole is turned so that it is positive."""
    largest = np.abs(quaternions).argmax(1)
    rows = np.arange(len(quaternions))
    signed = quaternions * np.sign(quaternions[rows, largest])[:, None]
    smaller = np.stack([np.delete(signed[i], largest[i]) for i in rows])
    shares = np.concatenate([largest[:, None] / 3.0, smaller / math.sqrt(2) + 0.5], 1)
    return packed(shares, (2, 10, 10, 10))


def write_compressed(path, table, rgba, quaternions, color_limits=False, harmonics=None, chunks=None):
    """table: [N, 6] places and log scales; rgba [N, 4] in [0, 1]."""
    n = len(table)
    chunk_of = np.arange(n) // 256
    count = chunk_of.max() + 1
    low = np.stack([table[chunk_of == i].min(0) for i in range(count)])
    high = np.stack([table[chunk_of == i].max(0) for i in range(count)])
    names = [f"{end}_{name}" for part in (LIMITS[:3], LIMITS[3:]) for end in ("min", "max") for name in part]
    columns = {f"min_{name}": low[:, i] for i, name in enumerate(LIMITS)}
    columns.update({f"max_{name}": high[:, i] for i, name in enumerate(LIMITS)})
    stored = rgba
    if color_limits:  # colours from 0.2 to 0.7 use all eight bits
        names += [f"{end}_{name}" for end in ("min", "max") for name in "rgb"]
        for end, value in (("min", 0.2), ("max", 0.7)):
            columns.update({f"{end}_{c}": np.full(count, value) for c in "rgb"})
        stored = np.concatenate([(rgba[:, :3] - 0.2) / 0.5, rgba[:, 3:]], 1)
    shares = (table - low[chunk_of]) / np.maximum(high - low, 1e-12)[chunk_of]
    rows = np.stack(
        [packed(shares[:, :3], (11, 10, 11)), packed_rotations(quaternions), packed(shares[:, 3:], (11, 10, 11)),
         packed(stored, (8, 8, 8, 8))], 1,
    )  # fmt: skip
    header = ["ply", "format binary_little_endian 1.0", "comment made by a test", f"element chunk {chunks or count}"]
    header += [f"property float {name}" for name in names] + [f"element vertex {n}"]
    header += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    body = np.stack([columns[name] for name in names], 1).astype("<f4")[: chunks or count].tobytes()
    body += rows.astype("<u4").tobytes()
    if harmonics is not None:
        header += [f"element sh {n}"] + [f"property uchar f_rest_{i}" for i in range(harmonics.shape[1])]
        body += np.round((harmonics + 4) * 255 / 8).astype(np.uint8).tobytes()
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + body)


def scene(n=300):
    """More Gaussians than fit one chunk, whose largest rotation component is each of the four."""
    random = np.random.default_rng(3)
    table = np.concatenate([random.uniform(-0.5, 0.5, (n, 3)), random.uniform(-4, -2, (n, 3))], 1)
    quaternions = random.normal(size=(n, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return table, random.uniform(0.2, 0.7, (n, 4)), quaternions


@pytest.mark.parametrize("color_limits", [False, True])
def test_numbers_come_back(tmp_path, color_limits):
    table, rgba, quaternions = scene()
    harmonics = np.random.default_rng(4).uniform(-3, 3, (300, 9))
    write_compressed(tmp_path / "a.ply", table, rgba, quaternions, color_limits, harmonics)
    read = {name: value.double().numpy() for name, value in read_3dgs_ply(tmp_path / "a.ply").items()}
    assert set(np.abs(quaternions).argmax(1)) == {0, 1, 2, 3}
    assert np.abs(read["means"] - table[:, :3]).max() <= 0.5 / 1023 + 1e-6
    assert np.abs(read["log_scales"] - table[:, 3:]).max() <= 0.5 * 2 / 1023 + 1e-6
    turn = (read["quaternions"] * quaternions).sum(1)
    assert np.abs(np.abs(turn) - 1).max() < 1e-5
    step = 0.5 * (0.5 if color_limits else 1.0) / 255
    assert np.abs(read["sh_dc"][:, 0] * DC + 0.5 - rgba[:, :3]).max() <= step + 1e-6
    assert np.abs(1 / (1 + np.exp(-read["opacity_logits"])) - rgba[:, 3]).max() <= 0.5 / 255 + 1e-6
    assert np.abs(read["sh_rest"] - harmonics.reshape(300, 3, 3).transpose(0, 2, 1)).max() <= 4 / 255 + 1e-6


def test_ends_of_the_opacity_are_finite(tmp_path):
    table, rgba, quaternions = scene(4)
    rgba[0, 3], rgba[1, 3] = 0.0, 1.0
    write_compressed(tmp_path / "a.ply", table, rgba, quaternions)
    opacity = torch.sigmoid(read_3dgs_ply(tmp_path / "a.ply")["opacity_logits"])
    assert opacity[:2].tolist() == pytest.approx([0.0, 1.0], abs=1e-4)


def test_points_of_a_compressed_file_have_colours(tmp_path):
    table, rgba, quaternions = scene(20)
    write_compressed(tmp_path / "a.ply", table, rgba, quaternions)
    points, colors = points_of(tmp_path / "a.ply", read_ply_vertices(tmp_path / "a.ply").columns)
    assert np.allclose(points, table[:, :3], atol=1e-3) and np.allclose(colors, rgba[:, :3], atol=3e-3)


def test_every_geometry_starts_from_a_compressed_file(tmp_path):
    """Opaque Gaussians on a ball: a surface for meshes, and Gaussians for gaussian-splatting."""
    random = np.random.default_rng(5)
    places = random.normal(size=(100, 3))
    places *= 0.4 / np.linalg.norm(places, axis=1, keepdims=True)
    table = np.concatenate([places, np.full((100, 3), math.log(0.1))], 1)
    rgba = np.tile([1.0, 0.0, 0.0, 1.0], (100, 1))
    write_compressed(tmp_path / "ball.ply", table, rgba, np.tile([1.0, 0, 0, 0], (100, 1)))
    mesh = load_mesh_file(str(tmp_path / "ball.ply"))
    assert 0.35 < mesh.v_pos.norm(dim=-1).median() < 0.7 and mesh.extras["has_colors"]
    assert torch.allclose(mesh.v_rgb, torch.tensor([1.0, 0.0, 0.0]).expand_as(mesh.v_rgb), atol=0.01)
    geometry = threestudio.find("gaussian-splatting")({"geometry_convert_from": str(tmp_path / "ball.ply")})
    assert isinstance(geometry, GaussianSplatting) and geometry.count == 100


def test_what_is_missing_is_named(tmp_path):
    table, rgba, quaternions = scene(300)
    write_compressed(tmp_path / "a.ply", table, rgba, quaternions, chunks=1)
    with pytest.raises(UserError, match="300 compressed 3D Gaussians need 2 chunks, got 1"):
        read_3dgs_ply(tmp_path / "a.ply")
    write_compressed(tmp_path / "b.ply", table, rgba, quaternions)
    content = (tmp_path / "b.ply").read_bytes()
    (tmp_path / "b.ply").write_bytes(content.replace(b"packed_scale", b"packed_scala").replace(b"max_x", b"max_w"))
    with pytest.raises(UserError, match="compressed 3D Gaussians need the columns packed_scale, max_x"):
        read_3dgs_ply(tmp_path / "b.ply")
    (tmp_path / "c.ply").write_bytes(content[:-100])
    with pytest.raises(UserError, match="c.ply: cut short"):
        read_3dgs_ply(tmp_path / "c.ply")
    rgba[:, 3] = 0.0
    write_compressed(tmp_path / "empty.ply", table, rgba, quaternions)
    with pytest.raises(UserError, match="empty.ply holds compressed 3D Gaussians: no surface"):
        load_mesh_file(str(tmp_path / "empty.ply"))
