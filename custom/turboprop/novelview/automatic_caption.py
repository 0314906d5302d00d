"""`system.prompt_processor.prompt=auto`: the judge reads a picture's caption before the run is built.

Systems that are told a picture and its caption (Magic123, Qian et al. 2023, arXiv 2306.17843) take the caption from the
user; a picture alone is enough where a model of pictures and texts finds the nearest of the texts that it knows. The
judge knows the world's full captions, and gives some of them to a picture of anything. Where the run has a teacher that
is told captions and cameras, that one chooses among them, as a diffusion classifier (see `place_estimate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

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
from ..teachers import load_teacher
from ..teachers.contract import Teacher
from ..teachers.text import encode_prompts
from .config_picture import AUTO, camera_teacher_of, first_picture, known_place, novel_view_guidance
from .place_estimate import PicturePlace, caption_errors, picture_for

KEY = "system.prompt_processor.prompt"
BACKGROUNDS = (0.0, 0.5, 1.0)  # greys, in [0, 1]: parts that vanish on one of them stand out on another
PROPOSED = 6  # captions that the judge names
# A teacher's error above which its caption explains nothing. Over 18 pictures of the world mini-mv had 0.018 to 0.084
# with the right caption; of 8 photos, flat shapes and noise 6 had more than 0.17.
UNLIKELY = 0.15


@dataclass(frozen=True)
class CaptionReading:
    """The texts that are nearest to a picture, best first, and how near they are."""

    captions: tuple[str, ...]
    cosines: tuple[float, ...]  # in [-1, 1], the judge's, the mean over backgrounds
    errors: tuple[float, ...] = ()  # of the noise that a teacher predicts, where one has chosen; see place_estimate


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
    rgba, _ = first_picture(guidance)
    reading = read_caption(load_judge(judge, get_device()), rgba, world_gallery())
    folder = camera_teacher_of(cfg)
    if folder is not None:
        teacher, texts = load_teacher(folder, get_device()), list(reading.captions)
        threestudio.info(f"{KEY}: the teacher chooses among {len(texts)} captions, in half a minute on a CPU ...")
        text = encode_prompts(processor.pretrained_model_name_or_path, texts, get_device())
        # From any place: a default that is not the picture's would speak against the right caption.
        anywhere = replace(known_place(cfg), elevation=None, azimuth=None)
        reading = chosen_by(teacher, rgba, reading, text.local_embeddings, anywhere)
    processor.prompt = reading.captions[0]
    near = ", ".join(f"{text} {cosine:.2f}" for text, cosine in zip(reading.captions, reading.cosines))
    errors = ", ".join(f"{error:.3f}" for error in reading.errors)
    by_teacher = f"; the teacher's errors: {errors}" if errors else ""
    threestudio.info(f"{KEY}: read as '{reading.captions[0]}' (the judge's cosines: {near}{by_teacher})")
    if reading.errors and reading.errors[0] > UNLIKELY:
        threestudio.warn(
            f"{KEY}: no caption that the judge knows explains the picture (error {reading.errors[0]:.2f}; of an object "
            f"of the small world it is below {UNLIKELY}), so the caption is a guess, and so is a place found by it; "
            "give the caption, data.default_elevation_deg and data.default_azimuth_deg"
        )

    def record(saver: SaverMixin) -> None:
        saver.save_json("caption.json", {key: list(value) for key, value in asdict(reading).items()})

    return record


def chosen_by(
    teacher: Teacher,  # is told captions and cameras
    rgba: Tensor,  # [S, S, 4], straight alpha
    reading: CaptionReading,
    embeddings: Tensor,  # [K, N, D], of its captions
    place: PicturePlace,
) -> CaptionReading:
    """The reading with its captions in the order in which a teacher explains the picture by them, best first."""
    errors = caption_errors(teacher, picture_for(teacher, rgba), embeddings, place)
    order = sorted(range(len(errors)), key=errors.__getitem__)
    captions, cosines = (tuple(values[index] for index in order) for values in (reading.captions, reading.cosines))
    return CaptionReading(captions, cosines, tuple(errors[index] for index in order))


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
    best = cosines.topk(min(PROPOSED, len(texts)))
    return CaptionReading(tuple(texts[index] for index in best.indices.tolist()), tuple(best.values.tolist()))
