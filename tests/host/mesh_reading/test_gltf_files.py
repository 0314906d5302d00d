"""glTF: stored numbers, places, textures and extensions, each against what the specification says of a known box."""

import base64
import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.mesh_reading.shapes import HALF, Glb, box_triangles, colors_at, png, quarters
from threestudio.models.exporters.simplification import is_watertight
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file

RED, GREEN, BLUE, WHITE = (torch.tensor(c, dtype=torch.float32) for c in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]))
# The side +x has u along y and v along z, both from 0 to 1 over the side; glTF's v points down in the picture.
SIDE = {(u, v): np.array([1, 2 * u - 1, 2 * v - 1]) * HALF for u in (0.25, 0.75) for v in (0.25, 0.75)}


def read(tmp_path, glb):
    return load_mesh_file(glb.write(tmp_path / "box.glb"))


def is_the_box(mesh):
    size = torch.from_numpy(HALF).float()
    return torch.allclose(mesh.v_pos.amax(0), size, atol=1e-4) and torch.allclose(mesh.v_pos.amin(0), -size, atol=1e-4)


def to_srgb(linear):
    linear = np.asarray(linear)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def all_colors(mesh):
    """Colours at the middles of all faces [F, 3]."""
    n = mesh.t_pos_idx.shape[0]
    return mesh.extras["colors"].at(torch.arange(n), torch.full((n, 3), 1 / 3))


# ------------------------------------------------------------------------------------------- accessors


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("stride", [None, 8])
def test_normalized_positions(tmp_path, dtype, stride):
    """Quantized to [-1, 1] as KHR_mesh_quantization has it, with the node's scale."""
    vertices, faces, _ = box_triangles()
    largest = np.iinfo(dtype).max
    glb = Glb()
    stored = np.round(vertices[:, [1, 2, 0]] / 0.4 * largest)
    position = glb.accessor(stored, dtype, stride, normalized=True)
    glb.mesh({"POSITION": position}, glb.accessor(faces.reshape(-1), "uint8"), {"scale": [0.4] * 3})
    glb.tree["extensionsRequired"] = glb.tree["extensionsUsed"] = ["KHR_mesh_quantization"]
    mesh = read(tmp_path, glb)
    size = torch.from_numpy(HALF).float()
    assert torch.allclose(mesh.v_pos.amax(0), size, atol=0.25 / largest) and is_watertight(mesh)
    assert not mesh.extras["has_colors"]


def test_integers_that_are_not_normalized_are_numbers(tmp_path):
    vertices, faces, _ = box_triangles()
    glb = Glb()
    position = glb.accessor(np.round(vertices[:, [1, 2, 0]] * 1000), "int16", 8)
    glb.mesh({"POSITION": position}, glb.accessor(faces.reshape(-1), "uint32"), {"scale": [0.001] * 3})
    assert is_the_box(read(tmp_path, glb))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [3, 4])
def test_normalized_vertex_colors_are_linear_light(tmp_path, dtype, channels):
    glb, linear = Glb(), [0.5, 0.1, 0.02, 1.0][:channels]
    stored = np.round(np.tile(linear, (24, 1)) * np.iinfo(dtype).max)
    glb.box()["attributes"]["COLOR_0"] = glb.accessor(stored, dtype, 8, normalized=True)
    expected = torch.from_numpy(to_srgb(linear[:3])).float()
    colors, step = all_colors(read(tmp_path, glb)), 0.02 if dtype == "uint8" else 1e-3
    assert torch.allclose(colors, expected.expand(12, 3), atol=step)


@pytest.mark.parametrize("dtype, stride", [("uint8", 4), ("uint16", None)])
def test_normalized_texture_coordinates(tmp_path, dtype, stride):
    glb = Glb()
    primitive = glb.textured_box()
    stored = np.round(np.tile([[0.6, 0.2], [0.9, 0.2], [0.9, 0.4], [0.6, 0.4]], (6, 1)) * np.iinfo(dtype).max)
    primitive["attributes"]["TEXCOORD_0"] = glb.accessor(stored, dtype, stride, normalized=True)
    assert torch.allclose(all_colors(read(tmp_path, glb)), GREEN.expand(12, 3))  # upper right quarter


