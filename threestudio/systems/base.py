"""Base classes of systems: the Lightning modules that own a training step."""

from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.mesh_start import MeshStartConfig, read_start_mesh
from threestudio.systems.hand_over import converted_geometry
from threestudio.systems.kept_settings import TellsKeptSettings, settings_of
from threestudio.systems.keyed_steps import KeyedLoader, KeyedSteps, SkipNonFiniteSteps
from threestudio.systems.loss_weights import GuidanceLosses, LossWeights, checked_loss, returned_losses
from threestudio.systems.utils import (
    check_optimizer,
    check_scheduler,
    parse_optimizer,
    parse_scheduler,
    with_guidance_groups,
)
from threestudio.utils.base import (
    Updateable,
    already_updated,
    update_end_if_possible,
    update_if_possible,
)
from threestudio.utils.config import parse_structured
from threestudio.utils.devices import get_device, running_on
from threestudio.utils.errors import UserError, errors_begin_with, key_of_errors
from threestudio.utils.keyed_random import preserved_random_state, seed_step
from threestudio.utils.misc import C, cleanup, load_module_weights
from threestudio.utils.saving import SaverMixin, describe_files
from threestudio.utils.value_checks import check_schedule


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)  # wandb: {enable, project, name}
        # lambda_X: weight of loss X, a number or schedule; lambda_distillation: that of the guidance's method,
        # whichever it is, unless it has one under its own name
        loss: dict = field(default_factory=dict)
        optimizer: dict = field(default_factory=dict)  # name, args, params
        scheduler: dict | None = None  # name, args, interval
        weights: str | None = None  # checkpoint to start from (weights alone); default none
        weights_ignore_modules: list[str] | None = None  # modules not to take from it
        cleanup_after_validation_step: bool = False  # free cached memory after each
        cleanup_after_test_step: bool = False  # free cached memory after each

    cfg: Config
    # Logged figures that the line of progress shows beside the losses. (Lightning's own way, prog_bar=True, waits for a
    # GPU in every step, whether the line is printed or not.)
    shown_figures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self._check_values()
        self._save_dir: str | None = None
        self._resumed = resumed
        self.given_settings: list[dict[str, Any]] = []  # of the optimizer, as the config has them
        self._evaluated_at: tuple[int, int] | None = None  # (epoch, step) of the checkpoint
        self.run_seed = 0  # every random draw of a step is keyed by it; set by the launcher
        self.dataset: Any = None  # of the stage that runs
        self.create_loggers(self.cfg.loggers)
        self.configure()
        if self.cfg.weights:
            with errors_begin_with("system.weights"):
                self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)
        self.post_configure()

    # -------------------------------------------------------------------------- building

    def _check_values(self) -> None:
        """Raises UserError for what could be known to be wrong only when a step is made, before anything is built."""
        for key, value in self.cfg.loss.items():
            if str(key).startswith("lambda_"):
                check_schedule(value, f"system.loss.{key}")
        if self.cfg.optimizer:
            check_optimizer(self.cfg.optimizer)
        if self.cfg.scheduler is not None:
            check_scheduler(self.cfg.scheduler, self.cfg.optimizer)

    def configure(self) -> None:
        """Builds the system from `self.cfg`."""

    def post_configure(self) -> None:
        """Called after `configure` and after weights were loaded."""

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        state_dict, epoch, global_step = load_module_weights(weights, ignore_modules=ignore_modules, map_location="cpu")
        result = self.load_state_dict(state_dict, strict=False)
        for kind, keys in (("missing", result.missing_keys), ("unknown", result.unexpected_keys)):
            if keys:
                threestudio.warn(f"{weights}: {len(keys)} {kind} weights, first {keys[0]}")
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def configure_optimizers(self) -> dict:
        optimizer = parse_optimizer(with_guidance_groups(self.cfg.optimizer, self), self)
        found: dict[str, Any] = {"optimizer": optimizer}
        if self.cfg.scheduler is not None:
            found["lr_scheduler"] = parse_scheduler(self.cfg.scheduler, optimizer)
        self.given_settings = settings_of(optimizer)
        return found

    def configure_callbacks(self) -> list[pl.Callback]:
        return [KeyedSteps(), SkipNonFiniteSteps(), TellsKeptSettings()]

    # ----------------------------------------------------------------------------- state

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """For evaluation of a checkpoint: Lightning itself starts at step 0 there."""
        self._evaluated_at = (current_epoch, global_step)

    @property
    def resumed(self) -> bool:
        return self._resumed

    @property
    def true_global_step(self) -> int:
        return self.global_step if self._evaluated_at is None else self._evaluated_at[1]

    @property
    def true_current_epoch(self) -> int:
        return self.current_epoch if self._evaluated_at is None else self._evaluated_at[0]

    def C(self, value: Any) -> float:
        """The value of a schedule now."""
        return C(value, self.true_current_epoch, self.true_global_step)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, which sends each plain number to the run's device; here it stays on the CPU, unless processes
        are to exchange it."""
        stays = isinstance(value, (int, float)) and not kwargs.get("sync_dist")
        super().log(name, torch.tensor(float(value)) if stays else value, *args, **kwargs)

    # ------------------------------------------------------------------------- lifecycle

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Changes the batch in place; `stage` is "train", "validation", "test" or "predict"."""

    def _begin_step(self, loader: Any) -> None:
        epoch, step = self.true_current_epoch, self.true_global_step
        self.dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, KeyedLoader):  # which has updated it before drawing the batch
            update_if_possible(self.dataset, epoch, step)
        with already_updated(self.dataset):
            self.do_update_step(epoch, step)

    def _end_step(self) -> None:
        epoch, step = self.true_current_epoch, self.true_global_step
        update_end_if_possible(self.dataset, epoch, step)
        with already_updated(self.dataset):
            self.do_update_step_end(epoch, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self.preprocess_data(batch, "train")
        self._begin_step(self.trainer.train_dataloader)

    def end_train_step(self) -> None:
        """Called by KeyedSteps, so that a checkpoint holds what the end of the step changed."""
        self._end_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step has been ended already; see `end_train_step`."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "validation")
        self._begin_step(_one_loader(self.trainer.val_dataloaders, dataloader_idx))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()
        if self.cfg.cleanup_after_validation_step:
            cleanup()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "test")
        self._begin_step(_one_loader(self.trainer.test_dataloaders, dataloader_idx))

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()
        if self.cfg.cleanup_after_test_step:
            cleanup()

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "predict")
        self._begin_step(_one_loader(self.trainer.predict_dataloaders, dataloader_idx))

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()


