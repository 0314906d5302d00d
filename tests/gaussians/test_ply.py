"""PLY files: what is written is read back, and what is broken is said in one line."""

import struct

import numpy as np
import pytest
import torch
from turboprop.gaussians.geometry import GaussianSplatting
from turboprop.gaussians.parameters import from_points
from turboprop.gaussians.ply import points_of, read_3dgs_ply, read_ply_vertices, write_3dgs_ply

import threestudio
from threestudio.models.geometry.mesh_start import MeshStartConfig, read_start_mesh
from threestudio.utils.errors import UserError


def parameters_of(n: int = 7, degree: int = 0, normals: bool = False) -> dict:
    generator = torch.Generator().manual_seed(2)
    parameters = from_points(
        torch.randn(n, 3, generator=generator),
        torch.rand(n, 3, generator=generator),
        torch.full((n,), 0.1),
        0.4,
        degree,
        normals,
    )
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in parameters.items()}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gaussians_survive_a_file(tmp_path, degree):
    parameters = parameters_of(degree=degree)
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    read = read_3dgs_ply(tmp_path / "a.ply")
    assert read.keys() == parameters.keys()
    assert all(torch.equal(read[name], parameters[name]) for name in parameters)


def test_the_layout_is_the_one_that_viewers_read(tmp_path):
    """Header and columns, read here by numpy alone."""
    parameters = parameters_of(n=3, degree=1, normals=True)
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.split()[2] for line in lines[3:]]
    assert all(line.startswith("property float ") for line in lines[3:])
    assert names == [
        "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *[f"f_rest_{i}" for i in range(9)],
        "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
    ]  # fmt: skip
    table = np.frombuffer(body, "<f4").reshape(3, len(names))
    column = {name: table[:, i] for i, name in enumerate(names)}
    rest = parameters["sh_rest"].numpy()
    assert np.array_equal(column["f_rest_0"], rest[:, 0, 0]) and np.array_equal(column["f_rest_1"], rest[:, 1, 0])
    assert np.array_equal(column["f_rest_3"], rest[:, 0, 1]) and np.array_equal(column["f_rest_8"], rest[:, 2, 2])
    assert np.array_equal(column["opacity"], parameters["opacity_logits"].numpy())
    assert np.array_equal(column["rot_0"], parameters["quaternions"].numpy()[:, 0])
    assert np.array_equal(column["nz"], parameters["normals"].numpy()[:, 2])


def test_a_file_of_more_columns_in_another_order_is_read(tmp_path):
    """Big endian doubles, with a column that nobody asked for."""
    parameters = parameters_of(n=4)
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    columns = read_ply_vertices(tmp_path / "a.ply").columns
    names = ["extra", *sorted(columns)]
    table = np.stack([columns.get(name, np.zeros(4)) for name in names], 1).astype(">f8")
    header = ["ply", "format binary_big_endian 1.0", "comment made elsewhere", "element vertex 4"]
    header += [f"property double {name}" for name in names] + ["end_header", ""]
    (tmp_path / "b.ply").write_bytes("\n".join(header).encode() + table.tobytes())
    read = read_3dgs_ply(tmp_path / "b.ply")
    assert all(torch.equal(read[name], parameters[name]) for name in parameters)


ASCII_POINTS = """ply
format ascii 1.0
element vertex 2
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
0 0.5 1 255 0 51
1 2 3 0 0 0
"""


def test_points_with_colors(tmp_path):
    path = tmp_path / "points.ply"
    path.write_text(ASCII_POINTS)
    points, colors = points_of(path, read_ply_vertices(path).columns)
    assert points.tolist() == [[0.0, 0.5, 1.0], [1.0, 2.0, 3.0]]
    assert torch.allclose(colors, torch.tensor([[1.0, 0.0, 0.2], [0.0, 0.0, 0.0]]))


def broken(content: bytes, kind: str) -> bytes:
    if kind == "cut":
        return content[:-10]
    if kind == "column":
        return content.replace(b"float scale_1", b"float scaly_1")
    if kind == "header":
        return content.replace(b"end_header", b"xxx_header")
    if kind == "count":
        return content.replace(b"element vertex 7", b"element vertex x")
    if kind == "format":
        return content.replace(b"binary_little_endian", b"binary_medium_endian")
    if kind == "elements":
        return content.replace(b"element vertex", b"element points")
    if kind == "type":
        return content.replace(b"property float opacity", b"property list uchar int opacity")
    return content


