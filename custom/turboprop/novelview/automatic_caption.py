"""`system.prompt_processor.prompt=auto`: the judge reads the caption of a single picture before the run is built.

Systems that are told a picture and its caption (Magic123, Qian et al. 2023, arXiv 2306.17843) take the caption from the
user; a picture alone is enough where a model of pictures and texts finds the nearest of the texts that it knows. The
judge knows the world's full captions, and gives one of them to a picture of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

import threestudio
from threestudio.utils.config_completion import Record, register_config_completion
from threestudio.utils.devices import get_device
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

from ..evaluation.clip_metrics import ClipJudge, embed_images, embed_texts, load_judge
from ..evaluation.report import world_gallery
from .config_picture import AUTO, novel_view_guidance, single_picture

KEY = "system.prompt_processor.prompt"
BACKGROUNDS = (0.0, 0.5, 1.0)  # greys, in [0, 1]: parts that vanish on one of them stand out on another
SHOWN = 3  # captions that are named


@dataclass(frozen=True)
class CaptionReading:
    """The texts that are nearest to a picture, best first, and how near they are."""

    captions: tuple[str, ...]
    cosines: tuple[float, ...]  # in [-1, 1], the mean over backgrounds


@register_config_completion
def complete_caption(cfg: DictConfig) -> Record | None:
    """Puts the caption in the place of auto; does nothing where the key says anything else."""
    processor = cfg.system.get("prompt_processor")
    if not isinstance(processor, DictConfig) or "prompt" not in processor:  # nor where it is still to be given
        return None
    if processor.prompt != AUTO:
        return None
    _, guidance = novel_view_guidance(cfg, KEY, "give the caption")
    judge = (cfg.system.get("evaluation") or {}).get("judge")
    if not judge:
        raise UserError(f"{KEY}: auto is read by the model that system.evaluation.judge names; name one, or a caption")
    reading = read_caption(load_judge(judge, get_device()), single_picture(guidance, KEY), world_gallery())
    processor.prompt = reading.captions[0]
    near = ", ".join(f"{text} {cosine:.2f}" for text, cosine in zip(reading.captions, reading.cosines))
    threestudio.info(f"{KEY}: read as '{reading.captions[0]}' (cosines: {near})")

    def record(saver: SaverMixin) -> None:
        saver.save_json("caption.json", {"captions": list(reading.captions), "cosines": list(reading.cosines)})

    return record


@torch.no_grad()
def read_caption(
    judge: ClipJudge,
    rgba: Tensor,  # [S, S, 4], straight alpha
    texts: Sequence[str],
) -> CaptionReading:
    """Which of some texts a picture is nearest to, by its mean cosine with them over several backgrounds."""
    alpha = rgba[..., 3:]
    pictures = torch.stack([rgba[..., :3] * alpha + grey * (1 - alpha) for grey in BACKGROUNDS]).permute(0, 3, 1, 2)
    cosines = (embed_images(judge, pictures) @ embed_texts(judge, texts).T).mean(0)
    best = cosines.topk(min(SHOWN, len(texts)))
    return CaptionReading(tuple(texts[index] for index in best.indices.tolist()), tuple(best.values.tolist()))
