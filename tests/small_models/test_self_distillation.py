"""The losses of self-supervised encoders, against small cases worked out by hand."""

import math

import pytest
import torch
from torch import nn
from turboprop.small_models.self_distillation import (
    STUDENT_TEMPERATURE, PrototypeHead, balanced_targets, cross_entropy, crops, follow, patch_loss, random_masks,
    view_loss,
)


def test_whole_pictures_pass_through_crops_unchanged():
    images = torch.rand(3, 4, 16, 16)
    torch.testing.assert_close(crops(images, (1.0, 1.0), 16, torch.Generator().manual_seed(0)), images)


def test_crops_are_parts_of_the_picture_and_not_mirrored():
    ramp = torch.linspace(0, 1, 64).expand(8, 1, 64, 64)  # brighter to the right
    parts = crops(ramp, (0.1, 0.4), 32, torch.Generator().manual_seed(0))
    widths = parts[:, 0, 0, -1] - parts[:, 0, 0, 0]
    assert float(widths.min()) > 0.2 and float(widths.max()) < 0.7  # sides of 0.32 to 0.63
    assert float(parts.min()) >= 0 and float(parts.max()) <= 1


def test_balanced_targets_use_all_prototypes_alike():
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + torch.tensor([1.0] + [0.0] * 7)
    plain = torch.softmax(scores / 0.07, -1)
    targets = balanced_targets(scores, 0.07)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert float(plain.mean(0)[0]) > 0.99  # without balance the first takes all
    torch.testing.assert_close(targets.mean(0), torch.full((8,), 1 / 8), atol=0.02, rtol=0)


def test_cross_entropy_of_a_certain_target_is_the_log_probability():
    scores = torch.tensor([[0.3, 0.1]])
    expected = math.log(1 + math.exp(-0.2 / STUDENT_TEMPERATURE))
    assert float(cross_entropy(scores, torch.tensor([[1.0, 0.0]]))) == pytest.approx(expected, rel=1e-5)


def test_a_crop_is_not_compared_with_itself():
    targets = torch.eye(2)[:, None]  # two crops of one picture, of different prototypes
    same, crossed = targets * 0.5, targets.flip(0) * 0.5
    assert float(view_loss(crossed, targets)) < 0.01 < 1.0 < float(view_loss(same, targets))


def test_each_picture_with_hidden_patches_counts_the_same():
    masks = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    right, wrong = torch.tensor([0.5, -0.5]), torch.tensor([-0.5, 0.5])
    targets = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    low, high = (float(cross_entropy(scores[None], targets[:1])) for scores in (right, wrong))
    student = torch.stack([right, wrong, wrong, wrong])
    assert float(patch_loss(student, targets, masks)) == pytest.approx((low + high) / 2, rel=1e-5)


def test_masks_hide_their_share_of_half_the_pictures():
    masks = random_masks(400, 64, 0.25, torch.Generator().manual_seed(0))
    counts = masks.sum(1)
    assert set(counts.tolist()) == {0, 16}
    assert 150 < int((counts > 0).sum()) < 250


def test_the_teacher_follows_the_student():
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(teacher.weight)
    nn.init.ones_(student.weight)
    follow(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(0.1)


def test_scores_of_prototypes_are_cosines():
    head = PrototypeHead(6, 8, 4, 10)
    scores = head(torch.randn(5, 6) * 100)
    assert scores.shape == (5, 10) and float(scores.detach().abs().max()) <= 1 + 1e-5
