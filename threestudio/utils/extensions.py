"""Loading of plugins: those under `custom/`, and installed packages that say they are one.

Each folder under `custom/` with an `__init__.py`, and each `.py` file, whose name does not end in `_disabled` is one
plugin. It is loaded under the module name of its own basename, as threestudio does it, so that a
plugin's relative imports work and its folder needs to be on no path.

An installed package is a plugin if its metadata has an entry point of the group `threestudio.plugins`, whose name is
the plugin's and whose value is the module to import. Of two plugins with one name the first one loaded stays: those
beside the threestudio package go before installed ones, and these before those of the working folder.

A plugin has one identity: `turboprop` and `custom.turboprop`, as Python itself finds it from the project's root, are
one module, and so are their submodules. Whichever name is imported first, nothing is executed or registered twice.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import threestudio

PROJECT_ROOT = Path(__file__).resolve().parents[2]  # of a checkout; of an installation, the folder of all packages
IS_CHECKOUT = (PROJECT_ROOT / "pyproject.toml").is_file()
BUNDLED_FOLDER = PROJECT_ROOT / "custom"
ENTRY_POINTS = "threestudio.plugins"

_loaded: dict[str, Path] = {}  # name of a plugin -> its file; a plugin is loaded once a process
_left_out: set[Path] = set()  # files whose name another plugin has, said once


class ExtensionError(ImportError):
    """A plugin that fails to import, meant for the user. Its cause is the plugin's own exception."""


class _OneIdentity(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a plugin's modules under a second name, as the modules that they are under their first."""

    def __init__(self) -> None:
        self.first_names: dict[str, str] = {}  # second name of a plugin -> its first

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for second, first in self.first_names.items():
            if fullname == second or fullname.startswith(f"{second}."):
                return importlib.machinery.ModuleSpec(fullname, self, origin=first + fullname[len(second) :])
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__  # which the import system is about to replace by `spec`
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # it has been executed under its first name


_one_identity = _OneIdentity()


def _is_one_module(first: str, second: str) -> None:
    """From now on `second`, and what is in it, is the module `first`."""
    if _one_identity not in sys.meta_path:
        sys.meta_path.insert(0, _one_identity)  # before those that look into folders
    _one_identity.first_names[second] = first


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


def _imported_already(file: Path) -> str | None:
    """The name under which Python has the plugin of this file, or is importing it now."""
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "") == str(file):
            return name
    return None


def _where(error: Exception) -> str:
    """File and line of the last call that an error went through."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def _failed(name: str, source: str, error: Exception) -> ExtensionError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ExtensionError(f"plugin '{name}' ({source}) failed to import: {reason} ({_where(error)})")


def _names_of(name: str, file: Path) -> list[str]:
    """The names under which a plugin may be imported: its own, and that in its folder as a package."""
    folder = file.parent.parent if file.name == "__init__.py" else file.parent
    return [name, f"{folder.name}.{name}"] if folder.name.isidentifier() else [name]


def _load_file(name: str, file: Path) -> None:
    found = _imported_already(file)
    if found is None:
        _execute(name, file)
    first = found or name
    for other in _names_of(name, file):
        if other != first:
            _is_one_module(first, other)


def _execute(name: str, file: Path) -> None:
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
        raise _failed(name, str(file), error) from error


def _load_installed(point: EntryPoint) -> None:
    """Imports the module that an installed package names as its plugin."""
    try:
        module = point.load()
    except Exception as error:
        _loaded.pop(point.name, None)  # which a find() on the way has set
        raise _failed(point.name, f"entry point {point.value}", error) from error
    _loaded[point.name] = Path(module.__file__)


def plugin_folders() -> dict[str, Path]:
    """The folder of every loaded plugin that is a package, by its name."""
    return {name: file.parent for name, file in _loaded.items() if file.name == "__init__.py"}


def load_extensions(folder: Path | None = None) -> list[str]:
    """Loads every plugin in `folder` that is not loaded yet; returns the names of the new ones.

    Without a folder: those in the one beside the threestudio package, then installed ones. Raises ExtensionError.
    """
    if folder is not None:
        return _load_folder(Path(folder).resolve())
    new = _load_folder(BUNDLED_FOLDER) if IS_CHECKOUT else []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        if point.name not in _loaded:
            _load_installed(point)
            new.append(point.name)
    return new


def _load_folder(folder: Path) -> list[str]:
    new = []
    for name, file in extension_files(folder).items():
        if name in _loaded:
            if _loaded[name] != file and file not in _left_out:
                _left_out.add(file)
                threestudio.warn(f"{file} is not loaded: plugin '{name}' is that of {_loaded[name]}")
            continue
        _loaded[name] = file  # before its import: a plugin may itself call threestudio.find
        try:
            _load_file(name, file)
        except ExtensionError:
            del _loaded[name]
            raise
        new.append(name)
    return new