def _one_loader(loaders: Any, index: int) -> Any:
    return loaders[index] if isinstance(loaders, (list, tuple)) else loaders


class BaseLift3DSystem(BaseSystem):
    """A scene of geometry, material and background, rendered, and taught by a guidance."""

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""  # registered name, as all *_type
        geometry: dict = field(default_factory=dict)
        geometry_convert_from: str | None = None  # checkpoint of another stage; default none
        geometry_convert_inherit_texture: bool = False  # take over its texture's network too
        geometry_convert_override: dict = field(default_factory=dict)  # of its geometry's config
        init_from_mesh: str | None = None  # mesh file whose shape and colours training starts from
        init_from_mesh_options: dict = field(default_factory=dict)  # size, up, front, steps
        material_type: str = ""
        material: dict = field(default_factory=dict)
        background_type: str = ""
        background: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)
        exporter_type: str = "mesh-exporter"
        exporter: dict = field(default_factory=dict)

    cfg: Config
    # Its guidances, by what stands before a loss's name in its weight: lambda_<prefix>X
    guidance_parts: ClassVar[dict[str, str]] = {"": "guidance"}
    # Those of its parts, beside the geometry, whose configs are checked before the first is built.
    parts: ClassVar[tuple[str, ...]] = (
        "material",
        "background",
        "renderer",
        "prompt_processor",
        "guidance",
        "exporter",
    )

    def own_weights(self) -> LossWeights | None:
        """Keys of `loss` that the system itself reads; None: keys are not checked."""
        return None

    def configure(self) -> None:
        self._check_parts()
        self._check_loss()
        converts = self.cfg.geometry_convert_from and not self.cfg.weights and not self.resumed
        if converts:
            self.geometry = converted_geometry(
                self.cfg.geometry_convert_from,
                self.cfg.geometry_type,
                self.cfg.geometry,
                self.cfg.geometry_convert_inherit_texture,
                self.cfg.geometry_convert_override,
            )
        else:
            self.geometry = self._build("geometry")
        self.material = self._build("material")
        if self.cfg.init_from_mesh and not self.cfg.weights and not self.resumed:
            self._start_from_mesh(self.cfg.init_from_mesh)
        self.background = self._build("background")
        self.renderer = self._build(
            "renderer",
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )

    def _check_parts(self) -> None:
        """Raises UserError for a wrong key or type in the config of any part, before the first is built.

        Guidance and exporter are built only when a run begins.
        """
        for part in self.parts:
            name = self.cfg[f"{part}_type"]
            with key_of_errors(f"{part}_type"):
                config_class = getattr(threestudio.find(name), "Config", None) if name else None
            if is_dataclass(config_class):
                parse_structured(config_class, self.cfg[part])

    def _start_from_mesh(self, path: str) -> None:
        if self.cfg.geometry_convert_from:
            raise UserError("system.init_from_mesh and system.geometry_convert_from both name a start: give one")
        options = parse_structured(MeshStartConfig, self.cfg.init_from_mesh_options)
        mesh = read_start_mesh(path, options, self.geometry.cfg.radius)
        self.geometry.init_from_mesh(mesh, self.material, options.steps)
        threestudio.info(f"The scene starts from {path}: {mesh.t_pos_idx.shape[0]:,} faces")

    def _check_loss(self, shown: tuple[str, ...] | None = None) -> None:
        """Raises UserError for a key of `loss` that nothing reads, or a weight that is missing, as far as is known.

        Gives the method's own loss its weight where the config has `lambda_distillation`. `shown` is what a step has
        shown of a guidance whose class does not say which losses it returns.
        """
        guidances = []
        for prefix, part in self.guidance_parts.items():
            name = self.cfg[f"{part}_type"]
            if name:
                says = returned_losses(threestudio.find(name), self.cfg[part])
                guidances.append(GuidanceLosses(name, shown if says is None and not prefix else says, prefix))
        self.cfg.loss = checked_loss(self.cfg.loss, self.own_weights(), guidances)
        self.guidance_losses = guidances[0].names if guidances else None  # None: only a step shows them

    def _build(self, part: str, **kwargs: Any) -> Any:
        """The registered thing that `{part}_type` names, from the config `{part}`."""
        name = self.cfg[f"{part}_type"]
        if not name:
            raise UserError(f"system.{part}_type: a registered name is required")
        with key_of_errors(f"{part}_type"):
            registered = threestudio.find(name)
        with running_on(get_device() if self._trainer is None else self.device), key_of_errors(part):
            return registered(self.cfg[part], **kwargs)

    def build_prompts(self) -> None:
        """Builds `prompt_processor`; opens the model's folders."""
        self.prompt_processor = self._build("prompt_processor")

    def build_guidance(self) -> None:
        """Builds `guidance`, on the system's device; opens the model's folders."""
        for part in self.guidance_parts.values():
            setattr(self, part, self._build(part))

    def build_prompts_and_guidance(self) -> None:
        self.build_prompts()
        self.build_guidance()

    def initialize_shape(self) -> None:
        """Gives the geometry the shape that its config starts from, the same for the same seed; not on resuming.

        A run of no steps, which a dry run is, leaves it out: it may take a minute.
        """
        if self.resumed or self.trainer.max_steps == 0:
            return
        with preserved_random_state():
            seed_step(self.run_seed, 0, 0, "shape_init")  # one start for all ranks
            self.geometry.initialize_shape()

    def on_fit_start(self) -> None:
        self.build_exporter()  # a wrong value of it is found now, and not hours later
        self.initialize_shape()
        if self._save_dir is not None:
            threestudio.info(f"Validation results will be saved to {self._save_dir}")
        else:
            threestudio.warn("no save folder is set: validation results are not saved")

    def on_train_start(self) -> None:
        """Raises UserError where a guidance has weights that no optimizer has: they would stay as they are."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        for part in self.guidance_parts.values():
            guidance = self._modules.get(part)
            own = [] if guidance is None else [p for p in guidance.parameters() if p.requires_grad]
            if any(id(parameter) not in trained for parameter in own):
                raise UserError(
                    f"system.optimizer.params: {self.cfg[f'{part}_type']} has weights to train, and no group has "
                    f"them; add {part}: {{lr: 0.0001}}"
                )

    def on_test_end(self) -> None:
        if self._save_dir is not None:
            threestudio.info(f"Test results saved to {self._save_dir}")

    # ----------------------------------------------------------------------------- export

    def on_predict_start(self) -> None:
        self.build_exporter()

    def build_exporter(self) -> None:
        """Builds `exporter`, which checks its values against the scene's parts."""
        parts = {"geometry": self.geometry, "material": self.material, "background": self.background}
        self.exporter = self._build("exporter", **parts)

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        if self.exporter.cfg.save_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        if self.exporter.cfg.save_video:
            self.on_test_epoch_end()
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}", None)
            if save is None:
                raise ValueError(f"the exporter asks for save_{output.save_type}, which is unknown")
            written = save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)
            for line in describe_files(written, output.summary):
                threestudio.info(line)

    def on_predict_end(self) -> None:
        if self._save_dir is not None:
            threestudio.info(f"Export results saved to {self._save_dir}")

    # -------------------------------------------------------------------------- evaluation

    def guidance_evaluation_save(
        self,
        comp_rgb: Tensor,  # [B, H, W, 3]
        guidance_eval_out: dict,  # bs, texts, and pictures imgs_* [n, h, w, 3]
    ) -> None:
        """Writes what the guidance made of the renders, one row a render."""
        size = comp_rgb.shape[1:3]
        count = int(guidance_eval_out["bs"])

        def resized(images: Tensor) -> Tensor:
            channels_first = images.detach().float().permute(0, 3, 1, 2)
            return F.interpolate(channels_first, size, mode="bilinear").permute(0, 2, 3, 1)

        columns = [comp_rgb[:count].detach()] + [
            resized(guidance_eval_out[key])
            for key in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final")
            if key in guidance_eval_out
        ]
        rows = [[{"type": "rgb", "img": column[i]} for column in columns] for i in range(count)]
        self.save_image_grid(
            f"it{self.true_global_step}-train.png",
            rows,
            name="train_step",
            step=self.true_global_step,
            texts=guidance_eval_out.get("texts"),
        )
