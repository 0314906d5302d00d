"""mini-sd: the world's text-to-image teacher, in Stable Diffusion's own classes at a small size.

Text encoder, autoencoder, UNet and schedule are those of Stable Diffusion 2.1 base (epsilon prediction), small
(64 px pictures, 16x16x4 latents), so that everything which runs on the one runs on the other.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.keyed_random import generator_on

from ...evaluation.clip_metrics import clip_scores, load_judge
from ...teachers.noise_schedule import add_noise, signal_and_noise_level
from ...teachers.sampling import ddim_sample
from ...world.cameras import view_direction
from ...world.captions import VIEWS, ObjectSpec, all_captions, all_specs, caption
from ...world.dataset import IMAGE_SIZE, ViewBank
from ...world.objects import KINDS
from ...world.tokenizer import build_tokenizer
from ..latent_pool import LatentPool, LatentSets, pool_period
from ..sample_figures import exact_sets, nearest_azimuths, save_grid
from ..settings import Settings, denoiser_options, millions, training_facts, write_card
from ..text_table import caption_of_length
from ..training import train
from .mini_vae import LATENT_CHANNELS

TEXT_WIDTH = 128
CAPTION_DROPOUT = 0.1  # classifier-free guidance (Ho and Salimans 2022)
VIEW_SHARE = 0.7  # of captions that name the view
LARGEST_WEIGHT = 20.0  # of a timestep's loss
JUDGE = "assets/judges/mini-clip"
FIGURE_STEPS, FIGURE_KINDS = 20, tuple(KINDS)  # of the held-out figures
POOL_SETS, POOL_PERIOD = 16384, 2000
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 20000, 48, 5e-4


def make_text_encoder(tokenizer: Any) -> Any:
    """An untrained CLIPTextModel for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=TEXT_WIDTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> Any:
    """An untrained UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def make_scheduler() -> Any:
    """The noise schedule and prediction type of Stable Diffusion 2.1 base."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def draw_caption(spec: ObjectSpec, view: str, draws: tuple[float, float, float]) -> str:
    """A caption by three numbers in [0, 1): its length, whether it names the view, whether it is empty."""
    length, named, dropped = draws
    if dropped < CAPTION_DROPOUT:
        return ""
    text = caption_of_length(spec, length)
    return f"{text}, {view} view" if named < VIEW_SHARE else text


def view_accuracy(images: Tensor, specs: list[ObjectSpec], words: list[str]) -> float:
    """The share of pictures [N, 3, H, W] in [0, 1], of kinds with a front, that show the side that their word says."""
    counted = [i for i, spec in enumerate(specs) if spec.shape.has_front and words[i] != "overhead"]
    azimuths = nearest_azimuths(images[counted], [specs[i] for i in counted])
    right = [view_direction(20.0, float(azimuth)) == words[i] for i, azimuth in zip(counted, azimuths)]
    return sum(right) / len(right)


