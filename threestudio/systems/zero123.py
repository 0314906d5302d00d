"""A scene from one picture, taught by a model of other views of it (zero-1-to-3, Liu et al. 2023)."""

from torch import Tensor

import threestudio
from threestudio.systems.image_reference import ImageReferenceSystem, needed, random_cameras_of
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, volume_losses
from threestudio.systems.reference_losses import normal_smoothness
from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

TURNS = ("accumulate", "alternate")


@threestudio.register("zero123-system")
class Zero123(ImageReferenceSystem):
    """Its guidance is asked without a prompt: it knows the picture.

    freq.ref_or_zero123: accumulate (default) sums both parts at each step; alternate looks at the picture at each
    freq.n_ref-th step and in the first freq.ref_only_steps, and at random cameras at all others.
    """

    guided_part = "zero123"
    freq_keys = (*ImageReferenceSystem.freq_keys, "ref_or_zero123")

    def configure(self) -> None:
        freq = self.cfg.freq
        self.turns = freq.get("ref_or_zero123", "accumulate")
        check_choice("system.freq.ref_or_zero123", self.turns, TURNS)
        if self.turns == "alternate" and not freq.get("n_ref", 0) >= 1:
            raise UserError("system.freq.n_ref: alternate needs a number of at least 1")
        super().configure()

    def build_prompts(self) -> None:
        """Nothing: the guidance knows the picture."""

    def ask_guidance(self, images: Tensor, batch: dict, **options: bool) -> dict:
        return self.guidance(images, **batch, **options)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        if self.turns == "accumulate":
            return self.weighted_sum({**self.guided_losses(batch), **self.reference_losses(batch)})
        freq, step = self.cfg.freq, self.true_global_step
        if step < freq.get("ref_only_steps", 0) or step % freq.n_ref == 0:
            return self.weighted_sum(self.reference_losses(batch))
        return self.weighted_sum(self.guided_losses(batch))


@threestudio.register("zero123-simple-system")
class Zero123Simple(ScoreDistillationSystem):
    """Its guidance alone, at random cameras: the picture is seen by the guidance, not by a loss."""

    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS.with_(optional=("lambda_normal_smoothness_2d",))

    def build_prompts(self) -> None:
        """Nothing: the guidance knows the picture."""

    def ask_guidance(self, images: Tensor, batch: dict, **options: bool) -> dict:
        return self.guidance(images, **batch, **options)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        cameras = random_cameras_of(batch)
        out = self(cameras)
        losses = {**self.guide(out["comp_rgb"], cameras), **volume_losses(out, self.weight)}
        if self.weight("normal_smoothness_2d") > 0:
            normal = needed(out, "comp_normal", "normal_smoothness_2d")
            losses["loss_normal_smoothness_2d"] = normal_smoothness(normal)
        return self.weighted_sum(losses)
