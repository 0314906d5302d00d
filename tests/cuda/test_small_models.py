"""The recipes of the small models on a CUDA device: a step, its checkpoint, and the held-out figures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from turboprop.evaluation.clip_metrics import load_judge
from turboprop.novelview.image_encoders import ImageEncoder, read_encoder
from turboprop.small_models.recipes import mini_dino, mini_mv, mini_novelview, mini_sd
from turboprop.small_models.recipes.mini_vae import MiniAutoencoder
from turboprop.small_models.sample_figures import SampleFigures
from turboprop.small_models.settings import Settings, pipeline_of
from turboprop.small_models.training import TrainingOptions, train
from turboprop.world.dataset import build_view_bank
from turboprop.world.tokenizer import build_tokenizer

ASSETS = Path(__file__).resolve().parents[2] / "assets"
KINDS = ("chair", "duck")


@pytest.fixture(scope="module")
def bank():
    return build_view_bank(4, 0, turns=4)


def mini_mv_recipe(bank, device, folder):
    base = pipeline_of(ASSETS / "teachers/mini-sd", device)
    judge = load_judge(ASSETS / "judges/mini-clip")
    measure = SampleFigures(base.vae, judge, mini_mv.PREDICTION_TYPE, mini_mv.CAMERA_ENCODING, num_steps=2, kinds=KINDS)
    return mini_mv.MiniMultiView(bank, base, 1, 8, 10, 0, measure)


def mini_sd_recipe(bank, device, folder):
    base = pipeline_of(ASSETS / "teachers/mini-sd", device)
    settings = Settings(folder, folder, device, 0)
    return mini_sd.MiniTextToImage(bank, base.vae, build_tokenizer(folder / "tokenizer"), 4, 8, 10, settings)


def mini_vae_recipe(bank, device, folder):
    return MiniAutoencoder(bank, 4, 0, device)


def mini_dino_recipe(bank, device, folder):
    return mini_dino.MiniDino(bank, 4, 2, 0, device)


def mini_novelview_recipe(bank, device, folder):
    base = pipeline_of(ASSETS / "teachers/mini-sd", device)
    encoder: ImageEncoder = read_encoder(ASSETS / "encoders/mini-dino")
    plan = mini_novelview.FigurePlan(objects=2, views=2, sampling_steps=2, bins=2)
    return mini_novelview.MiniNovelView(bank, base, encoder, 4, 0, plan)


RECIPES = {
    "mini-mv": mini_mv_recipe,
    "mini-sd": mini_sd_recipe,
    "mini-vae": mini_vae_recipe,
    "mini-dino": mini_dino_recipe,
    "mini-novelview": mini_novelview_recipe,
}


SLOW = ("mini-sd",)  # mini-mv goes through most of what it does


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RECIPES]
)
def test_it_trains_there(name, bank, on_cuda, tmp_path, monkeypatch):
    for recipe in (mini_mv, mini_sd):
        monkeypatch.setattr(recipe, "FIGURE_STEPS", 2)
    monkeypatch.setattr(mini_sd, "FIGURE_KINDS", KINDS)
    monkeypatch.setattr(mini_novelview, "POOL_OBJECTS", 8)
    monkeypatch.setattr(mini_dino, "FIGURE_OBJECTS", 4)
    device = torch.device("cuda")
    recipe = RECIPES[name](bank, device, tmp_path)
    options = TrainingOptions(steps=2, learning_rate=1e-3, bfloat16=True, figures_every=2, checkpoint_every=1)
    before = [p.detach().clone() for module in recipe.modules.values() for p in module.parameters()]
    averages, state = train(recipe, options, tmp_path / "work", lambda line: None)
    after = [p for module in recipe.modules.values() for p in module.parameters()]
    assert state.step == 2 and (tmp_path / "work/last.pt").is_file()
    assert all(p.device.type == "cuda" for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    assert all(value == value for value in state.history[-1].values())  # no figure is NaN
    assert on_cuda.was_used()


class Curve:
    """A small network fits a curve of noisy draws."""

    name = "curve"

    def __init__(self) -> None:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))
        self.modules: dict[str, torch.nn.Module] = {"network": network.cuda()}

    def loss(self, step: int, generator: torch.Generator):
        x = torch.randn(64, 1, generator=generator).cuda()
        return (self.modules["network"](x) - x.sin()).square().mean(), {}

    def figures(self, averages, folder: Path, step: int):
        return {}


@pytest.mark.gpu
def test_kernels_recorded_in_a_graph_train_to_the_same_weights(tmp_path):
    plain = TrainingOptions(steps=12, learning_rate=1e-2, warmup=2)
    weights = []
    for options in (plain, replace(plain, compiled=True)):
        averages, _ = train(Curve(), options, tmp_path / str(options.compiled), lambda line: None)
        weights.append([p.detach().cpu() for p in averages["network"].parameters()])
    for ours, theirs in zip(*weights):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