class MiniTextToImage:
    """The recipe of mini-sd's text encoder and UNet, trained together."""

    name = "mini-sd"

    def __init__(
        self,
        bank: ViewBank,
        autoencoder: Any,
        tokenizer: Any,
        batch: int,
        pool_sets: int,
        period: int,
        settings: Settings,
    ) -> None:
        torch.manual_seed(settings.seed)
        text_encoder, unet = make_text_encoder(tokenizer), make_unet()
        self.device = settings.device
        self.modules: dict[str, nn.Module] = {
            "text_encoder": text_encoder.to(self.device).train(),
            "unet": unet.to(self.device).train(),
        }
        self.autoencoder, self.batch = autoencoder, batch
        self.alphas_cumprod = make_scheduler().alphas_cumprod.to(self.device)
        self.pool = LatentPool(bank, autoencoder, "mvdream", pool_sets // bank.turns, period, settings.seed)
        plain = all_captions()
        self.texts = ["", *plain, *(f"{text}, {view} view" for text in plain for view in VIEWS)]
        self.row = {text: index for index, text in enumerate(self.texts)}
        tokens = tokenizer(self.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.tokens = tokens.to(self.device)
        self.judge = load_judge(JUDGE)
        self.samples = {
            name: exact_sets(1, 4, held, 99, FIGURE_KINDS) for name, held in (("seen", False), ("held_out", True))
        }

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of the predicted noise, weighted by 1 / alphas_cumprod up to a limit: [].

        The weight makes of it the squared error of v = (eps - s x_t) / a (Salimans and Ho 2022, appendix D), so high
        noise, where text decides, is learned as fast as low noise.
        """
        pool: LatentSets = self.pool.at(step)
        turns = pool.means.shape[1]
        chosen = torch.randint(len(pool.specs), (self.batch,), generator=generator)
        view = torch.randint(turns, (self.batch,), generator=generator)
        draws = torch.rand(self.batch, 3, generator=generator).tolist()
        rows = [
            self.row[draw_caption(pool.specs[i], pool.views[i][v], tuple(d))]
            for i, v, d in zip(chosen.tolist(), view.tolist(), draws)
        ]
        timesteps = torch.randint(len(self.alphas_cumprod), (self.batch,), generator=generator).to(self.device)
        means, deviations = pool.means[chosen, view], pool.deviations[chosen, view]
        normal = torch.randn(2, *means.shape, generator=generator_on(self.device, generator), device=self.device)
        latents, noise = means + deviations * normal[0], normal[1]
        embeddings = self.modules["text_encoder"](self.tokens[rows]).last_hidden_state
        noisy = add_noise(latents, noise, timesteps, self.alphas_cumprod)
        predicted = self.modules["unet"](noisy, timesteps, embeddings).sample.float()
        signal, _ = signal_and_noise_level(self.alphas_cumprod, timesteps)
        weight = signal.square().reciprocal().clamp_max(LARGEST_WEIGHT)
        squared = (predicted - noise).square()
        return (weight * squared).mean(), {"mse": squared.mean().detach()}

    @torch.no_grad()
    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        """R@1 over all captions and view accuracy of samples, seen and held-out pairs."""
        figures, rows = {}, []
        gallery = [caption(spec) for spec in all_specs(include_held_out=True)]
        for name, exact in self.samples.items():
            views = [view_direction(float(e), float(a)) for e, a in zip(exact.elevation, exact.azimuth)]
            texts = [caption(spec) for spec in exact.specs for _ in range(4)]
            images = self.sample(averages, [f"{text}, {view} view" for text, view in zip(texts, views)], seed=7)
            pictures = images.unflatten(0, (len(exact.specs), 4))
            scores = clip_scores(self.judge, [caption(spec) for spec in exact.specs], pictures, gallery)
            figures[f"r1_{name}"] = scores.mean_r_at_1
            figures[f"view_{name}"] = view_accuracy(images, [spec for spec in exact.specs for _ in range(4)], views)
            rows += [pictures, exact.images]
        save_grid(torch.cat(rows, 1), folder / f"samples-{step}.png")
        return figures

    @torch.no_grad()
    def sample(
        self, averages: dict[str, nn.Module], texts: list[str], seed: int, guidance_scale: float = 3.0
    ) -> Tensor:
        """Pictures of captions by DDIM: [len(texts), 3, H, W] in [0, 1]."""
        unet, encoder = averages["unet"], averages["text_encoder"]
        rows = [self.row[text] for text in texts]
        both = encoder(self.tokens[[*rows, self.row[""]]]).last_hidden_state
        positive, negative = both[:-1], both[-1:].expand(len(texts), -1, -1)
        shape = (len(texts), LATENT_CHANNELS, IMAGE_SIZE // 4, IMAGE_SIZE // 4)
        noisy = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

        def guided_noise(x: Tensor, timesteps: Tensor) -> Tensor:
            answer = unet(torch.cat([x, x]), torch.cat([timesteps] * 2), torch.cat([positive, negative])).sample.float()
            conditional, unconditional = answer.chunk(2)
            return unconditional + guidance_scale * (conditional - unconditional)

        last = torch.full((len(texts),), len(self.alphas_cumprod) - 1, device=self.device)
        latents = ddim_sample(noisy, last, guided_noise, self.alphas_cumprod, FIGURE_STEPS)
        pictures = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return (pictures * 0.5 + 0.5).clamp(0, 1).cpu()


CARD = """---
license: apache-2.0
---
# mini-sd

A small latent diffusion model in Stable Diffusion 2.1 base's own classes and folder layout (64 px, 16x16x4 latents,
epsilon prediction), trained on Turboprop's procedural world. `StableDiffusionPipeline.from_pretrained` opens it. It
draws the world's objects, from the side that the caption names, on plain backgrounds. It knows nothing else.

## Data
{views} views of each kind, traced from exact solids: elevation -10 to 60 degrees (8 % up to 85), any azimuth, distance
2.5 to 2.9, 40 degrees field of view. Colours and backgrounds are drawn anew for a pool of {pool} pictures, {period}
steps each. One in eight pairs of kind and main colour is held out. Captions: 88 % full, 8 % without the second colour,
4 % without colours; 70 % name the view; 10 % are empty.

## Recipe
    {command}

Text encoder ({text_parameters:.2f} M parameters) and UNet ({unet_parameters:.2f} M) together: {steps} steps of {batch}
pictures, AdamW {rate:g} (warm-up {warmup}, linear fall over the last {cooldown:.0%}), weight average {decay},
{precision}, seed {seed}, loss of the noise weighted by 1 / alphas_cumprod up to {largest:g}. The weights are what this
command made, at commit {revision}, in {minutes:.0f} minutes of training on {machine}; stored in half precision.

## Figures
Samples (20 steps, guidance scale 3) of 34 captions from four sides each: R@1 of the judge over all 1,530 captions; \
view: the share of samples, of kinds with a front, whose nearest exact
render among 24 azimuths lies on the side that the caption's word names.

{history}"""


def run(settings: Settings) -> bool:
    """Trains mini-sd and writes its folder; False where it was stopped before its end. Its autoencoder must be there.
    Raises FileNotFoundError where there is no autoencoder in the folder."""
    from diffusers import AutoencoderKL

    if not (settings.output / "vae" / "config.json").is_file():
        raise FileNotFoundError(
            f"no autoencoder in {settings.output / 'vae'}: make it first "
            "(python -m custom.turboprop.small_models mini-vae)"
        )
    autoencoder = AutoencoderKL.from_pretrained(settings.output / "vae", torch_dtype=torch.float32)
    autoencoder.to(settings.device, torch.float32).eval().requires_grad_(False)
    bank = settings.view_bank(1)
    tokenizer = build_tokenizer(settings.work / "tokenizer")
    batch = settings.batch or DEFAULT_BATCH
    period = pool_period(POOL_PERIOD, DEFAULT_BATCH, batch)
    recipe = MiniTextToImage(bank, autoencoder, tokenizer, batch, POOL_SETS, period, settings)
    options = denoiser_options(settings, DEFAULT_STEPS, DEFAULT_RATE)
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    save_pipeline(settings.output, autoencoder, tokenizer, averages["text_encoder"], averages["unet"])
    card = CARD.format(
        **training_facts(settings, options, state, batch),
        views=bank.views,
        pool=POOL_SETS,
        period=period,
        text_parameters=millions(averages["text_encoder"]),
        unet_parameters=millions(averages["unet"]),
        largest=LARGEST_WEIGHT,
    )
    write_card(settings, card)
    return True


def save_pipeline(folder: Path, autoencoder: Any, tokenizer: Any, text_encoder: Any, unet: Any) -> None:
    """Writes diffusers' folder layout in half precision (safetensors)."""
    from diffusers import StableDiffusionPipeline

    parts = {"vae": autoencoder, "text_encoder": text_encoder, "unet": unet}
    pipeline = StableDiffusionPipeline(
        **{name: copy.deepcopy(part) for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    opened_in_float32(folder / "text_encoder")


def opened_in_float32(folder: Path) -> None:
    """Lets transformers open a model in float32, as diffusers does, whose weights are stored in half precision.

    transformers opens a model in the type that its config names, and the parts of a pipeline have to agree.
    """
    config = folder / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
