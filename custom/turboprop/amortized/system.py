"""`turboprop-multiprompt-generator-system`: trains one generator for a library of prompts by score distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import eikonal_loss, opaque_loss, sparsity_loss
from threestudio.systems.score_distillation import FRAMES, ScoreDistillationSystem
from threestudio.utils.devices import Reading
from threestudio.utils.errors import UserError, errors_begin_with
from threestudio.utils.value_checks import check_at_least

from .field import Field
from .losses import coverage
from .lost_objects import LostObjects, covered_shares
from .mesh_pictures import mesh_pictures
from .meshing import EmptyField, write_mesh
from .names import prompt_slug
from .pictures import contact_sheet, plot_curves


@threestudio.register("turboprop-multiprompt-generator-system")
class MultiPromptGeneratorSystem(ScoreDistillationSystem):
    """Each step: some prompts, the generator's fields for them, renders, and a guidance's gradient."""

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        exporter_type: str = "turboprop-prompt-mesh-exporter"
        min_coverage: float = 0.1  # share of a picture that an object should cover at least; see lambda_coverage
        max_coverage: float = 0.6  # and at most; 1: no limit
        # shares of its pictures outside which a prompt's object counts as lost: the run names it then
        lost_coverage: tuple[float, float] = (0.02, 0.7)
        judge: str | None = None  # CLIP model (folder or hub id) that scores the result at the end; null: no scores
        judge_views: int = 8  # views of each prompt that the judge sees
        judge_size: int = 64  # their side, pixels
        sheet_views: int = 4  # views of each prompt on a contact sheet
        # side of a view while training, about, pixels: the field is asked along every n-th ray of data.eval_height
        validation_size: int = 96
        turntable_fps: int = 12  # frames a second

    cfg: Config
    shown_figures = ("train/opacity", "train/lost_objects")

    def own_weights(self) -> LossWeights:
        return LossWeights(("lambda_sparsity", "lambda_opaque"), ("lambda_coverage", "lambda_eikonal"))

    def configure(self) -> None:
        if not 0 < self.cfg.min_coverage < 1:
            raise UserError(f"system.min_coverage: expected between 0 and 1, got {self.cfg.min_coverage:g}")
        if not self.cfg.min_coverage < self.cfg.max_coverage <= 1:
            raise UserError(
                f"system.max_coverage: expected more than min_coverage and at most 1, got {self.cfg.max_coverage:g}"
            )
        for key in ("judge_views", "judge_size", "sheet_views", "validation_size", "turntable_fps"):
            check_at_least(f"system.{key}", self.cfg[key], 1)
        self.lost_objects = LostObjects(*self.cfg.lost_coverage)
        self._covered: tuple[int, list[str], Reading] | None = None  # the last step, its prompts, what they covered
        self._shown: dict[str, Tensor] = {}  # views of each prompt for the contact sheet
        super().configure()

    def open_teacher(self) -> None:
        super().open_teacher()
        first = self.prompt_processor.prompts_of("train")[0]
        self.geometry.check_text(self._text_of([first]))
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        """Open what the end of the run needs, so that what is wrong with it is known before training."""
        if self.cfg.judge:
            from ..evaluation.clip_metrics import load_judge

            with errors_begin_with("system.judge"):
                load_judge(self.cfg.judge)

    def on_test_start(self) -> None:
        self.build_prompts()

    def on_validation_start(self) -> None:
        self.build_prompts()

    # ------------------------------------------------------------------------------ train

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.renderer(**batch, text_embed=self._text_of(batch["prompt"]))

    def _text_of(self, prompts: list[str]) -> Tensor:
        """What the generator reads of P plain prompts: [P, T], or [P, N, T] of their N tokens."""
        encoded = self.prompt_processor(prompts)
        return encoded.local_embeddings if self.geometry.local_text else encoded.global_embeddings

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch)
        losses["loss_sparsity"] = sparsity_loss(out["opacity"])
        if "lambda_coverage" in self.cfg.loss:
            losses["loss_coverage"] = coverage(out["opacity"], self.cfg.min_coverage, self.cfg.max_coverage)
        losses["loss_opaque"] = opaque_loss(out["opacity"])
        if "sdf_grad" in out:
            losses["loss_eikonal"] = eikonal_loss(out["sdf_grad"])
        self.log("train/opacity", out["opacity"].detach().mean())
        self._watch_objects(batch["prompt"], out["opacity"])
        return self.weighted_sum(losses)

    def _watch_objects(self, prompts: list[str], opacity: Tensor) -> None:
        """Says which objects were being lost a step ago: by now a GPU has long told their shares of the pictures."""
        if self._covered is not None:
            step, before, shares = self._covered
            for line in self.lost_objects.update(before, shares.values()):
                threestudio.warn(f"step {step}: {line}")
        self._covered = (self.true_global_step, prompts, Reading(covered_shares(len(prompts), opacity)))
        self.log("train/lost_objects", float(len(self.lost_objects.lost)))

    def ask_guidance(self, images: Tensor, batch: dict[str, Any], **options: bool) -> dict[str, Any]:
        return self.guidance(images, self.prompt_processor(batch["prompt"]), **batch, **options)

    # ------------------------------------------------------------------------- evaluation

    def cache_of(self, prompt: str, noise: Tensor) -> Field:
        """The field of one prompt; noise [1, Z]."""
        text = self._text_of([prompt])
        return self.geometry.generate_space_cache(noise.to(text), text)

    def _remember_views(self, prompt: str, rgb: Tensor) -> None:
        """Keep some of the orbit's pictures [V, H, W, 3] for the contact sheet."""
        step = max(1, len(rgb) // self.cfg.sheet_views)
        self._shown[prompt] = rgb[::step][: self.cfg.sheet_views].cpu()

    def _save_sheet(self, filename: str) -> None:
        if self._shown:
            self.save_image(filename, contact_sheet(list(self._shown), list(self._shown.values())))
        self._shown = {}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        (prompt,) = batch["prompt"]
        stride = max(1, batch["height"] // self.cfg.validation_size)
        rays = {key: batch[key][:, stride // 2 :: stride, stride // 2 :: stride] for key in ("rays_o", "rays_d")}
        self._remember_views(prompt, self({**batch, **rays})["comp_rgb"])

    def on_validation_epoch_end(self) -> None:
        self._save_sheet(f"it{self.true_global_step}-val.png")

    def on_test_epoch_start(self) -> None:
        self._results: list[dict[str, Any]] = []
        self.build_exporter()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        (prompt,) = batch["prompt"]
        folder = f"it{self.true_global_step}-test/{prompt_slug(prompt)}"
        cache = self.cache_of(prompt, batch["noise"])
        mesh = self.export_prompt(prompt, cache)
        pictures, normals = self._turntable(batch, cache, mesh)
        self._remember_views(prompt, pictures)
        self.remove_frames(folder, FRAMES)
        for index, (rgb, normal) in enumerate(zip(pictures, normals)):
            cells = [{"type": "rgb", "img": img, "kwargs": {"data_format": "HWC"}} for img in (rgb, normal)]
            self.save_image_grid(f"{folder}/{index}.png", cells)
        self.save_img_sequence(folder, folder, FRAMES, save_format="mp4", fps=self.cfg.turntable_fps)
        result = {"prompt": prompt, "mesh": mesh}
        if self.cfg.judge:
            result["views"] = self._judge_views(cache)
        self._results.append(result)

    def _turntable(self, batch: dict[str, Any], cache: Field, mesh: Any) -> tuple[Tensor, Tensor]:
        """Colours and normals [V, H, W, 3] in [0, 1] of what is exported; of an empty field, of the field."""
        text = self._text_of(batch["prompt"])
        if mesh is None:
            out = self.renderer(**batch, space_cache=cache, text_embed=text)
            return out["comp_rgb"], out["comp_normal"]
        background = self.renderer.background_of(batch["rays_d"][:, :1, :1], text)[:, 0, 0]
        return mesh_pictures(mesh, batch["mvp_mtx"], batch["height"], batch["width"], background)

    def export_prompt(self, prompt: str, cache: Field) -> Any:
        """Write one prompt's mesh in every format; None, with a warning that names it, if its field is empty."""
        try:
            mesh, statistics = self.exporter.mesh_of(cache, self.renderer.outline_level())
        except EmptyField as error:
            threestudio.warn(f'no mesh for "{prompt}": {error}')
            return None
        for fmt in self.exporter.cfg.fmt:
            name = f"it{self.true_global_step}-export/{prompt_slug(prompt)}/{self.exporter.cfg.save_name}.{fmt}"
            write_mesh(mesh, self.get_save_path(name))
        threestudio.info(
            f'"{prompt}": {statistics.faces} faces, {"closed" if statistics.watertight else "NOT closed"}, '
            f"{statistics.dropped_components} small pieces dropped"
        )
        return mesh

    def _judge_views(self, cache: Field) -> dict[str, Tensor]:
        """Pictures [V, S, S, 3] and opacities [V, S, S] from the judge's cameras."""
        from ..evaluation.cameras import evaluation_cameras
        from ..world.cameras import pixel_rays

        cameras, size = evaluation_cameras(self.cfg.judge_views), self.cfg.judge_size
        origins, directions = pixel_rays(cameras.c2w, cameras.fovy, size, size)
        device = cache.device
        out = self.renderer(
            rays_o=origins.to(device),
            rays_d=directions.to(device),
            space_cache=cache,
            bg_color=cameras.background.to(device).expand(self.cfg.judge_views, 3),
        )
        return {"rgb": out["comp_rgb"].cpu(), "alpha": out["opacity"][..., 0].cpu()}

    def on_test_epoch_end(self) -> None:
        step = self.true_global_step
        self._save_sheet(f"it{step}-test.png")
        if self.cfg.judge and self._results:
            self._judge(step)
        self._results = []
        for metrics in sorted(Path(self.get_save_dir()).parent.glob("csv_logs/version_*/metrics.csv"))[-1:]:
            names = [f"train/loss_{name}" for name in (*(self.guidance_losses or ()), "sparsity", "eikonal")]
            plot_curves(metrics, [*names, "train/opacity"], self.get_save_path(f"it{step}-curves.png"))

    def _judge(self, step: int) -> None:
        from ..evaluation.cameras import evaluation_cameras
        from ..evaluation.report import evaluate_views

        cameras = evaluation_cameras(self.cfg.judge_views)
        report = evaluate_views(
            [r["prompt"] for r in self._results],
            torch.stack([r["views"]["rgb"] for r in self._results]),
            torch.stack([r["views"]["alpha"] for r in self._results]),
            cameras.elevation,
            cameras.azimuth,
            cameras.distance,
            cameras.fovy,
            cameras.background,
            meshes=[r["mesh"] for r in self._results],
            judge=self.cfg.judge,
        )
        report.save(self.get_save_path(f"it{step}-evaluation/evaluation.json").rsplit("/", 1)[0])
        threestudio.info(report.summary_line())
        for name, value in report.mean.items():
            if value is not None:
                self.log(f"test/{name}", float(value))

    # ----------------------------------------------------------------------------- export

    def on_predict_start(self) -> None:
        self.build_prompts()
        self.build_exporter()
        self._exported: dict[str, bool] = {}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        (prompt,) = batch["prompt"]
        self._exported[prompt] = self.export_prompt(prompt, self.cache_of(prompt, batch["noise"])) is not None

    def on_predict_epoch_end(self) -> None:
        empty = [prompt for prompt, done in self._exported.items() if not done]
        listing = {p: prompt_slug(p) if done else None for p, done in self._exported.items()}
        path = self.save_json(f"it{self.true_global_step}-export/prompts.json", listing)
        threestudio.info(
            f"exported {len(self._exported) - len(empty)} of {len(self._exported)} prompts to {Path(path).parent}"
        )
