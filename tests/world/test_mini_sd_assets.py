"""The shipped teacher: opened as any Stable Diffusion, small, and good at the world."""

from pathlib import Path

import pytest
import torch

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MINI_SD, JUDGE = ASSETS / "teachers" / "mini-sd", ASSETS / "judges" / "mini-clip"
PROMPTS = [
    "a red mushroom with a white stem",
    "a blue chair with orange legs",
    "a yellow car with black wheels",
    "a green robot with purple arms",
]

pytestmark = pytest.mark.skipif(
    not (MINI_SD / "model_index.json").is_file(), reason="this checkout has no assets/teachers/mini-sd"
)


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    opened = StableDiffusionPipeline.from_pretrained(MINI_SD, torch_dtype=torch.float32)
    opened.set_progress_bar_config(disable=True)
    return opened


def draw(pipeline, prompts: list[str], seed: int, steps: int = 20) -> torch.Tensor:
    """Pictures [N, 3, 64, 64] in [0, 1]."""
    images = pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_opens_and_is_of_the_classes_of_stable_diffusion(pipeline):
    names = {part: type(getattr(pipeline, part)).__name__ for part in ("unet", "vae", "text_encoder", "tokenizer")}
    assert names["unet"] == "UNet2DConditionModel" and names["vae"] == "AutoencoderKL"
    assert names["text_encoder"] == "CLIPTextModel" and names["tokenizer"].startswith("CLIPTokenizer")
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert (MINI_SD / "README.md").is_file()


def test_weights_are_small_and_safe():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 36 * 2**20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_samples_are_deterministic(pipeline):
    first, second = (draw(pipeline, PROMPTS[:1], seed=3, steps=2) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(pipeline, PROMPTS[:1], seed=4, steps=2))


@pytest.mark.skipif(not (JUDGE / "config.json").is_file(), reason="this checkout has no assets/judges/mini-clip")
def test_samples_are_what_their_captions_say(pipeline):
    """Two samples of each caption; the judge picks each caption out of the sixteen of the main job."""
    from turboprop.evaluation.clip_metrics import clip_scores, load_judge
    from turboprop.world.captions import caption
    from turboprop.world.library import SIXTEEN

    pictures = torch.stack([draw(pipeline, PROMPTS, seed) for seed in (0, 1)], 1)  # [P, V, 3, 64, 64]
    scores = clip_scores(load_judge(JUDGE), PROMPTS, pictures, gallery=[caption(spec) for spec in SIXTEEN])
    assert scores.r_at_1 == [1.0] * len(PROMPTS), scores
