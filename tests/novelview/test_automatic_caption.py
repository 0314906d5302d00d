"""The caption of a picture that the judge reads: of exact pictures the right one, and who is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from turboprop.evaluation.clip_metrics import load_judge
from turboprop.evaluation.report import world_gallery
from turboprop.fitting.posed_views import world_views
from turboprop.novelview import automatic_caption
from turboprop.novelview.automatic_caption import CaptionReading, chosen_by, complete_caption, read_caption
from turboprop.novelview.place_estimate import PicturePlace
from turboprop.teachers import load_teacher
from turboprop.teachers.text import encode_prompts
from turboprop.world.cameras import orbit_c2w
from turboprop.world.captions import ObjectSpec, caption

from tests.tiny_pictures import ball_pixels
from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

ROOT = Path(__file__).resolve().parents[2]
SPECS = [
    ObjectSpec("boat", "brown", "black"),
    ObjectSpec("mug", "purple", "black"),
    ObjectSpec("tree", "red", "orange"),
]


def picture_of(spec: ObjectSpec) -> torch.Tensor:
    """The object as RGBA [96, 96, 4], straight alpha."""
    place = (torch.tensor([angle]) for angle in (15.0, 30.0, 2.7))
    views = world_views(spec, orbit_c2w(*place), math.radians(40), 96)
    return torch.cat([views.rgb[0] / views.coverage[0].clamp_min(1e-6), views.coverage[0]], dim=-1).clamp(0, 1)


@pytest.fixture()
def read(tmp_path):
    """The config with a picture of the first object, and auto."""
    path = tmp_path / "picture.png"
    Image.fromarray((picture_of(SPECS[0]) * 255).round().to(torch.uint8).numpy()).save(path)

    def read(*more: str):
        given = [f"data.image_path={path}", "system.prompt_processor.prompt=auto", *more]
        return load_config(str(ROOT / "configs" / "magic123-mini.yaml"), cli_args=given)

    return read


@pytest.mark.parametrize("spec", SPECS, ids=caption)
def test_an_exact_picture_has_its_own_caption(spec):
    reading = read_caption(load_judge(ROOT / "assets/judges/mini-clip"), picture_of(spec), world_gallery())
    assert reading.captions[0] == caption(spec)
    assert len(set(reading.captions)) == 6 and list(reading.cosines) == sorted(reading.cosines, reverse=True)


@pytest.mark.parametrize("known", [True, False])
def test_a_teacher_that_is_told_the_camera_chooses_the_right_one(known):
    """Among captions of the same colours, in a wrong order."""
    name = str(ROOT / "assets/teachers/mini-mv")
    teacher = load_teacher(name, "cpu")
    captions = ("a brown snowman with a black hat", caption(SPECS[0]))
    embeddings = encode_prompts(name, captions).local_embeddings
    place = PicturePlace(*((15.0, 30.0) if known else (None, None)), distance=2.7, fovy_deg=40.0)
    reading = chosen_by(teacher, picture_of(SPECS[0]), CaptionReading(captions, (0.9, 0.7)), embeddings, place)
    assert reading.captions[0] == caption(SPECS[0]) and reading.cosines[0] == 0.7
    assert set(reading.captions) == set(captions) and list(reading.errors) == sorted(reading.errors)
    assert reading.errors[0] < 0.7 * reading.errors[1]


def test_the_config_gets_the_caption_and_the_trial_a_record(read, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(automatic_caption, "PROPOSED", 2)
    cfg = read()
    with caplog.at_level("WARNING"):
        record = complete_caption(cfg)
    assert not caplog.text
    assert cfg.system.prompt_processor.prompt == caption(SPECS[0])
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    record(saver)
    saved = json.loads((tmp_path / "caption.json").read_text())
    assert saved["captions"][0] == caption(SPECS[0])
    assert [len(saved[key]) for key in ("captions", "cosines", "errors")] == [2, 2, 2]


def test_a_picture_of_nothing_that_the_models_know_is_told(read, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(automatic_caption, "PROPOSED", 1)
    stripes = (np.mgrid[:96, :96].sum(0) // 6 % 2)[..., None] * np.array([160, 90, 250])
    alpha = ball_pixels(96, 40.0, (48.0, 48.0))[..., 3:]
    path = tmp_path / "stripes.png"
    Image.fromarray(np.concatenate([stripes.astype(np.uint8), alpha], -1)).save(path)
    with caplog.at_level("WARNING"):
        complete_caption(read(f"data.image_path={path}"))
    assert "no caption that the judge knows explains the picture" in caplog.text


def test_a_given_caption_stays(read):
    cfg = read("system.prompt_processor.prompt=a green boat")
    assert complete_caption(cfg) is None and cfg.system.prompt_processor.prompt == "a green boat"


@pytest.mark.parametrize(
    "override, message",
    [
        ("system.evaluation.judge=''", "read by the model that system.evaluation.judge names"),
        (
            "system.guidance_3d_type=turboprop-sds-guidance",
            "needs a guidance with a novel-view model",
        ),
    ],
)
def test_who_is_refused(read, override, message):
    with pytest.raises(UserError, match=message):
        complete_caption(read(override))
