"""The judge's model: a small CLIP (Radford et al. 2021) in transformers' own classes and folder layout.

It sees pictures at 48 px and knows the world's full captions. It shares no weights with the
teachers, and sees the kinds and colours that are held out from them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

IMAGE_SIZE, PATCH_SIZE = 48, 8  # pixels
VISION_WIDTH, VISION_LAYERS = 128, 4
TEXT_WIDTH, TEXT_LAYERS = 64, 2
PROJECTION_WIDTH = 96
PIXEL_MEAN, PIXEL_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def make_judge(tokenizer):
    """An untrained CLIPModel for the tokenizer's vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION_WIDTH))


def save_judge(folder: Path, model, tokenizer) -> None:
    """Write the model in half precision, its tokenizer, and the settings of a CLIPImageProcessor."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 2,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
