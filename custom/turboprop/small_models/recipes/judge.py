"""mini-clip: the judge, a small CLIP trained on renders of the whole world, held-out pairs included."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...evaluation.clip_metrics import normalized_pixels
from ...evaluation.judge import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, make_judge, save_judge
from ...evaluation.judge_pictures import degrade, hard_negatives, pictures_of_nothing, recolored
from ...world.captions import caption
from ...world.dataset import ViewBank, draw_pictures, sample_specs
from ...world.tokenizer import build_tokenizer
from ..settings import Settings
from ..training import TrainingOptions, train

LARGEST_LOGIT_SCALE = 50.0  # keeps cosines spread, so that Sim says something by itself
PICTURES_OF_NOTHING_SHARE = 1 / 8
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 1500, 96, 1e-3


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, captions: list[str], pairs: int, scale: Tensor
) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, fig. 3) with further negatives on both sides.

    The first `pairs` pictures and captions belong together. Further captions are negatives
    of these pictures, further pictures negatives of these captions. A caption equal to a
    picture's own is never its negative.

    image_features [N, D], text_features [T, D]: unit length; captions [T]; scale [] -> [].
    """
    number = {text: index for index, text in enumerate(dict.fromkeys(captions))}
    identity = torch.tensor([number[text] for text in captions], device=scale.device)  # [T]
    repeated = identity[:pairs, None] == identity[None, :]  # [pairs, T]
    repeated.fill_diagonal_(False)
    logits = scale * image_features @ text_features.T  # [N, T]
    by_picture = logits[:pairs].masked_fill(repeated, -torch.inf)
    by_text = logits[:, :pairs].T.clone()  # [pairs, N]
    by_text[:, :pairs] = by_text[:, :pairs].masked_fill(repeated[:, :pairs], -torch.inf)
    target = torch.arange(pairs, device=scale.device)
    return 0.5 * (F.cross_entropy(by_picture, target) + F.cross_entropy(by_text, target))


class MiniJudge:
    """The recipe of the judge: a CLIPModel whose pictures and captions are told apart among hard negatives."""

    name = "mini-clip"

    def __init__(self, bank: ViewBank, tokenizer: Any, batch: int, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.modules: dict[str, nn.Module] = {"judge": make_judge(tokenizer).to(device).train()}
        self.bank, self.tokenizer, self.batch, self.device = bank, tokenizer, batch, device

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of one batch: [], and how often a picture finds its caption."""
        model = self.modules["judge"]
        specs = sample_specs(self.batch // 2, generator, include_held_out=True)
        specs += [recolored(spec, generator) for spec in specs]  # the same kinds, so that colours must decide
        images = degrade(draw_pictures(specs, self.bank, generator)[0], generator)
        nothing = max(1, round(PICTURES_OF_NOTHING_SHARE * self.batch))
        images = torch.cat([images, pictures_of_nothing(specs[:nothing], images.shape[-1], generator)]).to(self.device)
        negatives = [other for spec in specs for other in hard_negatives(spec, generator)]
        captions = [caption(spec) for spec in specs + negatives]
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))
        output = model(pixel_values=normalized_pixels(images, IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD), **tokens)
        cosines = (output.image_embeds @ output.text_embeds.T).float()
        scale = model.logit_scale.exp()
        loss = contrastive_loss(output.image_embeds.float(), output.text_embeds.float(), captions, len(specs), scale)
        shown = cosines.detach()
        own = shown[: len(specs)].diagonal()
        first = (own >= shown[: len(specs)].amax(-1) - 1e-6).float().mean()
        return loss, {"own_first": first, "own": own.mean()}

    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        return {}  # check_judge measures it against pictures that are right and wrong


def run(settings: Settings) -> bool:
    """Trains the judge and writes its folder; False where it was stopped before its end. Raises ValueError for a batch
    that is odd, an output that is no folder, or a file that is no view bank."""
    batch = settings.batch or DEFAULT_BATCH
    if batch < 2 or batch % 2:
        raise ValueError(f"--batch: expected an even number of at least 2, got {batch}")
    if settings.output.exists() and not settings.output.is_dir():
        raise ValueError(f"--output: not a folder: {settings.output}")
    bank = settings.view_bank(1)
    tokenizer = build_tokenizer(settings.work / "tokenizer")
    recipe = MiniJudge(bank, tokenizer, batch, settings.seed, settings.device)
    options = TrainingOptions(
        steps=settings.steps_or(DEFAULT_STEPS),
        minutes=settings.minutes,
        learning_rate=settings.learning_rate or DEFAULT_RATE,
        cooldown=0.5,
        average_decay=0.998,
        bfloat16=settings.device.type == "cuda",
        seed=settings.seed,
    )
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    save_judge(settings.output, averages["judge"].eval(), tokenizer)
    settings.report(f"wrote {settings.output}; its figures: python -m custom.turboprop.evaluation.check_judge")
    return True
