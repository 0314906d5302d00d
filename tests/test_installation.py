"""What `pip install .` gives: a wheel with all that is used, and a command that works from any folder.

The wheel is built by this environment's setuptools and goes into a virtual environment of its own, which finds the
requirements where this one has them.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("threestudio", "custom/turboprop", "configs", "assets")


def files_under(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess:
    names = ("PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what it is built from, so that nothing is left in the project."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    single = [ROOT / name for name in ("launch.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")]
    single += sorted(ROOT.glob("requirements*.txt"))
    for path in [*single, *(path for folder in BUILT_FROM for path in files_under(folder))]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path, target)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", output]
    done = run(*pip, source, folder=source)
    assert done.returncode == 0, done.stderr
    (found,) = output.glob("turboprop-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel and, by a path, this environment's packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    done = run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        programs / "python",
        "install",
        "--quiet",
        "--no-deps",
        wheel,
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    (packages,) = {path.parent for path in folder.rglob("threestudio") if path.parent.name == "site-packages"}
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return programs


def test_the_wheel_has_every_file_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    placed = {"threestudio": "threestudio", "custom/turboprop": "turboprop"}
    placed |= {folder: f"turboprop/{folder}" for folder in ("configs", "assets")}
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in placed.items()
        for path in files_under(folder)
    }
    assert names == expected | {"turboprop_command/launch.py"}


def requirements_of(name: str) -> set[str]:
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / name).read_text().splitlines())
    return {str(Requirement(line)) for line in lines if line}


def test_the_wheel_requires_what_the_requirements_files_do(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    required: dict[str, set[str]] = {"": set(), "dev": set(), "gpu": set()}
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        requirement.marker = None
        required[extra.group(1) if extra else ""].add(str(requirement))
    assert required[""] == requirements_of("requirements.txt") and len(required[""]) > 20
    assert required["dev"] == requirements_of("requirements-dev.txt")
    assert required["gpu"] == requirements_of("requirements-gpu.txt")
    assert metadata["Version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_command_trains_by_the_name_of_a_config_from_any_folder(installed, tmp_path):
    """With assets and prompts that the package brings; the folder has a plugin and a changed config of its own."""
    plugin = tmp_path / "custom" / "own_plugin.py"
    plugin.parent.mkdir()
    plugin.write_text('print("own plugin", __name__)\n')
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    given = ["--config", "configs/asd-nerf.yaml", "--config", "mine.yaml", "--train", "--dry-run"]
    done = run(installed / "turboprop", *given, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "own plugin own_plugin" in done.stdout
    config = OmegaConf.create(done.stdout.split("own plugin own_plugin\n")[1])
    assert config.seed == 7
    teacher = Path(config.system.guidance.pretrained_model_name_or_path)
    assert teacher.parts[-4:] == ("turboprop", "assets", "teachers", "mini-mv") and installed.parent in teacher.parents
    assert Path(config.system.evaluation.gallery).is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["custom", "mine.yaml"]


def test_the_command_leaves_a_whole_trial_that_names_the_package(installed, tmp_path):
    small = ["data.size=8", "data.n_train_views=2", "data.n_test_views=1", "system.evaluation.judge="]
    stop = ["trainer.max_steps=1", "trainer.limit_test_batches=0", "tag=trial", "use_timestamp=false"]
    done = run(installed / "turboprop", "--config", "fit-gaussians", "--train", *small, *stop, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    trial = tmp_path / "outputs" / "fit-gaussians" / "trial"
    assert (trial / "ckpts" / "last.ckpt").is_file() and (trial / "configs" / "raw.yaml").is_file()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (trial / "code" / "installed.txt").read_text() == f"turboprop=={version}\n"
    assert (trial / "cmd.txt").read_text().startswith(f"{installed / 'turboprop'} --config fit-gaussians --train ")


def test_the_command_helps_at_once_and_says_what_is_wrong(installed, tmp_path):
    code = (
        "import sys; from turboprop_command.launch import main; assert main(['--help']) == 0\n"
        "assert not {'torch', 'numpy', 'omegaconf', 'threestudio'} & set(sys.modules)\n"
    )
    assert run(installed / "python", "-c", code, folder=tmp_path).returncode == 0
    shown = run(installed / "turboprop", "--help", folder=tmp_path)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: turboprop ")
    done = run(installed / "turboprop", "--config", "asd-nref", "--train", folder=tmp_path)
    assert done.returncode == 2
    assert "error: config not found: asd-nref; nearest: asd-nerf.yaml" in done.stderr


def test_the_packages_modules_run_by_their_name(installed, tmp_path):
    done = run(installed / "python", "-m", "turboprop.evaluation.check_judge", "--by-kind", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "R@1" in done.stdout


def test_a_checkout_is_used_whole_where_the_package_is_installed_as_well(installed, tmp_path):
    """From a checkout, `python launch.py` takes its own host and plugin, never half of each."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import threestudio\n"
        "from threestudio.utils.extensions import load_extensions, plugin_folders\n"
        "load_extensions(); print(threestudio.__file__, plugin_folders()['turboprop'], sep='\\n')\n"
        "import custom.turboprop, turboprop; assert turboprop is custom.turboprop\n"
    )
    done = run(installed / "python", "-c", code, ROOT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / "threestudio" / "__init__.py"), str(ROOT / "custom" / "turboprop")]
