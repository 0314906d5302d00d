"""The registered guidances: any distillation method with any teacher, as threestudio calls a guidance.

One class does the work; the names below differ in defaults only, so a method is swapped by one line of a config.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import C

from ..teachers.contract import Teacher, TextCondition
from ..teachers.latent_diffusion import LatentDiffusionTeacher
from ..teachers.noise_schedule import remove_noise, signal_and_noise_level
from .methods import METHODS, Conditions, Distillation, query
from .preview import guidance_pictures
from .timesteps import sample_timesteps, shift_timesteps, square_root_annealed_percent, timestep_range
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


@threestudio.register("turboprop-guidance")
class DistillationGuidance(BaseObject):
    """A distillation method, a teacher, and the schedule between them.

    `configure` takes a `teacher` in place of one that the config names: `DistillationGuidance(cfg, teacher=teacher)`.
    """

    @dataclass
    class Config(BaseObject.Config):
        method: str = "asd"  # asd, sds, csd or sjc

        # a registered teacher; "" is the latent diffusion model that the next keys name
        teacher_type: str = ""
        teacher: dict[str, Any] = field(default_factory=dict)  # the config of a `teacher_type`
        # a local folder or a hub id
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        half_precision_weights: bool = True  # float16; always float32 on a CPU
        enable_attention_slicing: bool = False  # less memory, slower
        enable_channels_last_format: bool = False
        enable_sequential_cpu_offload: bool = False  # the denoiser's weights stay on the CPU between uses
        enable_memory_efficient_attention: bool = False  # accepted; torch's fused attention is always used

        guidance_scale: float = 7.5  # s of eps_u + s (eps_c - eps_u); a number or a schedule
        view_dependent_prompting: bool = True  # ", front view" and the like, by the camera
        # factor on perp-neg's strengths, at most 0; the prompt processor turns it on
        guidance_perp_neg: float = -0.5
        weighting_strategy: str = "sds"  # w(t): sds, uniform or fantasia3d

        # fractions of the diffusion schedule: numbers or schedules [start_step, start, end, end_step]
        min_step_percent: float = 0.02
        max_step_percent: float = 0.98
        # HiFA: one timestep, from max to min as the square root of the run's progress
        sqrt_anneal: bool = False
        trainer_max_steps: int = 25000  # the length of the run, for sqrt_anneal
        shared_timesteps: bool = False  # one timestep and one shift for all samples of a step
        plus_ratio: float = 0.1  # ASD: the shift is at most this times (t - T_min)
        plus_random: bool = True  # ASD: the shift is random below that, not equal to it
        # ASD: T_min as a fraction; null is the annealed min_step
        plus_min_step_percent: Optional[float] = None

        # largest entry of the gradient at the latents; a number, a schedule or null
        grad_clip: Optional[float] = None
        use_img_loss: bool = False  # HiFA: also the distance between the render and the guided clean image
        max_items_eval: int = 4  # how many samples of a batch guidance_eval pictures

    cfg: Config

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        _check_choice("method", self.cfg.method, METHODS)
        _check_choice("weighting_strategy", self.cfg.weighting_strategy, WEIGHTING_STRATEGIES)
        if self.cfg.guidance_perp_neg > 0:
            raise ValueError(
                f"guidance_perp_neg: expected a number of at most 0, got {self.cfg.guidance_perp_neg:g}"
            )
        if self.cfg.plus_ratio < 0:
            raise ValueError(f"plus_ratio: expected a number of at least 0, got {self.cfg.plus_ratio:g}")
        if self.cfg.trainer_max_steps < 1:
            raise ValueError(
                f"trainer_max_steps: expected a number of at least 1, got {self.cfg.trainer_max_steps}"
            )
        self.method = METHODS[self.cfg.method]
        self.weighting_strategy = self.cfg.weighting_strategy
        self.loss_name = f"loss_{self.cfg.method}"
        self.teacher = teacher if teacher is not None else self._build_teacher()
        self.update_step(0, 0)

    def _build_teacher(self) -> Teacher:
        cfg = self.cfg
        if cfg.teacher_type:
            return threestudio.find(cfg.teacher_type)(cfg.teacher)
        threestudio.info(f"Loading the teacher {cfg.pretrained_model_name_or_path} ...")
        return LatentDiffusionTeacher.from_pretrained(
            cfg.pretrained_model_name_or_path,
            device=self.device,
            half_precision_weights=cfg.half_precision_weights,
            enable_attention_slicing=cfg.enable_attention_slicing,
            enable_channels_last_format=cfg.enable_channels_last_format,
            enable_sequential_cpu_offload=cfg.enable_sequential_cpu_offload,
        )

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Sets what the schedules say at this step."""
        cfg = self.cfg
        low, high = C(cfg.min_step_percent, epoch, global_step), C(cfg.max_step_percent, epoch, global_step)
        if cfg.sqrt_anneal:
            high = low = square_root_annealed_percent(low, high, global_step / cfg.trainer_max_steps)
        self.min_step, self.max_step = timestep_range(low, high, self.teacher.num_timesteps)
        self.guidance_scale = float(C(cfg.guidance_scale, epoch, global_step))
        self.grad_clip = None if cfg.grad_clip is None else float(C(cfg.grad_clip, epoch, global_step))

    def scale_of(self, conditions: Conditions) -> float:
        """s of eps_u + s (eps_c - eps_u) for these conditions."""
        return self.guidance_scale

    def conditions(
        self,
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
    ) -> Conditions:
        """What the teacher is asked about B cameras."""
        cameras = (elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        batch_size = elevation.shape[0]
        if prompt_utils.use_perp_neg:
            embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*cameras)
            parts = embeddings.split([batch_size, batch_size, embeddings.shape[0] - 2 * batch_size])
            positive, unconditional, negatives = (TextCondition(part) for part in parts)
            # prompt_utils gives -f, the strengths that push away; guidance_perp_neg is -1 at full strength
            return Conditions(positive, unconditional, negatives, -self.cfg.guidance_perp_neg * weights)
        positive, unconditional = prompt_utils.get_text_embeddings(*cameras).chunk(2)
        return Conditions(TextCondition(positive), TextCondition(unconditional))

    def draw_timesteps(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """t and ASD's later t', each [B], from torch's global generator."""
        cfg, total = self.cfg, self.teacher.num_timesteps
        shared = cfg.shared_timesteps
        timesteps = sample_timesteps(self.min_step, self.max_step, batch_size, self.teacher.device, shared)
        first = self.min_step
        if cfg.plus_min_step_percent is not None:
            first = int(total * cfg.plus_min_step_percent)
        return timesteps, shift_timesteps(timesteps, first, total, cfg.plus_ratio, cfg.plus_random, shared)

    def __call__(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """One step's loss and figures.

        Returns:
            loss_<method>, its gradient at the latents being the method's / B; grad_norm; nan_gradients, the number
            of entries of the gradient that were not finite and were left out; min_step, max_step; the method's own
            scalars; loss_<method>_img with use_img_loss; eval with guidance_eval.
        """
        images = None if rgb_as_latents else self._resized(rgb, self.teacher.image_size)
        latents = (
            self._resized(rgb, self.teacher.latent_size)
            if images is None
            else self.teacher.encode(images * 2.0 - 1.0)
        )
        conditions = self.conditions(prompt_utils, elevation, azimuth, camera_distances)
        with torch.no_grad():
            timesteps, shifted = self.draw_timesteps(latents.shape[0])
            noise = torch.randn_like(latents)
            result = self.method(
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
            if self.grad_clip is not None:
                gradient = gradient.clamp(-self.grad_clip, self.grad_clip)
        output: dict[str, Any] = {
            self.loss_name: distillation_loss(latents, gradient),
            "grad_norm": gradient.norm(),
            "nan_gradients": nan_gradients,
            "min_step": self.min_step,
            "max_step": self.max_step,
            **result.scalars,
        }
        noisy = self.teacher.add_noise(latents.detach(), noise, timesteps)
        if self.cfg.use_img_loss:
            output[f"{self.loss_name}_img"] = self._image_loss(images, noisy, timesteps, result)
        if guidance_eval:
            output["eval"] = self._pictures(
                noisy, timesteps, conditions, elevation, azimuth, camera_distances
            )
        return output

    def _resized(self, rgb: Tensor, size: int) -> Tensor:
        """[B, H, W, C] -> [B, C, size, size], bilinear, in float32 where a renderer's autocast gave less."""
        values = rgb.permute(0, 3, 1, 2).to(torch.promote_types(rgb.dtype, torch.float32))
        return F.interpolate(values, (size, size), mode="bilinear", align_corners=False)

    def _image_loss(
        self,
        images: Optional[Tensor],  # [B, 3, H, W] in [0, 1]
        noisy: Tensor,  # [B, C, h, w]
        timesteps: Tensor,  # [B]
        result: Distillation,
    ) -> Tensor:
        """HiFA's distance in image space (Zhu and Zhuang 2023, arXiv 2305.18766, equation 9).

        The latent gradient w (eps_hat - eps) is w (a_t / s_t) (z - z_hat), z_hat being the guided clean latents; this is
        the same with images in the latents' place.
        """
        if images is None:
            raise ValueError("use_img_loss: expected rendered images, got latents (rgb_as_latents)")
        with torch.no_grad():
            alphas_cumprod = self.teacher.alphas_cumprod
            clean = remove_noise(noisy, result.guided_noise, timesteps, alphas_cumprod)
            guided_images = (self.teacher.decode(clean) * 0.5 + 0.5).clamp(0, 1)
            signal, level = signal_and_noise_level(alphas_cumprod, timesteps)
            factor = weight(alphas_cumprod, timesteps, self.weighting_strategy) * signal / level
            gradient, _ = finite_gradient(factor * (images - guided_images))
        return distillation_loss(images, gradient)

    def _pictures(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        elevation: Tensor,
        azimuth: Tensor,
        distances: Tensor,
    ) -> dict[str, Any]:
        count = min(self.cfg.max_items_eval, noisy.shape[0])
        shown = conditions.take(count)

        def guided_noise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return query(self.teacher, noisy, shown, timesteps, self.scale_of(shown)).first

        cameras = (elevation[:count], azimuth[:count], distances[:count])
        return guidance_pictures(self.teacher, noisy[:count], timesteps[:count], guided_noise, *cameras)


def _check_choice(key: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")


@threestudio.register("turboprop-asd-guidance")
class AsynchronousScoreDistillationGuidance(DistillationGuidance):
    """Asynchronous Score Distillation (ScaleDreamer)."""


@threestudio.register("turboprop-sds-guidance")
class ScoreDistillationSamplingGuidance(DistillationGuidance):
    """Score Distillation Sampling (DreamFusion)."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "sds"
        guidance_scale: float = 100.0


@threestudio.register("turboprop-csd-guidance")
class ClassifierScoreDistillationGuidance(DistillationGuidance):
    """Classifier Score Distillation."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "csd"


@threestudio.register("stable-diffusion-asynchronous-score-distillation-guidance")
class StableDiffusionAsynchronousScoreDistillationGuidance(DistillationGuidance):
    """ASD under the name, and with the default, that ScaleDreamer's configs use."""

    @dataclass
    class Config(DistillationGuidance.Config):
        plus_random: bool = False  # its configs all say true
