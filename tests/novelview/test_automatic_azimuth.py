"""The side that a picture shows: of exact pictures near the truth, by auto in a config, and who is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from turboprop.fitting.posed_views import world_views
from turboprop.novelview.automatic_azimuth import complete_azimuth
from turboprop.novelview.azimuth_estimate import (
    TIMESTEP_SHARES,
    PicturePlace,
    cameras_around,
    denoising_errors,
    estimate_azimuth,
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
PLACE = PicturePlace(elevation=15.0, distance=2.7, fovy_deg=40.0)


def picture_of(spec: ObjectSpec, azimuth: float) -> torch.Tensor:
    """The object as RGBA [64, 64, 4], straight alpha."""
    camera = orbit_c2w(torch.tensor([PLACE.elevation]), torch.tensor([azimuth]), torch.tensor([PLACE.distance]))
    views = world_views(spec, camera, math.radians(PLACE.fovy_deg), 64)
    return torch.cat([views.rgb[0] / views.coverage[0].clamp_min(1e-6), views.coverage[0]], dim=-1).clamp(0, 1)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(MINI_MV, "cpu")


@pytest.mark.parametrize("azimuth", [-110.0, 40.0])
def test_an_exact_picture_is_told_to_a_few_degrees_and_always_the_same(teacher, azimuth):
    rgba = picture_of(CAR, azimuth)
    picture = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]).permute(2, 0, 1)
    embeddings = encode_prompts(MINI_MV, [caption(CAR)]).local_embeddings
    torch.manual_seed(5)
    estimate = estimate_azimuth(teacher, picture, embeddings, PLACE)
    assert estimate.azimuth == pytest.approx(azimuth, abs=8.0)
    assert len(estimate.errors) == 24 and min(estimate.errors) < 0.8 * sum(estimate.errors) / 24
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after  # it draws from no global generator
    assert estimate_azimuth(teacher, picture, embeddings, PLACE) == estimate


def test_the_error_of_a_point_is_its_distance_over_the_noise():
    """All pictures equal mu: noise is told as (x - sqrt(a) mu) / sqrt(1 - a), off by sqrt(a / (1 - a)) at mu + 1."""
    mean = torch.full((1, 2, 4, 4), 0.5)
    teacher = GaussianMixtureTeacher(mean, [0.0])
    cameras = cameras_around(PLACE, torch.tensor([0.0, 90.0, 180.0]))
    at_mean, beside = (denoising_errors(teacher, latents, torch.ones(1, 1, 1), cameras) for latents in (mean, mean + 1))
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
    cfg = read(f"system.prompt_processor.prompt='{caption(CAR)}'")
    record = complete_azimuth(cfg)
    azimuth = cfg.data.default_azimuth_deg
    assert azimuth == pytest.approx(40.0, abs=8.0) and cfg.system.guidance_3d.cond_azimuth_deg == azimuth
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    record(saver)
    saved = json.loads((tmp_path / "azimuth.json").read_text())
    assert saved["azimuth_deg"] == azimuth and len(saved["errors"]) == len(saved["candidates_deg"]) == 24


def test_a_given_azimuth_stays(read):
    assert complete_azimuth(read("data.default_azimuth_deg=12", "system.prompt_processor.prompt=x")) is None


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
        complete_azimuth(read(override, *more, name=name))
