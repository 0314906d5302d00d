"""Frames to a video file."""

import os
import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

from threestudio.utils.errors import UserError, first_line


def _even(frame: np.ndarray) -> np.ndarray:
    """`frame` without its last row or column if odd: H.264 halves the resolution of colour."""
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    return np.ascontiguousarray(frame[:height, :width])


def write_gif(path: str, frames: list[np.ndarray], fps: int) -> str:
    pictures = [Image.fromarray(frame) for frame in frames]
    duration = max(round(1000 / fps), 20)  # ms; viewers slow down what is faster than 50 a second
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return path


def write_mp4(path: str, frames: list[np.ndarray], fps: int) -> str:
    """Writes H.264; where no ffmpeg can be run, a GIF beside it. Returns the path written."""
    import imageio.v2 as imageio

    try:
        with imageio.get_writer(
            path, format="FFMPEG", fps=fps, codec="libx264", quality=8, macro_block_size=1, pixelformat="yuv420p"
        ) as writer:
            for frame in frames:
                writer.append_data(_even(frame))
        return path
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        import threestudio

        if os.path.exists(path):
            os.remove(path)
        fallback = os.path.splitext(path)[0] + ".gif"
        reason = first_line(error)
        threestudio.warn(f"no mp4 ({reason}); writing {fallback}")
        return write_gif(fallback, frames, fps)


def write_video(path: str, frames: Iterable[np.ndarray], save_format: str, fps: int = 30) -> str:
    """Writes [H, W, 3] uint8 frames as "mp4" or "gif"; returns the path written."""
    frames = list(frames)
    if not frames:
        raise UserError(f"no frames for the video {path}")
    if save_format == "mp4":
        return write_mp4(path, frames, fps)
    if save_format == "gif":
        return write_gif(path, frames, fps)
    raise ValueError(f"save_format is 'mp4' or 'gif'; got '{save_format}'")


def frame_files(folder: str, matcher: str) -> list[str]:
    """The files whose name the expression `matcher` finds, in the order of its number group.

    Names that begin with a dot are of what is still being written.
    """
    expression = re.compile(matcher)
    matches = [(expression.search(name), name) for name in os.listdir(folder) if not name.startswith(".")]
    numbered = sorted((int(match.group(1)), name) for match, name in matches if match)
    return [os.path.join(folder, name) for _, name in numbered]


def frames_in(folder: str, matcher: str) -> list[np.ndarray]:
    """The pictures of `frame_files`."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in frame_files(folder, matcher)]
