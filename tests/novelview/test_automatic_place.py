"""From where a picture shows an object: of exact ones near the truth, by auto in a config, and who is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from turboprop.fitting.posed_views import world_views
from turboprop.novelview.automatic_elevation import complete_elevation
from turboprop.novelview.automatic_place import complete_place
from turboprop.novelview.place_estimate import (
    TIMESTEP_SHARES,
    CaptionedPicture,
    PicturePlace,
    cameras_at,
    captioned_picture,
    denoising_errors,
    estimate_place,
)
from turboprop.teachers import GaussianMixtureTeacher, load_teacher
from turboprop.teachers.text import encode_prompts
from turboprop.world.cameras import orbit_c2w
from turboprop.world.captions import ObjectSpec, caption

from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

ROOT = Path(__file__).resolve().parents[2]
MINI_MV = str(ROOT / "assets/teachers/mini-mv")
CAR = ObjectSpec("car", "blue", "white")
ELEVATION = 15.0  # degrees
UNKNOWN = PicturePlace(None, None, distance=2.7, fovy_deg=40.0)


def picture_of(spec: ObjectSpec, azimuth: float) -> torch.Tensor:
    """The object as RGBA [64, 64, 4], straight alpha."""
    camera = orbit_c2w(torch.tensor([ELEVATION]), torch.tensor([azimuth]), torch.tensor([UNKNOWN.distance]))
    views = world_views(spec, camera, math.radians(UNKNOWN.fovy_deg), 64)
    return torch.cat([views.rgb[0] / views.coverage[0].clamp_min(1e-6), views.coverage[0]], dim=-1).clamp(0, 1)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(MINI_MV, "cpu")


@pytest.fixture(scope="module")
def shown(teacher):
    """The car from azimuth -110, as the teacher sees it."""
    rgba = picture_of(CAR, -110.0)
    picture = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]).permute(2, 0, 1)
    return captioned_picture(teacher, picture, encode_prompts(MINI_MV, [caption(CAR)]).local_embeddings)


@pytest.mark.parametrize("known", [{"elevation": ELEVATION}, {"azimuth": -110.0}, {}], ids=str)
def test_what_is_not_known_is_told_to_a_few_degrees(teacher, shown, known):
    estimate = estimate_place(teacher, shown, replace(UNKNOWN, **known))
    assert estimate.azimuth == pytest.approx(-110.0, abs=5.0) and estimate.elevation == pytest.approx(15.0, abs=5.0)
    assert all(getattr(estimate, name) == value for name, value in known.items())
    assert len(estimate.errors) == len(estimate.elevations) and len(estimate.errors[0]) == len(estimate.azimuths)
    assert estimate.least_error < 0.8 * estimate.mean_error


def test_the_same_picture_has_the_same_estimate_whatever_was_drawn_before(teacher, shown):
    place = replace(UNKNOWN, elevation=ELEVATION)
    torch.manual_seed(5)
    estimate = estimate_place(teacher, shown, place)
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after  # it draws from no global generator
    assert estimate_place(teacher, shown, place) == estimate


def test_the_error_of_a_point_is_its_distance_over_the_noise():
    """All pictures equal mu: noise is told as (x - sqrt(a) mu) / sqrt(1 - a), off by sqrt(a / (1 - a)) at mu + 1."""
    mean = torch.full((1, 2, 4, 4), 0.5)
    teacher = GaussianMixtureTeacher(mean, [0.0])
    cameras = cameras_at(torch.full((3,), ELEVATION), torch.tensor([0.0, 90.0, 180.0]), UNKNOWN)
    pictures = (CaptionedPicture(latents, torch.ones(1, 1, 1)) for latents in (mean, mean + 1))
    at_mean, beside = (denoising_errors(teacher, picture, cameras) for picture in pictures)
    alphas = torch.stack([teacher.alphas_cumprod[int(share * teacher.num_timesteps)] for share in TIMESTEP_SHARES])
    torch.testing.assert_close(at_mean, torch.zeros(3), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(beside, (alphas / (1 - alphas)).mean().float().expand(3), atol=1e-4, rtol=1e-4)


@pytest.fixture()
def read(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray((picture_of(CAR, 40.0) * 255).round().to(torch.uint8).numpy()).save(path)

    def read(*more: str, name: str = "magic123-mini"):
        given = [f"data.image_path={path}", "data.default_azimuth_deg=auto", *more]
        return load_config(str(ROOT / "configs" / f"{name}.yaml"), cli_args=given)

    return read


def test_every_key_gets_the_estimate_and_the_trial_a_record(read, tmp_path):
    cfg = read(f"system.prompt_processor.prompt='{caption(CAR)}'", "data.default_elevation_deg=auto")
    assert complete_elevation(cfg) is None and cfg.data.default_elevation_deg == "auto"  # it is left to the teacher
    record = complete_place(cfg)
    azimuth, elevation = cfg.data.default_azimuth_deg, cfg.data.default_elevation_deg
    assert azimuth == pytest.approx(40.0, abs=5.0) and elevation == pytest.approx(15.0, abs=5.0)
    guidance = cfg.system.guidance_3d
    assert guidance.cond_azimuth_deg == azimuth and guidance.cond_elevation_deg == elevation
    assert cfg.data.random_camera.eval_elevation_deg == elevation
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    record(saver)
    saved = json.loads((tmp_path / "place.json").read_text())
    assert saved["azimuth_deg"] == azimuth and saved["elevation_deg"] == elevation
    assert len(saved["errors"]) == len(saved["elevations_deg"]) and len(saved["errors"][0]) == 24


def test_a_given_place_stays(read):
    given = ["data.default_azimuth_deg=12", "data.default_elevation_deg=3", "system.prompt_processor.prompt=x"]
    assert complete_place(read(*given)) is None


def test_a_given_azimuth_stays_where_the_elevation_is_found(read):
    """Whole degrees are integers in a config."""
    cfg = read("data.default_azimuth_deg=40", f"system.prompt_processor.prompt='{caption(CAR)}'")
    complete_place(cfg)
    assert cfg.data.default_azimuth_deg == 40 and cfg.data.default_elevation_deg == pytest.approx(15.0, abs=5.0)


def test_a_word_is_no_place(read):
    cfg = read("data.default_azimuth_deg=north", "system.prompt_processor.prompt=x")
    with pytest.raises(UserError, match="data.default_azimuth_deg: expected degrees or auto, got 'north'"):
        complete_place(cfg)


@pytest.mark.parametrize(
    "name, override",
    [
        ("zero123-dino", "tag=t"),
        ("magic123-mini", "system.guidance.pretrained_model_name_or_path=assets/teachers/mini-sd"),
    ],
)
def test_a_teacher_that_is_told_no_camera_is_refused(read, name, override):
    more = [] if name == "zero123-dino" else ["system.prompt_processor.prompt=x"]
    with pytest.raises(UserError, match="default_azimuth_deg: auto needs a text teacher that is told the camera"):
        complete_place(read(override, *more, name=name))
