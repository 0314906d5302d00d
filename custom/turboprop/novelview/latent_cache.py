"""Makes a cache of latents (see `cached_latents`). Building goes on where it was stopped.

python -m custom.turboprop.novelview.latent_cache --root renders --model assets/teachers/mini-sd --output cache
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threestudio.utils.commands import exit_code_of
from threestudio.utils.errors import UserError

from .cached_latents import LatentCache, autoencoder_fingerprint, mapped_cache
from .renders import BrokenFolder, FolderIndex, open_index, read_render, view_numbers


def create_latent_cache(
    folder: Path,
    index: FolderIndex,
    views: int,  # of a folder that have a place
    latent_shape: tuple[int, ...],  # (C, h, w)
    vae: Any,
) -> LatentCache:
    """A cache to fill: a new one, or the one that is there. Raises ValueError where the one that is there is of other
    folders, another autoencoder or another shape."""
    content = {
        "index": index.fingerprint(),
        "autoencoder": autoencoder_fingerprint(vae),
        "shape": [len(index), views, 2, *latent_shape],
    }
    path = folder / "cache.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in content if there.get(name) != content[name]]
        if different:
            raise UserError(f"--output: the cache in {folder} has another {different[0]}; give another folder")
        return mapped_cache(folder, content, "r+")
    folder.mkdir(parents=True, exist_ok=True)
    count = int(np.prod(content["shape"], dtype=np.int64))
    for name, size in (("moments.f16", 2 * count), ("present.u8", len(index) * views)):
        with open(folder / name, "wb") as file:
            file.truncate(size)  # sparse: disk is taken as the cache fills
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return mapped_cache(folder, content, "r+")


@torch.no_grad()
def fill_latent_cache(
    cache: LatentCache,
    index: FolderIndex,
    vae: Any,
    image_size: int,
    numbers: range,  # of the folders to fill
    report: Callable[[str], None],
) -> tuple[int, int]:
    """Encodes what is not there yet; returns the numbers of views written and of folders left out as broken."""
    written = broken = 0
    device = next(vae.parameters()).device
    for number in numbers:
        folder = index.folder(number)
        try:
            views = [v for v in view_numbers(folder) if v < cache.present.shape[1] and not cache.present[number, v]]
            pictures = [read_render(folder / f"{view:03d}.png", image_size) for view in views]
        except BrokenFolder as error:
            broken += 1
            report(f"left out: {error}")
            continue
        if not views:
            continue
        posterior = vae.encode(torch.stack(pictures).to(device, vae.dtype)).latent_dist
        moments = torch.stack([posterior.mean, posterior.std], dim=1)
        cache.moments[number, views] = moments.to("cpu", torch.float16).numpy()
        cache.moments.flush()  # before the mark that they are there
        cache.present[number, views] = 1
        written += len(views)
        if (number - numbers.start) % 1000 == 999:
            report(f"{number + 1 - numbers.start} of {len(numbers)} folders, {written} views")
    cache.present.flush()
    return written, broken


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not part.isdigit() or not parts.isdigit() or not 1 <= int(part) <= int(parts):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, got {text!r}")
    return int(part), int(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="latent_cache", description="Encodes all views of a root once.")
    parser.add_argument("--root", required=True, help="folders of renders in zero-1-to-3's layout")
    parser.add_argument("--model", required=True, help="a model folder with vae/, or a hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder of the cache")
    parser.add_argument("--views", type=int, default=12, help="views of a folder that have a place (default 12)")
    parser.add_argument("--image-size", type=int, default=0, help="pixels; default: the autoencoder's sample_size")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="i/n", help="for several processes: 2/8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from diffusers import AutoencoderKL

    from ..teachers.weights import model_folder
    from .loading import load_whole_part, model_is_named

    index = open_index(options.root, "--root")
    with model_is_named("--model"):
        vae = load_whole_part(AutoencoderKL, model_folder(options.model, ("vae",)), "vae").eval().to(options.device)
    size = options.image_size or int(vae.config.sample_size)
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (int(vae.config.latent_channels), side, side)
    cache = create_latent_cache(options.output, index, options.views, shape, vae)
    part, parts = options.part
    numbers = range(len(index) * (part - 1) // parts, len(index) * part // parts)
    written, broken = fill_latent_cache(cache, index, vae, size, numbers, print)
    print(f"{options.output}: {written} views encoded, {broken} of {len(numbers)} folders left out")


if __name__ == "__main__":
    sys.exit(main())
