"""Pictures for a novel-view model: centred and scaled, or left alone; several with their cameras."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from turboprop.fitting.posed_views import world_views
from turboprop.novelview.camera_pose import world_to_camera_matrices
from turboprop.novelview.framing import FramingConfig, check_framing, framed, object_box
from turboprop.novelview.posed_pictures import CameraPlace, load_pictures, nearest_views
from turboprop.world.cameras import orbit_c2w
from turboprop.world.captions import ObjectSpec, parse_caption

import threestudio
from tests.tiny_pictures import ball_pixels
from threestudio.data.reference_views import ReferenceViews, orbit_camera

KEY = "data.image_path"
PLACE = CameraPlace(15.0, 30.0, 2.7, 40.0)


def ball(**where) -> torch.Tensor:
    return torch.from_numpy(ball_pixels(**where)).float() / 255


def fill_and_offset(square: torch.Tensor) -> tuple[float, float]:
    box, side = object_box(square), square.shape[0]
    return box.side / side, max(abs(place / side - 0.5) for place in box.middle)


@pytest.mark.parametrize("radius, middle", [(6.0, (30.0, 10.0)), (18.0, (19.0, 21.0)), (15.0, (4.0, 20.0))])
def test_an_object_is_centred_and_scaled(radius, middle):
    square = framed(ball(radius=radius, middle=middle), FramingConfig(mode="center", object_fill=0.7))
    fill, offset = fill_and_offset(square)
    assert square.shape[0] == square.shape[1] and square.shape[2] == 4
    assert fill == pytest.approx(0.7, abs=0.05)  # of a picture of few pixels
    assert offset <= 1 / square.shape[0]
    # nothing of it is lost, and nothing is added
    assert (square[..., 3] > 0.5).sum() == (ball_pixels(radius=radius, middle=middle)[..., 3] > 0).sum()


def test_an_object_framed_as_the_models_pictures_stays_as_it_is():
    picture = ball(radius=14.0)
    assert torch.equal(framed(picture, FramingConfig()), picture)
    small, beside = ball(radius=5.0), ball(radius=11.0, middle=(12.0, 20.0))
    for moved in (small, beside):
        fill, offset = fill_and_offset(framed(moved, FramingConfig()))
        assert fill == pytest.approx(0.75, abs=0.05) and offset < 0.03
    assert torch.equal(framed(small, FramingConfig(mode="keep")), small)


def test_a_speck_far_off_does_not_move_the_object():
    picture = torch.from_numpy(ball_pixels(64, 8.0, (20.0, 30.0))).float() / 255
    clean = framed(picture, FramingConfig(mode="center"))
    picture[63:, 63:] = 1.0
    assert torch.equal(framed(picture, FramingConfig(mode="center")), clean)
    picture[44:, 44:] = 1.0  # a piece of twice the object's size is no speck
    assert framed(picture, FramingConfig(mode="center")).shape != clean.shape


def test_a_mask_of_many_small_pieces_is_taken_whole():
    picture = torch.zeros(64, 64, 4)
    picture[10:50:2, 8:40:2] = 1.0
    box = object_box(picture)
    assert (box.top, box.bottom, box.left, box.right) == (10, 49, 8, 39)


def test_a_kept_picture_is_made_square():
    narrow = ball()[:, 5:35]
    assert torch.equal(framed(narrow, FramingConfig(mode="keep")), ball() * (ball()[..., 3:] > 0))


@pytest.mark.parametrize("kind", ["car", "rocket", "sofa", "mug", "bed"])
def test_the_worlds_renders_stay_as_they_are(kind):
    """Their size in the picture is their size in the scene."""
    camera = orbit_c2w(torch.tensor([15.0]), torch.tensor([30.0]), torch.tensor([2.7]))
    views = world_views(ObjectSpec(kind, "red", "blue"), camera, math.radians(40), 32)
    rgba = torch.cat([views.rgb[0], views.coverage[0]], -1)
    assert torch.equal(framed(rgba, FramingConfig()), rgba)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "centre"}, "framing.mode: expected one of auto, center, keep, got 'centre'"),
        ({"object_fill": 0.0}, "framing.object_fill: expected more than 0, at most 1, got 0"),
        ({"least_fill": 0.9, "most_fill": 0.5}, "framing.least_fill: expected at most most_fill, got 0.9 and 0.5"),
        ({"most_offset": -0.1}, "framing.most_offset: expected at least 0, got -0.1"),
    ],
)
def test_bad_framing_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_framing(FramingConfig(**changes), "framing")


# ------------------------------------------------------------------------------- with cameras

CAMERAS = (torch.tensor([15.0, -5.0, 40.0]), torch.tensor([30.0, 150.0, 270.0]), torch.tensor([2.7, 2.5, 2.9]))


@pytest.fixture()
def folder(tmp_path):
    """Three pictures of a car in zero-1-to-3's layout, and the same with a transforms.json."""
    c2w = orbit_c2w(*CAMERAS)
    views = world_views(parse_caption("a yellow car with black wheels"), c2w, math.radians(40), 16)
    matrices = world_to_camera_matrices(c2w)
    frames = []
    for index in range(3):
        rgb = views.rgb[index] / views.coverage[index].clamp_min(1e-6)
        pixels = torch.cat([rgb.clamp(0, 1), views.coverage[index]], -1)
        Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(tmp_path / f"{index:03d}.png")
        np.save(tmp_path / f"{index:03d}.npy", matrices[index].numpy())
        frames.append({"file_path": f"{index:03d}", "transform_matrix": c2w[index].tolist()})
    content = {"camera_angle_x": math.radians(40), "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("name", ["", "transforms.json"])
def test_several_pictures_keep_their_cameras(folder, name):
    views = load_pictures(str(folder / name), PLACE, FramingConfig(), KEY)
    assert len(views) == 3
    torch.testing.assert_close(views.c2w, orbit_c2w(*CAMERAS), atol=1e-5, rtol=0)
    torch.testing.assert_close(views.fovy, torch.full((3,), math.radians(40)))
    torch.testing.assert_close(views.elevation, CAMERAS[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.remainder(views.azimuth, 360), CAMERAS[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(views.distances, CAMERAS[2])
    assert all(picture.shape == (16, 16, 4) for picture in views.pictures)


def test_a_folder_with_a_camera_file_alone(folder):
    for path in folder.glob("*.npy"):
        path.unlink()
    assert len(load_pictures(str(folder), PLACE, FramingConfig(), KEY)) == 3


def test_a_picture_without_a_camera_is_left_out_aloud(folder, monkeypatch):
    told = []
    monkeypatch.setattr(threestudio, "warn", told.append)
    (folder / "000.npy").unlink()
    (folder / "002.png").unlink()
    (folder / "\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT TWO}.png").write_bytes(b"")  # digits of a kind
    assert len(load_pictures(str(folder), PLACE, FramingConfig(), KEY)) == 1
    assert told == [
        f"{KEY}: {folder}: left out 1 .png without its .npy: 000",
        f"{KEY}: {folder}: left out 1 .npy without its .png: 002",
    ]


def test_a_single_picture_stands_at_the_given_place(ball_picture):
    views = load_pictures(str(ball_picture), PLACE, FramingConfig(), KEY)
    torch.testing.assert_close(views.c2w, orbit_camera(15.0, 30.0, 2.7))
    assert views.fovy.tolist() == pytest.approx([math.radians(40)])


def wrong_pose(folder, content):
    np.save(folder / "001.npy", content)


NOT_SEEN = "the camera does not see the world's origin"


def change_pose(folder, change):
    wrong_pose(folder, change(np.load(folder / "001.npy")))


def archive_as_pose(folder):
    np.savez(folder / "archive.npz", np.load(folder / "001.npy"))
    (folder / "archive.npz").rename(folder / "001.npy")


def four_digits(folder):
    (folder / "transforms.json").unlink()
    for path in list(folder.iterdir()):
        path.rename(folder / f"0{path.name}")


def turn_away(content):
    content["frames"][1]["transform_matrix"] = np.diag([1, -1, -1, 1]).tolist()


def wrong_json(folder, change):
    content = json.loads((folder / "transforms.json").read_text())
    change(content)
    (folder / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "path, spoil, message",
    [
        (
            "",
            lambda f: wrong_pose(f, np.eye(4)),
            r"001.npy: expected a 3 x 4 matrix, got float64 of shape \[4, 4\]",
        ),
        ("", lambda f: wrong_pose(f, np.eye(4)[:3].T), r"001.npy: expected a 3 x 4 matrix"),
        ("", lambda f: wrong_pose(f, np.full((3, 4), np.nan)), "001.npy: .* some are NaN or infinite"),
        ("", lambda f: wrong_pose(f, 2 * np.eye(4)[:3]), "001.npy: the first three columns are no rotation"),
        ("", lambda f: (f / "001.npy").write_bytes(b"no array"), "001.npy: no camera in it"),
        ("", archive_as_pose, "001.npy: no camera in it"),
        ("", lambda f: change_pose(f, lambda m: np.diag([-1, 1, 1]) @ m), "001.npy: .* no rotation: they stretch or"),
        ("", lambda f: change_pose(f, lambda m: np.diag([1, -1, -1]) @ m), f"001.npy: {NOT_SEEN}"),
        ("", lambda f: change_pose(f, lambda m: np.concatenate([m[:, :3], 0 * m[:, 3:]], 1)), f"001.npy: {NOT_SEEN}"),
        ("transforms.json", lambda f: wrong_json(f, turn_away), f"transforms.json: frame 1: {NOT_SEEN}"),
        ("", four_digits, "no picture with its camera"),
        (
            "",
            lambda f: (f / "001.png").write_bytes((f / "001.png").read_bytes()[:60]),
            "001.png is not a whole picture",
        ),
        (
            "",
            lambda f: [path.unlink() for path in (*f.glob("*.npy"), f / "transforms.json")],
            "has no picture with its camera: expected 000.png and 000.npy",
        ),
        (
            "transforms.json",
            lambda f: wrong_json(f, lambda c: c.pop("camera_angle_x")),
            "frame 0: expected camera_angle_x in radians, or fl_x",
        ),
        (
            "transforms.json",
            lambda f: wrong_json(f, lambda c: [x.update(transform_matrix=[[1.0] * 3] * 3) for x in c["frames"]]),
            "frame 0: transform_matrix: expected 4 x 4 or 3 x 4 finite numbers",
        ),
        ("transforms.json", lambda f: (f / "002.png").unlink(), "no picture at .*002.png"),
        (
            "transforms.json",
            lambda f: wrong_json(f, lambda c: c.update(fl_x=-1.0)),
            "fl_x: expected more than 0, got -1",
        ),
        ("nowhere.json", lambda f: None, "no camera file at"),
        ("nowhere.png", lambda f: None, "no picture at"),
    ],
    ids=[
        "4x4",
        "4x3",
        "nan",
        "no rotation",
        "no array",
        "archive",
        "mirror",
        "OpenCV axes",
        "at the origin",
        "turned away",
        "four digits",
        "truncated",
        "no cameras",
        "no angle",
        "3x3",
        "gone",
        "focal length",
        "no file",
        "no picture",
    ],
)
def test_what_is_wrong_with_pictures_is_named(folder, path, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_pictures(str(folder / path), PLACE, FramingConfig(), KEY)
    assert str(error.value).startswith(f"{KEY}: ") and "\n" not in str(error.value)


def test_the_nearest_picture_by_angle():
    c2w = torch.cat(
        [orbit_camera(0.0, azimuth, 2.0) for azimuth in (0.0, 120.0, 240.0)] + [orbit_camera(80.0, 0.0, 3.0)]
    )
    views = ReferenceViews((torch.zeros(2, 2, 4),) * 4, c2w, torch.full((4,), 0.5))
    elevation = torch.tensor([0.0, 10.0, -20.0, 70.0, 0.0, 5.0])
    azimuth = torch.tensor([-50.0, 70.0, 250.0, 200.0, 355.0, -130.0])
    assert nearest_views(views, elevation, azimuth).tolist() == [0, 1, 2, 3, 0, 2]


def test_the_data_module_frames_the_picture_and_softens_its_mask(tmp_path):
    Image.fromarray(ball_pixels(radius=5.0, middle=(30.0, 12.0))).save(tmp_path / "ball.png")
    config = {
        "image_path": str(tmp_path / "ball.png"),
        "height": 16,
        "width": 16,
        "random_camera": {"height": 4, "width": 4},
    }
    data = threestudio.find("turboprop-image-datamodule")(config)
    data.setup("fit")
    batch = data.train_dataset.collate(None)
    mask = batch["mask"][0, ..., 0]
    assert mask.dtype == torch.float32 and ((mask > 0.01) & (mask < 0.99)).any()
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    assert rows.float().mean().item() == pytest.approx(7.5, abs=0.5) and columns.float().mean().item() == pytest.approx(
        7.5, abs=0.5
    )
    assert (rows.max() - rows.min() + 1).item() == pytest.approx(0.75 * 16, abs=1)
    with pytest.raises(ValueError, match="data.requires_depth: only single-image-datamodule reads maps"):
        threestudio.find("turboprop-image-datamodule")({**config, "requires_depth": True})
    with pytest.raises(ValueError, match="data.framing.mode"):
        threestudio.find("turboprop-image-datamodule")({**config, "framing": {"mode": "x"}})
