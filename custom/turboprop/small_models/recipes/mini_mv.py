"""mini-mv: the world's multi-view teacher, MVDream's network at a small size.

It begins as mini-sd's UNet, as MVDream's begins as Stable Diffusion's, and shares its autoencoder, text encoder and
tokenizer. Its sets are four views a quarter turn apart; a quarter of its batches are single views with the exact
camera, and a tenth of those have no camera (the plain 2D mode).
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio.utils.keyed_random import generator_on

from ...evaluation.clip_metrics import load_judge
from ...teachers.multi_view.network import MultiViewUNet, from_text_to_image
from ...teachers.noise_schedule import add_noise, prediction_target
from ...world.dataset import ViewBank
from ...world.objects import KINDS
from ..latent_pool import LatentPool, pool_period
from ..sample_figures import SampleFigures
from ..settings import Settings, denoiser_options, millions, pipeline_of, training_facts, write_card
from ..text_table import CaptionTable
from ..training import train
from .mini_sd import opened_in_float32

NUM_VIEWS = 4
CAPTION_DROPOUT = 0.1  # classifier-free guidance (Ho and Salimans 2022)
CAMERA_ENCODING = "apparent_scale"
SINGLE_VIEWS_EVERY = 4  # every so many batches are single views
NO_CAMERA_SHARE = 0.1  # of the batches of single views
PREDICTION_TYPE = "v_prediction"


def linear_density_timesteps(count: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """Timesteps [count] whose density grows linearly with t, int64.

    What a caption and a camera decide is decided at high noise; at low noise the picture itself tells.
    """
    return (num_timesteps * torch.rand(count, generator=generator).sqrt()).long().clamp_max(num_timesteps - 1)


class MiniMultiView:
    """The recipe of mini-mv."""

    name = "mini-mv"

    def __init__(
        self,
        bank: ViewBank,
        base: Any,  # a StableDiffusionPipeline of mini-sd, on the device
        batch_sets: int,
        pool_sets: int,
        period: int,
        seed: int,
        figures: SampleFigures | None = None,
    ) -> None:
        if bank.turns != NUM_VIEWS:
            raise ValueError(f"the view bank's views come in {bank.turns}s, expected {NUM_VIEWS}s")
        self.device = base.unet.device
        network = from_text_to_image(base.unet, CAMERA_ENCODING, NUM_VIEWS).to(self.device)
        self.modules: dict[str, nn.Module] = {"unet": network.train()}
        self.captions = CaptionTable(base.tokenizer, base.text_encoder)
        self.alphas_cumprod = base.scheduler.alphas_cumprod.to(self.device)
        self.pool = LatentPool(bank, base.vae, CAMERA_ENCODING, pool_sets, period, seed)
        self.batch_sets, self.measure = batch_sets, figures

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared error of the predicted v (Salimans and Ho 2022, appendix D): [], by sets or single views."""
        pool = self.pool.at(step)
        single = step % SINGLE_VIEWS_EVERY == SINGLE_VIEWS_EVERY - 1
        views, count = (1, self.batch_sets * NUM_VIEWS) if single else (NUM_VIEWS, self.batch_sets)
        chosen = torch.randint(len(pool.specs), (count,), generator=generator)
        first = torch.randint(NUM_VIEWS, (count,), generator=generator)
        view = (first[:, None] + torch.arange(views)) % NUM_VIEWS  # [count, views]
        text = self.captions.draw([pool.specs[i] for i in chosen.tolist()], CAPTION_DROPOUT, generator)
        text = text.repeat_interleave(views, 0)
        timesteps = linear_density_timesteps(count, len(self.alphas_cumprod), generator)
        timesteps = timesteps.repeat_interleave(views).to(self.device)
        means, deviations, cameras = (
            x[chosen[:, None], view].flatten(0, 1) for x in (pool.means, pool.deviations, pool.cameras)
        )
        draws = torch.randn(2, *means.shape, generator=generator_on(self.device, generator), device=self.device)
        latents, noise = means + deviations * draws[0], draws[1]
        no_camera = single and float(torch.rand((), generator=generator)) < NO_CAMERA_SHARE
        noisy = add_noise(latents, noise, timesteps, self.alphas_cumprod)
        predicted = self.modules["unet"](noisy, timesteps, text, None if no_camera else cameras, views)
        target = prediction_target(latents, noise, timesteps, self.alphas_cumprod, PREDICTION_TYPE)
        return F.mse_loss(predicted.float(), target), {}

    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        if self.measure is None:
            return {}
        network = averages["unet"]
        assert isinstance(network, MultiViewUNet)
        return self.measure(network, self.alphas_cumprod, self.captions, folder / f"samples-{step}.png")


