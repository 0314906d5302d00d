"""The world's autoencoder, in the class of Stable Diffusion's: 64 px pictures, 16x16x4 latents."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...world.dataset import IMAGE_SIZE, ViewBank, sample_batch
from ..autoencoder_init import GROUPS, hand_colors_through
from ..settings import Settings
from ..training import TrainingOptions, train

LATENT_CHANNELS = 4
KL_WEIGHT = 3e-4  # by latent element; keeps the latents smooth at no visible cost in sharpness
DEFAULT_STEPS, DEFAULT_BATCH, DEFAULT_RATE = 1400, 16, 2.5e-3


def make_autoencoder() -> Any:
    """An untrained AutoencoderKL."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of the pictures' horizontal and vertical differences: [B, C, H, W] x 2 -> []. Keeps edges sharp."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


@torch.no_grad()
def reconstruction_psnr(bank: ViewBank, autoencoder: Any, seed: int) -> float:
    """Mean PSNR in dB over 256 pictures, of the posterior's mode."""
    device = next(autoencoder.parameters()).device
    images = sample_batch(bank, 256, torch.Generator().manual_seed(seed)).images.to(device)
    decoded = torch.cat([autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample for x in images.split(32)])
    error = ((decoded - images) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


class MiniAutoencoder:
    """The recipe of mini-sd's autoencoder."""

    name = "mini-vae"

    def __init__(self, bank: ViewBank, batch: int, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        autoencoder = make_autoencoder()
        hand_colors_through(autoencoder)
        self.modules: dict[str, nn.Module] = {"vae": autoencoder.to(device).train()}
        self.bank, self.batch, self.device = bank, batch, device

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 + MSE + edges + KL: []."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        autoencoder = self.modules["vae"]
        images = sample_batch(self.bank, self.batch, generator).images.to(self.device)
        posterior = DiagonalGaussianDistribution(autoencoder.quant_conv(autoencoder.encoder(images)).float())
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample.float()
        pixels = F.l1_loss(decoded, images)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixels + F.mse_loss(decoded, images) + 0.5 * edge_difference(decoded, images) + KL_WEIGHT * divergence
        return loss, {"l1": pixels.detach(), "kl": divergence.detach()}

    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        return {"psnr": reconstruction_psnr(self.bank, averages["vae"], seed=9)}


@torch.no_grad()
def with_unit_variance(autoencoder: Any, bank: ViewBank, seed: int) -> Any:
    """The autoencoder, its scaling factor set so that latents of the world have unit variance."""
    device = next(autoencoder.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    posterior = autoencoder.encode(sample_batch(bank, 256, generator).images.to(device)).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
    autoencoder.register_to_config(scaling_factor=float(1 / latents.std()))
    return autoencoder.eval()


def run(settings: Settings) -> bool:
    """Trains the autoencoder and writes it; False where it was stopped before its end."""
    bank = settings.view_bank(1)
    recipe = MiniAutoencoder(bank, settings.batch or DEFAULT_BATCH, settings.seed, settings.device)
    options = TrainingOptions(
        steps=settings.steps_or(DEFAULT_STEPS),
        minutes=settings.minutes,
        learning_rate=settings.learning_rate or DEFAULT_RATE,
        cooldown=0.5,
        bfloat16=settings.bfloat16,
        seed=settings.seed,
        figures_every=500,
    )
    averages, state = train(recipe, options, settings.work, settings.report)
    if state.step < state.steps:
        return False
    autoencoder = with_unit_variance(averages["vae"], bank, settings.seed)
    copy.deepcopy(autoencoder).to(torch.float16).save_pretrained(settings.output)
    settings.report(f"wrote {settings.output}")
    return True
