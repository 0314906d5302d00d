"""`turboprop-vsd-guidance`: Variational Score Distillation, with the teacher of the renders that it trains beside."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseModule
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least, check_choice

from ..teachers.configured import configured_teacher, loading_options
from ..teachers.contract import Cameras, Condition, Teacher, TextCondition
from ..teachers.latent_diffusion import LatentDiffusionTeacher
from ..teachers.loading import Denoiser, load_denoiser
from ..teachers.low_rank import CameraCondition, LowRankTeacher
from ..teachers.multi_view.cameras import CAMERA_NUMBERS
from ..teachers.pixel_diffusion import PixelDiffusionTeacher
from ..teachers.sampling import ddim_sample
from ..teachers.weights import part_classes
from .guidance import (
    GuidanceConfig,
    check_guidance_config,
    conditions_of,
    losses_named,
    register_names,
)
from .methods import Conditions, guided_noise, vsd_gradient
from .preview import as_pictures
from .renders import renders_for
from .schedule import Schedule
from .step import distill, drawn_query, step_pictures

CAMERA_CONDITIONS = ("extrinsics", "mvp")
CAMERA_DROP = 0.1  # of training samples, with lora_cfg_training


class VariationalScoreDistillationGuidance(BaseModule):
    """Variational Score Distillation (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213).

    Unlike other guidances it trains: its parameters, and all that a checkpoint holds of it, are the low-rank adapters
    and the camera's embedding. The optimizer's group for them is `guidance`. `configure` takes a `teacher`, and the
    teacher of the renders, in place of those that the config names.
    """

    @dataclass
    class Config(BaseModule.Config, GuidanceConfig):  # the keys of ASD (plus_*) have no part in it
        # the network that the adapters are put on: "" is the teacher's own; else a text-to-image model with the
        # teacher's latents and text
        pretrained_model_name_or_path_lora: str = ""
        guidance_scale_lora: float = 1.0  # s of eps_phi; above 1 it pushes towards the camera
        lora_rank: int = 4
        lora_n_timestamp_samples: int = 1  # how many noise levels of each render a step trains on
        lora_cfg_training: bool = True  # a tenth of the samples trains without its camera
        # the camera's 16 numbers: extrinsics (c2w) or mvp; a multi-view network is told cameras as it was trained
        camera_condition_type: str = "extrinsics"
        # of the adapters and the camera's embedding, where the optimizer has no group `guidance` (ProlificDreamer's)
        learning_rate: float = 1.0e-4

    cfg: Config
    learns_from_renders = True  # for Picard iterations: its weights are no part of the scene

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X of a step with this config, the method's own first; without one, of any."""
        return (*losses_named("vsd", cfg is None or parse_structured(cls.Config, cfg).use_img_loss), "lora")

    @property
    def optimizer_group(self) -> dict[str, float]:
        """The optimizer's arguments for its weights, where the config has no group for them."""
        return {"lr": self.cfg.learning_rate, "eps": 1.0e-8}  # a scene's eps may be far above adapters' gradients

    def configure(self, teacher: Teacher | None = None, render_teacher: LowRankTeacher | None = None) -> None:
        cfg = self.cfg
        check_choice("camera_condition_type", cfg.camera_condition_type, CAMERA_CONDITIONS)
        check_at_least("lora_n_timestamp_samples", cfg.lora_n_timestamp_samples, 1)
        check_guidance_config(cfg)
        self.teacher = self._build_teacher() if teacher is None else teacher
        self.schedule = Schedule(cfg, self.teacher.num_timesteps, self.teacher.device)
        self.lora = render_teacher if render_teacher is not None else self._build_render_teacher()

    def _build_teacher(self) -> Teacher:
        return configured_teacher(self.cfg, self.device)

    def _build_render_teacher(self) -> LowRankTeacher:
        cfg, teacher = self.cfg, self.teacher
        name = cfg.pretrained_model_name_or_path_lora
        if not name or (name == cfg.pretrained_model_name_or_path and not cfg.teacher_type):
            return LowRankTeacher(self._own_denoiser(), teacher, cfg.lora_rank)
        if part_classes(name).get("unet") != "UNet2DConditionModel":
            raise UserError(
                f'pretrained_model_name_or_path_lora: expected a text-to-image model, or "" for the teacher\'s own '
                f"network; got {name}"
            )
        threestudio.info(f"Loading the network of the renders' score {name} ...")
        options = loading_options(cfg)
        if options.enable_sequential_cpu_offload:
            raise UserError(_NO_OFFLOAD)
        denoiser = load_denoiser(name, self.device, options)
        _check_text_width(denoiser, teacher)
        return LowRankTeacher(denoiser, teacher, cfg.lora_rank)

    def _own_denoiser(self) -> Denoiser:
        """The teacher's network, to put adapters on."""
        teacher, denoiser = self.teacher, denoiser_of(self.teacher)
        if denoiser is None:
            raise UserError(
                f"pretrained_model_name_or_path_lora: {type(teacher).__name__} has no network to put adapters on; "
                "expected a model folder or a hub id"
            )
        if self.cfg.enable_sequential_cpu_offload:
            raise UserError(_NO_OFFLOAD)
        return denoiser

    def forward(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        mvp_mtx: Tensor,  # [B, 4, 4]
        c2w: Tensor,  # [B, 4, 4]
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        fovy: Tensor | None = None,  # [B], radians
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """One step's losses and figures.

        Returns:
            loss_vsd, for the scene alone; loss_lora, for the adapters and the camera's embedding alone; loss_vsd_img
            with use_img_loss; eval with guidance_eval; and the figures that `distill` names.
        """
        cameras = Cameras(elevation, azimuth, camera_distances, c2w, fovy)
        renders = renders_for(self.teacher, rgb, rgb_as_latents)
        conditions = self.conditions(prompt_utils, cameras)
        render_conditions = self.render_conditions(prompt_utils, cameras, mvp_mtx)
        method = partial(
            vsd_gradient,
            render_teacher=self.lora,
            render_conditions=render_conditions,
            render_guidance_scale=self.cfg.guidance_scale_lora,
        )
        schedule, weighting = self.schedule, self.cfg.weighting_strategy
        query = drawn_query(schedule, self.teacher, renders.latents, conditions, schedule.guidance_scale, weighting)
        distilled = distill("vsd", method, query, renders, schedule.grad_clip, self.cfg.use_img_loss)
        loss_lora = self.training_loss(renders.latents.detach(), render_conditions.positive)
        output = {**distilled.output, **schedule.range(), "loss_lora": loss_lora}
        if guidance_eval:
            output["eval"] = step_pictures(distilled, cameras, self.cfg.max_items_eval, self.cfg.n_view)
        return output

    def conditions(self, prompt_utils: Any, cameras: Cameras, n_view: int | None = None) -> Conditions:
        """What the teacher is asked about B cameras, in sets of `n_view`; null: of the config's."""
        return conditions_of(self.cfg, self.teacher, prompt_utils, cameras, n_view)

    def asked_of_renders(self, prompt_utils: Any, cameras: Cameras) -> Condition:
        """What the teacher of the renders is asked beside B cameras: the prompt, without a view."""
        views = (cameras.elevation, cameras.azimuth, cameras.distance)
        return TextCondition(prompt_utils.get_text_embeddings(*views, view_dependent_prompting=False).chunk(2)[0])

    def render_conditions(
        self,
        prompt_utils: Any,
        cameras: Cameras,  # of B samples, with their c2w
        mvp_mtx: Tensor,  # [B, 4, 4]
        n_view: int | None = None,  # views of a set; None: the config's
    ) -> Conditions[CameraCondition]:
        """What the teacher of the renders is asked, with the camera and without it.

        A multi-view network is told cameras as it was trained.
        """
        asked = self.asked_of_renders(prompt_utils, cameras)
        matrices = cameras.c2w if self.cfg.camera_condition_type == "extrinsics" else mvp_mtx
        if isinstance(asked, TextCondition) and self.lora.multi_view:
            sets = n_view or self.cfg.n_view
            positive = CameraCondition(asked, self._trained_numbers(asked, cameras, sets), sets)
        elif matrices is not None:
            positive = CameraCondition(asked, matrices.reshape(-1, CAMERA_NUMBERS).float())
        else:
            raise UserError("camera_condition_type: extrinsics needs c2w in the batch")
        return Conditions(positive, positive.without_cameras())

    def _trained_numbers(self, text: TextCondition, cameras: Cameras, n_view: int) -> Tensor:  # -> [B, 16]
        """The cameras' numbers as a multi-view network was trained with them."""
        from ..teachers.multi_view.teacher import MultiViewCondition

        asked = self.teacher.condition(text.embeddings, cameras, n_view)
        if not isinstance(asked, MultiViewCondition) or asked.cameras is None:
            raise TypeError(f"expected a multi-view teacher, that is told cameras, got {type(self.teacher).__name__}")
        return asked.cameras

    def training_loss(self, latents: Tensor, condition: CameraCondition) -> Tensor:
        """The denoising loss of the renders' teacher at random noise levels of all of [0, T). Returns a scalar.

        The views of a set share their noise level, and all or none of them know their cameras.
        """
        repeats, views = self.cfg.lora_n_timestamp_samples, condition.num_views
        latents = latents.repeat(repeats, 1, 1, 1)
        condition = condition.cat([condition] * (repeats - 1))
        sets, device = len(condition) // views, latents.device
        if self.cfg.lora_cfg_training:
            kept = (torch.rand(sets, 1, device=device) >= CAMERA_DROP).to(condition.cameras)
            condition = condition.with_cameras(condition.cameras * kept.repeat_interleave(views, dim=0))
        timesteps = torch.randint(0, self.lora.num_timesteps, (sets,), device=device).repeat_interleave(views)
        return self.lora.denoising_loss(latents, torch.randn_like(latents), timesteps, condition)

    def sample(
        self,
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        seed: int = 0,
        num_steps: int = 25,
        c2w: Tensor | None = None,  # [B, 4, 4]
        fovy: Tensor | None = None,  # [B], radians
        **kwargs: Any,  # the rest of the batch
    ) -> Tensor:
        """Pictures of the teacher, from noise. Returns [B, H, W, 3] in [0, 1]. Global generators stay as they are."""
        cameras = Cameras(elevation, azimuth, camera_distances, c2w, fovy)
        conditions = self.conditions(prompt_utils, cameras, self._sets_of(len(elevation)))
        return _sampled(self.teacher, conditions, self.schedule.guidance_scale, seed, num_steps)

    def sample_lora(
        self,
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        mvp_mtx: Tensor,  # [B, 4, 4]
        c2w: Tensor,  # [B, 4, 4]
        seed: int = 0,
        num_steps: int = 25,
        fovy: Tensor | None = None,  # [B], radians
        **kwargs: Any,  # the rest of the batch
    ) -> Tensor:
        """Pictures by the teacher of the renders: what it has learned of the scene from these cameras."""
        cameras = Cameras(elevation, azimuth, camera_distances, c2w, fovy)
        conditions = self.render_conditions(prompt_utils, cameras, mvp_mtx, self._sets_of(len(elevation)))
        return _sampled(self.lora, conditions, self.cfg.guidance_scale_lora, seed, num_steps)

    def _sets_of(self, count: int) -> int:
        """Views of a set among `count` samples: as trained, or single views, as a validation batch has them."""
        return self.cfg.n_view if count % self.cfg.n_view == 0 else 1


_NO_OFFLOAD = (
    "enable_sequential_cpu_offload: the network with adapters has to stay on the device; expected false, got true"
)


def denoiser_of(teacher: Teacher) -> Denoiser | None:
    """The network of a teacher, with its schedule; None where it has none, as one in closed form."""
    if isinstance(teacher, (LatentDiffusionTeacher, PixelDiffusionTeacher)):
        return Denoiser(teacher.unet, teacher.alphas_cumprod, teacher.prediction_type)
    from ..teachers.multi_view.teacher import MultiViewTeacher

    if isinstance(teacher, MultiViewTeacher):
        return Denoiser(teacher.network, teacher.alphas_cumprod, teacher.prediction_type, multi_view=True)
    return None


def text_width(denoiser: Denoiser) -> int:
    """How many numbers a token's embedding has that the network takes."""
    config = denoiser.unet.unet.config if denoiser.multi_view else denoiser.unet.config
    return config.encoder_hid_dim or config.cross_attention_dim


def _check_text_width(denoiser: Denoiser, teacher: Teacher) -> None:
    """Both networks are asked with one text model's embeddings."""
    theirs = denoiser_of(teacher)
    if theirs is not None and text_width(denoiser) != text_width(theirs):
        raise UserError(
            f"pretrained_model_name_or_path_lora: its unet takes text embeddings of {text_width(denoiser)} numbers, "
            f"the teacher's takes {text_width(theirs)}"
        )


def _sampled(teacher: Teacher, conditions: Conditions, scale: float, seed: int, num_steps: int) -> Tensor:
    count, size = len(conditions.positive), teacher.latent_size
    generator = torch.Generator(teacher.device).manual_seed(seed)
    shape = (count, teacher.latent_channels, size, size)
    noise = torch.randn(shape, generator=generator, device=teacher.device)
    start = torch.full((count,), teacher.num_timesteps - 1, device=teacher.device)
    guided = partial(guided_noise, teacher, conditions, scale)
    with torch.no_grad():
        latents = ddim_sample(noise, start, guided, teacher.alphas_cumprod, num_steps)
        return as_pictures(teacher.decode(latents))


register_names(
    VariationalScoreDistillationGuidance,
    {
        "turboprop-vsd-guidance": {},
        "stable-diffusion-vsd-guidance": {  # threestudio's name and defaults
            "pretrained_model_name_or_path_lora": "stabilityai/stable-diffusion-2-1",
            "guidance_perp_neg": -1.0,
        },
    },
)
