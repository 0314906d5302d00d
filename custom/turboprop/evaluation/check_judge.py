"""Check a judge on pictures that are right and on pictures that are wrong in a known way.

python -m custom.turboprop.evaluation.check_judge --judge assets/judges/mini-clip
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio.utils.markdown import table
from threestudio.utils.project_files import project_file

from ..world.captions import ObjectSpec, all_specs, caption, held_out
from ..world.dataset import object_colors
from ..world.objects import COLORS, KINDS
from .cameras import evaluation_cameras, exact_layers, exact_pictures, exact_surface
from .clip_metrics import ClipJudge, embed_images, embed_texts, load_judge
from .judge_pictures import other_choice, two_colored_ball
from .wrong_objects import janus

SIZE = 64  # pixels


@dataclass(frozen=True)
class CheckRow:
    """How the judge takes one sort of pictures, each shown with the caption it was to match."""

    pictures: str
    sim: float  # mean cosine with that caption
    r_at_1: float  # share that retrieves that caption among all captions of the world
    r_at_1_of_16: float  # the same among 16 captions
    ranked_below: float | None  # share with a lower cosine than the true picture from the same view; None for true ones


def draw_specs(by_kind: int, generator: torch.Generator, unseen: bool) -> list[ObjectSpec]:
    """`by_kind` different objects of each kind; `unseen`: of main colours that teachers never saw, else of others."""
    specs = []
    for kind in KINDS:
        of_kind = [s for s in all_specs(include_held_out=True) if s.kind == kind and held_out(kind, s.main) == unseen]
        order = torch.randperm(len(of_kind), generator=generator)[:by_kind]
        specs += [of_kind[int(index)] for index in order]
    return specs


def pictures_of(specs: list[ObjectSpec], layers: dict[str, Tensor]) -> Tensor:
    """Pictures [P, V, 3, S, S] of objects by their kinds' layers."""
    background = evaluation_cameras().background
    drawn = [exact_pictures(spec, layers[spec.kind], background)[0] for spec in specs]
    return torch.stack(drawn).permute(0, 1, 4, 2, 3)


def wrong_pictures(specs: list[ObjectSpec], layers: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """For each sort of error, pictures [P, V, 3, S, S] in place of those of `specs`."""
    cameras = evaluation_cameras()
    views, colors, kinds = len(cameras.azimuth), list(COLORS), list(KINDS)

    def each(choose) -> Tensor:
        return pictures_of([choose(spec) for spec in specs], layers)

    roles = object_colors(specs)  # [P, 3, 3]
    grey = cameras.background.expand(len(specs), 3)
    whole = two_colored_ball(roles[:, 0], roles[:, 1], grey, SIZE, torch.full((len(specs),), -1.0))
    halves = two_colored_ball(roles[:, 0], roles[:, 1], grey, SIZE, torch.zeros(len(specs)))
    empty = grey[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    shape = (len(specs), views, 3, SIZE, SIZE)
    return {
        "colours swapped": each(lambda s: ObjectSpec(s.kind, s.accent, s.main)),
        "wrong main colour": each(lambda s: replace(s, main=other_choice(s.main, colors, generator, s.accent))),
        "wrong second colour": each(lambda s: replace(s, accent=other_choice(s.accent, colors, generator, s.main))),
        "wrong kind": each(lambda s: replace(s, kind=other_choice(s.kind, kinds, generator))),
        "ball of the main colour": whole[:, None].expand(shape),
        "ball of both colours": halves[:, None].expand(shape),
        "empty": empty[:, None].expand(shape),
        "noise": torch.rand(shape, generator=generator),
    }


def check_judge(judge: ClipJudge, by_kind: int = 3, seed: int = 0) -> list[CheckRow]:
    """Rows for true pictures (seen and held-out pairs), degraded ones, a Janus, and wrong ones; eight views each."""
    generator = torch.Generator().manual_seed(seed)
    cameras = evaluation_cameras()
    layers = {name: exact_layers(exact_surface(kind, cameras, SIZE)) for name, kind in KINDS.items()}
    doubled = {
        name: exact_layers(exact_surface(janus(kind), cameras, SIZE)) for name, kind in KINDS.items() if kind.has_front
    }
    gallery = [caption(spec) for spec in all_specs(include_held_out=True)]
    texts = embed_texts(judge, gallery)

    def row(name: str, specs: list[ObjectSpec], images: Tensor, truth: Tensor | None) -> CheckRow:
        features = embed_images(judge, images.flatten(0, 1)).unflatten(0, images.shape[:2])
        own = torch.tensor([gallery.index(caption(spec)) for spec in specs])
        cosines = features @ texts.T  # [P, V, G]
        of_own = cosines.gather(-1, own[:, None, None].expand(-1, cosines.shape[1], 1)).squeeze(-1)
        others = torch.stack([_other_indices(len(gallery), int(index), 15, generator) for index in own])
        rivals = cosines.gather(-1, others[:, None].expand(-1, cosines.shape[1], -1)).amax(-1)
        below = None if truth is None else float((of_own < _own_cosines(judge, truth, texts[own])).float().mean())
        found = (cosines.argmax(-1) == own[:, None]).float().mean()
        return CheckRow(name, float(of_own.mean()), float(found), float((of_own >= rivals).float().mean()), below)

    seen = draw_specs(by_kind, generator, unseen=False)
    unseen = draw_specs(by_kind, generator, unseen=True)
    faced = [spec for spec in seen if spec.shape.has_front]
    truth = pictures_of(seen, layers)
    small = F.interpolate(F.avg_pool2d(truth.flatten(0, 1), 4), size=(SIZE, SIZE), mode="bilinear")
    rows = [
        row("true", seen, truth, None),
        row("true, held out from teachers", unseen, pictures_of(unseen, layers), None),
        row("true at a quarter of the resolution", seen, small.unflatten(0, truth.shape[:2]), None),
        row("Janus (right kind and colours)", faced, pictures_of(faced, doubled), pictures_of(faced, layers)),
    ]
    wrong = wrong_pictures(seen, layers, generator)
    return rows + [row(name, seen, images, truth) for name, images in wrong.items()]


def _other_indices(total: int, own: int, count: int, generator: torch.Generator) -> Tensor:  # [count]
    shuffled = torch.randperm(total, generator=generator)
    return shuffled[shuffled != own][:count]


def _own_cosines(judge: ClipJudge, images: Tensor, texts: Tensor) -> Tensor:  # [P, V, 3, S, S], [P, D] -> [P, V]
    features = embed_images(judge, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return torch.einsum("pvd,pd->pv", features, texts)


def judge_table(rows: list[CheckRow]) -> str:
    """The rows as a markdown table."""
    head = ["pictures", "Sim", "R@1 of 1530", "R@1 of 16", "ranked below the true picture"]
    cells = []
    for row in rows:
        below = "-" if row.ranked_below is None else f"{row.ranked_below:.3f}"
        cells.append([row.pictures, f"{row.sim:.3f}", f"{row.r_at_1:.3f}", f"{row.r_at_1_of_16:.3f}", below])
    return "\n".join(table(head, cells))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check_judge", description=__doc__)
    parser.add_argument("--judge", default="assets/judges/mini-clip", help="a CLIPModel folder or hub id")
    parser.add_argument("--by-kind", type=int, default=3, help="objects of each kind, eight views each")
    options = parser.parse_args(arguments)
    try:
        judge = load_judge(project_file(options.judge))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(judge_table(check_judge(judge, options.by_kind)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
