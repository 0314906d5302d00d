"""transforms.json as several programs write it: the same cameras are read, and what is not read is named."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from turboprop.fitting.posed_views import folder_views, spiral_c2w, world_views
from turboprop.fitting.transforms_file import Frame, pinhole, read_frames
from turboprop.world.captions import parse_caption

from threestudio.utils.errors import UserError

FOVY = math.radians(40.0)
SIZE = 32
FOCAL = 0.5 * SIZE / math.tan(0.5 * FOVY)  # pixels


@pytest.fixture(scope="module")
def views():
    return world_views(parse_caption("a yellow car with black wheels"), spiral_c2w(2, (0.0, 40.0), 2.7), FOVY, SIZE)


@pytest.fixture()
def pictures(tmp_path, views):
    """Pictures of the views in folders and under names of several kinds."""
    for index in range(len(views)):
        straight = views.rgb[index] / views.coverage[index].clamp_min(1e-6)
        rgba = torch.cat([straight, views.coverage[index]], -1).clamp(0, 1).mul(255).round().byte()
        (tmp_path / "train").mkdir(exist_ok=True)
        for name in (f"{index}.png", f"train/frame.000{index}.png", f"train/r {index}.PNG"):
            Image.fromarray(rgba.numpy()).save(tmp_path / name)
    return tmp_path


def write(folder: Path, views, name="{}.png", rows=4, shared=None, own=None) -> Path:
    frames = [
        {"file_path": name.format(index), "transform_matrix": views.c2w[index, :rows].tolist(), **(own or {})}
        for index in range(len(views))
    ]
    (folder / "transforms.json").write_text(json.dumps({**(shared or {}), "frames": frames}))
    return folder / "transforms.json"


ANGLE = {"camera_angle_x": FOVY}
NERFSTUDIO = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}


@pytest.mark.parametrize(
    "given",
    [
        {"shared": ANGLE, "name": "./{}"},
        {"shared": ANGLE, "name": "./train/frame.000{}"},  # the dot begins no ending
        {"shared": {**ANGLE, "fl_x": None, "w": None, "cx": None, "k1": None, "camera_model": None}},
        {"shared": ANGLE, "name": ".\\train\\frame.000{}"},
        {"shared": ANGLE, "name": "train\\frame.000{}.png"},
        {"shared": ANGLE, "name": "train/r {}"},
        {"shared": ANGLE, "name": "Train/Frame.000{}.PNG"},  # of a system that has no case
        {"shared": ANGLE, "name": "train/frame%2E000{}.png"},
        {"shared": ANGLE, "name": "C:\\scenes\\chair\\{}.png"},  # a full path of another machine
        {"shared": {**ANGLE, "camera_model": "pinhole"}},
        {"shared": {**ANGLE, "camera_model": None, "is_fisheye": False}},
        {"shared": {**ANGLE, "camera_angle_y": FOVY}},
        {"shared": ANGLE, "rows": 3},
        {"shared": {**NERFSTUDIO, "camera_model": "OPENCV", "k1": 0.0, "k2": 0, "p1": 0.0}},
        {"shared": {"fl_x": FOCAL}},
        {"shared": {**NERFSTUDIO, **ANGLE}},
        {"own": NERFSTUDIO},
        {"shared": {"fl_x": 3.0}, "own": {"fl_x": FOCAL}},  # the frame's own counts
        {"shared": {name: 4 * value for name, value in NERFSTUDIO.items()}},  # of pictures four times as large
    ],
)
def test_cameras_are_read_as_they_were_written(pictures, views, given):
    read = folder_views(write(pictures, views, **given), SIZE)
    assert torch.allclose(read.c2w, views.c2w, atol=1e-6) and torch.allclose(read.fovy, views.fovy, atol=1e-6)
    assert torch.allclose(read.rgb, views.rgb, atol=1 / 255) and torch.allclose(
        read.coverage, views.coverage, atol=1 / 255
    )


def test_a_principal_point_off_the_middle_is_honoured(pictures, views):
    """A picture with 12 more columns on its left, of the same camera: cx says where the camera looks."""
    for index in range(2):
        wide = Image.new("RGBA", (SIZE + 12, SIZE), (255, 0, 0, 255))
        wide.paste(Image.open(pictures / f"{index}.png"), (12, 0))
        wide.save(pictures / f"wide{index}.png")
    shared = {"fl_x": FOCAL, "cx": 12 + SIZE / 2, "cy": SIZE / 2}
    read = folder_views(write(pictures, views, name="wide{}.png", shared=shared), SIZE)
    assert torch.allclose(read.fovy, views.fovy, atol=1e-6)
    assert torch.allclose(read.rgb, views.rgb, atol=1 / 255) and torch.allclose(
        read.coverage, views.coverage, atol=1 / 255
    )


def test_the_square_around_the_principal_point():
    frame = Frame(Path("x.png"), torch.eye(4), {"fl_x": 50.0, "fl_y": 100.0, "cx": 30.0, "cy": 42.0}, "x.json: frame 0")
    camera = pinhole(frame, 64, 100)
    # left 30 / 50, right 34 / 50, up 42 / 100, down 58 / 100: the least is 0.42
    assert camera.half_angle() == pytest.approx(0.42)
    assert camera.square() == pytest.approx((30 - 21, 42 - 42, 30 + 21, 42 + 42))


BAD = [
    ({"shared": {}}, "frame 0: expected camera_angle_x in radians, or fl_x in pixels"),
    ({"shared": {**NERFSTUDIO, "cx": 4, "cy": 28}}, r"principal point \(cx, cy\) = \(4, 28\) is far off the middle"),
    ({"shared": {**NERFSTUDIO, "k1": 0.03}}, r"lens distortion is not read \(k1 = 0.03\)"),
    ({"shared": {**NERFSTUDIO, "camera_model": "OPENCV_FISHEYE"}}, "camera_model OPENCV_FISHEYE: only pinhole cameras"),
    ({"shared": {**NERFSTUDIO, "is_fisheye": True}}, r"camera_model a fisheye \(is_fisheye\): only pinhole cameras"),
    ({"shared": {"camera_angle_x": 40}}, "camera_angle_x: expected radians between 0 and pi, got 40"),
    ({"shared": {"camera_angle_x": "wide"}}, "camera_angle_x: expected a number, got 'wide'"),
    ({"shared": {"fl_x": -3}}, "fl_x: expected more than 0, got -3"),
    ({"shared": {"fl_x": FOCAL, "camera_angle_x": 1.2}}, "give one of them"),
    ({"shared": {**NERFSTUDIO, "w": 48}}, r"w and h \(48 x 32\) are not of .*0.png, which has 32 x 32 pixels"),
    ({"shared": ANGLE, "name": "{}.jpg"}, "frame 0: no picture at .*0.jpg"),
    ({"shared": ANGLE, "name": "none/{}"}, "frame 0: no picture at .*none/0.png, nor with another ending"),
    ({"shared": ANGLE, "rows": 2}, "transform_matrix: expected 4 x 4 or 3 x 4 finite numbers"),
    ({"shared": ANGLE, "own": {"transform_matrix": [["a"] * 4] * 4}}, "transform_matrix: expected 4 x 4 or 3 x 4"),
    ({"shared": ANGLE, "own": {"transform_matrix": torch.eye(4).mul(2).tolist()}}, "expected the last row 0 0 0 1"),
    ({"shared": ANGLE, "own": {"transform_matrix": (torch.eye(4) * torch.tensor([2, 1, 1, 1])).tolist()}}, "stretches"),
    ({"shared": ANGLE, "own": {"transform_matrix": (torch.eye(4) * torch.tensor([-1, 1, 1, 1])).tolist()}}, "mirrors"),
    ({"shared": ANGLE, "own": {"file_path": 3}}, "frame 0: expected file_path and transform_matrix"),
]


@pytest.mark.parametrize("given, message", BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_not_read_is_one_line_that_names_the_file(pictures, views, given, message):
    file = write(pictures, views, **given)
    with pytest.raises(UserError, match=message) as caught:
        folder_views(file, SIZE)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "{}", '{"frames": []}', '{"frames": 3}', '{"camera_angle_x": 0.6}']
)
def test_what_is_no_transforms_json(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match="transforms.json: (not valid JSON|expected a list of frames)"):
        read_frames(tmp_path / "transforms.json")
