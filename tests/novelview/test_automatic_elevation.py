"""auto in a config: which keys get the estimate, which model draws for it, and when it is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from turboprop.novelview.automatic_elevation import complete_elevation

from tests.tiny_pictures import ball_pixels, save_posed
from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture()
def read(ball_picture, tiny_zero123_folder, tiny_zero123_unified_folder):
    """A shipped config with the ball, a tiny model and auto."""

    def read(name, *more):
        unified = name.startswith("magic123")
        part = "guidance_3d" if unified else "guidance"
        model = tiny_zero123_unified_folder if unified else tiny_zero123_folder
        given = [
            f"data.image_path={ball_picture}",
            f"system.{part}.pretrained_model_name_or_path={model}",
            "data.default_elevation_deg=auto",
            "tag=t",
            *(["system.prompt_processor.prompt='a ball'"] if unified else []),
        ]
        return load_config(str(CONFIGS / f"{name}.yaml"), cli_args=[*given, *more])

    return read


@pytest.mark.parametrize(
    "name, guidance",
    [("zero123-dino", "guidance"), ("zero123", "guidance"), ("magic123-coarse-sd", "guidance_3d")],
)
def test_each_key_gets_the_estimate(name, guidance, read, tmp_path):
    cfg = read(name)
    record = complete_elevation(cfg)
    elevation = cfg.data.default_elevation_deg
    assert isinstance(elevation, float) and -10 <= elevation <= 60
    assert cfg.system[guidance].cond_elevation_deg == cfg.data.random_camera.eval_elevation_deg == elevation
    assert "auto" not in OmegaConf.to_yaml(cfg).replace("mode: auto", "")
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    record(saver)
    saved = json.loads((tmp_path / "elevation.json").read_text())
    assert saved["elevation_deg"] == elevation and len(saved["scores"]) == len(saved["candidates_deg"]) == 15
    with Image.open(tmp_path / "elevation.png") as picture:
        assert picture.size == (len(saved["views"]) * 32, 3 * 32)
        first = np.asarray(picture)[:, :32]
    assert first[16, 16].tolist() != [255, 255, 255] and first[48, 16].tolist() == [255, 255, 255]  # ball, silhouette


def test_a_number_is_left_alone(read):
    cfg = read("zero123-dino", "data.default_elevation_deg=12", "system.guidance.pretrained_model_name_or_path=none")
    assert complete_elevation(cfg) is None
    assert cfg.data.default_elevation_deg == cfg.system.guidance.cond_elevation_deg == 12


def test_the_guidance_alone_may_say_auto(read):
    cfg = read("zero123-dino", "data.default_elevation_deg=12", "system.guidance.cond_elevation_deg=auto")
    assert complete_elevation(cfg) is not None
    assert cfg.data.default_elevation_deg == 12 and isinstance(cfg.system.guidance.cond_elevation_deg, float)


def test_of_several_pictures_the_first_ones_elevation_is_taken(read, tmp_path):
    save_posed(tmp_path, [ball_pixels()] * 2, [-5.0, 20.0], [30.0, 120.0])
    cfg = read("zero123-dino", f"data.image_path={tmp_path}")
    assert complete_elevation(cfg) is None  # nothing was estimated, so there is nothing to keep
    assert cfg.data.default_elevation_deg == pytest.approx(-5.0) == cfg.system.guidance.cond_elevation_deg


REFUSED = {
    "no picture in a folder": (["data.image_path={folder}"], "has no picture with its camera"),
    "no novel-view model": (
        ["system.guidance_type=stable-diffusion-guidance"],
        "auto needs a guidance with a novel-view model",
    ),
    "a model that is told the elevation": (
        ["system.guidance_type=stable-zero123-guidance"],
        "is told the picture's elevation; give it in degrees",
    ),
    "an azimuth that nobody can find": (["data.default_azimuth_deg=auto"], "default_azimuth_deg: auto needs a text"),
    "an unknown key": (["system.guidance.cond_elevation=1"], "unknown key 'system.guidance.cond_elevation'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, read, tmp_path):
    changes, message = REFUSED[case]
    cfg = read("zero123-dino", *(change.format(folder=tmp_path) for change in changes))
    with pytest.raises(UserError, match=message):
        complete_elevation(cfg)
