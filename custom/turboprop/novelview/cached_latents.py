"""The autoencoder's posterior of every view, read from files that are mapped in training.

A cache is a folder with `moments.f16` [folders, views, 2, C, h, w] (mean, then standard deviation, unscaled),
`present.u8` [folders, views] and `cache.json`. At 32 x 32 x 4 latents a view takes 16 KiB. `latent_cache` makes one.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.errors import MissingFileError, UserError

from .renders import BrokenFolder, FolderIndex


def autoencoder_fingerprint(vae: Any) -> str:
    """Tells autoencoders apart by the weights next to the latents, whatever their precision."""
    weights = (vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out).weight
    digest = hashlib.sha256(weights.detach().cpu().to(torch.float16).numpy().tobytes())
    digest.update(vae.encoder.conv_in.weight.detach().cpu().to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class LatentCache:
    """An opened cache."""

    moments: np.ndarray  # [folders, views, 2, C, h, w] float16, mapped
    present: np.ndarray  # [folders, views] uint8, mapped
    fingerprint: str  # of the autoencoder

    def read(self, folder: int, view: int) -> Tensor:
        """Mean and standard deviation of a view: [2, C, h, w], float32. Raises BrokenFolder where the cache has no such
        view."""
        if view >= self.present.shape[1] or not self.present[folder, view]:
            raise BrokenFolder(f"the latent cache has no view {view} of folder {folder}")
        return torch.from_numpy(np.array(self.moments[folder, view])).float()


def open_latent_cache(folder: Path | str, index: FolderIndex, key: str = "data.latent_cache") -> LatentCache:
    """A cache of the given folders. Raises FileNotFoundError or ValueError where there is none, or one of others."""
    folder = Path(folder).expanduser()
    if not (folder / "cache.json").is_file():
        raise MissingFileError(f"{key}: no latent cache in {folder} (cache.json)")
    content = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    if content["index"] != index.fingerprint():
        raise UserError(f"{key}: {folder} was made of other folders than those of {index.root}")
    return mapped_cache(folder, content, "r")


def mapped_cache(folder: Path, content: dict[str, Any], mode: str) -> LatentCache:
    """The files of a cache, whose cache.json says `content`, mapped with numpy's `mode`."""
    shape = tuple(content["shape"])
    return LatentCache(
        np.memmap(folder / "moments.f16", np.float16, mode, shape=shape),
        np.memmap(folder / "present.u8", np.uint8, mode, shape=shape[:2]),
        content["autoencoder"],
    )
