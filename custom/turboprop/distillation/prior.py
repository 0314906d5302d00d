"""A teacher, the schedule of what it is asked, and what one step makes of its answer: what all guidances share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import UserError
from threestudio.utils.misc import C
from threestudio.utils.value_checks import schedule_values

from ..teachers.contract import Cameras, Condition, Teacher
from ..teachers.loading import LoadingOptions
from ..teachers.noise_schedule import remove_noise, signal_and_noise_level
from ..teachers.pretrained import load_teacher
from .methods import Conditions, Distillation, Method, query
from .preview import guidance_pictures
from .timesteps import (
    sample_timesteps,
    schedule_start,
    shift_timesteps,
    square_root_annealed_percent,
    timestep_range,
)
from .weighting import WEIGHTING_STRATEGIES, weight


def finite_gradient(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with 0 wherever it is NaN or infinite, and how many such entries there were."""
    finite = torch.isfinite(gradient)
    return torch.where(finite, gradient, 0.0), (~finite).sum().float()


def distillation_loss(
    values: Tensor,  # [B, ...], with a graph
    gradient: Tensor,  # [B, ...]
) -> Tensor:
    """A scalar whose gradient at `values` is `gradient` / B, and whose value is |gradient|^2 / (2 B)."""
    target = (values - gradient).detach()
    return 0.5 * F.mse_loss(values, target, reduction="sum") / values.shape[0]


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")


def loading_options(cfg: Any) -> LoadingOptions:
    """How a guidance's config says that denoisers are loaded."""
    return LoadingOptions(
        half_precision_weights=cfg.half_precision_weights,
        enable_attention_slicing=cfg.enable_attention_slicing,
        enable_channels_last_format=cfg.enable_channels_last_format,
        enable_sequential_cpu_offload=cfg.enable_sequential_cpu_offload,
    )


def with_image_loss(name: str, cfg: Any) -> tuple[str, ...]:
    """X of each loss_X that `DistillationPrior.distill` returns for a method's name."""
    return (name, f"{name}_img") if cfg.use_img_loss else (name,)


@dataclass(frozen=True)
class Renders:
    """What a step rendered, as the teacher takes it."""

    images: Optional[Tensor]  # [B, 3, S, S] in [0, 1], with a graph; None where latents were rendered
    latents: Tensor  # [B, C, h, w], with a graph


@dataclass(frozen=True)
class Distilled:
    """What a step made of the renders."""

    output: dict[str, Any]  # losses and figures, by the names that a system knows
    noisy: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B], of `noisy`


