"""What systems share that a guidance teaches: a scene is rendered, and the guidance says what is wrong with it."""

from typing import Any, ClassVar

from torch import Tensor, nn

import threestudio
from threestudio.systems.base import BaseLift3DSystem
from threestudio.systems.views import DEFAULT_VIEWS, view_cells
from threestudio.utils.errors import UserError

FRAMES = r"(\d+)\.png"  # names of a video's pictures


class ScoreDistillationSystem(BaseLift3DSystem):
    """A system whose training step is `self.weighted_sum({**self.guide(images, batch), **its own losses})`."""

    view_names: ClassVar[tuple[str, ...]] = DEFAULT_VIEWS  # what validation and test pictures show

    def configure(self) -> None:
        super().configure()
        if self._guidance_trains():
            self.build_prompts_and_guidance()

    def _guidance_trains(self) -> bool:
        """Whether a guidance has weights of its own, which the optimizer and checkpoints need from the start."""
        names = [self.cfg[f"{part}_type"] for part in self.guidance_parts.values()]
        return any(issubclass(threestudio.find(name), nn.Module) for name in names if name)

    def forward(self, batch: dict) -> dict:
        return self.renderer(**batch)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.open_teacher()

    def open_teacher(self) -> None:
        """Builds what only training needs; called before it, and by a dry run."""
        if not self._guidance_trains():
            self.build_prompts_and_guidance()

    # ------------------------------------------------------------------------------ train

    def weight(self, name: str) -> float:
        """The weight now of the loss `loss_{name}`; 0 where none is set."""
        return self.C(self.cfg.loss.get(f"lambda_{name}", 0.0))

    def guide(
        self,
        images: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, H, W, C] with `as_latents`
        batch: dict,
        as_latents: bool = False,
        guidance_eval: bool = False,  # also save pictures of what the guidance sees
    ) -> dict[str, Tensor]:
        """The guidance's losses, by their names `loss_X`; its other scalars are logged."""
        options = {"guidance_eval": True} if guidance_eval else {}
        guidance_out = self.ask_guidance(images, batch, rgb_as_latents=as_latents, **options)
        if guidance_eval and "eval" in guidance_out:
            self.guidance_evaluation_save(images.detach(), guidance_out["eval"])
        losses = {key: value for key, value in guidance_out.items() if key.startswith("loss_")}
        for key, value in guidance_out.items():
            if key not in losses:
                self._log_scalar(f"train/{key}", value)
        if self.guidance_losses is None:
            self._check_loss(tuple(key.removeprefix("loss_") for key in losses))
        return losses

    def ask_guidance(self, images: Tensor, batch: dict, **options: bool) -> dict:
        """What the guidance answers to renders [B, H, W, C]."""
        return self.guidance(images, self.prompt_processor(), **batch, **options)

    def weighted_sum(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `loss` of a step: the sum of `loss_X` times `lambda_X`; logs each of them, and each weight.

        A loss of weight 0 is left out: a NaN in it spreads no further.
        """
        terms = []
        for key, value in losses.items():
            self._log_scalar(f"train/{key}", value)
            weight = self.C(self._lambda(key))
            if weight != 0:
                terms.append(value * weight)
        for key, value in self.cfg.loss.items():
            self._log_scalar(f"train_params/{key}", self.C(value))
        if not terms:
            raise UserError(f"system.loss: the weights of all losses ({', '.join(losses)}) are 0")
        return {"loss": sum(terms[1:], terms[0])}

    def _lambda(self, loss_name: str) -> Any:
        key = loss_name.replace("loss_", "lambda_", 1)
        if key not in self.cfg.loss:
            raise UserError(f"system.loss.{key}: a step has a {loss_name} and needs its weight")
        return self.cfg.loss[key]

    def _log_scalar(self, name: str, value: Any) -> None:
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            self.log(name, value.detach() if isinstance(value, Tensor) else float(value))

    # ------------------------------------------------------------------------- evaluation

    def evaluation_views(self, batch: dict) -> list[dict]:
        """The cells of the picture of an evaluation camera."""
        return view_cells(self(batch), self.view_names)

    def _save_views(self, batch: dict, folder: str, name: str) -> None:
        filename = f"it{self.true_global_step}{folder}{int(batch['index'][0])}.png"
        cells = self.evaluation_views(batch)
        self.save_image_grid(filename, cells, name=name, step=self.true_global_step)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._save_views(batch, "-", "validation_step")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._save_views(batch, "-test/", "test_step")

    def _forget_orbit(self, stage: str) -> None:
        """Removes the pictures that an earlier run of this stage has left: they would be in this one's video."""
        if self._save_dir is not None and self.trainer.is_global_zero:
            self.remove_frames(f"it{self.true_global_step}-{stage}", FRAMES)
        self.trainer.strategy.barrier()

    def on_test_epoch_start(self) -> None:
        self._forget_orbit("test")

    def on_predict_epoch_start(self) -> None:
        if self.exporter.cfg.save_video:
            self._forget_orbit("test")

    def _save_orbit(self, stage: str) -> None:
        """A video of the pictures that a stage has written, those of all processes."""
        self.trainer.strategy.barrier()
        if not self.trainer.is_global_zero:
            return
        step = self.true_global_step
        frames = f"it{step}-{stage}"
        self.save_img_sequence(frames, frames, FRAMES, save_format="mp4", fps=30, name=stage, step=step)

    def on_test_epoch_end(self) -> None:
        self._save_orbit("test")
