"""mini-novelview: the world's novel-view model, in the style of Efficient-3DiM, at a small size.

One picture of an object and a relative camera in, the object from there out. It sees mini-dino's patches in
cross-attention and its features in the down path. Its UNet begins as mini-sd's; autoencoder and encoder are those of
mini-sd and mini-dino.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.keyed_random import step_key

from ...evaluation.picture_metrics import psnr_of_each, silhouette_iou
from ...novelview.augmentation import PhotometricAugmentation
from ...novelview.camera_pose import relative_pose
from ...novelview.image_encoders import ImageEncoder, read_encoder
from ...novelview.loading import save_novel_view_model
from ...novelview.model import NovelViewModel, NovelViewSettings, widened_for_input_view
from ...novelview.sampling import sample_latents
from ...novelview.timestep_sampling import TimestepSampling, interpolated_noise_shift
from ...novelview.training import TrainingRule, loss_by_bin, training_loss
from ...world.dataset import ViewBank, object_colors
from ...world.objects import KINDS
from ..latent_pool import pool_period
from ..sample_figures import save_grid, silhouettes
from ..settings import Settings, denoiser_options, millions, pipeline_of, training_facts, write_card
from ..training import train
from ..view_pairs import ViewedObjects, ViewPairPool, draw_objects, first_to_others

SETTINGS = NovelViewSettings(tokens="patches", normalize_tokens=True, feature_layers=[1, 3, 5])
PREDICTION_TYPE = "v_prediction"
# MV-Adapter's way: uniform timesteps under a schedule that is noisier (docs/benchmarks/novelview.md has all samplers).
# Score distillation asks about low noise too, which Efficient-3DiM's Gaussian leaves out.
RULE = TrainingRule(TimestepSampling("uniform"), 0.05, PhotometricAugmentation(0.5))
NOISE_SHIFT = 8.0  # see interpolated_noise_shift
POOL_OBJECTS, POOL_PERIOD = 4096, 2000
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 8000, 32, 5e-4


@dataclass(frozen=True)
class FigurePlan:
    """What is measured while the model trains: drawn views against exact ones."""

    objects: int = len(KINDS)  # of each set
    views: int = 4  # asked of each object, given one more
    sampling_steps: int = 20
    guidance_scale: float = 2.0
    sets: tuple[str, ...] = ("seen", "held_out")  # pairs of kind and colour that are trained on, or not
    bins: int = 0  # equal ranges of timesteps, in whose middle the loss of held-out pairs is taken; 0: none


FIGURES = FigurePlan()


def shipped_rule(step: int) -> TrainingRule:
    """What mini-novelview trains with: every step alike."""
    return RULE


def starting_unet(base: Any) -> Any:  # a UNet2DConditionModel, text to picture
    """A trainable copy of mini-sd's UNet that takes the input view's latent beside the noisy one.

    zero-1-to-3 and Efficient-3DiM start from Stable Diffusion's likewise: what objects look like is known already.
    """
    from diffusers.models.attention_processor import AttnProcessor

    unet = widened_for_input_view(copy.deepcopy(base)).to(base.device).requires_grad_(True)
    if base.device.type == "cpu":  # at these widths torch's fused attention takes a fourth of a step more there
        unet.set_attn_processor(AttnProcessor())
    return unet


class MiniNovelView:
    """The recipe of mini-novelview."""

    name = "mini-novelview"

    def __init__(
        self,
        bank: ViewBank,
        base: Any,  # a StableDiffusionPipeline of mini-sd, on the device; it stays as it is
        encoder: ImageEncoder,
        batch: int,
        seed: int,
        figures: FigurePlan | None = None,  # None: no figures
        settings: NovelViewSettings = SETTINGS,
        rule: Callable[[int], TrainingRule] = shipped_rule,  # of a step
        alphas_cumprod: Tensor | None = None,  # [T]; None: mini-sd's
        pool: ViewPairPool | None = None,  # None: one of its own, drawn anew every so often
    ) -> None:
        torch.manual_seed(seed)
        unet = starting_unet(base.unet)
        alphas = base.scheduler.alphas_cumprod if alphas_cumprod is None else alphas_cumprod
        self.model = NovelViewModel(unet, base.vae, encoder, settings, alphas, PREDICTION_TYPE).to(base.unet.device)
        self.modules: dict[str, nn.Module] = {k: p.train() for k, p in self.model.trained_parts().items()}
        self.period = pool_period(POOL_PERIOD, DEFAULT_BATCH, batch)
        self.pool = pool or ViewPairPool(bank, base.vae, POOL_OBJECTS, self.period, seed)
        self.batch, self.seed, self.rule, self.plan = batch, seed, rule, figures
        self.measured: dict[str, ViewedObjects] = {}
        for name in figures.sets if figures else ():
            only = name == "held_out"
            key = step_key(seed, int(only), stream="mini-novelview figures") % 2**63
            generator = torch.Generator().manual_seed(key)
            self.measured[name] = draw_objects(bank, figures.objects, 1 + figures.views, generator, only)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising loss of one batch of pairs: []."""
        batch = self.pool.batch(step, self.batch, generator)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # what training_loss draws from
        loss, figures = training_loss(self.model, batch, self.rule(step))
        return loss, {"mse": figures["mse"]}

    def averaged(self, averages: dict[str, nn.Module]) -> NovelViewModel:
        """The model with the averaged weights; it shares the frozen parts."""
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, **averages}
        return model.eval()

    @torch.no_grad()
    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        """PSNR and silhouette IoU of drawn views against exact ones, by set; losses by timestep, if planned."""
        model, figures, rows = self.averaged(averages), {}, []
        for name, objects in self.measured.items():
            drawn, truth = drawn_views(model, objects, self.seed, self.plan), exact_views(objects)
            figures[f"psnr_{name}"] = float(psnr_of_each(drawn, truth).mean())
            figures[f"iou_{name}"] = mean_silhouette_iou(drawn, objects)
            given = objects.images[:, :1] / 2 + 0.5
            count = len(objects.specs)
            rows.append(torch.cat([given, drawn.unflatten(0, (count, -1)), truth.unflatten(0, (count, -1))], 1))
        if rows:
            save_grid(torch.cat(rows, 1), folder / f"samples-{step}.png")
        return figures | self._losses(model)

    def _losses(self, model: NovelViewModel) -> dict[str, float]:
        """The loss of held-out pairs in the middle of each range of timesteps, and the mean of all."""
        if self.plan is None or not self.plan.bins:
            return {}
        batch = first_to_others(self.measured["held_out"], model.alphas_cumprod.device)
        torch.manual_seed(self.seed)  # what loss_by_bin draws from: the same noise at every time
        losses = loss_by_bin(model, batch, self.plan.bins)
        return {"loss": float(losses.mean())} | {f"loss_{i:02d}": float(loss) for i, loss in enumerate(losses)}

    def ceiling(self) -> dict[str, float]:
        """Silhouette IoU of the exact pictures themselves, by set: white parts are lost on white."""
        return {name: mean_silhouette_iou(exact_views(objects), objects) for name, objects in self.measured.items()}


