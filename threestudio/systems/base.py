"""Base classes of systems: of any, which stands in base_system.py, and of those that teach a scene."""

from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.mesh_start import mesh_start_config, read_start_mesh
from threestudio.systems.base_system import BaseSystem
from threestudio.systems.hand_over import converted_geometry
from threestudio.systems.loss_weights import GuidanceLosses, LossWeights, checked_loss, returned_losses
from threestudio.utils.config import parse_structured
from threestudio.utils.devices import get_device, running_on
from threestudio.utils.errors import UserError, key_of_errors
from threestudio.utils.keyed_random import preserved_random_state, seed_step
from threestudio.utils.saving import describe_files

__all__ = ["BaseLift3DSystem", "BaseSystem"]


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
        mesh_start_config(self.cfg.init_from_mesh_options)
        for part in self.parts:
            name = self.cfg[f"{part}_type"]
            with key_of_errors(f"{part}_type"):
                config_class = getattr(threestudio.find(name), "Config", None) if name else None
            if is_dataclass(config_class):
                parse_structured(config_class, self.cfg[part])

    def _start_from_mesh(self, path: str) -> None:
        if self.cfg.geometry_convert_from:
            raise UserError("system.init_from_mesh and system.geometry_convert_from both name a start: give one")
        options = mesh_start_config(self.cfg.init_from_mesh_options)
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