class DistillationPrior(BaseObject):
    """A teacher and its schedule; with a method they make a guidance.

    `configure` takes a `teacher` in place of one that the config names: `DistillationPrior(cfg, teacher=teacher)`.
    """

    @dataclass
    class Config(BaseObject.Config):
        # a registered teacher; "" is the diffusion model that the next keys name
        teacher_type: str = ""
        teacher: dict[str, Any] = field(default_factory=dict)  # the config of a `teacher_type`
        # a local folder or a hub id, of latent diffusion or of a pixel-space model as DeepFloyd IF
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        half_precision_weights: bool = True  # float16; always float32 on a CPU
        enable_attention_slicing: bool = False  # less memory, slower
        enable_channels_last_format: bool = False
        enable_sequential_cpu_offload: bool = False  # the denoiser's weights stay on the CPU between uses
        enable_memory_efficient_attention: bool = False  # accepted; torch's fused attention is always used

        guidance_scale: float = 7.5  # s of eps_u + s (eps_c - eps_u); a number or a schedule
        view_dependent_prompting: bool = True  # ", front view" and the like, by the camera
        # factor on perp-neg's strengths, at most 0; 0 turns perp-neg off, the prompt processor's use_perp_neg on
        guidance_perp_neg: float = -0.5
        weighting_strategy: str = "sds"  # w(t): sds, uniform or fantasia3d

        # fractions of the diffusion schedule: numbers or schedules [start_step, start, end, end_step]
        min_step_percent: float = 0.02
        max_step_percent: float = 0.98
        # HiFA: one timestep, from max to min as the square root of the run's progress
        sqrt_anneal: bool = False
        trainer_max_steps: int = 25000  # the length of the run, for sqrt_anneal
        # views of one object that a multi-view teacher looks at together: they share their timesteps, and come one
        # after another in a batch. 1: single views
        n_view: int = 1
        shared_timesteps: bool = False  # one timestep and one shift for all samples of a step
        plus_ratio: float = 0.1  # ASD: the shift is at most this times (t - T_min)
        plus_random: bool = True  # ASD: the shift is random below that, not equal to it
        # ASD: T_min as a fraction; null is the annealed min_step
        plus_min_step_percent: Optional[float] = None

        # largest entry of the gradient at the latents, and of that at the images; a number, a schedule or null
        grad_clip: Optional[float] = None
        use_img_loss: bool = False  # HiFA: also the distance between the render and the guided clean image
        max_items_eval: int = 4  # how many samples of a batch guidance_eval pictures

    cfg: Config

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        check_choice("weighting_strategy", self.cfg.weighting_strategy, WEIGHTING_STRATEGIES)
        for key in ("min_step_percent", "max_step_percent"):
            if not all(0 <= percent <= 1 for percent in schedule_values(self.cfg[key])):
                raise UserError(f"{key}: expected fractions in [0, 1] at every step, got {self.cfg[key]}")
        if self.cfg.guidance_perp_neg > 0:
            raise UserError(
                f"guidance_perp_neg: expected a number of at most 0, got {self.cfg.guidance_perp_neg:g}"
            )
        if self.cfg.n_view < 1:
            raise UserError(f"n_view: expected at least 1, got {self.cfg.n_view}")
        if self.cfg.plus_ratio < 0:
            raise UserError(f"plus_ratio: expected a number of at least 0, got {self.cfg.plus_ratio:g}")
        if self.cfg.trainer_max_steps < 1:
            raise UserError(
                f"trainer_max_steps: expected a number of at least 1, got {self.cfg.trainer_max_steps}"
            )
        self.weighting_strategy = self.cfg.weighting_strategy
        self.teacher = teacher if teacher is not None else self._build_teacher()
        self.update_step(0, 0)

    def _build_teacher(self) -> Teacher:
        cfg = self.cfg
        if cfg.teacher_type:
            return threestudio.find(cfg.teacher_type)(cfg.teacher)
        threestudio.info(f"Loading the teacher {cfg.pretrained_model_name_or_path} ...")
        return load_teacher(cfg.pretrained_model_name_or_path, self.device, loading_options(cfg))

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Sets what the schedules say at this step."""
        cfg = self.cfg
        low, high = C(cfg.min_step_percent, epoch, global_step), C(cfg.max_step_percent, epoch, global_step)
        if self.anneals_one_timestep:
            high = schedule_start(cfg.max_step_percent)
        low, high = self.annealed(low, high, global_step / cfg.trainer_max_steps)
        self.min_step, self.max_step = timestep_range(low, high, self.teacher.num_timesteps)
        self.guidance_scale = float(C(cfg.guidance_scale, epoch, global_step))
        self.grad_clip = None if cfg.grad_clip is None else float(C(cfg.grad_clip, epoch, global_step))

    @property
    def anneals_one_timestep(self) -> bool:
        """Whether there is one timestep at each step of the run, on a course of its own."""
        return self.cfg.sqrt_anneal

    def annealed(self, low: float, high: float, progress: float) -> tuple[float, float]:
        """The range of timesteps, as fractions, at a fraction of the run."""
        if not self.cfg.sqrt_anneal:
            return low, high
        percent = square_root_annealed_percent(low, high, progress)
        return percent, percent

    def scale_of(self, conditions: Conditions) -> float:
        """s of eps_u + s (eps_c - eps_u) for these conditions."""
        return self.guidance_scale

    def renders(self, rgb: Tensor, rgb_as_latents: bool) -> Renders:
        """What was rendered, [B, H, W, 3] in [0, 1] or latents [B, h, w, C], at the teacher's sizes.

        Raises:
            ValueError: latents of another number of channels than the teacher's.
        """
        if not rgb_as_latents:
            images = _resized(rgb, self.teacher.image_size)
            return Renders(images, self.teacher.encode(images * 2.0 - 1.0))
        if rgb.shape[-1] != self.teacher.latent_channels:
            raise UserError(
                f"rgb_as_latents: expected latents of {self.teacher.latent_channels} channels, got {rgb.shape[-1]}"
            )
        return Renders(None, _resized(rgb, self.teacher.latent_size))

    def conditions(
        self,
        prompt_utils: Any,
        cameras: Cameras,
    ) -> Conditions:
        """What the teacher is asked about B cameras."""
        angles = (cameras.elevation, cameras.azimuth, cameras.distance, self.cfg.view_dependent_prompting)
        batch_size, views = cameras.elevation.shape[0], self.cfg.n_view

        def condition(embeddings: Tensor) -> Condition:
            return self.teacher.condition(embeddings, cameras, views)

        if prompt_utils.use_perp_neg and self.cfg.guidance_perp_neg != 0:
            if views != 1:
                raise UserError(f"n_view: perp-neg works on single views, expected 1, got {views}")
            embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*angles)
            parts = embeddings.split([batch_size, batch_size, embeddings.shape[0] - 2 * batch_size])
            positive, unconditional = (condition(part) for part in parts[:2])
            negatives = self.teacher.condition(parts[2], cameras.repeat_interleave(parts[2].shape[0] // batch_size))
            # prompt_utils gives -f, the strengths that push away; guidance_perp_neg is -1 at full strength
            return Conditions(positive, unconditional, negatives, -self.cfg.guidance_perp_neg * weights)
        positive, unconditional = prompt_utils.get_text_embeddings(*angles).chunk(2)
        return Conditions(condition(positive), condition(unconditional))

    @property
    def latent_size(self) -> int:
        """The side of the latents that the teacher is asked about."""
        return self.teacher.latent_size

    @torch.no_grad()
    def decode_latents(
        self,
        latents: Tensor,  # [B, C, H, W]
        latent_height: Optional[int] = None,
        latent_width: Optional[int] = None,
    ) -> Tensor:
        """Pictures [B, 3, h, w] in [0, 1] of latents, resized before to `latent_height` and `latent_width`.

        Both are the teacher's own side where they are not given.
        """
        size = (latent_height or self.latent_size, latent_width or self.latent_size)
        resized = F.interpolate(latents.float(), size, mode="bilinear", align_corners=False)
        return (self.teacher.decode(resized) * 0.5 + 0.5).clamp(0, 1)

    def draw_timesteps(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """t and the later t', each [B], from torch's global generator. Here: ASD's t'."""
        cfg, total = self.cfg, self.teacher.num_timesteps
        shared = cfg.shared_timesteps
        views = cfg.n_view
        if batch_size % views:
            raise UserError(f"n_view: expected a batch of whole sets of {views} views, got {batch_size} views")
        sets = batch_size // views
        timesteps = sample_timesteps(self.min_step, self.max_step, sets, self.teacher.device, shared)
        first = self.min_step
        if cfg.plus_min_step_percent is not None:
            first = int(total * cfg.plus_min_step_percent)
        shifted = shift_timesteps(timesteps, first, total, cfg.plus_ratio, cfg.plus_random, shared)
        return timesteps.repeat_interleave(views), shifted.repeat_interleave(views)

    def distill(self, name: str, method: Method, renders: Renders, conditions: Conditions) -> Distilled:
        """One step of a method.

        Its output has loss_<name>, its gradient at the latents being the method's / B; grad_norm; nan_gradients, the
        number of entries of the gradient that were not finite and were left out; min_step, max_step; the method's own
        scalars; loss_<name>_img with use_img_loss.
        """
        latents = renders.latents
        with torch.no_grad():
            timesteps, shifted = self.draw_timesteps(latents.shape[0])
            noise = torch.randn_like(latents)
            result = method(
                self.teacher,
                latents.detach(),
                conditions,
                timesteps,
                noise,
                shifted,
                guidance_scale=self.scale_of(conditions),
                weighting=self.weighting_strategy,
            )
            gradient, nan_gradients = finite_gradient(result.gradient)
            gradient = self._clipped(gradient)
        output: dict[str, Any] = {
            f"loss_{name}": distillation_loss(latents, gradient),
            "grad_norm": gradient.norm(),
            "nan_gradients": nan_gradients,
            "min_step": self.min_step,
            "max_step": self.max_step,
            **result.scalars,
        }
        if self.cfg.use_img_loss:
            output[f"loss_{name}_img"] = self._image_loss(renders.images, timesteps, result)
        return Distilled(output, result.noisy, timesteps)

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient if self.grad_clip is None else gradient.clamp(-self.grad_clip, self.grad_clip)

    def _image_loss(
        self,
        images: Optional[Tensor],  # [B, 3, H, W] in [0, 1]
        timesteps: Tensor,  # [B]
        result: Distillation,
    ) -> Tensor:
        """HiFA's distance in image space (Zhu and Zhuang 2023, arXiv 2305.18766, equation 9).

        The latent gradient w (eps_hat - eps) is w (a_t / s_t) (z - z_hat), z_hat being the guided clean latents; this
        is the same with images in the latents' place. Where the renders have a score of their own, as in VSD, the clean
        images that it implies stand in the renders' place.
        """
        if images is None:
            raise UserError("use_img_loss: expected rendered images, got latents (rgb_as_latents)")
        with torch.no_grad():
            alphas_cumprod = self.teacher.alphas_cumprod

            def pictured(epsilon: Tensor) -> Tensor:
                clean = remove_noise(result.noisy, epsilon, timesteps, alphas_cumprod)
                return (self.teacher.decode(clean) * 0.5 + 0.5).clamp(0, 1)

            guided_images = pictured(result.guided_noise)
            own_images = images if result.render_noise is None else pictured(result.render_noise)
            signal, level = signal_and_noise_level(alphas_cumprod, timesteps)
            factor = weight(alphas_cumprod, timesteps, self.weighting_strategy) * signal / level
            gradient, _ = finite_gradient(factor * (own_images - guided_images))
            gradient = self._clipped(gradient)
        return distillation_loss(images, gradient)

    def pictures(
        self,
        distilled: Distilled,
        conditions: Conditions,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
    ) -> dict[str, Any]:
        """What the teacher makes of a step's noisy latents: see `preview.guidance_pictures`."""
        views = self.cfg.n_view
        count = min(max(1, self.cfg.max_items_eval // views) * views, distilled.noisy.shape[0])
        shown = conditions.take(count)

        def guided_noise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return query(self.teacher, noisy, shown, timesteps, self.scale_of(shown)).first

        cameras = (elevation[:count], azimuth[:count], camera_distances[:count])
        return guidance_pictures(
            self.teacher, distilled.noisy[:count], distilled.timesteps[:count], guided_noise, *cameras
        )


def _resized(rgb: Tensor, size: int) -> Tensor:
    """[B, H, W, C] -> [B, C, size, size], bilinear, in float32 where a renderer's autocast gave less."""
    values = rgb.permute(0, 3, 1, 2).to(torch.promote_types(rgb.dtype, torch.float32))
    return F.interpolate(values, (size, size), mode="bilinear", align_corners=False)
