"""One key swaps a part: keys that its old type alone knows go, with a line that says so; others stay."""

import logging

import pytest

from threestudio.utils.config import load_config

BASE = """
name: n
tag: t
data_type: random-camera-datamodule
system_type: magic3d-system
system:
  refinement: true
  material_type: no-material
  material:
    n_output_dims: 3
    color_activation: none
    mistake: 1
  background_type: ${system.other}
  other: solid-color-background
  background:
    color: [1, 1, 1]
  guidance_type: stable-diffusion-guidance
  guidance:
    use_sjc: true
    guidance_scale: 7
"""


@pytest.fixture()
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]


def loaded(*overrides: str, more: tuple[str, ...] = ()):
    return load_config(BASE, *more, cli_args=["use_timestamp=false", *overrides], from_string=True).system


def test_keys_of_the_old_type_go_and_are_named(said):
    system = loaded("system.material_type=pbr-material", "system.material.use_bump=false")
    assert dict(system.material) == {"mistake": 1, "use_bump": False}  # what neither knows is an error later
    assert said() == [
        "system.material: left out n_output_dims, color_activation, which no-material knows and pbr-material does not"
    ]


def test_keys_that_both_know_stay(said):
    system = loaded("system.guidance_type=stable-diffusion-unified-guidance")
    assert dict(system.guidance) == {"guidance_scale": 7} and "left out use_sjc" in said()[0]


def test_the_same_type_and_one_that_is_unknown_leave_all(said):
    for name in ("no-material", "no-such-material"):
        assert len(loaded(f"system.material_type={name}").material) == 3
    assert loaded("data_type=single-image-datamodule").refinement  # data modules have no config class that is known
    assert said() == []


def test_a_type_behind_an_interpolation_is_looked_up(said):
    assert dict(loaded("system.background_type=textured-background").background) == {}
    assert "left out color, which solid-color-background knows" in said()[0]


def test_a_second_file_swaps_as_arguments_do_and_the_systems_own_type_too(said):
    more = "system_type: dreamfusion-system\nsystem:\n  material_type: pbr-material\n"
    system = loaded(more=(more,))
    assert "refinement" not in system and dict(system.material) == {"mistake": 1}
    assert [line.split(":")[0] for line in said()] == ["system", "system.material"]


def test_what_the_swapping_layer_says_itself_stays(said):
    system = loaded("system.material_type=pbr-material", "system.material.n_output_dims=4")
    assert system.material.n_output_dims == 4  # and is an unknown key when the material is built
