"""The figures of a set of generated objects: one call, one report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.markdown import table
from threestudio.utils.mesh_files import write_text
from threestudio.utils.staged_files import staged

from ..world.captions import ObjectSpec, all_specs, allowed_specs, caption
from ..world.render import SurfaceView
from .cameras import EvaluationCameras, exact_layers, exact_pictures, exact_surface, turned_surface
from .clip_metrics import ClipJudge, clip_scores, embed_images, embed_texts, load_judge, nearest_texts
from .picture_metrics import color_error, front_back_score, silhouette_iou
from .surface_metrics import mesh_chamfer

COLUMNS = {
    "r_at_1_world": "R@1 of all captions",
    "iou": "IoU",
    "color_error": "colour error",
    "chamfer": "Chamfer",
    "chamfer_share": "Chamfer / size",
    "front_back": "front/back",
    "sim": "Sim",
    "r_at_1": "R@1 of the gallery",
}


@dataclass(frozen=True)
class PromptScores:
    """The figures of one prompt. None: the figure does not apply, or was not measured."""

    prompt: str
    sim: float  # mean cosine of the views and the prompt
    r_at_1: float  # share of views whose nearest text of the gallery is the prompt
    # share of views whose nearest text of all the world's full captions is the prompt; of a short caption, whose
    # nearest text is the full caption of an object that it allows
    r_at_1_world: float | None = None
    iou: float | None = None  # silhouettes, mean over views
    color_error: float | None = None  # mean absolute sRGB difference in [0, 1]; nan: the silhouettes never meet
    chamfer: float | None = None  # world units; infinite: an empty mesh
    chamfer_share: float | None = None  # of the diagonal of the exact bounding box; infinite: an empty mesh
    front_back: float | None = None  # 1: right, 0: turned round, one half: a Janus, or no front at all
    # full caption of the exact object that it is measured against: of those that a short caption allows, the nearest
    measured_as: str | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """Figures by prompt and their means, with what they were measured by."""

    prompts: list[PromptScores]
    judge: str
    gallery: list[str]  # the texts that R@1 chose from
    views: int  # of each prompt

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean of each figure over the prompts that have it and where it is finite; None if there are none."""
        means: dict[str, float | None] = {}
        for name in COLUMNS:
            values = [getattr(scores, name) for scores in self.prompts]
            finite = [value for value in values if value is not None and math.isfinite(value)]
            means[name] = sum(finite) / len(finite) if finite else None
        return means

    @property
    def empty_meshes(self) -> int:
        """How many prompts have an empty mesh; the mean Chamfer distance leaves them out."""
        return sum(scores.chamfer == math.inf for scores in self.prompts)

    def summary_line(self) -> str:
        """The means in one line, for a log."""
        shown = [
            f"{title} {_figure(self.mean[name])}" for name, title in COLUMNS.items() if self.mean[name] is not None
        ]
        empty = f", {self.empty_meshes} empty meshes" if self.empty_meshes else ""
        count = f"{len(self.prompts)} prompts x {self.views} views"
        return f"{count}: {', '.join(shown)}{empty} (gallery of {len(self.gallery)} texts)"

    def save(self, folder: Path | str) -> None:
        """Write evaluation.json and evaluation.md into `folder`."""
        folder = Path(folder)
        content = {
            "judge": self.judge,
            "views": self.views,
            "empty_meshes": self.empty_meshes,
            "mean": {name: _json_number(value) for name, value in self.mean.items()},
            "prompts": [{name: _json_number(value) for name, value in asdict(s).items()} for s in self.prompts],
            "gallery": self.gallery,
        }
        with staged(str(folder / "evaluation.json")) as scratch:
            write_text(scratch, json.dumps(content, indent=2, allow_nan=False) + "\n")
            write_text(str(Path(scratch).with_suffix(".md")), self._table())

    def _table(self) -> str:
        rows = [
            [scores.prompt.replace("|", "\\|"), *(_figure(getattr(scores, name)) for name in COLUMNS)]
            for scores in self.prompts
        ]
        rows.append(["**mean**", *(_figure(value) for value in self.mean.values())])
        lines = "\n".join(table(["prompt", *COLUMNS.values()], rows))
        return (
            f"# Evaluation\n\n{self.summary_line()}\n\n{lines}\n\n"
            f"Judge: {self.judge}. R@1 of all captions chooses among the world's {len(world_gallery())} full captions, "
            f"R@1 of the gallery among {len(self.gallery)} texts. Chamfer in world units, and as a share of "
            "the diagonal of the exact bounding box. A dash: does not apply or was not measured; inf: an empty mesh, "
            "left out of the mean.\n"
        )


