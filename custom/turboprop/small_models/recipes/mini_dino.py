"""mini-dino: the world's self-supervised image encoder, a Dinov2Model at a small size.

It learns from pictures alone, by DINO's and iBOT's losses together as DINOv2 does. Captions, kinds and cameras have no
part in its training; they only measure what it has learnt.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.keyed_random import step_key

from ...novelview.augmentation import PhotometricAugmentation, changed_photometry
from ...novelview.image_encoders import IMAGENET_MEAN_STD, ImageEncoder, quiet_transformers
from ...world.dataset import IMAGE_SIZE, ViewBank, sample_backgrounds
from ...world.objects import KINDS
from ..self_distillation import (
    PrototypeHead,
    balanced_targets,
    crops,
    follow,
    patch_loss,
    random_masks,
    view_loss,
)
from ..settings import Settings, millions, training_facts, write_card
from ..training import TrainingOptions, train
from ..view_pairs import ViewedObjects, draw_objects

PATCH_SIZE, WIDTH, LAYERS, HEADS = 8, 96, 6, 4
PROTOTYPES = 128  # no more than pictures that the teacher sees in a step, or balance makes all targets alike
LARGE_SCALE, LARGE_CROPS = (0.4, 1.0), 2  # area of the picture; seen by both
SMALL_SCALE, SMALL_CROPS, SMALL_SIZE = (0.2, 0.5), 4, 32  # seen by the student alone
MASKED_SHARE = 0.4  # of the patches, where any are hidden
MOMENTUM = 0.994  # of the teacher, at the start; it rises to 1 by a cosine (DINO, section 3.1)
TEACHER_TEMPERATURE = 0.04  # where DINO starts (section 3.2); a short training never gets to warm it
PHOTOMETRIC = PhotometricAugmentation(probability=0.9, brightness=0.4, contrast=0.4, saturation=0.6, hue=0.5)
GREY_SHARE, WHITE_SHARE = 0.2, 0.5
FIGURE_OBJECTS, FIGURE_VIEWS = 24, 4  # objects of each kind, views of each
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 500, 64, 1e-3


def make_encoder() -> Any:
    """A fresh Dinov2Model for the world's pictures."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            use_mask_token=True,
        )
    )


