"""What is written can be read again and is what was given."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from threestudio.utils import images, mesh_files, video
from threestudio.utils.errors import UserError
from threestudio.utils.glb_files import world_to_gltf
from threestudio.utils.loss import tv_loss
from threestudio.utils.mesh_reading import rotation_to_world
from threestudio.utils.saving import SaverMixin


class Square:
    """Two triangles in the plane z = 0 with colours, normals and texture coordinates."""

    v_pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 2, 0]])
    t_pos_idx = torch.tensor([[0, 1, 2], [0, 2, 3]])
    v_nrm = torch.tensor([[0.0, 0, 1]]).expand(4, 3)
    v_tex = torch.tensor([[0.0, 0.0], [1, 0], [1, 1], [0, 1]])
    t_tex_idx = t_pos_idx
    v_rgb = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])


@pytest.fixture()
def saver(tmp_path) -> SaverMixin:
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path / "save"))
    return saver


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_paths_stay_inside_the_save_folder(saver):
    assert saver.get_save_path("a/b/c.png").endswith("save/a/b/c.png")
    for name in ("../escape.png", "/etc/escape.png", "a/../../escape.png"):
        with pytest.raises(UserError, match="lies outside of the save folder"):
            saver.get_save_path(name)
    with pytest.raises(ValueError, match="call set_save_dir first"):
        SaverMixin().get_save_path("a.png")


def test_rgb_images(saver):
    img = torch.rand(4, 6, 3)
    expected = (img.numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(read(saver.save_rgb_image("a.png", img)), expected)
    chw = img.permute(2, 0, 1) * 2 - 1
    path = saver.save_rgb_image("b.png", chw, data_format="CHW", data_range=(-1, 1))
    assert np.abs(read(path).astype(int) - expected.astype(int)).max() <= 1
    grey = read(saver.save_rgb_image("c.png", img[..., :1]))
    assert grey.shape == (4, 6, 3) and (grey[..., 0] == grey[..., 2]).all()
    clipped = read(saver.save_rgb_image("d.png", img * 0 + 7))
    assert (clipped == 255).all()
    with pytest.raises(ValueError, match="data_format is 'HWC' or 'CHW'"):
        saver.save_rgb_image("e.png", img, data_format="BHWC")


def test_grayscale_images(saver):
    img = torch.tensor([[0.0, 1.0], [2.0, float("nan")]])
    plain = read(saver.save_grayscale_image("a.png", img, cmap=None))
    assert plain[..., 0].tolist() == [[0, 128], [255, 0]]
    jet = read(saver.save_grayscale_image("b.png", img))
    assert jet[0, 0, 2] > jet[0, 0, 0] and jet[1, 0, 0] > jet[1, 0, 2]  # low blue, high red
    for cmap in ("magma", "spectral"):
        assert read(saver.save_grayscale_image("c.png", img, cmap=cmap)).shape == (2, 2, 3)
    flat = read(saver.save_grayscale_image("d.png", torch.ones(2, 2), cmap=None))
    assert (flat == 0).all()


def test_uv_and_cubemap_images(saver):
    u, v = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 128), indexing="xy")
    board = read(saver.save_uv_image("uv.png", torch.stack([u, v], -1)))
    assert set(np.unique(board)) == {0, 255}
    color = read(saver.save_uv_image("uvc.png", torch.stack([u, v], -1), cmap="color"))
    assert color[0, -1].tolist() == [255, 0, 0] and color[-1, 0].tolist() == [0, 255, 0]
    assert read(saver.save_cubemap("cube.png", torch.rand(6, 4, 4, 3))).shape == (4, 24, 3)


def test_grids(saver):
    cells = [
        {"type": "rgb", "img": torch.ones(4, 4, 3), "kwargs": {"data_format": "HWC"}},
        {"type": "grayscale", "img": torch.zeros(8, 8), "kwargs": {"cmap": None}},
        {"type": "uv", "img": torch.zeros(4, 4, 2), "kwargs": {}},
    ]
    row = read(saver.save_image_grid("row.png", cells))
    assert row.shape == (8, 24, 3)
    assert (row[:, :8] == 255).all() and (row[:, 8:16] == 0).all()
    assert read(saver.save_image_grid("small.png", cells, align="min")).shape == (4, 12, 3)
    assert read(saver.save_image_grid("ten.png", [cells, cells[:1]], align=10)).shape == (20, 30, 3)
    assert read(saver.save_image_grid("hw.png", cells, align=(5, 7))).shape == (5, 21, 3)
    big = [{"type": "rgb", "img": torch.zeros(64, 64, 3)}]
    assert read(saver.save_image_grid("text.png", big, texts=["hello"])).max() > 200
    with pytest.raises(ValueError, match="image type is one of rgb, uv, grayscale; got 'hdr'"):
        saver.save_image_grid("x.png", [{"type": "hdr", "img": torch.zeros(2, 2)}])


def test_videos(saver, tmp_path):
    import imageio.v2 as imageio

    for index in range(12):  # more than 9: their order is that of numbers
        saver.save_image(f"frames/{index}.png", np.full((17, 16, 3), index * 20, np.uint8))
    frames = video.frames_in(str(tmp_path / "save/frames"), r"(\d+)\.png")
    assert [int(f[0, 0, 0]) for f in frames] == [i * 20 for i in range(12)]
    mp4 = saver.save_img_sequence("turn", "frames", r"(\d+)\.png", save_format="mp4", fps=10)
    assert mp4.endswith("turn.mp4")
    back = np.stack([frame for frame in imageio.get_reader(mp4)])
    assert back.shape == (12, 16, 16, 3)
    assert np.abs(back.mean((1, 2, 3)) - np.arange(12) * 20).max() < 8
    gif = saver.save_img_sequence("turn", "frames", r"(\d+)\.png", save_format="gif")
    assert len(imageio.mimread(gif)) == 12
    with pytest.raises(UserError, match="no frames"):
        saver.save_img_sequence("none", "frames", r"nothing(\d+)", save_format="gif")


@pytest.mark.parametrize("ending", ["png", "npy", "npz", "pt", "mp4", "json", "copy"])
def test_what_is_written_in_part_leaves_what_stood_there(ending, saver, monkeypatch):
    """A reader beside it, or one that comes after a full disk, finds a whole file: the old one."""
    writers = {
        "png": (lambda: saver.save_rgb_image("a.png", torch.zeros(4, 4, 3)), Image.Image, "save"),
        "npy": (lambda: saver.save_data("a", torch.zeros(4)), np, "save"),
        "npz": (lambda: saver.save_data("a", {"x": torch.zeros(4)}), np, "savez"),
        "pt": (lambda: saver.save_state_dict("a.pt", {"x": torch.zeros(4)}), torch, "save"),
        "json": (lambda: saver.save_json("a.json", {}), mesh_files, "write_text"),
        "copy": (lambda: saver.save_file("a.png", Path(saver.get_save_path("0.png"))), shutil, "copyfile"),
        "mp4": (lambda: saver.save_img_sequence("a", ".", r"(\d+)\.png", "mp4"), video, "write_mp4"),
    }
    write, owner, name = writers[ending]
    saver.save_rgb_image("0.png", torch.zeros(4, 4, 3))
    path = Path(write())
    before = path.read_bytes()

    def breaks_off(*given, **options):
        target = next(Path(value) for value in given if isinstance(value, str))
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(owner, name, breaks_off)
    with pytest.raises(OSError, match="no space left"):
        write()
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == sorted({"0.png", path.name})


def test_what_is_still_being_written_is_no_frame(saver):
    saver.save_rgb_image("frames/0.png", torch.zeros(4, 4, 3))
    Path(saver.get_save_path("frames/.1.png.x/1.png")).write_bytes(b"half")
    assert len(video.frames_in(saver.get_save_path("frames"), r"(\d+)\.png")) == 1


def test_frames_of_an_earlier_video_are_removed_and_nothing_else(saver):
    for name in ("frames/0.png", "frames/11.png", "frames/views.png", "other/0.png"):
        saver.save_rgb_image(name, torch.zeros(4, 4, 3))
    saver.remove_frames("frames", r"(\d+)\.png")
    saver.remove_frames("nowhere", r"(\d+)\.png")
    root = Path(saver.get_save_dir())
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*.png")) == ["frames/views.png", "other/0.png"]


def test_a_gif_where_mp4_cannot_be_written(saver, monkeypatch):
    import imageio_ffmpeg

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", missing)
    path = video.write_mp4(saver.get_save_path("x.mp4"), [np.zeros((8, 8, 3), np.uint8)] * 2, 10)
    assert path.endswith("x.gif") and read(path).shape[:2] == (8, 8)


def test_obj_with_vertex_colors(saver):
    (path,) = saver.save_obj("m", Square, save_vertex_color=True, save_normal=True)
    lines = open(path).read().splitlines()
    assert "v 1.000000 2.000000 0.000000 0.0000 0.0000 1.0000" in lines
    assert lines[-1] == "f 1//1 3//3 4//4"
    import trimesh

    mesh = trimesh.load(path, process=False)
    assert np.allclose(mesh.vertices, Square.v_pos) and np.array_equal(mesh.faces, Square.t_pos_idx)
    assert np.allclose(mesh.visual.vertex_colors[:, :3], Square.v_rgb.numpy() * 255, atol=1)


def test_obj_with_a_material(saver, tmp_path):
    kd = torch.zeros(8, 8, 3)
    kd[:4] = torch.tensor([1.0, 0.0, 0.0])
    written = saver.save_obj(
        "m.obj", Square, save_mat=True, save_uv=True, map_Kd=kd, map_Pr=torch.ones(8, 8, 1), map_format="png"
    )
    names = [p.rsplit("/", 1)[1] for p in written]
    assert names == ["m.obj", "m.mtl", "texture_kd.png", "texture_roughness.png"]
    mtl = (tmp_path / "save/m.mtl").read_text()
    assert "map_Kd texture_kd.png" in mtl and "map_Pr texture_roughness.png" in mtl
    text = (tmp_path / "save/m.obj").read_text()
    assert "mtllib m.mtl" in text and "usemtl default" in text and "f 1/1 2/2 3/3" in text
    assert "vt 0.000000 1.000000" in text  # images start at the top, OBJ at the bottom
    assert read(written[2])[0, 0].tolist() == [255, 0, 0]


def test_axes_of_gltf_are_those_that_its_reader_turns_back():
    vectors = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    turned = world_to_gltf(vectors)
    assert turned.tolist() == [[2, 3, 1], [0, 1, 0]]
    assert np.array_equal(turned.numpy() @ rotation_to_world("+y", "+z").T, vectors.numpy())


def test_glb_with_vertex_colors(saver):
    import trimesh

    (path,) = saver.save_glb("m", Square, save_vertex_color=True, save_normal=True)
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    x, y, z = Square.v_pos.numpy().T
    assert np.allclose(mesh.vertices, np.stack([y, z, x], 1))  # z up to y up, front +x to +z
    assert np.allclose(mesh.face_normals, [[0, 1, 0]] * 2)
    colors = mesh.visual.vertex_attributes["color"]
    assert colors[0].tolist() == [1, 0, 0]
    assert colors[3, 0] == pytest.approx(0.2140, abs=1e-4)  # of sRGB 0.5 in glTF's linear colours
    assert mesh.visual.material.metallicFactor == 0 and mesh.visual.material.roughnessFactor == 1


def test_glb_with_a_texture(saver):
    import trimesh

    kd = torch.zeros(8, 8, 3)
    kd[:, :4, 0] = 1.0
    (path,) = saver.save_glb("t.glb", Square, save_uv=True, map_Kd=kd)
    mesh = trimesh.load(path, force="mesh", process=False)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    assert texture.shape == (8, 8, 3) and texture[0, 0].tolist() == [255, 0, 0]
    corner = np.argmin(np.abs(mesh.vertices - [0, 0, 0]).sum(1))
    assert mesh.visual.uv[corner].tolist() == [0.0, 1.0]


def test_large_meshes_are_written_whole(saver):
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=5)

    class Sphere:
        v_pos, t_pos_idx = torch.tensor(sphere.vertices), torch.tensor(sphere.faces)

    (path,) = saver.save_obj("s", type("S", (Sphere,), {"v_nrm": None, "v_rgb": None}))
    back = trimesh.load(path, process=False)
    assert back.is_watertight and len(back.faces) == len(sphere.faces)
    assert trimesh.load(saver.save_mesh("s.ply", Sphere.v_pos, Sphere.t_pos_idx)).is_watertight


def test_data(saver, tmp_path):
    x = torch.rand(3)
    assert np.array_equal(np.load(saver.save_data("x", x)), x.numpy())
    both = np.load(saver.save_data("both.npz", {"x": x, "y": [1, 2]}))
    assert np.array_equal(both["x"], x.numpy()) and both["y"].tolist() == [1, 2]
    saver.save_json("a.json", {"name": "é"})
    assert (tmp_path / "save/a.json").read_text() == '{\n  "name": "é"\n}\n'
    copy = saver.save_file("copy.json", str(tmp_path / "save/a.json"))
    assert open(copy).read().startswith("{")
    state = saver.save_state_dict("w.pt", {"x": x})
    assert torch.equal(torch.load(state, weights_only=True)["x"], x)


def test_to_numpy_keeps_structure():
    out = images.to_numpy({"a": [torch.ones(2, dtype=torch.bfloat16)], "b": None, "c": 3})
    assert out["a"][0].dtype == np.float32 and out["b"] is None and out["c"] == 3
    with pytest.raises(TypeError, match="expected tensors"):
        images.to_numpy(object())


def test_total_variation():
    image = torch.zeros(1, 1, 2, 3)
    image[..., 0, 0] = 2.0
    assert float(tv_loss(image)) == pytest.approx(2 * (4 / 3 + 4 / 4))
    assert float(tv_loss(torch.ones(2, 3, 4, 4))) == 0.0