@pytest.mark.parametrize(
    "kind, message",
    [
        ("cut", "cut short, 7 vertices need 476 bytes, the file has 466"),
        ("column", "3D Gaussians need the columns scale_1; the file has x, y"),
        ("header", "not a PLY file"),
        ("count", "broken PLY header at 'element vertex x'"),
        ("format", "unknown PLY format 'binary_medium_endian'"),
        ("type", "cut short"),
        ("elements", "expected vertices, got ['points']"),
    ],
)
def test_broken_files_are_said_in_one_line(tmp_path, kind, message):
    path = tmp_path / "a.ply"
    write_3dgs_ply(path, parameters_of())
    path.write_bytes(broken(path.read_bytes(), kind))
    with pytest.raises(ValueError) as raised:
        read_3dgs_ply(path)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_values_that_cannot_be(tmp_path):
    path = tmp_path / "a.ply"
    parameters = parameters_of()
    parameters["means"][2:4, 1] = float("nan")
    parameters["log_scales"][5, 0] = float("inf")
    write_3dgs_ply(path, parameters)
    with pytest.raises(UserError, match="a.ply: not finite: y in 2, scale_0 in 1 of 7 rows"):
        read_3dgs_ply(path)
    with pytest.raises(UserError, match="no PLY file at"):
        read_3dgs_ply(tmp_path / "none.ply")
    path.write_text(ASCII_POINTS.replace("1 2 3 0 0 0\n", "1 2"))
    with pytest.raises(UserError, match="cut short or broken, expected 2 lines of 6 numbers"):
        read_ply_vertices(path)


def test_values_at_the_end_of_their_range_are_replaced_and_counted(tmp_path, caplog):
    """Fully opaque and invisible ones, flat ones and such without a rotation; all others stay as they are."""
    parameters = parameters_of()
    parameters["opacity_logits"][0], parameters["opacity_logits"][1] = float("inf"), float("-inf")
    parameters["log_scales"][2, 2] = float("-inf")
    parameters["quaternions"][3] = 0
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    with caplog.at_level("WARNING"):
        read = read_3dgs_ply(tmp_path / "a.ply")
    assert "opacity infinite in 2, scale_ minus infinity (flat) in 1, rot_ of length 0 in 1 of 7 rows" in caplog.text
    assert torch.sigmoid(read["opacity_logits"][:2]).tolist() == pytest.approx([1.0, 0.0], abs=1e-4)
    assert read["log_scales"][2, 2].exp().item() == pytest.approx(1e-6, rel=1e-3)
    assert read["quaternions"][3].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert torch.equal(read["means"], parameters["means"]) and torch.equal(read["sh_dc"], parameters["sh_dc"])
    assert torch.equal(read["opacity_logits"][2:], parameters["opacity_logits"][2:])
    assert torch.equal(read["log_scales"][3:], parameters["log_scales"][3:])
    assert torch.equal(read["quaternions"][4:], parameters["quaternions"][4:])


def test_lengths_whose_squares_are_no_numbers(tmp_path, caplog):
    """Scales and rotations that are finite and would make infinite or empty matrices."""
    parameters = parameters_of()
    turns = parameters["quaternions"].clone()
    parameters["log_scales"][0, 0], parameters["log_scales"][1, 1] = 300.0, 89.0
    parameters["quaternions"][2] *= 1e-30
    parameters["quaternions"][3] *= 1e30
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    with caplog.at_level("WARNING"):
        read = read_3dgs_ply(tmp_path / "a.ply")
    assert "scale_ beyond exp(13.8) in 2 of 7 rows" in caplog.text
    assert read["log_scales"].max().exp().item() == pytest.approx(1e6, rel=1e-4)
    expected = torch.nn.functional.normalize(turns[2:4], dim=-1)
    torch.testing.assert_close(read["quaternions"][2:4], expected)
    assert torch.equal(read["quaternions"][4:], turns[4:])


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian"])
def test_elements_before_the_vertices_are_passed_over(tmp_path, form):
    """A camera of two numbers, then a list of three and one of five values, then the Gaussians."""
    parameters = parameters_of(n=5)
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    columns = read_ply_vertices(tmp_path / "a.ply").columns
    order = "<" if form == "binary_little_endian" else ">"
    header = ["ply", f"format {form} 1.0", "element camera 1", "property float fx", "property double fy"]
    header += ["element path 2", "property uchar id", "property list uchar short steps", "element vertex 5"]
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    body = struct.pack(f"{order}fd", 1.5, 2.5)
    body += struct.pack(f"{order}BB3h", 7, 3, 1, 2, 3) + struct.pack(f"{order}BB5h", 8, 5, 1, 2, 3, 4, 5)
    body += np.stack(list(columns.values()), 1).astype(f"{order}f4").tobytes()
    (tmp_path / "b.ply").write_bytes("\n".join(header).encode() + body)
    read = read_3dgs_ply(tmp_path / "b.ply")
    assert all(torch.equal(read[name], parameters[name]) for name in parameters)


