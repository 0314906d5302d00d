"""The shipped judge, and the exact views of a few objects."""

from pathlib import Path

import pytest
import torch
from turboprop.evaluation.cameras import evaluation_cameras, exact_layers, exact_pictures, exact_surface
from turboprop.evaluation.clip_metrics import load_judge
from turboprop.world.captions import parse_caption

JUDGE = Path(__file__).resolve().parents[2] / "assets" / "judges" / "mini-clip"


@pytest.fixture(scope="session")
def judge_folder() -> Path:
    return JUDGE


@pytest.fixture(scope="session")
def judge():
    return load_judge(JUDGE)


def _exact_views(prompts: list[str], views: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    cameras = evaluation_cameras(views)
    pictures = []
    for prompt in prompts:
        spec = parse_caption(prompt)
        layers = exact_layers(exact_surface(spec.shape, cameras, size))
        pictures.append(exact_pictures(spec, layers, cameras.background))
    return torch.stack([rgb for rgb, _ in pictures]), torch.stack([alpha for _, alpha in pictures])


@pytest.fixture(scope="session")
def exact_views():
    """A function (prompts, views, size) -> rgb [P, V, S, S, 3] and alpha [P, V, S, S] of the exact objects."""
    return _exact_views
