"""mini-sd: the world's small latent diffusion teacher, in Stable Diffusion's own classes.

Text encoder, autoencoder, UNet and schedule are those of Stable Diffusion 2.1 base at a
small size (64 px pictures, 16x16x4 latents, epsilon prediction), so that everything
which runs on the one runs on the other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder_init import GROUPS, hand_colors_through
from .dataset import IMAGE_SIZE, ViewBank, sample_batch
from .training import fit

TEXT_WIDTH = 128
LATENT_CHANNELS = 4
KL_WEIGHT = 3e-4  # by latent element; keeps the latents smooth at no visible cost in sharpness
CAPTION_DROPOUT = 0.1  # classifier-free guidance (Ho and Salimans 2022)


def make_autoencoder():
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


def make_text_encoder(tokenizer):
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


def make_unet():
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


def make_scheduler():
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


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of the pictures' horizontal and vertical differences, which keeps edges sharp: [B, C, H, W] x 2 -> []."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def train_autoencoder(bank: ViewBank, steps: int, batch_size: int, seed: int, report=print):
    """Fit an AutoencoderKL to the world's pictures; its scaling factor makes the latents of unit variance."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    torch.manual_seed(seed)
    autoencoder = make_autoencoder()
    hand_colors_through(autoencoder)
    generator = torch.Generator().manual_seed(seed)

    def loss_function(step: int):
        images = sample_batch(bank, batch_size, generator).images
        with torch.autocast("cpu", torch.bfloat16):
            moments = autoencoder.quant_conv(autoencoder.encoder(images))
        posterior = DiagonalGaussianDistribution(moments.float())
        with torch.autocast("cpu", torch.bfloat16):
            decoded = autoencoder.decode(posterior.sample(generator)).sample
        decoded = decoded.float()
        pixels = F.l1_loss(decoded, images)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixels + F.mse_loss(decoded, images) + 0.5 * edge_difference(decoded, images) + KL_WEIGHT * divergence
        return loss, {"l1": pixels.item(), "kl": divergence.item()}

    (average,) = fit("autoencoder", [autoencoder], loss_function, steps, 2.5e-3, report=report)
    with torch.no_grad():
        latents = average.encode(sample_batch(bank, 256, generator).images).latent_dist.sample(generator)
    average.register_to_config(scaling_factor=float(1 / latents.std()))
    return average.eval()


@torch.no_grad()
def encode_pool(bank: ViewBank, autoencoder, count: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Latent means and deviations [N, 4, 16, 16], scaled, and captions of `count` pictures, encoded once."""
    generator = torch.Generator().manual_seed(seed)
    means, deviations, captions = [], [], []
    for _ in range(0, count, 64):
        batch = sample_batch(bank, 64, generator)
        posterior = autoencoder.encode(batch.images).latent_dist
        means.append(posterior.mean * autoencoder.config.scaling_factor)
        deviations.append(posterior.std * autoencoder.config.scaling_factor)
        captions += batch.captions
    return torch.cat(means), torch.cat(deviations), captions


def train_denoiser(
    bank: ViewBank, autoencoder, tokenizer, steps: int, batch_size: int, pool: int, seed: int, report=print, on_report=None
) -> tuple[nn.Module, nn.Module]:
    """Fit text encoder and UNet together by denoising (Ho et al. 2020, eq. 14): returns both, averaged."""
    torch.manual_seed(seed)
    text_encoder, unet, scheduler = make_text_encoder(tokenizer), make_unet(), make_scheduler()
    means, deviations, captions = encode_pool(bank, autoencoder, pool, seed)
    report(f"encoded {len(captions)} pictures")
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    generator = torch.Generator().manual_seed(seed + 1)

    def loss_function(step: int):
        index = torch.randint(len(means), (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < CAPTION_DROPOUT
        shape = (batch_size, *means.shape[1:])
        latents = means[index] + deviations[index] * torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        embeddings = text_encoder(tokens[torch.where(dropped, len(means), index)]).last_hidden_state
        loss = F.mse_loss(unet(noisy, timesteps, embeddings).sample, noise)
        return loss, {"mse": loss.item()}

    text_encoder, unet = fit(
        "denoiser", [text_encoder, unet], loss_function, steps, 6e-4, average_decay=0.9995, report=report,
        every=250, on_report=on_report,
    )
    return text_encoder.eval(), unet.eval()


def save_pipeline(folder: Path, autoencoder, tokenizer, text_encoder, unet) -> None:
    """Write diffusers' folder layout in half precision (safetensors)."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
