"""Pictures of every kind that a user may give: read right, or refused in one line that names key and file."""

import io
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_pictures import BALL_COLOR, ball_pixels
from threestudio.utils.errors import UserError
from threestudio.utils.picture_files import LARGEST_SIDE, padded, read_object, read_picture, resized

KEY = "data.image_path"


@pytest.fixture()
def ball(tmp_path):
    """Writes the ball through Pillow, changed by `change`, and gives the file."""

    def write(name="ball.png", change=lambda image: image, **options):
        path = tmp_path / name
        change(Image.fromarray(ball_pixels())).save(path, **options)
        return path

    return write


def refusal(path, reader=read_object) -> str:
    with pytest.raises(UserError) as error:
        reader(path, KEY)
    message = str(error.value)
    assert message.startswith(f"{KEY}: ") and "\n" not in message
    assert str(path) in message
    return message


def test_an_rgba_picture_is_read_as_it_is(ball):
    rgba = read_object(ball(), KEY)
    torch.testing.assert_close(rgba, torch.from_numpy(ball_pixels()).float() / 255)


def test_a_palette_with_transparency(ball):
    path = ball(change=lambda image: image.quantize(8))
    assert Image.open(path).mode == "P"
    rgba = read_object(path, KEY)
    expected = torch.from_numpy(ball_pixels())
    assert torch.equal(rgba[..., 3] > 0.5, expected[..., 3] > 127)
    assert (rgba[20, 20, :3] * 255 - torch.tensor(BALL_COLOR)).abs().max() < 3


def test_sixteen_bits_of_grey_keep_them(tmp_path):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    rgba, transparent = read_picture(tmp_path / "grey.png", KEY)
    assert not transparent
    torch.testing.assert_close(rgba[..., 0], torch.from_numpy(values.astype(np.float32)) / 65535)
    assert torch.equal(rgba[..., 0], rgba[..., 2])


def test_sixteen_bits_of_grey_with_one_that_is_transparent(tmp_path):
    """A PNG of 16-bit greys whose tRNS chunk names 0, written by hand."""
    grey = ball_pixels()[..., 0].astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = (40).to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 0])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"tRNS", b"\0\0")
    chunks += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "grey.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    rgba = read_object(tmp_path / "grey.png", KEY)
    torch.testing.assert_close(rgba[..., 3], torch.from_numpy(ball_pixels()[..., 3] > 0).float())
    torch.testing.assert_close(rgba[20, 20, :3], torch.full((3,), BALL_COLOR[0] / 255))


def test_floats_count_to_one(tmp_path):
    """Pillow would make 8 bits of them that count to 255: black."""
    values = np.linspace(-0.5, 1.5, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "grey.tiff")
    rgba, _ = read_picture(tmp_path / "grey.tiff", KEY)
    torch.testing.assert_close(rgba[..., 1], torch.from_numpy(np.nan_to_num(values)).clamp(0, 1))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + b"\0" * 60, "it is HEIC, which is not read; save it as PNG or JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull fetches the picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no kind that is read"),
        (b"", "the file is empty"),
    ],
)
def test_what_stands_in_a_pictures_place_is_said(tmp_path, content, reason):
    (tmp_path / "x.png").write_bytes(content)
    assert reason in refusal(tmp_path / "x.png")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_sixteen_bits_a_channel_with_alpha(tmp_path):
    """A PNG of four 16-bit channels, written by hand: Pillow cannot."""
    pixels = ball_pixels().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = (40).to_bytes(4, "big") * 2 + bytes([16, 6, 0, 0, 0])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    torch.testing.assert_close(read_object(path, KEY), torch.from_numpy(ball_pixels()).float() / 255)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    rgba, transparent = read_picture(tmp_path / "red.jpg", KEY)
    assert rgba.shape == (16, 16, 4) and not transparent
    assert rgba[8, 8, 0] > 0.8 and rgba[8, 8, 1:3].max() < 0.2


