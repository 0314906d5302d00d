"""The caption of a picture that the judge reads: of exact pictures the right one, and who is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from turboprop.evaluation.clip_metrics import load_judge
from turboprop.evaluation.report import world_gallery
from turboprop.fitting.posed_views import world_views
from turboprop.novelview.automatic_caption import complete_caption, read_caption
from turboprop.world.cameras import orbit_c2w
from turboprop.world.captions import ObjectSpec, caption

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
    assert len(set(reading.captions)) == 3 and list(reading.cosines) == sorted(reading.cosines, reverse=True)


def test_the_config_gets_the_caption_and_the_trial_a_record(read, tmp_path):
    cfg = read()
    record = complete_caption(cfg)
    assert cfg.system.prompt_processor.prompt == caption(SPECS[0])
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path))
    record(saver)
    assert json.loads((tmp_path / "caption.json").read_text())["captions"][0] == caption(SPECS[0])


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
        ("data.image_path=.", "is for a single picture"),
    ],
)
def test_who_is_refused(read, override, message):
    with pytest.raises(UserError, match=message):
        complete_caption(read(override))
