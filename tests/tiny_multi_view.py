"""A multi-view teacher at tiny size, which begins as the tiny Stable Diffusion and shares its other parts."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

SETS_OF = 4  # views


def write_tiny_multi_view(folder: Path, base: Path, camera_encoding: str = "mvdream", shared: bool = True) -> Path:
    """Sets of views of 16 pixels, latents [4, 8, 8], text embeddings [12, 16]; cameras matter."""
    from diffusers import UNet2DConditionModel
    from turboprop.teachers.multi_view.network import from_text_to_image

    network = from_text_to_image(UNet2DConditionModel.from_pretrained(base / "unet"), camera_encoding, SETS_OF)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (network.camera_embedding[0], network.camera_embedding[-1]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
    network.save_pretrained(folder / "unet")
    index = {
        "_class_name": "MultiViewPipeline",
        "unet": ["turboprop", "MultiViewUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    parts = ("vae", "text_encoder", "tokenizer", "scheduler")
    if shared:
        index["_shared_parts"] = {part: os.path.relpath(base, folder) for part in parts}
    else:
        for part in parts:
            shutil.copytree(base / part, folder / part)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_mv_folder(tmp_path_factory: pytest.TempPathFactory, tiny_sd_folder: Path) -> Path:
    """A tiny multi-view model whose other parts are the tiny Stable Diffusion's."""
    return write_tiny_multi_view(tmp_path_factory.mktemp("models") / "tiny-mv", tiny_sd_folder)
