"""Train mini-sd from the world: python -m custom.turboprop.world.train_mini_sd

Traces the views, fits the autoencoder, then text encoder and UNet, and writes diffusers'
folder with its card. On glibc, these variables keep the allocator from mapping every
buffer anew, which is several times faster on some machines:
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch

from .dataset import build_view_bank, load_view_bank, sample_batch, save_view_bank
from .mini_sd import save_pipeline, train_autoencoder, train_denoiser
from .tokenizer import build_tokenizer

CARD = """---
license: apache-2.0
---
# mini-sd

A small latent diffusion model in Stable Diffusion 2.1 base's own classes and folder layout
(64 px, 16x16x4 latents, epsilon prediction), trained on the procedural world of Turboprop.
`StableDiffusionPipeline.from_pretrained` opens it. It draws the world's {kinds} kinds of object in ten
colours, from the view that the caption names, on plain backgrounds. It knows nothing else.

## Data
Renders of exact solids: {views} views of each kind, elevation -10 to 85 degrees, any azimuth,
distance 2.5 to 2.9, 40 degrees field of view; colours and background drawn anew for each of
{pool} pictures. One in eight pairs of kind and main colour is held out
(`world.captions.held_out`). Captions: 80 % full ("a red chair with blue legs"), 12 % without
the second colour, 8 % without colours; 70 % name the view (", front view"); 10 % are dropped.

## Recipe
    python -m custom.turboprop.world.train_mini_sd {arguments}

- autoencoder: {autoencoder_parameters:.2f} M parameters, {autoencoder_steps} steps of {autoencoder_batch}, AdamW 2.5e-3, L1 + MSE + edges + 3e-4 KL
- text encoder {text_parameters:.2f} M and UNet {unet_parameters:.2f} M parameters, {steps} steps of {batch}, AdamW 6e-4, weight average 0.9995
- cosine decay, seed {seed}, float32 (autoencoder: bfloat16 autocast), stored as float16

## Figures
- autoencoder, PSNR of 256 pictures: {psnr:.1f} dB
- denoising error (mean squared, unit noise), 2,048 new pictures, unseen pairs left out: {denoising:.4f}
- the same on held-out pairs: {denoising_held_out:.4f}
- time: {minutes} on {machine}
"""


@torch.no_grad()
def reconstruction_psnr(bank, autoencoder, seed: int) -> float:
    """Mean PSNR in dB over 256 pictures, of the posterior's mode."""
    images = sample_batch(bank, 256, torch.Generator().manual_seed(seed)).images
    decoded = torch.cat([autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample for x in images.split(32)])
    error = ((decoded - images) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def denoising_error(bank, autoencoder, tokenizer, text_encoder, unet, scheduler, seed: int, held_out_only: bool) -> float:
    """Mean squared error of the predicted noise on new pictures, timesteps uniform."""
    from .captions import held_out

    generator = torch.Generator().manual_seed(seed)
    total, count = 0.0, 0
    while count < 2048:
        batch = sample_batch(bank, 64, generator, include_held_out=held_out_only)
        keep = [i for i, s in enumerate(batch.specs) if held_out(s.kind, s.main) == held_out_only]
        if not keep:
            continue
        posterior = autoencoder.encode(batch.images[keep]).latent_dist
        latents = posterior.sample(generator) * autoencoder.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(keep),), generator=generator)
        tokens = tokenizer([batch.captions[i] for i in keep], padding="max_length", truncation=True, return_tensors="pt")
        embeddings = text_encoder(tokens.input_ids).last_hidden_state
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, embeddings).sample
        total += float((predicted - noise).square().mean(dim=(1, 2, 3)).sum())
        count += len(keep)
    return total / count


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_mini_sd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("assets/teachers/mini-sd"), help="folder to write")
    parser.add_argument("--views", type=Path, help="a saved view bank; one that is not there is traced and saved")
    parser.add_argument("--view-count", type=int, default=480, help="views of each kind to trace")
    parser.add_argument("--autoencoder", type=Path, help="a trained AutoencoderKL folder to use in place of training one")
    parser.add_argument("--autoencoder-steps", type=int, default=1400)
    parser.add_argument("--steps", type=int, default=3000, help="of text encoder and UNet")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--pool", type=int, default=32768, help="pictures to encode for the denoiser")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def millions(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def main(arguments: list[str] | None = None) -> int:
    from diffusers import AutoencoderKL

    from .mini_sd import make_scheduler
    from .objects import KINDS

    options = parse_arguments(arguments)
    start = time.monotonic()

    def report(line: str) -> None:
        print(f"{(time.monotonic() - start) / 60:5.1f} min  {line}", flush=True)

    if options.views is not None and options.views.is_file():
        bank = load_view_bank(options.views)
    else:
        bank = build_view_bank(options.view_count, options.seed, lambda name: report(f"traced {name}"))
        if options.views is not None:
            save_view_bank(bank, options.views)
    batch = 16
    if options.autoencoder is not None:
        autoencoder = AutoencoderKL.from_pretrained(options.autoencoder).eval()
    else:
        autoencoder = train_autoencoder(bank, options.autoencoder_steps, batch, options.seed, report)
    tokenizer = build_tokenizer(options.output / "tokenizer")
    text_encoder, unet = train_denoiser(
        bank, autoencoder, tokenizer, options.steps, options.batch_size, options.pool, options.seed, report
    )
    minutes = f"{(time.monotonic() - start) / 60:.0f} minutes"
    models = (bank, autoencoder, tokenizer, text_encoder, unet, make_scheduler())
    card = CARD.format(
        kinds=len(KINDS), views=bank.views, pool=options.pool, seed=options.seed, steps=options.steps,
        batch=options.batch_size, autoencoder_steps=options.autoencoder_steps, autoencoder_batch=batch,
        autoencoder_parameters=millions(autoencoder), text_parameters=millions(text_encoder), unet_parameters=millions(unet),
        psnr=reconstruction_psnr(bank, autoencoder, 9), arguments=" ".join(arguments if arguments is not None else sys.argv[1:]),
        denoising=denoising_error(*models, seed=9, held_out_only=False),
        denoising_held_out=denoising_error(*models, seed=9, held_out_only=True),
        minutes=minutes, machine=f"{os.cpu_count()} cores of {platform.machine()}",
    )
    save_pipeline(options.output, autoencoder, tokenizer, text_encoder, unet)
    (options.output / "README.md").write_text(card)
    report(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
