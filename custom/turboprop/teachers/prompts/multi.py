"""`turboprop-multi-prompt-processor`: the embeddings of a whole library of prompts, and of their views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import UserError

from ..text import encode_prompts
from ..token_limit import TokenLimit
from .library import PromptLibrary, load_prompt_library, nearest, prompt_list
from .views import Decay, PerpNegDecays, ViewThresholds, perp_neg_blend, shortened_for_views, view_index, view_prompts

PLAIN = 4  # where the plain prompt stands behind its four views


def _decay(values: Sequence[float]) -> Decay:
    """The three numbers of a config's list, which is omegaconf's own."""
    a, b, c = values
    return a, b, c


@dataclass
class MultiPromptOutput:
    """The embeddings of P prompts of one step, and the rule by which B cameras get theirs.

    B is P times the number V of views of each prompt: cameras b * V to (b + 1) * V - 1 look at prompt b.
    """

    prompts: list[str]  # P
    local_embeddings: Tensor  # [P, N, D], of the plain prompts
    global_embeddings: Tensor  # [P, D], of the plain prompts
    view_embeddings: Tensor  # [P, 4, N, D], of the views
    uncond_embeddings: Tensor  # [N, D], of the negative prompt
    thresholds: ViewThresholds
    decays: PerpNegDecays
    use_perp_neg: bool

    @property
    def prompt(self) -> str:
        """The prompts as one text, for labels."""
        return " | ".join(self.prompts)

    def get_text_embeddings(
        self,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Conditional, then unconditional embeddings. Returns [2B, N, D]. Raises ValueError if B is no multiple of P."""
        rows = self._prompt_rows(elevation)
        if view_dependent_prompting:
            conditional = self.view_embeddings[rows, view_index(elevation, azimuth, self.thresholds)]
        else:
            conditional = self.local_embeddings[rows]
        return torch.cat([conditional, self.uncond_embeddings.expand_as(conditional)])

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Perp-neg's embeddings.

        Returns:
            [4B, N, D]: B positive, B unconditional, and 2B negative ones ordered (b0 k0), (b0 k1), (b1 k0), ...;
            [B, 2]: the weights of the negatives.

        Raises:
            ValueError: B is no multiple of P, or `view_dependent_prompting` is false.
        """
        if not view_dependent_prompting:
            raise UserError("perp-neg needs view_dependent_prompting: expected true, got false")
        rows = self._prompt_rows(elevation)
        blend = perp_neg_blend(elevation, azimuth, self.thresholds, self.decays)
        between = self.view_embeddings[rows[:, None], blend.views]  # [B, 2, N, D]
        positive = (blend.shares[..., None, None].to(between) * between).sum(dim=1)
        negative = self.view_embeddings[rows[:, None], blend.negative_views].flatten(0, 1)
        unconditional = self.uncond_embeddings.expand_as(positive)
        return torch.cat([positive, unconditional, negative]), blend.negative_weights

    def _prompt_rows(self, elevation: Tensor) -> Tensor:
        """The prompt of each camera. Returns [B]."""
        views, rest = divmod(elevation.shape[0], len(self.prompts))
        if rest or not views:
            raise ValueError(
                f"expected as many cameras as prompts, or a multiple of it; got {elevation.shape[0]} cameras "
                f"for {len(self.prompts)} prompts"
            )
        return torch.arange(len(self.prompts), device=elevation.device).repeat_interleave(views)


@threestudio.register("turboprop-multi-prompt-processor")
class MultiPromptProcessor(BaseObject):
    """Encodes a library once, in batches; a call looks its prompts up."""

    @dataclass
    class Config(BaseObject.Config):
        # a local folder or a hub id
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        prompt_library: str = ""  # a JSON file, or the name of one in load/
        prompts: Optional[list[str]] = None  # a list of prompts, in place of a library
        eval_prompt: Optional[str] = None  # one more prompt to encode, that need not be in the library
        target_prompt: Optional[str] = None  # and another, to interpolate to
        negative_prompt: str = ""
        front_threshold: float = 45.0  # degrees of azimuth on both sides of the front
        back_threshold: float = 45.0  # degrees of azimuth on both sides of the back
        overhead_threshold: float = 60.0  # degrees of elevation above which a camera looks from overhead
        view_dependent_prompt_front: bool = False  # "front view of X" in place of "X, front view"
        use_perp_neg: bool = False
        # a, b, c of a exp(-b r) + c: how strongly a view is pushed away between two views
        perp_neg_f_sb: tuple[float, float, float] = (1, 0.5, -0.606)  # side, between side and back
        perp_neg_f_fsb: tuple[float, float, float] = (1, 0.5, +0.967)  # front, between side and back
        perp_neg_f_fs: tuple[float, float, float] = (4, 0.5, -2.426)  # front, between front and side
        perp_neg_f_sf: tuple[float, float, float] = (4, 0.5, -2.426)  # side, between front and side
        use_cache: bool = True  # keep embeddings on disk
        half_precision_embeddings: bool = False  # store float16: half the memory of a large library
        spawn: bool = True  # accepted; prompts are always encoded in this process

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        self.library = self._read_library()
        extra = [text for text in (cfg.eval_prompt, cfg.target_prompt) if text is not None]
        if extra:
            prompt_list(extra, "eval_prompt, target_prompt")
        names = list(dict.fromkeys([*self.library.distinct(), *extra]))
        self._rows = {name: row for row, name in enumerate(names)}
        self._thresholds = ViewThresholds(cfg.front_threshold, cfg.back_threshold, cfg.overhead_threshold)
        self._decays = PerpNegDecays(
            side_back=_decay(cfg.perp_neg_f_sb),
            front_side_back=_decay(cfg.perp_neg_f_fsb),
            front_side=_decay(cfg.perp_neg_f_fs),
            side_front=_decay(cfg.perp_neg_f_sf),
        )
        self._limit = TokenLimit(cfg.pretrained_model_name_or_path)
        texts = [text for name in names for text in (*self._view_prompts(name), name)]
        embeddings = encode_prompts(
            cfg.pretrained_model_name_or_path,
            [cfg.negative_prompt, *texts],
            device=self.device,
            use_cache=cfg.use_cache,
            half_precision=cfg.half_precision_embeddings,
        )
        self._uncond = embeddings.local_embeddings[0]  # [N, D]
        self._local = embeddings.local_embeddings[1:].unflatten(
            0, (len(names), PLAIN + 1)
        )  # [P, 5, N, D], on the CPU
        self._global = embeddings.global_embeddings[1:].unflatten(0, (len(names), PLAIN + 1))[
            :, PLAIN
        ]  # [P, D]

    def _view_prompts(self, name: str) -> list[str]:
        """The four view prompts of a prompt, whose words for the view are not cut off."""
        first = self.cfg.view_dependent_prompt_front
        forms = [lambda text, view=view: view_prompts(text, first)[view] for view in range(PLAIN)]
        return view_prompts(shortened_for_views(name, forms, self._limit), first)

    def prompts_of(self, split: str) -> list[str]:
        """The library's prompts of "train", "val" or "test". Raises ValueError for another name."""
        return self.library.split(split)

    def __call__(self, prompts: str | Sequence[str]) -> MultiPromptOutput:
        """The embeddings of P prompts, float32, on this object's device. Raises ValueError for an unknown prompt."""
        names = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = torch.tensor([self._row(name) for name in names])
        local = self._local[rows].to(self.device, torch.float32)
        return MultiPromptOutput(
            prompts=names,
            local_embeddings=local[:, PLAIN],
            global_embeddings=self._global[rows].to(self.device, torch.float32),
            view_embeddings=local[:, :PLAIN],
            uncond_embeddings=self._uncond.to(self.device, torch.float32),
            thresholds=self._thresholds,
            decays=self._decays,
            use_perp_neg=self.cfg.use_perp_neg,
        )

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise UserError(
                f"prompt {name!r} is not among the {len(self._rows)} encoded ones{nearest(name, list(self._rows))}"
            )
        return self._rows[name]

    def _read_library(self) -> PromptLibrary:
        cfg = self.cfg
        if cfg.prompt_library and cfg.prompts is not None:
            raise UserError("prompt processor: expected prompt_library or prompts, got both")
        if cfg.prompt_library:
            return load_prompt_library(cfg.prompt_library)
        if cfg.prompts is None:
            raise UserError(
                "prompt processor: expected prompt_library (a JSON file or name) or prompts, got neither"
            )
        return prompt_list(cfg.prompts)


@threestudio.register("stable-diffusion-multi-prompt-processor")
class StableDiffusionMultiPromptProcessor(MultiPromptProcessor):
    """The same, under the name in ScaleDreamer's configs."""
