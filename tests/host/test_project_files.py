"""Configs and assets are found from any folder; what the working folder has goes before."""

import subprocess
import sys
from pathlib import Path

import pytest

from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError
from threestudio.utils.extensions import ENTRY_POINTS
from threestudio.utils.program import program_words
from threestudio.utils.project_files import config_file, project_file, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
TEACHER = "assets/teachers/mini-sd"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_the_project_is_found(elsewhere):
    assert project_file(TEACHER) == str(ROOT / TEACHER)
    library = "custom/turboprop/world/libraries/world_16.json"
    assert project_file(library) == str(ROOT / library)


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/sd",
        "assets/none",
        "assets",
        "assets/../README.md",
        f"./../{TEACHER}",
        "custom/none/x",
        "docs/asd.md",
        "",
    ],
)
def test_other_names_stay_as_they_are(name):
    assert project_file(name) == name


def test_what_the_working_folder_has_goes_before(elsewhere):
    (elsewhere / TEACHER).mkdir(parents=True)
    assert project_file(TEACHER) == TEACHER
    (elsewhere / "asd-nerf.yaml").write_text("seed: 1\n")
    assert config_file("asd-nerf.yaml") == "asd-nerf.yaml"


@pytest.mark.parametrize("name", ["configs/asd-nerf.yaml", "asd-nerf.yaml", "asd-nerf"])
def test_a_config_that_ships_is_found_by_path_or_name(name):
    assert config_file(name) == str(ROOT / "configs" / "asd-nerf.yaml")


def test_a_config_in_a_folder_is_named_with_it():
    assert config_file("longer/asd-nerf") == str(ROOT / "configs" / "longer" / "asd-nerf.yaml")
    assert set(shipped_configs().values()) == set((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", ["asd-nref", "configs/asd-nref.yaml"])
def test_an_unknown_config_names_the_nearest(name):
    with pytest.raises(UserError, match=f"^config not found: {name}; nearest: asd-nerf.yaml"):
        config_file(name)


def test_a_config_says_where_its_files_are(elsewhere):
    given = [
        "exp_root_dir=assets/teachers",
        "data.missing=???",
        f"data.list=[{TEACHER},7]",
        f"system.deep.path={TEACHER}",
    ]
    config = load_config("tag: assets", from_string=True, cli_args=given)
    assert config.data.list == [str(ROOT / TEACHER), 7] and config.system.deep.path == str(ROOT / TEACHER)
    assert config.exp_root_dir == "assets/teachers"  # results never go into the project


def test_programs_are_named_as_a_shell_starts_them(elsewhere, monkeypatch):
    script = elsewhere / "bin" / "command"
    script.parent.mkdir()
    script.write_text("")
    assert program_words("a b/launch.py") == ["python", "a b/launch.py"]
    monkeypatch.setenv("PATH", "")
    assert program_words(str(script)) == [str(script)]
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    assert program_words(str(script)) == ["command"]


PLUGIN = """
import threestudio
from threestudio.utils.base import BaseObject

@threestudio.register("installed-thing")
class Thing(BaseObject):
    pass
"""


def install(folder: Path, name: str, source: str) -> None:
    """A package as pip leaves it, with an entry point."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    (folder / name / "assets").mkdir()
    (folder / name / "assets" / "own.json").write_text("{}")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {name}\n")


def in_a_process(code: str, folder: Path) -> subprocess.CompletedProcess:
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(folder)!r}]\nimport threestudio\n"
    return subprocess.run([sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_an_installed_package_is_a_plugin(elsewhere):
    install(elsewhere, "some_plugin", PLUGIN)
    copy = elsewhere / "custom" / "some_plugin"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("raise RuntimeError('of two plugins with one name the first stays')")
    done = in_a_process(
        "from threestudio.utils.extensions import load_extensions\n"
        "from threestudio.utils.project_files import project_file\n"
        "assert threestudio.find('installed-thing').__module__ == 'some_plugin'\n"
        "assert load_extensions() == [] == load_extensions('custom') == load_extensions('custom')\n"
        "print(project_file('assets/own.json'))\n",
        elsewhere,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(elsewhere / "some_plugin" / "assets" / "own.json")
    assert done.stderr.count(f"{copy / '__init__.py'} is not loaded: plugin 'some_plugin' is that of") == 1


def test_an_installed_plugin_that_fails_says_which_and_why(elsewhere):
    install(elsewhere, "broken_plugin", "import a_module_that_is_not_there")
    done = in_a_process("threestudio.find('anything')", elsewhere)
    assert done.returncode == 1
    assert "plugin 'broken_plugin' (entry point broken_plugin) failed to import: ModuleNotFoundError" in done.stderr
