"""Every command that the docs show can be run: through a shell, with --dry-run, and with tiny models for large ones."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import trimesh
from omegaconf import OmegaConf
from PIL import Image
from turboprop.distillation.renders import Renders
from turboprop.novelview import automatic_caption, place_estimate
from turboprop.teachers import GaussianMixtureTeacher, TextCondition

from launch import main, parse_arguments
from tests.documented_commands import ROOT, Block, documented_blocks, documented_python
from tests.tiny_novelview import write_tiny_renders
from threestudio.utils.config import load_config

BLOCKS = documented_blocks()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONE_STEP = ["trainer.max_steps=1", "trainer.limit_test_batches=0", "use_timestamp=false", "tag=trial", "name=made"]
PARTS = ("prompt_processor", "guidance")
SMALL_MODEL = [f"system.{part}.pretrained_model_name_or_path=assets/teachers/mini-sd" for part in PARTS]
COARSE = [
    "magic3d-coarse-sd", *SMALL_MODEL, "system.prompt_processor.prompt=a red car", "data.width=8", "data.height=8",
    "system.renderer.num_samples_per_ray=16", "system.geometry.isosurface_threshold=auto",
]  # fmt: skip
# What trial a page's placeholders stand for.
TRIALS = {
    "README.md": ["asd-3dconv"],
    "docs/gaussians.md": ["fit-gaussians", "data.size=8", "data.n_train_views=2", "data.n_test_views=1"],
    "docs/export.md": ["fit-dmtet", "data.size=8", "data.n_train_views=2", "data.n_test_views=1"],
    "docs/surfaces.md": COARSE,
    "docs/configs.md": COARSE,
}
# Trials that a block's own earlier command would have made, by their folder.
MADE_BEFORE = {"outputs/magic3d-coarse-sd/": "outputs/made/"}


@pytest.fixture()
def project(tmp_path, monkeypatch, text_cache) -> Path:
    """An empty working folder in which the project's own paths lead into it, with the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(automatic_caption, "PROPOSED", 1)  # what auto finds out takes its time
    monkeypatch.setattr(place_estimate, "ELEVATIONS", place_estimate.ELEVATIONS[:2])
    for name in ("configs", "assets", "custom", "benchmarks", "requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_prompts.json").write_text(json.dumps({"train": ["a red chair with blue legs"]}))
    photo = Image.new("RGBA", (32, 32))
    photo.paste((200, 30, 30, 255), (8, 8, 24, 24))
    photo.save(tmp_path / "photo.png")
    trimesh.creation.box((0.8, 0.6, 1.0)).export(tmp_path / "chair.glb")
    (tmp_path / "scene").mkdir()
    Image.new("RGBA", (8, 8)).save(tmp_path / "scene" / "0.png")
    frame = {"file_path": "0.png", "transform_matrix": torch.eye(4).tolist()}
    for split in ("train", "test"):
        content = {"camera_angle_x": 0.7, "frames": [frame]}
        (tmp_path / "scene" / f"transforms_{split}.json").write_text(json.dumps(content))
    refine = OmegaConf.load("configs/magic3d-refine-sd.yaml")
    refine.system.prompt_processor.prompt = "a red car"
    OmegaConf.save(refine, "refine.yaml")
    write_tiny_renders(tmp_path / "outputs" / "world-renders")  # of docs/novelview.md's first command
    return tmp_path


def make_trial(page: str) -> None:
    config, *given = TRIALS[page]
    small = [*ONE_STEP, *given] + (["system.geometry.isosurface_threshold=auto"] if config == "fit-nerf" else [])
    assert main(["--config", f"configs/{config}.yaml", "--train", *small]) == 0


@dataclass(frozen=True)
class TinyModels:
    """Folders of models of three kinds, at tiny size."""

    stable_diffusion: Path
    deep_floyd: Path
    zero123: Path

    def of(self, guidance_type: str) -> Path:
        if guidance_type.startswith("deep-floyd"):
            return self.deep_floyd
        return self.zero123 if "zero123" in guidance_type else self.stable_diffusion


@pytest.fixture()
def tiny(tiny_sd_folder, tiny_if_folder, tiny_zero123_folder) -> TinyModels:
    return TinyModels(tiny_sd_folder, tiny_if_folder, tiny_zero123_folder)


def tiny_overrides(config_files: list[str], overrides: list[str], tiny: TinyModels) -> list[str]:
    """Overrides that put tiny models in the place of those that would have to be fetched."""
    config = OmegaConf.merge(*map(OmegaConf.load, config_files), OmegaConf.from_dotlist(overrides))
    given = []
    for part in ("prompt_processor", "guidance"):
        kind = str(config.system.get(f"{part}_type", ""))
        for key in ("pretrained_model_name_or_path", "pretrained_model_name_or_path_lora"):
            name = OmegaConf.select(config, f"system.{part}.{key}", throw_on_missing=False)
            if name and not Path(str(name)).is_dir():
                given.append(f"system.{part}.{key}={tiny.of(kind)}")
    if given and OmegaConf.select(config, "system.geometry.text_dim") is not None:
        given.append("system.geometry.text_dim=16")  # the tiny model's
    if config.data_type == "turboprop-posed-views-datamodule" and OmegaConf.select(config, "data.caption"):
        given += ["data.size=8", "data.n_train_views=2", "data.n_test_views=1"]  # exact pictures take their time
    return given