def test_a_gaussian_ply_starts_other_representations(tmp_path):
    """A red ball of Gaussians becomes a red distance field of its size."""
    torch.manual_seed(0)
    source = GaussianSplatting({"init_num_pts": 600, "pc_init_radius": 0.4, "opacity_init": 0.9})
    with torch.no_grad():
        source.sh_dc.copy_(torch.tensor([1.4, -1.4, -1.4]).expand_as(source.sh_dc))
    path = tmp_path / "ball.ply"
    source.export_gaussians_ply(str(path))
    mesh = read_start_mesh(str(path), MeshStartConfig(), 1.0)
    surface = source.isosurface()
    assert torch.allclose(mesh.v_pos.amax(0), surface.v_pos.amax(0), atol=1e-5)
    turned = read_start_mesh(str(path), MeshStartConfig(up="+y", front="+z"), 1.0)
    for statistic in (torch.mean, torch.std):  # vertices come in another order
        assert torch.allclose(statistic(turned.v_pos, 0), statistic(mesh.v_pos[:, [2, 0, 1]], 0), atol=1e-5)
    encoding = {
        "otype": "HashGrid",
        "n_levels": 4,
        "n_features_per_level": 2,
        "log2_hashmap_size": 12,
        "base_resolution": 4,
        "per_level_scale": 1.5,
    }
    field = threestudio.find("implicit-sdf")({"pos_encoding_config": encoding, "isosurface_resolution": 24})
    material = threestudio.find("no-material")({})
    field.init_from_mesh(mesh, material, steps=100)
    with torch.no_grad():
        made = field.isosurface()
        albedo = material.export(points=made.v_pos, **field.export(points=made.v_pos))["albedo"]
    reach = float(surface.v_pos.norm(dim=-1).median())
    assert abs(float(made.v_pos.norm(dim=-1).median()) - reach) < 0.06
    assert albedo[:, 0].mean() > 0.7 and albedo[:, 1:].mean() < 0.3


def test_mip_splattings_filter_is_applied(tmp_path):
    """Variances add, and opacity times volume stays: the file's viewers draw the same."""
    parameters = parameters_of(n=4)
    write_3dgs_ply(tmp_path / "a.ply", parameters)
    columns = read_ply_vertices(tmp_path / "a.ply").columns
    columns["filter_3D"] = np.array([0.0, 0.01, 0.3, 2.0], "<f4")
    header = ["ply", "format binary_little_endian 1.0", "element vertex 4"]
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    table = np.stack([*columns.values()], 1).astype("<f4")
    (tmp_path / "mip.ply").write_bytes("\n".join(header).encode() + table.tobytes())
    read = read_3dgs_ply(tmp_path / "mip.ply")
    assert torch.allclose(read["log_scales"][0], parameters["log_scales"][0])
    assert read["opacity_logits"][0] == pytest.approx(float(parameters["opacity_logits"][0]), rel=1e-5)
    variance = (2 * parameters["log_scales"]).exp() + torch.from_numpy(columns["filter_3D"])[:, None] ** 2
    assert torch.allclose((2 * read["log_scales"]).exp(), variance)
    mass, before = (x["opacity_logits"].sigmoid() * x["log_scales"].sum(1).exp() for x in (read, parameters))
    assert torch.allclose(mass, before, rtol=1e-4)
    columns["filter_3D"][1] = np.nan
    table = np.stack([*columns.values()], 1).astype("<f4")
    (tmp_path / "mip.ply").write_bytes("\n".join(header).encode() + table.tobytes())
    with pytest.raises(UserError, match="not finite: filter_3D in 1 of 4 rows"):
        read_3dgs_ply(tmp_path / "mip.ply")
