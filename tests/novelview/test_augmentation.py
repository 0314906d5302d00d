"""Photometric changes of the encoder's picture."""

import colorsys

import pytest
import torch
from turboprop.novelview.augmentation import PhotometricAugmentation, changed_photometry, hue_rotation

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6


def test_half_the_draws_mean_no_change():
    settings = PhotometricAugmentation(1.0, 0.5, 0.5, 0.5, 0.2)
    middle = torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.5]]).repeat(4, 1)
    torch.testing.assert_close(changed_photometry(IMAGES, middle, settings), IMAGES, atol=1e-5, rtol=0)


def test_the_share_that_is_changed():
    settings = PhotometricAugmentation(0.5, 0.5, 0.0, 0.0, 0.0)
    uniform = torch.full((4, 5), 0.9)
    uniform[:, 0] = torch.tensor([0.1, 0.6, 0.4, 0.9])
    changed = (changed_photometry(IMAGES, uniform, settings) - IMAGES).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [True, False, True, False]


def test_brightness_contrast_and_saturation_are_what_they_say():
    def changed(**amounts):
        nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
        settings = PhotometricAugmentation(1.0, **{**nothing, **amounts})
        answer = changed_photometry(IMAGES, torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]]).repeat(4, 1), settings)
        return (answer + 1) / 2

    colors = (IMAGES + 1) / 2
    torch.testing.assert_close(changed(brightness=0.2), colors * 1.2)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (colors * luma).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    torch.testing.assert_close(changed(contrast=0.2), (mean + 1.2 * (colors - mean)).clamp(0, 1))
    torch.testing.assert_close(changed(saturation=0.1), (grey + 1.1 * (colors - grey)).clamp(0, 1))


def test_a_third_of_a_turn_goes_from_red_towards_green_or_blue_and_back():
    turn = hue_rotation(torch.tensor([2 * torch.pi / 3, 2 * torch.pi]))
    red = torch.tensor([0.6, 0.4, 0.4])
    turned = turn[0] @ red
    hue = colorsys.rgb_to_hsv(*turned.tolist())[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.06
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(turned @ luma, red @ luma, atol=1e-3, rtol=0)
    torch.testing.assert_close(turn[1], torch.eye(3), atol=1e-5, rtol=0)


def test_impossible_amounts_are_refused():
    with pytest.raises(ValueError, match="photometric.hue: expected a number within 0 to 0.5, got 0.7"):
        PhotometricAugmentation(hue=0.7).check()