def test_sparse_accessors_replace_rows(tmp_path):
    vertices, faces, _ = box_triangles()
    glb = Glb()
    wrong = vertices[:, [1, 2, 0]].copy()
    wrong[[3, 17]] = 99.0
    position = glb.accessor(wrong, "float32")
    glb.tree["accessors"][position]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": glb.view(np.array([3, 17], "<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": glb.view(vertices[[3, 17]][:, [1, 2, 0]].astype("<f4").tobytes())},
    }
    glb.mesh({"POSITION": position}, glb.accessor(faces.reshape(-1), "uint16"))
    assert is_the_box(read(tmp_path, glb))


def test_triangles_without_indices_strips_and_fans(tmp_path):
    vertices, faces, _ = box_triangles()
    glb = Glb()
    glb.mesh({"POSITION": glb.accessor(vertices[faces.reshape(-1)][:, [1, 2, 0]], "float32")})
    assert is_the_box(read(tmp_path, glb))
    for mode, order in ((5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])):  # one side
        glb = Glb()
        glb.mesh({"POSITION": glb.accessor(vertices[4:8][order][:, [1, 2, 0]], "float32")}, mode=mode)
        side = read(tmp_path, glb)
        corners = side.v_pos[side.t_pos_idx]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert side.t_pos_idx.shape == (2, 3) and (normals[:, 0] > 0).all() and (normals[:, 1:].abs() < 1e-6).all()


# ------------------------------------------------------------------------------------------- places


def test_nodes_in_nodes_and_mirrors(tmp_path):
    """A quarter turn about the file's x takes y to z; the inner node is mirrored and moved along x, the world's y."""
    glb = Glb()
    glb.box(node={"scale": [-0.5, 1, 1], "translation": [0.1, 0, 0]})
    glb.tree["nodes"].append({"children": [0], "rotation": [math.sqrt(0.5), 0, 0, math.sqrt(0.5)]})
    glb.tree["scenes"] = [{"nodes": [1]}]
    mesh = read(tmp_path, glb)
    # in the file: x from 0.1 -+ 0.5 * 0.2, y -+0.4 to z, z -+0.3 to -y
    assert torch.allclose(mesh.v_pos.amax(0), torch.tensor([0.4, 0.2, 0.3]), atol=1e-5)
    assert torch.allclose(mesh.v_pos.amin(0), torch.tensor([-0.4, 0.0, -0.3]), atol=1e-5)
    corners = mesh.v_pos[mesh.t_pos_idx].double()
    volume = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(0.8 * 0.2 * 0.6, rel=1e-5)


def test_instances_joints_and_morph_targets(tmp_path):
    glb = Glb()
    glb.box()
    places = glb.accessor([[0, 0, 0], [3, 0, 0]], "float32")
    glb.tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}}
    mesh = read(tmp_path, glb)
    assert mesh.t_pos_idx.shape == (24, 3) and mesh.v_pos[:, 1].max() == pytest.approx(3 + HALF[1], abs=1e-6)

    # A joint that is one unit up, bound there: nothing moves. Then it goes on by another half.
    for joint_height, expected in ((1.0, 0.0), (1.5, 0.5)):
        glb = Glb()
        primitive = glb.box(node={"skin": 0, "translation": [7, 7, 7]})  # which counts for nothing under a skin
        inverse = np.eye(4)
        inverse[1, 3] = -1.0
        primitive["attributes"]["JOINTS_0"] = glb.accessor(np.zeros((24, 4)), "uint8")
        primitive["attributes"]["WEIGHTS_0"] = glb.accessor(np.tile([255, 0, 0, 0], (24, 1)), "uint8", normalized=True)
        glb.tree["skins"] = [{"joints": [1], "inverseBindMatrices": glb.accessor(inverse.T.reshape(1, 16), "float32")}]
        glb.tree["nodes"].append({"translation": [0, joint_height, 0]})
        glb.tree["scenes"] = [{"nodes": [0, 1]}]
        mesh = read(tmp_path, glb)
        assert mesh.v_pos[:, 2].max() == pytest.approx(HALF[2] + expected, abs=1e-5)

    glb = Glb()
    primitive = glb.box(node={"weights": [0.5]})
    primitive["targets"] = [{"POSITION": glb.accessor(np.tile([0, 0, 2.0], (24, 1)), "float32")}]
    assert read(tmp_path, glb).v_pos[:, 0].max() == pytest.approx(HALF[0] + 1.0, abs=1e-5)


# ------------------------------------------------------------------------------------------- colours


def test_a_texture_lies_upright(tmp_path):
    glb = Glb()
    glb.textured_box()
    colors = colors_at(read(tmp_path, glb), [SIDE[0.25, 0.25], SIDE[0.75, 0.25], SIDE[0.25, 0.75], SIDE[0.75, 0.75]])
    assert torch.allclose(colors, torch.stack([RED, GREEN, BLUE, WHITE]))


