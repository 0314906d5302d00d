"""A run names the objects that it loses, once, and those that come back."""

import torch
from turboprop.amortized.losses import coverage
from turboprop.amortized.lost_objects import STEPS_BEFORE, LostObjects, covered_shares


def opacities(*shares: float) -> torch.Tensor:
    """Opacities [len(shares), 4, 5, 1], a share of whose pixels is opaque."""
    pictures = torch.zeros(len(shares), 20)
    for picture, share in zip(pictures, shares):
        picture[: round(20 * share)] = 1.0
    return pictures.reshape(len(shares), 4, 5, 1)


def test_what_vanishes_and_what_fills_its_volume_is_named_once():
    watch = LostObjects(least=0.1, most=0.7)
    prompts = ["a red chair", "a blue mug", "a green tree"]
    shares = covered_shares(3, opacities(0.0, 0.0, 1.0, 0.9, 0.3, 0.5)).tolist()
    lines = [line for _ in range(20) for line in watch.update(prompts, shares)]
    assert len(lines) == 2
    assert lines[0].startswith('"a red chair" is lost: it vanished')
    assert lines[1].startswith('"a blue mug" is lost: it fills its volume (it covers 95.0%')
    assert watch.lost == {"a red chair": "vanished", "a blue mug": "fills its volume"}


def test_an_object_that_comes_back_is_named_too():
    watch = LostObjects(least=0.1, most=0.7)
    for _ in range(STEPS_BEFORE):
        watch.update(["a red chair"], [0.0])
    lines = [line for _ in range(9) for line in watch.update(["a red chair"], [0.5])]
    assert len(lines) == 1 and '"a red chair" is back' in lines[0] and not watch.lost


def test_the_first_steps_are_not_judged():
    watch = LostObjects(least=0.1, most=0.7)
    assert not any(watch.update(["a red chair"], [0.0]) for _ in range(STEPS_BEFORE - 1))
    assert watch.update(["a red chair"], [0.0])


def test_coverage_acts_on_both_sides_and_nowhere_between():
    assert float(coverage(opacities(0.2, 0.6), 0.1, 0.6)) == 0
    assert float(coverage(opacities(0.05), 0.1, 0.6)) == 0.5
    assert abs(float(coverage(opacities(0.8), 0.1, 0.6)) - 0.5) < 1e-6
    assert float(coverage(opacities(1.0), 0.1)) == 0