def test_a_jpeg_that_says_it_is_turned_is_turned(tmp_path):
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 16))  # its left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    rgba, _ = read_picture(tmp_path / "turned.jpg", KEY)
    assert rgba.shape == (32, 16, 4)
    assert rgba[:12, :, 0].min() > 0.9 and rgba[20:, :, 0].max() < 0.1  # the left is on top now


def test_a_hundred_megapixels_are_shrunk(tmp_path):
    """A grey picture: one byte a pixel, so that the test stays small."""
    image = Image.new("L", (10_000, 10_000), 0)
    image.paste(255, (2500, 2500, 7500, 7500))
    image.save(tmp_path / "large.png", compress_level=1)
    rgba, _ = read_picture(tmp_path / "large.png", KEY)
    assert rgba.shape == (LARGEST_SIDE, LARGEST_SIDE, 4)
    assert rgba[..., 0].mean() == pytest.approx(0.25, abs=1e-3)


def test_more_pixels_than_can_be_decoded_are_refused(tmp_path):
    """The header alone says 30,000 x 30,000."""
    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0")) + png_chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert "too many pixels" in refusal(tmp_path / "bomb.png")


def test_one_pixel_is_refused(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "dot.png")
    assert "has 1 x 1 pixels; expected at least 8 x 8" in refusal(tmp_path / "dot.png")


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.02])
def test_a_truncated_png_is_refused(ball, kept):
    path = ball()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "is not a whole picture" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 60])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    assert "is not a whole picture" in refusal(tmp_path / "x.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no picture at" in refusal(tmp_path / "nowhere.png")
    assert "no picture at" in refusal(tmp_path)


def test_an_empty_mask_is_refused(ball):
    def faint(image):
        pixels = np.array(image)
        pixels[..., 3] = np.where(pixels[..., 3] > 0, 100, 0)
        return Image.fromarray(pixels)

    assert "empty: no pixel has an alpha above 0.5" in refusal(ball(change=faint))


@pytest.mark.parametrize(
    "change", [lambda i: i.convert("RGB"), lambda i: i.convert("RGB").convert("RGBA")], ids=["RGB", "opaque RGBA"]
)
def test_without_transparency_and_rembg_there_is_one_line(ball, change, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)  # as if it were not installed
    assert "pip install rembg" in refusal(ball(change=change))


def alpha_of(change):
    """A change of a picture's alpha [H, W], uint8."""

    def changed(image):
        pixels = np.array(image)
        pixels[..., 3] = change(pixels[..., 3])
        return Image.fromarray(pixels)

    return changed


ALPHA_OF_NO_BACKGROUND = {
    "soft everywhere": lambda alpha: np.full_like(alpha, 200),
    "all but opaque": lambda alpha: np.full_like(alpha, 254),
    "one clear pixel": lambda alpha: np.where(np.indices(alpha.shape).sum(0) == 0, 0, 255),
    "round corners": lambda alpha: np.where(np.indices(alpha.shape).sum(0) < 4, 0, 255),
    "inverted": lambda alpha: 255 - alpha,
}


@pytest.mark.parametrize("name", ALPHA_OF_NO_BACKGROUND)
def test_alpha_that_covers_the_background_counts_as_none(ball, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    message = refusal(ball(change=alpha_of(ALPHA_OF_NO_BACKGROUND[name])))
    assert "its alpha covers the rim of the picture" in message and "pip install rembg" in message


def test_an_object_may_touch_the_rim(ball):
    """A picture cut closely around its object, and one whose object stands on its lower edge."""
    cut = read_object(ball(change=lambda image: image.crop((6, 6, 34, 34))), KEY)
    assert (cut[..., 3] > 0.5).sum() == (ball_pixels()[..., 3] > 0).sum()
    assert read_object(ball(change=lambda image: image.crop((0, 0, 40, 20))), KEY).shape == (20, 40, 4)


def test_an_object_of_a_pixel_is_refused(ball):
    dot = ball(change=alpha_of(lambda alpha: np.where(np.indices(alpha.shape).sum(0) == 0, 255, 0)))
    assert "the object in" in refusal(dot) and "has 1 x 1 pixels; expected at least 4" in refusal(dot)


@pytest.mark.parametrize("error", [OSError("no network\nmore"), RuntimeError("no memory"), ValueError("bad session")])
def test_a_failure_of_rembg_is_one_line(ball, error, monkeypatch):
    def remove(picture):
        raise error

    monkeypatch.setitem(sys.modules, "rembg", types.SimpleNamespace(remove=remove))
    message = refusal(ball(change=lambda image: image.convert("RGB")))
    assert "rembg did not remove the background" in message and str(error).split("\n")[0] in message


def test_rembg_without_its_runtime_is_one_line(ball, tmp_path, monkeypatch):
    """As of 2.0.66 it exits where onnxruntime is not there."""
    (tmp_path / "rembg.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    assert "pip install rembg onnxruntime" in refusal(ball(change=lambda image: image.convert("RGB")))


def test_home_is_found_behind_a_key(ball, monkeypatch):
    monkeypatch.setenv("HOME", str(ball().parent))
    assert torch.equal(read_object("~/ball.png", KEY), read_object(ball(), KEY))
    assert "no picture at" in str(pytest.raises(UserError, read_object, "~/nowhere.png", KEY).value)


def test_rembg_removes_the_background_where_it_is_installed(ball, monkeypatch):
    seen = []

    def remove(picture):
        """What rembg's function of this name does for the ball: alpha 0 where it is black."""
        seen.append(picture.mode)
        pixels = np.array(picture.convert("RGBA"))
        pixels[..., 3] = np.where(pixels[..., :3].sum(-1) > 0, 255, 0)
        return Image.fromarray(pixels)

    monkeypatch.setitem(sys.modules, "rembg", types.SimpleNamespace(remove=remove))
    rgba = read_object(ball(change=lambda image: image.convert("RGB")), KEY)
    assert seen == ["RGB"]
    torch.testing.assert_close(rgba, torch.from_numpy(ball_pixels()).float() / 255)
    read_object(ball(), KEY)
    assert seen == ["RGB"]  # a picture with alpha does not go through it


def test_what_is_transparent_lends_no_colour():
    """White lies under the transparent half: shrunk, the object stays as red as it was."""
    rgba = torch.ones(8, 8, 4)
    rgba[:, :4] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    rgba[:, 4:, 3] = 0
    small = resized(rgba, 3, 3)
    assert small[..., 3].min() < 0.1 and 0.2 < small[1, 1, 3] < 0.8
    torch.testing.assert_close(small[:, :2, :3], torch.tensor([1.0, 0.0, 0.0]).expand(3, 2, 3))


@pytest.mark.parametrize(
    "shape, aspect, expected",
    [((4, 8), 1.0, (8, 8)), ((8, 4), 1.0, (8, 8)), ((4, 4), 2.0, (4, 8)), ((4, 8), 2.0, (4, 8))],
)
def test_borders_make_the_shape(shape, aspect, expected):
    image = padded(torch.ones(*shape, 4), aspect)
    assert image.shape[:2] == expected
    assert image.sum() == 4 * shape[0] * shape[1]
    middle = image[expected[0] // 2, expected[1] // 2]
    assert torch.equal(middle, torch.ones(4))


def test_an_animation_gives_its_first_picture(tmp_path):
    frames = [Image.fromarray(ball_pixels(radius=r)) for r in (14.0, 5.0)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    (tmp_path / "moving.png").write_bytes(buffer.getvalue())
    covered = (read_object(tmp_path / "moving.png", KEY)[..., 3] > 0.5).sum()
    assert covered == (ball_pixels()[..., 3] > 0).sum()
