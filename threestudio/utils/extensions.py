"""Loading of the plugins under `custom/`.

Each folder with an `__init__.py`, and each `.py` file, whose name does not end in `_disabled` is one
plugin. It is loaded under the module name of its own basename, as threestudio does it, so that a
plugin's relative imports work and its folder needs to be on no path.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Optional

BUNDLED_FOLDER = Path(__file__).resolve().parents[2] / "custom"

_loaded: dict[Path, str] = {}  # plugin file -> module name; a plugin is loaded once a process


class ExtensionError(ImportError):
    """A plugin that fails to import. Its cause is the plugin's own exception."""


def extension_files(folder: Path) -> dict[str, Path]:
    """Module name -> file to execute, for every enabled plugin in `folder`, sorted by name."""
    if not folder.is_dir():
        return {}
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "_")) or entry.stem.endswith("_disabled"):
            continue
        if entry.is_dir() and (entry / "__init__.py").is_file():
            found[entry.name] = entry / "__init__.py"
        elif entry.suffix == ".py":
            found[entry.stem] = entry
    return found


def _load_file(name: str, file: Path) -> None:
    is_package = file.name == "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)] if is_package else None
    )
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExtensionError(f"plugin '{name}' ({file}) failed to import: {reason}") from error


def load_extensions(folder: Optional[Path] = None) -> list[str]:
    """Loads every plugin in `folder` that is not loaded yet; returns the names of the new ones.

    Without a folder: the one beside the threestudio package. Raises ExtensionError.
    """
    folder = Path(folder).resolve() if folder is not None else BUNDLED_FOLDER
    new = []
    for name, file in extension_files(folder).items():
        if file in _loaded:
            continue
        _loaded[file] = name  # before its import: a plugin may itself call threestudio.find
        try:
            _load_file(name, file)
        except ExtensionError:
            del _loaded[file]
            raise
        new.append(name)
    return new