CARD = """---
license: apache-2.0
---
# mini-mv

A small multi-view diffusion teacher of Turboprop's world: MVDream's network (attention across four views a quarter
turn apart, the camera's embedding beside the timestep's; arXiv 2308.16512) over the UNet of mini-sd. It draws the
world's objects from an exact camera, four views at once or one. It knows nothing else.

Autoencoder and tokenizer are mini-sd's (`_shared_parts` in model_index.json), the text encoder is that of the mini-sd
that it began as. The UNet has
{parameters:.2f} M parameters and is stored in half precision. It predicts v. Its camera is told by sixteen numbers
("apparent_scale": MVDream's sixteen, the last of which says how large the picture is at the origin).

## Data
{views} views of each kind in sets of {turns}, traced from exact solids: elevation -10 to 60 degrees (8 % up to 85),
any azimuth, distance 2.5 to 2.9, 40 degrees field of view. Colours and backgrounds are drawn anew for a pool of
{pool} pictures, {period} steps each. One in eight pairs of kind and main colour is held out.

## Recipe
    {command}

{steps} steps of {batch} pictures, three in four as sets, AdamW {rate:g} (warm-up {warmup}, linear fall over the last
{cooldown:.0%}), weight average {decay}, {precision}, seed {seed}. Timesteps have a density that grows with t.
The weights are what this command made, at commit {revision}, in {minutes:.0f} minutes of training on {machine}.

## Figures
Samples (20 steps, guidance scale {scale:g}) of {count} objects, four views each at random cameras, against exact
renders from those cameras: IoU of silhouettes, colour error (sRGB, where both silhouettes are), and R@1 of the judge
over all 1,530 captions. Exact pictures, told from their background in the same way, have IoU {ceiling_seen:.3f} and
R@1 {ceiling_r1_seen:.3f} (held-out pairs {ceiling_held_out:.3f} and {ceiling_r1_held_out:.3f}): the most that can be.

{history}"""
JUDGE = "assets/judges/mini-clip"
FIGURE_STEPS, FIGURE_KINDS = 20, tuple(KINDS)  # of the held-out figures
POOL_SETS, POOL_PERIOD = 4096, 2000
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 20000, 40, 5e-4


def run(settings: Settings) -> bool:
    """Trains mini-mv and writes its folder; False where it was stopped before its end."""
    base_folder = settings.output.parent / "mini-sd"
    base = pipeline_of(base_folder, settings.device)
    bank = settings.view_bank(NUM_VIEWS)
    measure = SampleFigures(
        base.vae, load_judge(JUDGE), PREDICTION_TYPE, CAMERA_ENCODING, num_steps=FIGURE_STEPS, kinds=FIGURE_KINDS
    )
    batch = settings.batch or DEFAULT_BATCH
    period = pool_period(POOL_PERIOD, DEFAULT_BATCH, batch)
    recipe = MiniMultiView(bank, base, max(1, batch // NUM_VIEWS), POOL_SETS, period, settings.seed, measure)
    options = denoiser_options(settings, DEFAULT_STEPS, DEFAULT_RATE)
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    save_model(settings.output, base_folder, averages["unet"], base.text_encoder, base.scheduler)
    ceilings = {f"ceiling_{key}": value for key, value in measure.ceilings().items()}
    card = CARD.format(
        **training_facts(settings, options, state, recipe.batch_sets * NUM_VIEWS),
        parameters=millions(averages["unet"]),
        views=bank.views,
        turns=bank.turns,
        pool=POOL_SETS * bank.turns,
        period=period,
        scale=measure.guidance_scale,
        count=measure.count,
        **ceilings,
    )
    write_card(settings, card)
    return True


def save_model(folder: Path, base_folder: Path, network: MultiViewUNet, text_encoder: Any, scheduler: Any) -> None:
    """Writes diffusers' layout in half precision; autoencoder and tokenizer stay in mini-sd's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(network).to(torch.float16).save_pretrained(folder / "unet")
    # Its own copy, for a later mini-sd has another text encoder (the autoencoder is trained apart, and stays)
    copy.deepcopy(text_encoder).to(torch.float16).save_pretrained(folder / "text_encoder")
    opened_in_float32(folder / "text_encoder")
    scheduler = type(scheduler).from_config(scheduler.config, prediction_type=PREDICTION_TYPE)
    scheduler.save_pretrained(folder / "scheduler")
    shared = os.path.relpath(base_folder, folder)
    index = {
        "_class_name": "MultiViewPipeline",
        "_shared_parts": {part: shared for part in ("vae", "tokenizer")},
        "unet": ["turboprop", "MultiViewUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
