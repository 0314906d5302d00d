"""View prompts and perp-neg's weights between views, in threestudio's and ScaleDreamer's numbers."""

from dataclasses import replace

import pytest
import torch
from turboprop.teachers import GaussianMixtureTeacher
from turboprop.teachers.contract import Cameras

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor, PromptProcessorOutput
from threestudio.models.prompt_processors.views import (
    BACK,
    FRONT,
    OVERHEAD,
    SIDE,
    ViewKeys,
    direction_index,
    perp_neg_embeddings,
    view_directions,
)

# azimuth: view with thresholds of 45 degrees, elevation 0
SEEN = {0: FRONT, 44: FRONT, -44: FRONT, 46: SIDE, -90: SIDE, 134: SIDE, 136: BACK, 180: BACK, -180: BACK, 400: FRONT}

# azimuth: (views, shares, negatives, weights); exp(-1/4) is 0.7788008
HALF = 0.7788007830714049
BLENDS = {
    0.0: ((FRONT, SIDE), (1.0, 0.0), (FRONT, SIDE), (4 * 0.6065306597 - 2.426, 4 - 2.426)),
    45.0: ((FRONT, SIDE), (0.5, 0.5), (FRONT, SIDE), (4 * HALF - 2.426, 4 * HALF - 2.426)),
    -45.0: ((FRONT, SIDE), (0.5, 0.5), (FRONT, SIDE), (4 * HALF - 2.426, 4 * HALF - 2.426)),
    135.0: ((SIDE, BACK), (0.5, 0.5), (SIDE, FRONT), (HALF - 0.606, HALF + 0.967)),
    -180.0: ((SIDE, BACK), (0.0, 1.0), (SIDE, FRONT), (1 - 0.606, 1 + 0.967)),
}


class OneHot(PromptProcessor):
    """Embeddings that say which prompt they are of."""

    def encode_prompts(self, prompts):
        return {prompt: torch.eye(8)[index].view(1, 8) for index, prompt in enumerate(prompts)}


def single(**cfg) -> PromptProcessorOutput:
    return OneHot({"prompt": "a chair", "use_perp_neg": True, **cfg})()


def cameras(azimuth: float, elevation: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor([elevation]), torch.tensor([float(azimuth)]), torch.ones(1)


def test_view_prompts_in_order():
    names = ("side", "front", "back", "overhead")
    assert single().prompts_vd == [f"a chair, {view} view" for view in names]
    first = [f"{view} view of a chair" for view in ("side", "front", "backside", "overhead")]
    assert single(view_dependent_prompt_front=True).prompts_vd == first
    directions = view_directions(ViewKeys(view_dependent_prompt_front=True))
    assert [direction.prompt("a chair") for direction in directions] == first


@pytest.mark.parametrize("azimuth, view", SEEN.items())
def test_a_camera_sees_a_view(azimuth, view):
    elevation, angle, distance = cameras(azimuth)
    assert direction_index(view_directions(ViewKeys()), elevation, angle, distance).item() == view
    assert single().get_direction_index(elevation, angle, distance).item() == view


def test_an_overhead_camera_sees_the_top_whatever_its_azimuth():
    for elevation, view in ((60.0, FRONT), (60.1, OVERHEAD)):
        assert direction_index(view_directions(ViewKeys()), *cameras(0, elevation)).item() == view
        assert single().get_direction_index(*cameras(0, elevation)).item() == view


@pytest.mark.parametrize("azimuth, expected", BLENDS.items())
def test_perp_neg_between_views(azimuth, expected):
    """Armandpour et al. 2023, section 4.2, with the decays a exp(-b r) + c of threestudio's configs."""
    views, shares, negatives, strengths = expected
    elevation, angle, distance = cameras(azimuth)
    output = single()
    embeddings, weights = output.get_text_embeddings_perp_neg(elevation, angle, distance)
    positive, unconditional, *pushed = embeddings
    of_views = output.text_embeddings_vd
    torch.testing.assert_close(positive, shares[0] * of_views[views[0]] + shares[1] * of_views[views[1]])
    assert torch.equal(unconditional, output.uncond_text_embeddings[0])
    assert all(torch.equal(one, of_views[view]) for one, view in zip(pushed, negatives))
    assert weights[0].tolist() == pytest.approx([-s for s in strengths], abs=1e-6)


def test_perp_neg_from_overhead_pushes_nothing_away():
    """A camera of another prompt beside it does not matter: each has its own row of views."""
    views = torch.eye(8).view(2, 4, 1, 8)
    overhead = torch.tensor([False, True])
    embeddings, weights = perp_neg_embeddings(
        views, -torch.ones(2, 1, 8), torch.tensor([0.0, 45.0]), overhead, ViewKeys()
    )
    assert torch.equal(embeddings[:2], torch.stack([views[0, FRONT], views[1, OVERHEAD]]))
    assert torch.equal(embeddings[4:6], torch.stack([views[0, FRONT], views[0, SIDE]]))
    assert torch.equal(embeddings[6:], -torch.ones(2, 1, 8)) and weights[1].tolist() == [0, 0]


def guidance(name: str, **cfg):
    return threestudio.find(name)(cfg, teacher=GaussianMixtureTeacher(torch.zeros(1, 1, 2, 2), [1.0]))


@pytest.mark.parametrize("factor", [-1.0, -0.5])
def test_guidance_perp_neg_scales_the_weights(factor):
    conditions = guidance("turboprop-asd-guidance", guidance_perp_neg=factor).conditions(
        single(), Cameras(*cameras(45))
    )
    assert conditions.negatives.weights[0].tolist() == pytest.approx([factor * (4 * HALF - 2.426)] * 2, abs=1e-6)


def test_guidance_perp_neg_of_zero_turns_it_off():
    """Then the camera's own view is asked for, not a blend."""
    output = single()
    conditions = guidance("turboprop-asd-guidance", guidance_perp_neg=0.0).conditions(output, Cameras(*cameras(40)))
    assert conditions.negatives is None
    assert torch.equal(conditions.positive.embeddings[0], output.text_embeddings_vd[FRONT])


def test_scaledreamers_name_has_perp_neg_off_by_default():
    name = "stable-diffusion-asynchronous-score-distillation-guidance"
    assert guidance(name).conditions(single(), Cameras(*cameras(45))).negatives is None
    assert guidance(name, guidance_perp_neg=-0.5).conditions(single(), Cameras(*cameras(45))).negatives is not None
    off = replace(single(), use_perp_neg=False)
    assert guidance(name, guidance_perp_neg=-0.5).conditions(off, Cameras(*cameras(45))).negatives is None