def exact_views(objects: ViewedObjects) -> Tensor:
    """The objects' views but the first: [N * V, 3, H, W] in [0, 1]."""
    return objects.images[:, 1:].flatten(0, 1) / 2 + 0.5


def mean_silhouette_iou(pictures: Tensor, objects: ViewedObjects) -> float:  # [N * V, 3, H, W] in [0, 1]
    """The mean IoU of silhouettes, told by colour, with the true ones. The pictures are all views but the first."""
    coverage = objects.coverage[:, 1:]  # [N, V, ...]
    colors = object_colors(objects.specs)
    shapes = silhouettes(pictures, colors.repeat_interleave(coverage.shape[1], 0))
    return float(silhouette_iou(shapes, coverage.flatten(0, 1)).mean())


@torch.no_grad()
def drawn_views(model: NovelViewModel, objects: ViewedObjects, seed: int, plan: FigurePlan) -> Tensor:
    """The objects' views but the first, drawn from the first: [N * V, 3, H, W] in [0, 1], on the CPU."""
    device, count = model.alphas_cumprod.device, objects.images.shape[1] - 1
    view = model.encode_view(objects.images[:, 0].to(device))
    repeated = view.chosen(torch.arange(len(objects.specs), device=device).repeat_interleave(count))
    asked = objects.cameras[:, 1:].flatten(0, 1).unbind(-1)
    given = objects.cameras[:, 0].repeat_interleave(count, 0).unbind(-1)
    condition = model.condition(repeated, relative_pose(*asked, *given, model.settings.fourth_number).to(device))
    shape = (len(condition), model.latent_channels, model.latent_size, model.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    latents = sample_latents(
        model.predict_noise, model.alphas_cumprod, condition, noise, plan.sampling_steps, plan.guidance_scale, eta=0.0
    )
    return model.decode(latents).cpu()


CARD = """---
license: apache-2.0
---
# mini-novelview

A small novel-view diffusion model of Turboprop's world, in the style of Efficient-3DiM (arXiv 2310.03015): given one
picture of an object on white and a relative camera (zero-1-to-3's four numbers), it draws the object from there. Its
UNet ({parameters:.2f} M parameters with the layers of its condition) takes the input view's latent beside the noisy
one, mini-dino's {patches} patches with the camera in cross-attention, and mini-dino's layers {layers} in its down path.
It began as mini-sd's UNet, as zero-1-to-3's began as Stable Diffusion's, and predicts v. It is stored in eight bits a
weight with a scale for each output channel, which this project's loaders restore. Autoencoder and encoder are mini-sd's
and mini-dino's (`_shared_parts` in model_index.json). It knows the world's objects and nothing else.

## Data
Pairs of views among {views} of each kind, traced from exact solids: elevation -10 to 60 degrees (8 % up to 85), any
azimuth, distance 2.5 to 2.9, 40 degrees field of view, on white. Colours are drawn anew for a pool of {pool} pictures,
{period} steps each. One in eight pairs of kind and main colour is held out.

## Recipe
    {command}

{steps} steps of {batch} pairs, AdamW {rate:g} (warm-up {warmup}, linear fall over the last {cooldown:.0%}), weight
average {decay}, {precision}, seed {seed}. Timesteps are uniform, and the noise schedule is
mini-sd's with its signal-to-noise ratio {shift:g} times lower at the last timestep (MV-Adapter, arXiv 2412.03632).
Each part of the condition is dropped with probability {dropout:g}; half of the pictures that the encoder sees have
other brightness, contrast, saturation and hue. The weights are what this command made, at commit {revision}, in
{minutes:.0f} minutes of training on {machine}.

## Figures
Views drawn from one picture ({sampling} steps, guidance scale {scale:g}) against exact ones: {count} objects, {asked}
views each, from pairs of kind and colour that were trained on (seen) or not (held out). PSNR in dB on white; IoU of
silhouettes told by colour, whose exact pictures reach {ceiling_seen:.3f} and {ceiling_held_out:.3f}.

{history}"""


def run(settings: Settings) -> bool:
    """Trains mini-novelview and writes its folder; False where it was stopped before its end.

    mini-sd and mini-dino must be where they are shipped, seen from the output's folder:
    ../../teachers/mini-sd and ../../encoders/mini-dino.
    """
    assets = settings.output.parent.parent
    base_folder, encoder_folder = assets / "teachers" / "mini-sd", assets / "encoders" / "mini-dino"
    base = pipeline_of(base_folder, settings.device)
    encoder = read_encoder(encoder_folder)
    bank = settings.view_bank(4)  # the one that mini-mv has
    batch = settings.batch or DEFAULT_BATCH
    alphas = interpolated_noise_shift(base.scheduler.alphas_cumprod, NOISE_SHIFT)
    recipe = MiniNovelView(bank, base, encoder, batch, settings.seed, FIGURES, alphas_cumprod=alphas)
    options = denoiser_options(settings, DEFAULT_STEPS, DEFAULT_RATE)
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    shared = {
        "vae": os.path.relpath(base_folder, settings.output),
        "image_encoder": os.path.relpath(encoder_folder, settings.output),
    }
    save_novel_view_model(recipe.averaged(averages), settings.output, torch.float16, shared, eight_bits=True)
    write_card(settings, _card(settings, recipe, options, state, averages, bank))
    return True


def _card(
    settings: Settings, recipe: MiniNovelView, options: Any, state: Any, averages: dict[str, nn.Module], bank: ViewBank
) -> str:
    ceiling = {f"ceiling_{name}": value for name, value in recipe.ceiling().items()}
    return CARD.format(
        **training_facts(settings, options, state, recipe.batch),
        parameters=sum(map(millions, averages.values())),
        patches=recipe.model.image_encoder.grid**2,
        layers=", ".join(map(str, SETTINGS.feature_layers)),
        views=bank.views,
        pool=POOL_OBJECTS * ViewPairPool.VIEWS,
        period=recipe.period,
        dropout=RULE.condition_dropout,
        shift=NOISE_SHIFT,
        sampling=FIGURES.sampling_steps,
        scale=FIGURES.guidance_scale,
        count=2 * FIGURES.objects,
        asked=FIGURES.views,
        **ceiling,
    )
