"""`turboprop-evaluated`: after testing, a system exports its mesh and is measured against what is known.

system_type: "dreamfusion-system:turboprop-evaluated"
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.data.cameras import batch_of_poses, unit_focal_directions
from threestudio.data.image import ReferenceViewsDataModule
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import errors_begin_with
from threestudio.utils.value_checks import check_at_least

from ..system_mixin import SystemMixin
from ..teachers.prompts.library import load_prompt_library
from .cameras import BACKGROUND, evaluation_cameras
from .clip_metrics import load_judge
from .held_out import HeldOutScores, held_out_scores
from .report import evaluate_views, world_spec
from .surface_metrics import mesh_chamfer


@dataclass
class EvaluationConfig:
    judge: str = ""  # CLIP model (folder or hub id) that scores the views; empty, or without a caption: no scores
    caption: str = ""  # what the object should be; default: the prompt
    gallery: str = ""  # prompt library (JSON) whose training prompts are the texts of R@1; default: the caption alone
    views: int = 8  # around the object
    size: int = 64  # their side, pixels
    export: bool = True  # write the mesh, as --export does


@threestudio.register("turboprop-evaluated")
class EvaluatedSystem(SystemMixin):
    """Writes it{step}-evaluation/: held-out views if the data has pictures, the judge's figures, ground truth's."""

    config_group = "evaluation"

    def configure(self) -> None:
        self.evaluation: EvaluationConfig = parse_structured(EvaluationConfig, self.cfg.evaluation)
        for key in ("views", "size"):
            check_at_least(f"system.evaluation.{key}", self.evaluation[key], 1)
        self._held_out: list[HeldOutScores] = []
        self._evaluating = False
        super().configure()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._is_judged:  # what is wrong with it is known before training
            with errors_begin_with("system.evaluation.judge"):
                load_judge(self.evaluation.judge)
            with errors_begin_with("system.evaluation.gallery"):
                self._gallery()

    @property
    def _is_judged(self) -> bool:
        """Whether there is a judge, and a text that says what the object is: of a photo there may be none."""
        return bool(self.evaluation.judge and self._caption)

    @property
    def _caption(self) -> str:
        return self.evaluation.caption or str(self.cfg.prompt_processor.get("prompt") or "")

    def _gallery(self) -> list[str]:
        texts = load_prompt_library(self.evaluation.gallery).split("train") if self.evaluation.gallery else []
        return list(dict.fromkeys([*texts, self._caption]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        if "target_rgb" in batch:
            out = self(batch)
            self._held_out.append(
                held_out_scores(out["comp_rgb"], out["opacity"], batch["target_rgb"], batch["target_coverage"])
            )

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        # Exporting comes back here where an exporter makes a video, in --export too.
        if self.trainer.testing and not self._evaluating:
            self._evaluating = True
            self._evaluate()
            self._evaluating = False

    def _evaluate(self) -> None:
        folder = Path(self.get_save_path(f"it{self.true_global_step}-evaluation/evaluation.json")).parent
        mesh = self._mesh()
        if self.evaluation.export and mesh is not None:
            self.on_predict_start()
            self.on_predict_epoch_end()
        if self._held_out:
            self._report_held_out(folder, mesh)
        if isinstance(self.trainer.datamodule, ReferenceViewsDataModule):
            self._report_input_views(folder, self.trainer.datamodule.reference_views())
        if self._is_judged:
            self._report_views(folder, mesh)
        self._held_out = []

    @torch.no_grad()
    def _mesh(self) -> Any:
        """The surface as a trimesh.Trimesh; None, with a warning, where there is none."""
        import trimesh

        try:
            mesh = self.geometry.isosurface()
        except ValueError as error:
            threestudio.warn(f"no mesh: {error}")
            return None
        return trimesh.Trimesh(mesh.v_pos.cpu().numpy(), mesh.t_pos_idx.cpu().numpy(), process=False)

    def _report_held_out(self, folder: Path, mesh: Any) -> None:
        scores = HeldOutScores.mean(self._held_out)
        spec = world_spec(self._caption)
        chamfer = mesh_chamfer(mesh, spec.shape.signed_distance) if spec is not None else None
        line = scores.save(folder, chamfer)
        threestudio.info(line)
        self.log("test/psnr", scores.psnr)
        if chamfer is not None and math.isfinite(chamfer.share):
            self.log("test/chamfer_share", chamfer.share)

    @torch.no_grad()
    def _report_input_views(self, folder: Path, views: ReferenceViews) -> None:
        """How well renders repeat the pictures that the scene was made from, over the judge's background."""
        pictures = views.at(self.evaluation.size, self.evaluation.size)
        background = torch.tensor(BACKGROUND)
        rgb, opacity = self._render(views.c2w, views.fovy, background)
        target = pictures.rgb * pictures.alpha + (1 - pictures.alpha) * background
        scores = held_out_scores(rgb, opacity, target, pictures.alpha)
        threestudio.info(scores.save(folder, None, "input"))
        self.log("test/input_psnr", scores.psnr)
        self.log("test/input_iou", scores.iou)

    @torch.no_grad()
    def _report_views(self, folder: Path, mesh: Any) -> None:
        cameras = evaluation_cameras(self.evaluation.views)
        rgb, opacity = self._render(cameras.c2w, cameras.fovy, cameras.background)
        report = evaluate_views(
            [self._caption],
            rgb[None],
            opacity[None, ..., 0],
            cameras.elevation,
            cameras.azimuth,
            cameras.distance,
            cameras.fovy,
            cameras.background,
            meshes=[mesh],
            judge=self.evaluation.judge,
            gallery=self._gallery(),
        )
        report.save(folder)
        threestudio.info(report.summary_line())
        for name, value in report.mean.items():
            if value is not None:
                self.log(f"test/{name}", float(value))
        row = [{"type": "rgb", "img": view, "kwargs": {"data_format": "HWC"}} for view in rgb]
        self.save_image_grid(f"it{self.true_global_step}-evaluation/views.png", row)

    def _render(
        self,
        c2w: Tensor,  # [V, 4, 4]
        fovy: Tensor,  # [V], radians
        background: Tensor,  # [3] in [0, 1]
    ) -> tuple[Tensor, Tensor]:
        """Pictures [V, S, S, 3] and opacities [V, S, S, 1] in [0, 1], on the CPU, one camera at a time."""
        size, device = self.evaluation.size, self.geometry.bbox.device
        directions = unit_focal_directions(size, size)
        rgb, opacity = [], []
        for view in range(len(c2w)):
            one = slice(view, view + 1)
            batch = batch_of_poses(c2w[one], fovy[one], directions) | {"bg_color": background[None]}
            out = self({key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
            rgb.append(out["comp_rgb"].cpu())
            opacity.append(out["opacity"].cpu())
        return torch.cat(rgb), torch.cat(opacity)
