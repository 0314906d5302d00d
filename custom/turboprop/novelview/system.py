"""`turboprop-novelview-system`: trains a novel-view diffusion model on pairs of views."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import threestudio
from threestudio.systems.base import BaseSystem
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled, check_at_least, check_choice

from ..small_models.training import average_weights
from .augmentation import PhotometricAugmentation
from .cached_latents import autoencoder_fingerprint
from .data import NovelViewDataModule
from .loading import save_novel_view_model
from .model import NovelViewModel, NovelViewSettings, cast_module
from .picture_quality import BACKBONES, QualityMeter
from .sampling import sample_latents
from .starting_point import starting_model
from .timestep_sampling import TimestepSampling
from .training import TrainingRule, clean_latents, encoded_view, loss_by_bin, pose_of_batch, training_loss

FROZEN = ("model.vae.", "model.image_encoder.", "model.feature_encoder.")  # not in checkpoints: they never change
FROZEN_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class SamplingConfig:
    num_steps: int = 50  # DDIM steps of a picture
    guidance_scale: float = 3.0  # classifier-free guidance; 1: none
    eta: float = 1.0  # share of DDPM's noise in each step
    grid: int = 4  # views drawn at each validation, a row each: input, truth, sample; 0: none
    test: int = 16  # views drawn after training, with their quality
    lpips: str = "vgg"  # backbone of LPIPS where a package for it is there: vgg, alex or squeeze

    def check(self, key: str, num_timesteps: int) -> None:
        """Raises ValueError that names the key, what was expected and what came."""
        if not 1 <= self.num_steps <= num_timesteps:
            raise UserError(f"{key}.num_steps: expected 1 to {num_timesteps}, got {self.num_steps}")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"{key}.eta: expected a number within 0 to 1, got {self.eta}")
        for name in ("grid", "test"):
            check_at_least(f"{key}.{name}", getattr(self, name), 0)
        check_choice(f"{key}.lpips", self.lpips, BACKBONES)


@dataclass
class TimestepConfig:
    sampler: str = "truncated_normal"  # or uniform, logit_normal
    # of the Gaussian, timesteps (logit_normal: in logit units); a number or a schedule over steps
    mean: Scheduled = 1000.0
    std: float = 200.0  # likewise
    uniform_share: float = 0.0  # share of the draws that are uniform instead, in [0, 1]


@threestudio.register("turboprop-novelview-system")
class NovelViewSystem(BaseSystem):
    """Efficient-3DiM-style training of zero-1-to-3's model; each of its parts is a key of its own."""

    @dataclass
    class Config(BaseSystem.Config):
        start_from: str = ""  # a novel-view model, zero123's .ckpt, or a diffusion model in diffusers' layout
        image_encoder: str = ""  # folder or hub id of the encoder of tokens; default: the start's own
        feature_encoder: str = ""  # likewise of the injected features; default: the image encoder
        model: dict = field(default_factory=dict)  # keys of model.NovelViewSettings
        timesteps: dict = field(default_factory=dict)  # keys of TimestepConfig
        min_snr_gamma: float = 0.0  # min-SNR weighting of the loss (5 is usual); 0: none
        noise_shift: float = 1.0  # signal-to-noise ratio so many times lower at the last timestep; MV-Adapter has 8
        condition_dropout: float = 0.05  # probability of each of: no tokens, no input latent, neither
        photometric: dict = field(default_factory=dict)  # keys of PhotometricAugmentation; {probability: 0}: none
        ema_decay: float = 0.9999  # of the moving average, which is validated, sampled and saved; 0: none
        gradient_checkpointing: bool = False  # less memory for a second forward pass
        frozen_precision: str = "float32"  # of autoencoder and encoders: float32, bfloat16 or float16
        channels_last: bool = False  # memory layout that is faster on recent GPUs
        validation_bins: int = 10  # equal ranges of timesteps whose losses are logged
        sampling: dict = field(default_factory=dict)  # keys of SamplingConfig

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        if not cfg.start_from:
            raise UserError("system.start_from: expected a model folder, a hub id or a .ckpt, got an empty name")
        settings = _settings(cfg.model)
        self.timesteps: TimestepConfig = parse_structured(TimestepConfig, cfg.timesteps)
        self.photometric: PhotometricAugmentation = parse_structured(PhotometricAugmentation, cfg.photometric)
        self.sampling: SamplingConfig = parse_structured(SamplingConfig, cfg.sampling)
        self._check()
        self.model = starting_model(cfg.start_from, settings, cfg.image_encoder, cfg.feature_encoder, cfg.noise_shift)
        num_timesteps = len(self.model.alphas_cumprod)
        SamplingConfig(**self.sampling).check("system.sampling", num_timesteps)
        self._timestep_sampling().check("system.timesteps", num_timesteps)
        if cfg.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        if cfg.channels_last:
            self.model.unet.to(memory_format=torch.channels_last)
        for part in (self.model.vae, self.model.image_encoder, self.model.feature_encoder):
            if part is not None:
                cast_module(part, FROZEN_TYPES[cfg.frozen_precision])
        self.model.train()
        self.average: nn.ModuleDict | None = None
        if cfg.ema_decay > 0:
            copies = {name: copy.deepcopy(part) for name, part in self.model.trained_parts().items()}
            self.average = nn.ModuleDict(copies).eval().requires_grad_(False)
        self._meter: QualityMeter | None = None

    def _check(self) -> None:
        cfg = self.cfg
        PhotometricAugmentation(**self.photometric).check("system.photometric")
        if not 0.0 <= cfg.condition_dropout <= 1.0 / 3.0:
            given = cfg.condition_dropout
            raise UserError(f"system.condition_dropout: expected a number within 0 to 1/3, got {given}")
        if not 0.0 <= cfg.ema_decay < 1.0:
            raise UserError(f"system.ema_decay: expected a number in [0, 1), got {cfg.ema_decay}")
        check_at_least("system.min_snr_gamma", cfg.min_snr_gamma, 0)
        check_choice("system.frozen_precision", cfg.frozen_precision, FROZEN_TYPES)
        check_at_least("system.validation_bins", cfg.validation_bins, 1)

    def _timestep_sampling(self) -> TimestepSampling:
        values = self.timesteps
        mean = values.mean if isinstance(values.mean, (int, float)) else self.C(list(values.mean))
        return TimestepSampling(values.sampler, float(mean), values.std, values.uniform_share)

    def _rule(self) -> TrainingRule:
        photometric = self.photometric if self.photometric.probability > 0 else None
        return TrainingRule(self._timestep_sampling(), self.cfg.condition_dropout, photometric, self.cfg.min_snr_gamma)

    # ------------------------------------------------------------------------------ training

    def configure_optimizers(self) -> dict:
        """Leaves out the group of the injection where the model has none, so that one key switches it off."""
        groups = self.cfg.optimizer.get("params")
        if self.model.injection is None and groups and "model.injection" in groups:
            groups.pop("model.injection")
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Raises ValueError where pictures or cached latents are not this model's, or the weights have 16 bits."""
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise UserError(
                f"trainer.precision: expected 32, 16-mixed or bf16-mixed, got {self.trainer.precision}: weights and "
                "the noise schedule train in float32"
            )
        data = self.trainer.datamodule
        if not isinstance(data, NovelViewDataModule):
            raise UserError("data_type: this system needs turboprop-novelview-datamodule")
        size = data.cfg.image_size
        if size != self.model.image_size:
            raise UserError(f"data.image_size: the model takes pictures of {self.model.image_size} pixels, got {size}")
        cache = data.train_pairs.latents
        if cache is not None and cache.fingerprint != autoencoder_fingerprint(self.model.vae):
            raise UserError("data.latent_cache: it was made by another autoencoder than the model's")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        loss, figures = training_loss(self.model, batch, self._rule())
        self.log("train/loss", loss.detach(), prog_bar=True)
        for name, value in figures.items():
            self.log(f"train/{name}", value)
        self.log("train/broken_folders", batch["broken"].sum().float(), reduce_fx="sum", on_step=True)
        return {"loss": loss}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            parts = self.model.trained_parts()
            averages = {name: self.average[name] for name in parts}
            average_weights(averages, parts, self.trainer.global_step, self.cfg.ema_decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[NovelViewModel]:
        """The model with the moving average in the place of its weights, inside the block."""
        own = self.model.trained_parts()
        try:
            for name in own if self.average is not None else ():
                setattr(self.model, name, self.average[name])
            yield self.model
        finally:
            for name, part in own.items():
                setattr(self.model, name, part)

    # ---------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        with self.averaged_weights() as model:
            losses = loss_by_bin(model, batch, self.cfg.validation_bins)
            count = len(batch["input_image"])
            self.log("val/loss", losses.mean(), on_epoch=True, sync_dist=True, batch_size=count)
            for place, value in enumerate(losses):
                self.log(f"val/loss_bin_{place:02d}", value, on_epoch=True, sync_dist=True, batch_size=count)
            if batch_idx == 0 and self.sampling.grid > 0 and self.trainer.is_global_zero:
                rows = {key: value[: self.sampling.grid] for key, value in batch.items()}
                self._save_grid(f"it{self.true_global_step}-val.png", rows, self.drawn(model, rows))

    @torch.no_grad()
    def drawn(self, model: NovelViewModel, batch: dict[str, Any]) -> Tensor:
        """The views that a batch asks for, sampled: [B, 3, S, S] in [0, 1]. Draws from the global generators."""
        _, given = clean_latents(model, batch, sampled=False)
        view = encoded_view(model, batch, given, None)
        condition = model.condition(view, pose_of_batch(batch, model.settings.fourth_number))
        noise = torch.randn_like(given, dtype=torch.float32)
        options = self.sampling
        latents = sample_latents(
            model.predict_noise, model.alphas_cumprod, condition, noise, options.num_steps, options.guidance_scale,
            options.eta,
        )  # fmt: skip
        return model.decode(latents)

    def _save_grid(self, name: str, batch: dict[str, Any], drawn: Tensor) -> None:
        if self._save_dir is None:
            return
        columns = [batch["input_image"] / 2 + 0.5, batch["target_image"] / 2 + 0.5, drawn]
        rows = [
            [{"type": "rgb", "img": column[row], "kwargs": {"data_format": "CHW"}} for column in columns]
            for row in range(len(drawn))
        ]
        self.save_image_grid(name, rows, name="validation", step=self.true_global_step)

    def on_test_start(self) -> None:
        self._meter = QualityMeter(self.sampling.lpips, self.device)
        self._tested = 0

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        wanted = min(self.sampling.test - self._tested, len(batch["input_image"]))
        if wanted <= 0:
            return
        rows = {key: value[:wanted] for key, value in batch.items()}
        with self.averaged_weights() as model:
            drawn = self.drawn(model, rows)
        self._meter.add(drawn, rows["target_image"] / 2 + 0.5)
        if self.trainer.is_global_zero and batch_idx == 0:
            self._save_grid(f"it{self.true_global_step}-test.png", rows, drawn)
        self._tested += wanted

    def on_test_epoch_end(self) -> None:
        if not self.trainer.is_global_zero or self._meter is None or not len(self._meter):
            return
        report = self._meter.report()
        for line in self._meter.lines():
            threestudio.info(line)
        if self._save_dir is not None:
            self.save_json(f"it{self.true_global_step}-test.json", report)
            self.save_model()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.trainer.is_global_zero:
            self.save_model()

    def save_model(self) -> Path:
        """Writes the model, with the averaged weights, in the project's own layout."""
        folder = Path(self.get_save_path(f"it{self.true_global_step}-model"))
        with self.averaged_weights() as model:
            save_novel_view_model(model, folder)
        threestudio.info(f"Model: {folder}")
        return folder

    # --------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {key: value for key, value in self.state_dict().items() if key.startswith(FROZEN)}
        checkpoint["state_dict"] = {**own, **checkpoint["state_dict"]}


def _settings(values: Any) -> NovelViewSettings:
    """The checked settings of `system.model`."""
    plain = NovelViewSettings(**parse_structured(NovelViewSettings, values))
    try:
        plain.check()
    except ValueError as error:
        raise UserError(f"system.model.{error}") from error
    return plain
