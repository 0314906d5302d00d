"""Files that the project and its plugins bring, found from any working folder.

Configs name them as they lie in a checkout: `assets/teachers/x`, `configs/x.yaml`, `custom/<plugin>/x.json`. What the
working folder has goes before. Else `assets/` and `configs/` are looked for in the checkout that runs and in the folder
of each plugin, `custom/<plugin>/` in the folder of that plugin, wherever it is installed.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.extensions import IS_CHECKOUT, PROJECT_ROOT, load_extensions, plugin_folders

SHARED = ("assets", "configs")
PLUGINS = "custom"


def _plugins() -> dict[str, Path]:
    load_extensions()  # a module of an installed plugin that runs by itself comes here first
    return plugin_folders()


def _roots() -> list[Path]:
    return [*([PROJECT_ROOT] if IS_CHECKOUT else []), *_plugins().values()]


def _candidates(name: str) -> Iterator[Path]:
    parts = PurePosixPath(name).parts
    if ".." in parts or len(parts) < 2:
        return
    if parts[0] in SHARED:
        yield from (root.joinpath(*parts) for root in _roots())
    elif parts[0] == PLUGINS and parts[1] in (plugins := _plugins()):
        yield plugins[parts[1]].joinpath(*parts[2:])


def project_file(name: str) -> str:
    """The path of a file or folder: `name` itself if it is there or not ours, else where the project has it."""
    if Path(name).exists():
        return name
    return next((str(path) for path in _candidates(name) if path.exists()), name)


def config_file(name: str) -> str:
    """The path of a config file: of the working folder, or one that ships, as `configs/x.yaml`, `x.yaml` or `x`.

    Raises UserError with the nearest names if there is none.
    """
    found = project_file(name)
    if Path(found).exists():
        return found
    shipped = shipped_configs()
    for key in (name, f"{name}.yaml"):
        if key in shipped:
            return str(shipped[key])
    raise UserError(with_suggestion(f"config not found: {name}", name.removeprefix("configs/"), shipped))


def shipped_configs() -> dict[str, Path]:
    """Every config that ships, by its path under `configs/`."""
    found: dict[str, Path] = {}
    for root in _roots():
        for path in sorted((root / "configs").rglob("*.yaml")):
            found.setdefault(path.relative_to(root / "configs").as_posix(), path)
    return found


def find_project_files(node: Any) -> None:
    """Puts the path of each of the project's files, in a config that is resolved, in the place of its name."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key):
            continue
        value = node[key]
        if isinstance(value, str) and value.startswith((*(f"{folder}/" for folder in SHARED), f"{PLUGINS}/")):
            node[key] = project_file(value)
        else:
            find_project_files(value)
