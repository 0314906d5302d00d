"""Radiance pictures: rows plain and run-length coded, and what is broken in one line."""

import numpy as np
import pytest
import torch

from threestudio.utils.errors import UserError
from threestudio.utils.radiance_hdr import read_hdr

HEADER = b"#?RADIANCE\n# made here\nFORMAT=32-bit_rle_rgbe\nEXPOSURE=1.0\n\n"


def encoded(colors: np.ndarray) -> np.ndarray:  # [H, W, 3] -> [H, W, 4]
    mantissa, exponent = np.frexp(colors.max(-1))
    scale = np.where(colors.max(-1) > 0, mantissa * 256 / np.maximum(colors.max(-1), 1e-30), 0)
    return np.concatenate([colors * scale[..., None], (exponent + 128)[..., None]], -1).astype(np.uint8)


def run_length(row: np.ndarray) -> bytes:  # [W, 4]
    out = bytes((2, 2, len(row) >> 8, len(row) & 255))
    for channel in row.T:
        x = 0
        while x < len(channel):
            same = 1
            while x + same < len(channel) and channel[x + same] == channel[x] and same < 127:
                same += 1
            if same > 2:
                out += bytes((128 + same, channel[x]))
                x += same
                continue
            length = min(5, len(channel) - x)
            out += bytes((length,)) + channel[x : x + length].tobytes()
            x += length
    return out


@pytest.fixture()
def colors() -> np.ndarray:
    values = np.random.default_rng(0).random((6, 20, 3)) * 10.0 ** np.random.default_rng(1).integers(-2, 4, (6, 20, 1))
    values[2, 5:16] = values[2, 5]  # runs
    values[3] = 0.0
    return values


@pytest.mark.parametrize("coded", [True, False])
def test_both_kinds_of_rows(tmp_path, colors, coded):
    rows = encoded(colors)
    body = b"".join(run_length(row) if coded else row.tobytes() for row in rows)
    (tmp_path / "sky.hdr").write_bytes(HEADER + b"-Y 6 +X 20\n" + body)
    read = read_hdr(tmp_path / "sky.hdr", "key")
    assert read.dtype == torch.float32 and read.shape == (6, 20, 3) and (read[3] == 0).all()
    error = np.abs(read.numpy() - colors) / np.maximum(colors.max(-1, keepdims=True), 1e-30)
    assert error.max() < 1 / 127  # eight bits beside the largest channel


@pytest.mark.parametrize(
    "data, message",
    [
        (b"PNG and so on", "it does not begin with #?"),
        (HEADER.strip(), "its header has no end"),
        (HEADER + b"+Y 6 +X 20\n", "expected rows from the top"),
        (HEADER + b"-Y 6 +X 0\n", "its size is 6 x 0"),
        (HEADER + b"-Y 99999999 +X 99999999\n", "its size is"),
        (HEADER + b"-Y 6 +X 20\n" + bytes(30), "it is cut short"),
        (HEADER + b"-Y 6 +X 20\n" + bytes((2, 2, 0, 20, 10)), "a run of pixels is broken or cut short"),
        (HEADER + b"-Y 6 +X 20\n" + bytes((2, 2, 0, 20, 0)), "a run of pixels is broken"),
        (HEADER + b"-Y 1 +X 2\n" + bytes((1, 1, 1, 2, 9, 9, 9, 9)), "before 1991"),
        (HEADER.replace(b"rgbe", b"xyze") + b"-Y 1 +X 2\n" + bytes(8), "its colours are XYZ"),
    ],
)
def test_what_is_broken_is_named_with_its_key(tmp_path, data, message):
    path = tmp_path / "sky.hdr"
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"material\.environment_texture: .*sky\.hdr is not a whole Radiance picture"
    ) as e:
        read_hdr(path, "material.environment_texture")
    assert message in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="key: .*none.hdr: No such file"):
        read_hdr(tmp_path / "none.hdr", "key")
