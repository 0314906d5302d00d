"""mini-mv: the world's multi-view teacher, MVDream's network at a small size.

It begins as mini-sd's UNet, as MVDream's begins as Stable Diffusion's, and shares its autoencoder, text encoder and
tokenizer. Its sets are four views a quarter turn apart; a quarter of its batches are single views with the exact
camera, and a tenth of those have no camera (the plain 2D mode).
"""

from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...teachers.multi_view.network import MultiViewUNet, from_text_to_image
from ...teachers.noise_schedule import add_noise, prediction_target
from ...world.dataset import ViewBank
from ..latent_pool import LatentPool
from ..sample_figures import SampleFigures
from ..text_table import CaptionTable

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
        pool_period: int,
        seed: int,
        figures: Optional[SampleFigures] = None,
    ) -> None:
        if bank.turns != NUM_VIEWS:
            raise ValueError(f"the view bank's views come in {bank.turns}s, expected {NUM_VIEWS}s")
        self.device = base.unet.device
        network = from_text_to_image(base.unet, CAMERA_ENCODING, NUM_VIEWS).to(self.device)
        self.modules: dict[str, nn.Module] = {"unet": network.train()}
        self.captions = CaptionTable(base.tokenizer, base.text_encoder)
        self.alphas_cumprod = base.scheduler.alphas_cumprod.to(self.device)
        self.pool = LatentPool(bank, base.vae, CAMERA_ENCODING, pool_sets, pool_period, seed)
        self.batch_sets, self.measure = batch_sets, figures

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
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
        means, deviations, cameras = (x[chosen[:, None], view].flatten(0, 1) for x in (pool.means, pool.deviations, pool.cameras))
        draws = torch.randn(2, *means.shape, generator=generator).to(self.device)
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
