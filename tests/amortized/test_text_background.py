"""The background that reads the text: its size, each prompt its own, what it refuses."""

import pytest
import torch

import threestudio
from threestudio.utils.errors import UserError

GRID = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4,
        "per_level_scale": 1.5}  # fmt: skip
SCALEDREAMERS = "multiprompt-neural-hashgrid-environment-map-background"


def background(name="turboprop-text-background", **keys):
    torch.manual_seed(0)
    return threestudio.find(name)({"pos_encoding_config": GRID, "text_dim": 6, **keys})


def directions(views: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(views, 3, 4, 3), dim=-1)


def test_the_published_size():
    """ScaleDreamer's: 211,264 numbers from a text of 1024 to the 2240 weights of 32-64-3."""
    made = threestudio.find(SCALEDREAMERS)(
        {"pos_encoding_config": {**GRID, "n_levels": 16}, "hypernet_config": {"c_dim": 1024, "n_neurons": 64}}
    )
    assert sum(p.numel() for p in made.hyper_network.parameters()) == 211_264


def test_each_prompt_has_its_own_colours():
    made, text, dirs = background().eval(), torch.randn(2, 6), directions(6)
    torch.nn.init.normal_(next(made.encoding.parameters()))
    together = made(dirs, text)
    assert together.shape == (6, 3, 4, 3) and 0 <= together.min() and together.max() <= 1
    for prompt in range(2):
        its = slice(3 * prompt, 3 * prompt + 3)
        torch.testing.assert_close(together[its], made(dirs[its], text[prompt : prompt + 1]))
    other = made(dirs[:3], text[1:])
    assert (other - together[:3]).abs().max() > 1e-3


def test_random_colours_and_a_fixed_one():
    text, dirs = torch.randn(1, 6), directions(2)
    replaced = background(random_aug=True, random_aug_prob=1.0).train()(dirs, text)
    assert (replaced == replaced[:, :1, :1]).all() and (replaced[0] != replaced[1]).any()
    fixed = background(eval_color=[0.1, 0.2, 0.3]).eval()(dirs, text)
    torch.testing.assert_close(fixed[0, 0, 0], torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("text", [None, torch.zeros(1, 5), torch.zeros(1, 4, 6)])
def test_a_text_that_does_not_fit_is_named(text):
    with pytest.raises(UserError, match=r"background.text_dim: expected a pooled text \[P, 6\], got"):
        background()(directions(1), text)


def test_scaledreamers_keys():
    theirs = background(
        SCALEDREAMERS,
        hypernet_config={"c_dim": 6, "out_dims": {"bg_weights": [9, 9, 3]}, "n_neurons": 5, "n_hidden_layers": 2},
    )
    ours = background(hidden_dim=9, hidden_layers=2, hyper_dim=5, hyper_layers=2)
    first, second = theirs.state_dict(), ours.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(UserError, match="bg_weights: expected 3 as the last number"):
        background(
            "multiprompt-neural-hashgrid-environment-map-background",
            hypernet_config={"out_dims": {"bg_weights": [9, 1]}},
        )
