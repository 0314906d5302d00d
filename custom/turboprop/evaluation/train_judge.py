"""Train the judge on renders of the whole world: python -m custom.turboprop.evaluation.train_judge"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..world.captions import ObjectSpec, caption
from ..world.dataset import ViewBank, build_view_bank, load_view_bank, sample_backgrounds, sample_specs
from ..world.objects import KINDS
from ..world.render import composite, role_colors
from ..world.tokenizer import build_tokenizer
from ..world.training import fit
from .clip_metrics import normalized_pixels
from .judge import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, make_judge, save_judge
from .judge_pictures import degrade, hard_negatives, pictures_of_nothing, recolored

LARGEST_LOGIT_SCALE = 50.0  # keeps cosines spread, so that Sim says something by itself
PICTURES_OF_NOTHING_SHARE = 1 / 8


def draw_pictures(bank: ViewBank, specs: list[ObjectSpec], generator: torch.Generator) -> Tensor:
    """One picture of each object, from a random view on a random background: -> [B, 3, S, S] in [0, 1]."""
    kinds = list(KINDS)
    kind_index = torch.tensor([kinds.index(spec.kind) for spec in specs])
    view_index = torch.randint(bank.views, (len(specs),), generator=generator)
    layers = bank.layers[kind_index, view_index].float() / 255
    colors = torch.stack([role_colors(spec.main, spec.accent) for spec in specs])
    return composite(layers, colors, sample_backgrounds(len(specs), generator))


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
    identity = torch.tensor([number[text] for text in captions])  # [T]
    repeated = identity[:pairs, None] == identity[None, :]  # [pairs, T]
    repeated[torch.arange(pairs), torch.arange(pairs)] = False
    logits = scale * image_features @ text_features.T  # [N, T]
    by_picture = logits[:pairs].masked_fill(repeated, -torch.inf)
    by_text = logits[:, :pairs].T.clone()  # [pairs, N]
    by_text[:, :pairs] = by_text[:, :pairs].masked_fill(repeated[:, :pairs], -torch.inf)
    target = torch.arange(pairs)
    return 0.5 * (F.cross_entropy(by_picture, target) + F.cross_entropy(by_text, target))


def train_judge(bank: ViewBank, tokenizer, steps: int, batch_size: int, learning_rate: float, seed: int, report=print):
    """Fit a CLIPModel to pictures of every object, held-out pairs included; returns its averaged weights."""
    torch.manual_seed(seed)
    model = make_judge(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    nothing = max(1, round(PICTURES_OF_NOTHING_SHARE * batch_size))

    def loss_function(step: int):
        specs = sample_specs(batch_size // 2, generator, include_held_out=True)
        specs += [recolored(spec, generator) for spec in specs]  # the same kinds, so that colours must decide
        images = degrade(draw_pictures(bank, specs, generator), generator)
        images = torch.cat([images, pictures_of_nothing(specs[:nothing], images.shape[-1], generator)])
        negatives = [other for spec in specs for other in hard_negatives(spec, generator)]
        captions = [caption(spec) for spec in specs + negatives]
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))
        pixels = normalized_pixels(images, IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD)
        output = model(pixel_values=pixels, **tokens)
        cosines = output.image_embeds @ output.text_embeds.T
        loss = contrastive_loss(
            output.image_embeds, output.text_embeds, captions, len(specs), model.logit_scale.exp()
        )
        own = cosines[: len(specs)].diagonal()
        best = cosines[: len(specs)].amax(-1)
        figures = {"loss": loss.item(), "own_first": (own >= best - 1e-6).float().mean().item(),
                   "own": own.mean().item(), "nothing": cosines[len(specs) :].amax(-1).mean().item()}
        return loss, figures

    (average,) = fit("judge", [model], loss_function, steps, learning_rate, average_decay=0.998, report=report)
    return average.eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train_judge", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("assets/judges/mini-clip"), help="folder to write")
    parser.add_argument("--views", type=Path, help="a saved view bank; without one it is traced first: 40 ms a view on two cores, six minutes in all")
    parser.add_argument("--view-count", type=int, default=480, help="views of each kind to trace")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=96, help="pictures a step, even")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.batch_size < 2 or options.batch_size % 2:
        parser.error(f"--batch-size must be even and positive, got {options.batch_size}")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: not a folder: {options.output}")
    start = time.monotonic()
    if options.views is None:
        bank = build_view_bank(options.view_count, options.seed, lambda name: print(f"traced {name}", flush=True))
    else:
        try:
            bank = load_view_bank(options.views)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            parser.error(f"--views: cannot read a view bank from {options.views}: {error}")
    print(f"view bank ready after {time.monotonic() - start:.0f} s", flush=True)
    tokenizer = build_tokenizer(options.output)
    model = train_judge(
        bank, tokenizer, options.steps, options.batch_size, options.learning_rate, options.seed,
        report=lambda line: print(line, flush=True),
    )
    save_judge(options.output, model, tokenizer)
    print(f"wrote {options.output} after {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