def evaluate_views(
    prompts: Sequence[str],
    rgb: Tensor,
    alpha: Tensor,
    elevation: Tensor,
    azimuth: Tensor,
    distance: Tensor,
    fovy: Tensor,
    background: Tensor,
    meshes: Sequence | None,
    judge: str | Path,
    gallery: Sequence[str] | None = None,
) -> EvaluationReport:
    """Measure the views, and if given the meshes, of one object a prompt.

    rgb [P, V, S, S, 3] and alpha [P, V, S, S] in [0, 1], on the plain background [3];
    elevation, azimuth [V] in degrees, distance [V] in world units, fovy [V] in radians;
    meshes: a trimesh.Trimesh in world axes and units for each prompt, None where it is
    empty; None altogether if there are none to measure. gallery: the texts of R@1; all
    distinct prompts if None. A short caption ("a red chair", "a chair") is measured against the object nearest in
    colour of those that it allows. Prompts that are no captions of the world have Sim and R@1 only.
    """
    _check_shapes(prompts, rgb, alpha, (elevation, azimuth, distance, fovy), background, meshes)
    rgb, alpha = rgb.detach().float().cpu().clamp(0, 1), alpha.detach().float().cpu().clamp(0, 1)
    orbit = (x.detach().float().cpu() for x in (elevation, azimuth, distance, fovy, background))
    cameras = EvaluationCameras(*orbit)
    opened, pictures = load_judge(judge), rgb.permute(0, 1, 4, 2, 3)
    clip = clip_scores(opened, prompts, pictures, gallery)
    world_recall = _world_recall(opened, prompts, pictures)
    surfaces: dict[str, SurfaceView] = {}
    scores = []
    for index, prompt in enumerate(prompts):
        specs = world_specs(prompt)
        truth: dict[str, float | str | None] = {}
        if specs:
            kind = specs[0].kind
            if kind not in surfaces:
                surfaces[kind] = exact_surface(specs[0].shape, cameras, rgb.shape[2])
            spec = nearest_in_color(specs, surfaces[kind], rgb[index], alpha[index], cameras)
            truth = compare_views(spec, surfaces[kind], rgb[index], alpha[index], cameras)
            truth |= {"measured_as": caption(spec)}
            if meshes is not None:
                chamfer = mesh_chamfer(meshes[index], spec.shape.signed_distance)
                truth |= {"chamfer": chamfer.distance, "chamfer_share": chamfer.share}
        scores.append(PromptScores(prompt, clip.sim[index], clip.r_at_1[index], world_recall.get(prompt), **truth))
    return EvaluationReport(scores, str(judge), clip.gallery, rgb.shape[1])


def world_gallery() -> list[str]:
    """Every full caption of the world: the hard gallery, where the right kind or the right colours are not enough."""
    return [caption(spec) for spec in all_specs(include_held_out=True)]


def _world_recall(judge: ClipJudge, prompts: Sequence[str], pictures: Tensor) -> dict[str, float]:
    """R@1 over the world's full captions, of prompts that are captions, full or short; pictures [P, V, 3, S, S]."""
    gallery = world_gallery()
    allowed = {prompt: {caption(spec) for spec in world_specs(prompt)} for prompt in prompts}
    known = [index for index, prompt in enumerate(prompts) if allowed[prompt]]
    if not known:
        return {}
    features, texts = embed_images(judge, pictures[known].flatten(0, 1)), embed_texts(judge, gallery)
    nearest = nearest_texts(features @ texts.T).unflatten(0, (len(known), -1))  # [K, V]
    return {
        prompts[index]: sum(t >= 0 and gallery[t] in allowed[prompts[index]] for t in row.tolist()) / len(row)
        for index, row in zip(known, nearest)
    }


def world_specs(prompt: str) -> list[ObjectSpec]:
    """The exact objects that a caption allows, full or short; none if the prompt is no caption of the world."""
    try:
        return allowed_specs(prompt)
    except UserError:
        return []


def world_spec(prompt: str) -> ObjectSpec | None:
    """The exact object that a full caption names, None for any other prompt."""
    specs = world_specs(prompt)
    return specs[0] if len(specs) == 1 else None


def nearest_in_color(
    specs: Sequence[ObjectSpec], surface: SurfaceView, rgb: Tensor, alpha: Tensor, cameras: EvaluationCameras
) -> ObjectSpec:
    """Which of some objects of one kind the pictures rgb [V, S, S, 3], alpha [V, S, S] are nearest to in colour.

    All have one shape, so only their colours are compared, where both silhouettes are; the first where they never meet.
    """
    if len(specs) == 1:
        return specs[0]
    layers = exact_layers(surface)
    exact = (exact_pictures(spec, layers, cameras.background) for spec in specs)
    errors = [float(torch.nanmean(color_error(rgb, alpha, *pictures))) for pictures in exact]
    return specs[min(range(len(specs)), key=lambda index: (math.isnan(errors[index]), errors[index], index))]


def compare_views(
    spec: ObjectSpec, surface: SurfaceView, rgb: Tensor, alpha: Tensor, cameras: EvaluationCameras
) -> dict[str, float | None]:
    """Figures of one object's pictures, rgb [V, S, S, 3] and alpha [V, S, S], against its exact surface."""
    right = exact_pictures(spec, exact_layers(surface), cameras.background)
    front_back = None
    if spec.shape.has_front:
        turned = exact_layers(turned_surface(spec.shape, cameras, surface))
        front_back = front_back_score(rgb, alpha, right, exact_pictures(spec, turned, cameras.background))
    return {
        "iou": float(silhouette_iou(alpha, right[1]).mean()),
        "color_error": float(torch.nanmean(color_error(rgb, alpha, *right))),
        "front_back": front_back,
    }


def _check_shapes(prompts, rgb, alpha, cameras, background, meshes) -> None:
    if rgb.dim() != 5 or rgb.shape[0] != len(prompts) or rgb.shape[2] != rgb.shape[3] or rgb.shape[4] != 3:
        raise ValueError(f"rgb must be [{len(prompts)} prompts, V, S, S, 3], got {list(rgb.shape)}")
    if alpha.shape != rgb.shape[:4]:
        raise ValueError(f"alpha must be {list(rgb.shape[:4])}, got {list(alpha.shape)}")
    for name, value in zip(("elevation", "azimuth", "distance", "fovy"), cameras):
        if value.shape != rgb.shape[1:2]:
            raise ValueError(f"{name} must be [{rgb.shape[1]}], one a view, got {list(value.shape)}")
    if background.shape != (3,):
        raise ValueError(f"background must be [3], got {list(background.shape)}")
    if meshes is not None and len(meshes) != len(prompts):
        raise ValueError(f"one mesh (or None) a prompt is needed: {len(prompts)} prompts, {len(meshes)} meshes")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _json_number(value):
    """JSON has neither nan nor infinity: these become null and "inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value