def check_launch(words: list[str], tiny: TinyModels, capsys) -> None:
    arguments, overrides = parse_arguments(words)
    overrides = [word.replace(old, new) for word in overrides for old, new in MADE_BEFORE.items()]
    given = parse_arguments(words)[1]
    flags = [word for word in words if word not in given]
    if "path/to/" in " ".join(overrides):  # a model of the reader's own
        load_config(*arguments.config, cli_args=overrides)
        return
    models = tiny_overrides(arguments.config, overrides, tiny)
    dry = [] if arguments.dry_run else ["--dry-run"]
    capsys.readouterr()
    assert main([*flags, *overrides, *dry, *models]) == 0, (words, capsys.readouterr().err)


def check_module(words: list[str], capsys) -> None:
    """The module answers to --help, which names every option of the command."""
    module, options = words[0], [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    found = importlib.import_module(module)
    found = importlib.import_module(f"{module}.__main__") if found.__spec__.submodule_search_locations else found
    with pytest.raises(SystemExit) as stop:
        found.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in options), (words, shown)


def check_command(command: list[str], tiny: TinyModels, capsys) -> None:
    program, *words = command
    if program == "torchrun":
        assert "launch.py" in words, command
        check_launch(words[words.index("launch.py") + 1 :], tiny, capsys)
    elif program == "python" and words[0] == "launch.py":
        check_launch(words[1:], tiny, capsys)
    elif program == "python" and words[0] == "-m" and words[1].startswith("custom."):
        check_module(words[1:], capsys)
    elif program == "python" and words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file(), command
    else:
        files = [words[index + 1] for index, word in enumerate(words) if word == "-r"]
        assert all((ROOT / file).is_file() for file in files), command
        assert program in ("pip", "npm") or words[:2] == ["-m", "pytest"], command


def needs_trial(block: Block) -> bool:
    return "made/" in " ".join(word for command in block.commands() for word in command) or "LAST" in block.text


@pytest.mark.parametrize("block", BLOCKS, ids=map(str, BLOCKS))
def test_a_documented_command_can_be_run(block, project, tiny, capsys):
    if needs_trial(block):
        make_trial(block.page)
    commands = block.commands()
    assert commands
    for command in commands:
        check_command(command, tiny, capsys)
    made = {path.name for path in project.glob("outputs/*")}
    assert made <= {"made", "world-renders"}  # a dry run writes nothing


def test_pages_have_commands():
    pages = {block.page for block in BLOCKS}
    assert {"README.md", "docs/fitting.md", "docs/guidance.md", "docs/configs.md", "configs/asd-nerf.yaml"} <= pages
    (empty,) = [command for block in BLOCKS for command in block.commands() if "data.caption=" in command]
    assert "data.train_file=scene/transforms_train.json" in empty  # the shell has taken the quotes


def imports_of(source: str) -> list[str]:
    return [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_documented_python_parses_and_its_imports_are_there(page):
    for source in documented_python(page):
        scope: dict = {}
        for line in imports_of(source):
            exec(line, scope)  # of our own pages
        called = set(re.findall(r"(?<![.\w])([A-Za-z_]\w*)\(", source)) & set(scope)
        assert all(callable(scope[name]) for name in called), page


def test_documented_imports_work_in_a_checkout():
    """There nobody has loaded the plugin under its other name, as this process has."""
    lines = list(
        dict.fromkeys(line for page in PAGES for source in documented_python(page) for line in imports_of(source))
    )
    assert any("custom.turboprop" in line for line in lines)
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_functions_of_the_guidance_page_run():
    """docs/guidance.md, "In code": after its import line, any method takes a teacher, latents and conditions."""
    (source,) = [text for text in documented_python(ROOT / "docs/guidance.md") if "METHODS" in text]
    scope: dict = {}
    exec(source, scope)
    assert {"asd", "sds", "csd", "sjc"} <= set(scope["METHODS"])
    assert scope["METHODS"]["sds"] is importlib.import_module("turboprop.distillation").METHODS["sds"]
    assert callable(scope["sdi_gradient"]) and callable(scope["vsd_gradient"])
    teacher = GaussianMixtureTeacher(torch.zeros(1, 1, 2, 2), [1.0])
    about, times = TextCondition(torch.ones(3, 1, 1)), torch.tensor([100, 500, 900])
    latents, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    query = scope["Query"](teacher, latents, scope["Conditions"](about, about), times, noise, times, 1.0)
    for method in scope["METHODS"].values():
        gradient = method(query).gradient
        assert gradient.shape == latents.shape and gradient.isfinite().all()
    renders = Renders(None, latents.requires_grad_())
    distilled = scope["distill"]("sds", scope["METHODS"]["sds"], query, renders)
    (gradient,) = torch.autograd.grad(distilled.output["loss_sds"], latents)
    torch.testing.assert_close(gradient, scope["METHODS"]["sds"](query).gradient / 3)
