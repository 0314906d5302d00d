"""CLIP similarity (Sim) and retrieval (R@1) of generated views, as ScaleDreamer computes them.

Sim: the mean over a prompt's views of cos(picture, own text), then the mean over prompts.
R@1: the share of a prompt's views whose nearest text of the gallery is its own prompt,
then the mean over prompts (Ma et al. 2024, ScaleDreamer, section 4). R@1 depends on the
gallery, so every result states it. Texts are the prompts themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threestudio.utils.errors import MissingFileError, UserError, first_line


@dataclass(frozen=True)
class ClipJudge:
    """A CLIPModel with what its pictures and texts need."""

    name: str
    model: nn.Module
    tokenizer: object
    image_size: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


@dataclass(frozen=True)
class ClipScores:
    """Sim and R@1 by prompt, and the gallery that R@1 was taken over."""

    sim: list[float]
    r_at_1: list[float]
    gallery: list[str]

    @property
    def mean_sim(self) -> float:
        return sum(self.sim) / len(self.sim)

    @property
    def mean_r_at_1(self) -> float:
        return sum(self.r_at_1) / len(self.r_at_1)


def load_judge(name: str | Path, device: str | torch.device = "cpu") -> ClipJudge:
    """Open a CLIPModel folder (the small judge) or hub id (openai/clip-vit-large-patch14).

    Raises FileNotFoundError if there is no such folder or hub id, ValueError if it holds another model, or a part that
    does not load.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.utils import cached_file

    name = str(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise MissingFileError(f'no CLIP model in the folder "{name}": config.json is missing')
    try:
        config_file = cached_file(name, "config.json")
        pixels_file = cached_file(name, "preprocessor_config.json")
    except OSError as error:
        raise MissingFileError(
            f'no CLIP model at "{name}": neither a complete local folder nor a hub id that can be fetched '
            f"({first_line(error)})"
        ) from error
    with _part_named(name, "config.json"):
        model_type = json.loads(Path(config_file).read_text()).get("model_type")
    if model_type != "clip":
        raise UserError(f'the judge "{name}" must be a CLIP model, but its config.json says model_type "{model_type}"')
    with _part_named(name, "preprocessor_config.json"):
        pixels = json.loads(Path(pixels_file).read_text())
        mean, std = tuple(pixels["image_mean"]), tuple(pixels["image_std"])
    with _part_named(name, "its weights"):
        model = CLIPModel.from_pretrained(name, config=CLIPConfig.from_pretrained(name), dtype=torch.float32)
    with _part_named(name, "its tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(name)
        known = model.config.text_config.vocab_size
        if 2 * len(tokenizer) < known:  # transformers makes an empty one of no files; a model's table may be padded
            raise ValueError(f"it has {len(tokenizer)} tokens, the model knows {known}")
    return ClipJudge(
        name=name,
        model=model.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        image_size=model.config.vision_config.image_size,
        pixel_mean=mean,
        pixel_std=std,
    )


@contextmanager
def _part_named(name: str, part: str) -> Iterator[None]:
    """Turns what libraries raise for a broken part of a judge into a UserError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f'the judge "{name}": cannot load {part}: {first_line(error)}') from error


def normalized_pixels(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a CLIPModel takes: [N, 3, S, S] in [0, 1] -> [N, 3, size, size].

    Bilinear and antialiased, as ScaleDreamer's.
    """
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    channel_mean, channel_std = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - channel_mean) / channel_std


@torch.no_grad()
def embed_images(judge: ClipJudge, images: Tensor, batch_size: int = 64) -> Tensor:
    """Unit features of square pictures: [N, 3, S, S] in [0, 1] -> [N, D]."""
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"pictures must be square, [N, 3, S, S]; got {list(images.shape)}")
    device = judge.model.logit_scale.device
    features = []
    for part in images.split(batch_size):
        pixels = normalized_pixels(part.to(device, torch.float32), judge.image_size, judge.pixel_mean, judge.pixel_std)
        pooled = judge.model.vision_model(pixel_values=pixels).pooler_output
        features.append(F.normalize(judge.model.visual_projection(pooled), dim=-1))
    return torch.cat(features)


@torch.no_grad()
def embed_texts(judge: ClipJudge, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Unit features of texts, cut at the tokenizer's length: [T] -> [T, D]."""
    device = judge.model.logit_scale.device
    length = judge.model.config.text_config.max_position_embeddings
    features = []
    for start in range(0, len(texts), batch_size):
        tokens = judge.tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        pooled = judge.model.text_model(**tokens.to(device)).pooler_output
        features.append(F.normalize(judge.model.text_projection(pooled), dim=-1))
    return torch.cat(features)


def nearest_texts(cosines: Tensor) -> Tensor:
    """Which of G texts each view is nearest to: [..., G] -> [...]; -1, none, where a cosine is not finite."""
    return torch.where(cosines.isfinite().all(-1), cosines.argmax(-1), -1)  # argmax takes a nan for the largest


def score_features(
    prompts: Sequence[str], image_features: Tensor, gallery: Sequence[str], text_features: Tensor
) -> ClipScores:
    """Sim and R@1 from unit features: image_features [P, V, D], text_features [G, D] of the gallery's G texts."""
    own = torch.tensor([gallery.index(prompt) for prompt in prompts], device=image_features.device)
    cosines = image_features @ text_features.T  # [P, V, G]
    sim = cosines.gather(-1, own[:, None, None].expand(-1, cosines.shape[1], 1)).squeeze(-1).mean(1)
    recall = (nearest_texts(cosines) == own[:, None]).float().mean(1)
    return ClipScores(sim.tolist(), recall.tolist(), list(gallery))


def clip_scores(
    judge: ClipJudge, prompts: Sequence[str], images: Tensor, gallery: Sequence[str] | None = None
) -> ClipScores:
    """Sim and R@1 of each prompt's views: images [P, V, 3, S, S] in [0, 1].

    gallery: the texts that R@1 chooses from; all distinct prompts if None. Raises
    ValueError if it lacks a prompt, or if prompts and pictures differ in number.
    """
    if len(prompts) != len(images) or not prompts:
        raise ValueError(
            f"one set of views a prompt is needed; got {len(prompts)} prompts, {len(images)} sets of views"
        )
    texts = list(dict.fromkeys(prompts if gallery is None else gallery))
    missing = [prompt for prompt in prompts if prompt not in texts]
    if missing:
        raise UserError(f'the gallery of {len(texts)} texts lacks the prompt "{missing[0]}"')
    features = embed_images(judge, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return score_features(prompts, features, texts, embed_texts(judge, texts))
