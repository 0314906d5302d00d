"""The host imports nothing of the plugin and knows none of its names: what must reach back goes through a registry."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import threestudio
from tests.host.launches import ROOT
from threestudio.models.exporters.formats import export_format_names, find_export_format
from threestudio.utils.extensions import extension_files, load_extensions

HOST = sorted((ROOT / "threestudio").rglob("*.py"))
PLUGINS = sorted(extension_files(ROOT / "custom"))


def names_of_the_plugin():
    """What the bundled plugins register: modules, and formats of the exporter."""
    load_extensions()
    names = {name for name, cls in threestudio.__modules__.items() if cls.__module__.split(".")[0] in PLUGINS}
    find_export_format("3dgs-ply")
    return names | set(export_format_names())


def strings_of(tree):
    """String constants that are no docstrings, with their lines."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and node.body
                  and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@pytest.mark.parametrize("file", HOST, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_of_a_plugin(file):
    for node in ast.walk(ast.parse(file.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for module in modules:
            assert not {*module.split(".")} & {*PLUGINS, "custom"}, f"{file}:{node.lineno} imports {module}"


def test_no_name_of_a_plugin_in_the_host():
    names = names_of_the_plugin()
    assert {"gaussian-splatting", "3dgs-ply"} <= names and len(names) > 30
    found = []
    for file in HOST:
        for line, text in strings_of(ast.parse(file.read_text())):
            words = set(re.findall(r"[\w-]+", text))
            found += [f"{Path(file).relative_to(ROOT)}:{line} {name}" for name in sorted(words & {*names, *PLUGINS})]
    assert not found


def test_the_host_runs_alone():
    """In a process where no plugin can be found, the host imports, and says that it does not know their names."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import threestudio, threestudio.utils.extensions as extensions\n"
        "from pathlib import Path; extensions.BUNDLED_FOLDER = Path('nowhere'); extensions.ENTRY_POINTS = 'none'\n"
        "from threestudio.models.exporters.formats import find_export_format\n"
        "assert find_export_format('3dgs-ply') is None\n"
        "assert not {'turboprop', 'custom'} & {name.split('.')[0] for name in sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
