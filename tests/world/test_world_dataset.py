"""Captioned pictures drawn from a view bank."""

import re

import pytest
import torch
from turboprop.world.captions import VIEWS, caption, held_out, short_captions
from turboprop.world.dataset import (
    LOW_ELEVATION_RANGE,
    OVERHEAD_RANGE,
    ViewBank,
    build_view_bank,
    load_view_bank,
    sample_backgrounds,
    sample_batch,
    sample_cameras,
    sample_specs,
    save_view_bank,
)
from turboprop.world.objects import KINDS


@pytest.fixture(scope="module")
def bank() -> ViewBank:
    return build_view_bank(views=2, seed=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bank(bank, tmp_path):
    assert bank.views == 2
    assert bank.layers.shape == (len(KINDS), 2, 4, 64, 64) and bank.layers.dtype == torch.uint8
    assert bool((bank.layers[:, :, 3].flatten(2).sum(-1) > 0).all())  # every view shows something
    save_view_bank(bank, tmp_path / "bank.npz")
    again = load_view_bank(tmp_path / "bank.npz")
    for name in ("layers", "elevation", "azimuth"):
        assert torch.equal(getattr(again, name), getattr(bank, name))


def test_batches_follow_the_generator_alone(bank):
    first, second, other = (
        sample_batch(bank, 12, generator()),
        sample_batch(bank, 12, generator()),
        sample_batch(bank, 12, generator(1)),
    )
    assert torch.equal(first.images, second.images)
    assert first.captions == second.captions and first.specs == second.specs
    assert not torch.equal(first.images, other.images)
    torch.manual_seed(5)
    assert torch.equal(sample_batch(bank, 12, generator()).images, first.images)


def test_pictures_are_in_range_and_captions_of_their_objects(bank):
    batch = sample_batch(bank, 60, generator(2))
    assert batch.images.shape == (60, 3, 64, 64) and batch.images.dtype == torch.float32
    assert float(batch.images.min()) >= -1 and float(batch.images.max()) <= 1
    assert len(batch.captions) == len(batch.specs) == 60
    with_view = 0
    for text, spec in zip(batch.captions, batch.specs):
        plain = re.sub(rf", ({'|'.join(VIEWS)}) view$", "", text)
        with_view += plain != text
        assert plain in (caption(spec), *short_captions(spec))
    assert 25 < with_view < 58
    assert all(spec.main != spec.accent for spec in batch.specs)


def test_held_out_pairs_come_only_when_asked_for():
    def share(include: bool) -> float:
        specs = sample_specs(2000, generator(3), include_held_out=include)
        assert {spec.kind for spec in specs} == set(KINDS)
        return sum(held_out(spec.kind, spec.main) for spec in specs) / len(specs)

    assert share(False) == 0
    assert share(True) == pytest.approx(1 / 8, abs=0.03)


def test_cameras_stay_in_their_ranges():
    elevation, azimuth, distance = sample_cameras(4000, generator(4))
    assert float(elevation.min()) >= LOW_ELEVATION_RANGE[0] and float(elevation.max()) <= OVERHEAD_RANGE[1]
    assert float((elevation > 60).float().mean()) == pytest.approx(0.08, abs=0.02)
    assert float(azimuth.min()) >= -180 and float(azimuth.max()) < 180 and abs(float(azimuth.mean())) < 8
    assert float(distance.min()) >= 2.5 and float(distance.max()) <= 2.9


def test_backgrounds_are_mostly_greyish():
    backgrounds = sample_backgrounds(3000, generator(5))
    assert float(backgrounds.min()) >= 0 and float(backgrounds.max()) <= 1
    spread = backgrounds.amax(1) - backgrounds.amin(1)
    assert float((spread < 0.081).float().mean()) == pytest.approx(5 / 6, abs=0.04)