@pytest.mark.parametrize(
    "transform, expected",
    [
        ({"scale": [0.25, 0.25]}, (RED, RED, RED, RED)),
        ({"scale": [0.25, 0.25], "offset": [0.6, 0.6]}, (WHITE, WHITE, WHITE, WHITE)),
        ({"offset": [0.5, 0]}, (GREEN, RED, WHITE, BLUE)),
        # A quarter turn, counter-clockwise with v down: (u, v) -> (v, -u), which is (v, 1 - u) as it repeats.
        ({"rotation": math.pi / 2}, (BLUE, RED, WHITE, GREEN)),
        # Scale before rotation: u is squeezed into the picture's left half, which the turn makes its lower half.
        ({"rotation": math.pi / 2, "scale": [0.5, 1]}, (BLUE, BLUE, WHITE, WHITE)),
    ],
)
def test_texture_transforms(tmp_path, transform, expected):
    glb = Glb()
    glb.textured_box({"extensions": {"KHR_texture_transform": transform}})
    glb.tree["extensionsRequired"] = glb.tree["extensionsUsed"] = ["KHR_texture_transform"]
    points = [SIDE[0.25, 0.25], SIDE[0.75, 0.25], SIDE[0.25, 0.75], SIDE[0.75, 0.75]]
    assert torch.allclose(colors_at(read(tmp_path, glb), points), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("info", [{"texCoord": 1}, {"extensions": {"KHR_texture_transform": {"texCoord": 1}}}])
def test_the_second_texture_coordinates(tmp_path, info):
    glb = Glb()
    primitive = glb.textured_box(info)
    second = np.tile([[0.6, 0.6], [0.9, 0.6], [0.9, 0.9], [0.6, 0.9]], (6, 1))
    primitive["attributes"]["TEXCOORD_1"] = glb.accessor(second, "float32")
    assert torch.allclose(all_colors(read(tmp_path, glb)), WHITE.expand(12, 3))


@pytest.mark.parametrize(
    "wrap, expected", [(10497, (RED, GREEN)), (33071, (GREEN, GREEN)), (33648, (GREEN, RED)), (None, (RED, GREEN))]
)
def test_wrap_modes(tmp_path, wrap, expected):
    """Texture coordinates from 1 to 2: the picture again, its last column, or its mirror image."""
    glb = Glb()
    primitive = glb.textured_box()
    if wrap is not None:
        glb.tree["samplers"] = [{"wrapS": wrap, "wrapT": wrap}]
        glb.tree["textures"][0]["sampler"] = 0
    beyond = np.tile([[1.0, 0.2], [2, 0.2], [2, 0.3], [1, 0.3]], (6, 1))
    primitive["attributes"]["TEXCOORD_0"] = glb.accessor(beyond, "float32")
    colors = colors_at(read(tmp_path, glb), [SIDE[0.25, 0.25], SIDE[0.75, 0.25]])
    assert torch.allclose(colors, torch.stack(expected), atol=1e-5)


def test_factor_texture_and_vertex_colours_are_multiplied_in_linear_light(tmp_path):
    glb = Glb()
    primitive = glb.textured_box(picture=np.full((4, 4, 3), 188, np.uint8))  # 0.5 in linear light
    glb.tree["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = [0.5, 1.0, 0.25, 0.3]
    primitive["attributes"]["COLOR_0"] = glb.accessor(np.tile([1.0, 0.5, 0.5], (24, 1)), "float32")
    expected = torch.from_numpy(to_srgb([0.25, 0.25, 0.0625])).float()
    assert torch.allclose(all_colors(read(tmp_path, glb)), expected.expand(12, 3), atol=3e-3)


@pytest.mark.parametrize("textured", [False, True])
def test_the_diffuse_colour_of_specular_glossiness(tmp_path, textured):
    glb = Glb()
    glb.picture(quarters())
    gloss = {"diffuseFactor": [0.8, 0.1, 0.1, 1], **({"diffuseTexture": {"index": 0}} if textured else {})}
    glb.tree["materials"] = [{
        "extensions": {"KHR_materials_pbrSpecularGlossiness": gloss},
        "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]},  # what programs fall back to that do not read it
    }]  # fmt: skip
    glb.tree["extensionsUsed"] = ["KHR_materials_pbrSpecularGlossiness"]
    glb.box(material=0)
    (color,) = colors_at(read(tmp_path, glb), [SIDE[0.25, 0.25]])  # the picture is red there
    expected = to_srgb([0.8, 0.0, 0.0] if textured else [0.8, 0.1, 0.1])
    assert np.allclose(color, expected, atol=1e-4)


def test_a_material_without_a_colour_is_white_and_no_material_is_none(tmp_path):
    glb = Glb()
    glb.tree["materials"] = [{"name": "plain"}]
    glb.box(material=0)
    mesh = read(tmp_path, glb)
    assert mesh.extras["has_colors"] and torch.allclose(all_colors(mesh), torch.ones(12, 3))
    glb = Glb()
    glb.box()
    assert not read(tmp_path, glb).extras["has_colors"]


@pytest.mark.parametrize("form", ["webp", "data", "file", "grey16"])
def test_pictures_of_all_kinds(tmp_path, form):
    glb = Glb()
    glb.textured_box()
    (image,) = glb.tree["images"]
    if form == "webp":
        Image.fromarray(quarters()).save(tmp_path / "picture.webp", lossless=True)
        image.clear()
        image.update({"bufferView": glb.view((tmp_path / "picture.webp").read_bytes()), "mimeType": "image/webp"})
        glb.tree["textures"] = [{"extensions": {"EXT_texture_webp": {"source": 0}}}]
        glb.tree["extensionsRequired"] = glb.tree["extensionsUsed"] = ["EXT_texture_webp"]
    elif form == "data":
        glb.tree["images"] = [{"uri": "data:image/png;base64," + base64.b64encode(png(quarters())).decode()}]
    elif form == "file":
        (tmp_path / "My picture.PNG").write_bytes(png(quarters()))
        glb.tree["images"] = [{"uri": "my%20picture.png"}]
    else:
        grey = Image.fromarray((np.full((4, 4), 0.25) * 65535).astype(np.uint16))
        grey.save(tmp_path / "grey.png")
        glb.tree["images"] = [{"uri": "grey.png"}]
    (color,) = colors_at(read(tmp_path, glb), [SIDE[0.75, 0.25]])
    assert torch.allclose(color, torch.full((3,), 0.25) if form == "grey16" else GREEN, atol=2e-3)


def test_a_gltf_beside_its_buffer(tmp_path):
    glb = Glb()
    glb.textured_box()
    tree = {**glb.tree, "buffers": [{"byteLength": len(glb.binary), "uri": "box%20data.bin"}]}
    (tmp_path / "box data.bin").write_bytes(glb.binary)
    (tmp_path / "box.gltf").write_text(json.dumps(tree))
    mesh = load_mesh_file(str(tmp_path / "box.gltf"))
    assert is_the_box(mesh) and torch.allclose(colors_at(mesh, [SIDE[0.75, 0.25]])[0], GREEN)
    (tmp_path / "box data.bin").write_bytes(glb.binary[:-50])
    with pytest.raises(UserError, match="box.gltf is cut short or broken"):
        load_mesh_file(str(tmp_path / "box.gltf"))
    (tmp_path / "box data.bin").unlink()
    with pytest.raises(UserError, match="box.gltf names the buffer box data.bin, which is not there"):
        load_mesh_file(str(tmp_path / "box.gltf"))


def test_both_kinds_come_under_both_endings_and_padded_with_zeros(tmp_path):
    glb = Glb()
    glb.textured_box()
    (tmp_path / "box.gltf").write_bytes(glb.bytes())
    embedded = {"byteLength": len(glb.binary), "uri": "data:;base64," + base64.b64encode(glb.binary).decode()}
    (tmp_path / "box.glb").write_bytes(json.dumps({**glb.tree, "buffers": [embedded]}).encode("utf-8-sig"))
    whole = glb.bytes()
    (length,) = struct.unpack("<I", whole[12:16])
    padded = whole[16 : 20 + length] + b"\0" * 4 + whole[20 + length :]
    (tmp_path / "zeros.glb").write_bytes(whole[:8] + struct.pack("<II", len(whole) + 4, length + 4) + padded)
    for name in ("box.gltf", "box.glb", "zeros.glb"):
        mesh = load_mesh_file(str(tmp_path / name))
        assert is_the_box(mesh) and torch.allclose(colors_at(mesh, [SIDE[0.75, 0.25]])[0], GREEN)


def test_a_node_of_two_parents_stands_at_both_places(tmp_path):
    glb = Glb()
    glb.box()
    glb.tree["nodes"] += [{"children": [0], "translation": [x, 0, 0]} for x in (3, -3)]
    glb.tree["scenes"] = [{"nodes": [1, 2]}]
    mesh = read(tmp_path, glb)
    assert len(mesh.v_pos) == 16 and mesh.v_pos[:, 1].amax() == pytest.approx(3 + HALF[1])
    assert mesh.v_pos[:, 1].amin() == pytest.approx(-3 - HALF[1])


def test_a_place_that_is_not_finite_is_one_line(tmp_path, recwarn):
    glb = Glb()
    glb.box(node={"rotation": [math.nan, 0, 0, 1]})
    with pytest.raises(UserError, match="box.glb has 12 triangles with coordinates that are not finite"):
        read(tmp_path, glb)
    assert not recwarn.list


# ------------------------------------------------------------------------------------------- what is not read


@pytest.mark.parametrize(
    "name", ["KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_texture_basisu", "ACME_points"]
)
def test_a_required_extension_that_is_not_read_is_named(tmp_path, name):
    glb = Glb()
    glb.textured_box()
    glb.tree["extensionsRequired"] = glb.tree["extensionsUsed"] = ["KHR_texture_transform", name]
    with pytest.raises(UserError, match=f"box.glb needs the glTF extension {name}, which is not read; ") as raised:
        read(tmp_path, glb)
    remedy = str(raised.value).split("; ")[1]
    assert "\n" not in remedy and ("gltf-transform" in remedy) == (name != "ACME_points")


def test_compression_that_is_not_declared_as_required_is_named_all_the_same(tmp_path):
    glb = Glb()
    primitive = glb.box()
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    assert is_the_box(read(tmp_path, glb))  # what stands uncompressed beside it is read
    for accessor in glb.tree["accessors"]:
        accessor.pop("bufferView")
    with pytest.raises(UserError, match="needs the glTF extension KHR_draco_mesh_compression"):
        read(tmp_path, glb)
    glb = Glb()
    glb.box()
    glb.tree["buffers"] = [{"byteLength": 9000}]
    glb.tree["bufferViews"][0].update(buffer=1, extensions={"EXT_meshopt_compression": {"buffer": 0}})
    with pytest.raises(UserError, match="needs the glTF extension EXT_meshopt_compression"):
        read(tmp_path, glb)


def test_a_ktx2_texture_is_named_unless_a_picture_stands_beside_it(tmp_path):
    glb = Glb()
    glb.textured_box()
    glb.tree["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": 1}}
    assert torch.allclose(colors_at(read(tmp_path, glb), [SIDE[0.75, 0.25]])[0], GREEN)
    glb.tree["textures"][0].pop("source")
    with pytest.raises(UserError, match="needs the glTF extension KHR_texture_basisu"):
        read(tmp_path, glb)
    glb.tree["textures"] = [{"source": 0}]
    glb.tree["images"][0]["mimeType"] = "image/ktx2"
    with pytest.raises(UserError, match="needs the glTF extension KHR_texture_basisu"):
        read(tmp_path, glb)


def test_an_optional_extension_that_is_not_read_is_said(tmp_path, caplog):
    glb = Glb()
    glb.box()
    glb.tree["extensionsUsed"] = ["KHR_materials_clearcoat", "KHR_lights_punctual", "ACME_points"]
    with caplog.at_level("WARNING"):
        read(tmp_path, glb)
    assert "uses the glTF extension ACME_points, which is not read" in caplog.text and "clearcoat" not in caplog.text


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda tree: tree["asset"].update(version="1.0"), "is glTF 1.0; expected version 2.0"),
        (lambda tree: tree["meshes"][0]["primitives"][0].update(indices=77), "names entry 77 of accessors"),
        (lambda tree: tree["nodes"][0].update(children=[0]), "inside of itself"),
        (lambda tree: tree["accessors"][0].update(count=25), "300 bytes are named where 288 are"),
        (lambda tree: tree["accessors"][0].pop("type"), r"is broken \(KeyError: 'type'\)"),
        (lambda tree: tree["images"][0].update(bufferView=1), "its image 0 cannot be read as a picture"),
        (lambda tree: tree["images"].__setitem__(0, {"uri": "gone.png"}), "names the texture gone.png, which is"),
        (lambda tree: tree["bufferViews"][2].update(byteOffset=10**6), "cut short or broken"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, damage, message):
    glb = Glb()
    glb.textured_box()
    damage(glb.tree)
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, glb)
    assert "\n" not in str(raised.value) and "box.glb" in str(raised.value)