def normalised(images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
    """Pictures as DINO takes them: [B, 3, H, W]."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET_MEAN_STD)
    return ((images + 1.0) / 2.0 - mean) / std


class MiniDino:
    """The recipe of mini-dino: a student, and a teacher that follows it and is what is shipped."""

    name = "mini-dino"

    def __init__(self, bank: ViewBank, batch: int, steps: int, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        encoder, head = make_encoder().train(), PrototypeHead(WIDTH, 256, 64, PROTOTYPES)
        student = nn.ModuleDict({"encoder": encoder, "head": head}).to(device)
        teacher = copy.deepcopy(student).requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"student": student, "teacher": teacher}
        self.bank, self.batch, self.steps, self.seed, self.device = bank, batch, steps, seed, device

    def objects(self, generator: torch.Generator) -> Tensor:
        """A batch of the world's objects without background: premultiplied colours, opacity, [B, 4, S, S] in [0, 1]."""
        drawn = draw_objects(self.bank, self.batch, 1, generator)
        opacity = drawn.coverage  # [B, 1, S, S]
        return torch.cat([drawn.images[:, 0] / 2 + 0.5 - (1.0 - opacity), opacity], 1).to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """DINO's loss of whole pictures and iBOT's of hidden patches, one each: []."""
        student, teacher = self.modules["student"], self.modules["teacher"]
        follow(teacher, student, 1.0 - (1.0 - MOMENTUM) * (math.cos(math.pi * step / self.steps) + 1.0) / 2.0)
        objects = self.objects(generator)
        large = self.seen([crops(objects, LARGE_SCALE, IMAGE_SIZE, generator) for _ in range(LARGE_CROPS)], generator)
        small = self.seen([crops(objects, SMALL_SCALE, SMALL_SIZE, generator) for _ in range(SMALL_CROPS)], generator)
        masks = random_masks(len(large), (IMAGE_SIZE // PATCH_SIZE) ** 2, MASKED_SHARE, generator).to(self.device)
        with torch.no_grad():
            whole, patches = self.scores(teacher, large, masks)
            targets = balanced_targets(whole, TEACHER_TEMPERATURE).unflatten(0, (LARGE_CROPS, -1))
            patch_targets = balanced_targets(patches, TEACHER_TEMPERATURE)
        masked_whole, masked_patches = self.scores(student, large, masks, hidden=masks)
        small_whole = student["head"](student["encoder"](small).last_hidden_state[:, 0])
        everything = torch.cat([masked_whole, small_whole]).unflatten(0, (LARGE_CROPS + SMALL_CROPS, -1))
        by_view, by_patch = view_loss(everything, targets), patch_loss(masked_patches, patch_targets, masks)
        return by_view + by_patch, {"view": by_view.detach(), "patch": by_patch.detach()}

    def seen(self, parts: list[Tensor], generator: torch.Generator) -> Tensor:
        """Crops [B, 4, H, W] of objects as pictures, normalised, all together: [len(parts) * B, 3, H, W].

        Each crop has a background and a change of colours of its own, half of them white. In this world of plain
        colours an encoder else tells pictures apart by colour and background: in a trial without it, the nearest
        picture by patches showed the same kind in 7 of 100 (6 by chance), where an untrained encoder has 18.
        """
        joined = torch.cat(parts)
        count = len(joined)
        backgrounds = sample_backgrounds(count, generator)
        backgrounds[torch.rand(count, generator=generator) < WHITE_SHARE] = 1.0
        pictures = joined[:, :3] + (1.0 - joined[:, 3:]) * backgrounds.to(joined)[:, :, None, None]
        draws = torch.rand(count, 5, generator=generator).to(joined)
        changed = changed_photometry(pictures * 2 - 1, draws, PHOTOMETRIC)
        grey = torch.rand(count, generator=generator) < GREY_SHARE
        changed[grey] = changed[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return normalised(changed)

    def scores(
        self, network: nn.Module, images: Tensor, chosen: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, K] of whole pictures and [M, K] of the patches chosen by bool [B, P]; `hidden` ones are masked."""
        states = network["encoder"](images, bool_masked_pos=hidden).last_hidden_state
        return network["head"](states[:, 0]), network["head"](states[:, 1:][chosen])

    @torch.no_grad()
    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        """What the teacher's features tell: see `neighbour_figures`."""
        generator = torch.Generator().manual_seed(step_key(self.seed, 0, stream="mini-dino figures") % 2**63)
        encoder = ImageEncoder(copy.deepcopy(self.modules["teacher"]["encoder"]))
        known = draw_objects(self.bank, FIGURE_OBJECTS * len(KINDS), FIGURE_VIEWS, generator)
        asked = draw_objects(self.bank, FIGURE_OBJECTS * len(KINDS) // 4, FIGURE_VIEWS, generator, held_out_only=True)
        return neighbour_figures(encoder, known, asked, self.device)


@torch.no_grad()
def neighbour_figures(
    encoder: ImageEncoder, known: ViewedObjects, asked: ViewedObjects, device: torch.device
) -> dict[str, float]:
    """How well the nearest known picture tells an asked one's kind (share right) and azimuth (median error, degrees).

    kind_class and azimuth_class go by the cosine of class tokens, kind_patches and azimuth_patches by the mean cosine
    of patches in the same place; azimuth counts where the kind is right. rank is the effective rank of the class
    tokens (Roy and Vetterli 2007): 1 is a collapse.
    """
    described = [encoder(s.images.flatten(0, 1).to(device)) for s in (known, asked)]
    kinds = [[spec.kind for spec in s.specs for _ in range(FIGURE_VIEWS)] for s in (known, asked)]
    azimuths = [s.cameras[..., 1].flatten() for s in (known, asked)]
    figures = {}
    for name, vectors in (
        ("class", [d.pooled for d in described]),
        ("patches", [torch.nn.functional.normalize(d.patches, dim=-1).flatten(1) for d in described]),
    ):
        first, second = (torch.nn.functional.normalize(v.float(), dim=-1) for v in vectors)
        nearest = (second @ first.T).argmax(1).tolist()
        right = torch.tensor([kinds[0][n] == kind for n, kind in zip(nearest, kinds[1])])
        turn = torch.remainder(azimuths[0][nearest] - azimuths[1] + 180.0, 360.0) - 180.0
        figures[f"kind_{name}"] = float(right.float().mean())
        figures[f"azimuth_{name}"] = float(turn.abs()[right].median()) if right.any() else math.nan
    spectrum = torch.linalg.svdvals(described[0].pooled.float() - described[0].pooled.float().mean(0))
    share = spectrum / spectrum.sum()
    figures["rank"] = float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
    return figures


CARD = """---
license: apache-2.0
---
# mini-dino

A small self-supervised image encoder of Turboprop's world, in transformers' Dinov2Model ({parameters:.2f} M parameters,
{layers} layers of width {width}, patches of {patch} pixels, pictures of {size}). It learnt from pictures alone, by
DINO's loss of whole pictures and iBOT's of hidden patches (arXiv 2104.14294, 2111.07832), as DINOv2 does. Stored in
half precision. Pictures are not mirrored in training, because its features are to tell from where an object is seen.

## Data
{views} views of each kind, traced from exact solids, colours drawn anew for each picture, background and a change of
colours for each crop of it; half of the crops are on white. One in eight pairs of kind and main colour is held out.

## Recipe
    {command}

{steps} steps of {batch} pictures, {large} crops of {size} pixels and {small} of {small_size}, AdamW {rate:g} (warm-up
{warmup}, linear fall over the last {cooldown:.0%}), {precision}, seed {seed}. The weights are the teacher's that this
command made, at commit {revision}, in {minutes:.0f} minutes of training on {machine}.

## Figures
Each picture of a held-out pair of kind and colour is compared with {known} others. `kind`: how often the nearest one
shows the same kind. `azimuth`: the median error of its azimuth in degrees, where the kind is right (random: 90). By
class tokens and by patches; pictures on white. `rank`: effective rank of the class tokens (1 would be a collapse).

{history}"""


def run(settings: Settings) -> bool:
    """Trains mini-dino and writes its folder; False where it was stopped before its end."""
    if settings.minutes is not None:
        raise ValueError("--minutes: mini-dino's teacher slows down by the share of its steps; expected --steps")
    bank = settings.view_bank(4)  # the one that mini-mv has
    steps, batch = settings.steps or DEFAULT_STEPS, settings.batch or DEFAULT_BATCH
    recipe = MiniDino(bank, batch, steps, settings.seed, settings.device)
    options = TrainingOptions(
        steps=steps,
        learning_rate=settings.learning_rate or DEFAULT_RATE,
        warmup=50,
        cooldown=0.5,
        weight_decay=0.04,
        betas=(0.9, 0.999),
        gradient_clip=3.0,
        bfloat16=settings.device.type == "cuda",
        seed=settings.seed,
        figures_every=100,
    )
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    encoder = copy.deepcopy(recipe.modules["teacher"]["encoder"])
    save_encoder(settings.output, encoder)
    card = CARD.format(
        **training_facts(settings, options, state, batch),
        parameters=millions(encoder),
        layers=LAYERS,
        width=WIDTH,
        patch=PATCH_SIZE,
        size=IMAGE_SIZE,
        views=bank.views,
        large=LARGE_CROPS,
        small=SMALL_CROPS,
        small_size=SMALL_SIZE,
        known=FIGURE_VIEWS * FIGURE_OBJECTS * len(KINDS),
    )
    write_card(settings, card)
    return True


def save_encoder(folder: Path, encoder: Any) -> None:
    """Writes transformers' layout in half precision."""
    with quiet_transformers():
        encoder.to("cpu", torch.float16).save_pretrained(folder)
