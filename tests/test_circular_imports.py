"""No module of the host or of the plugin imports, by any way round, a module that imports it.

Read from the source, so imports inside of functions and under TYPE_CHECKING count too: a late import hides a circle.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"threestudio": ROOT / "threestudio", "turboprop": ROOT / "custom" / "turboprop"}
# `import threestudio` is how upstream's plugins, and this host's own modules, reach the registry and the log. The root
# package defines those first and imports its rooms last, so what a room asks of it is there by then.
REGISTRY = "threestudio"


def modules_of(packages: dict[str, Path]) -> dict[str, Path]:
    """Files by the dotted name of their module, an __init__.py by that of its package."""
    modules = {}
    for package, folder in packages.items():
        for file in sorted(folder.rglob("*.py")):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            modules[".".join(parts).removesuffix(".__init__")] = file
    return modules


def imported_names(name: str, file: Path) -> set[str]:
    """Dotted names of all that a module imports, wherever in it, with every name of a `from ... import`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            depth = node.level - (file.name == "__init__.py")  # folders up from the module's own name
            origin = name.split(".")[: len(name.split(".")) - depth] if node.level else []
            base = ".".join([*origin, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.removeprefix("custom.") for name in found}


def import_graph(packages: dict[str, Path]) -> dict[str, set[str]]:
    """For each module the modules that it imports; a name in a module counts to the module."""
    modules = modules_of(packages)
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        graph[name] = set()
        for target in imported_names(name, file):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].add(target)
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules of one circle, each imported by the one before; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_there_is_no_circle():
    graph = import_graph(PACKAGES)
    assert len(graph) > 150 and graph["threestudio.ops.hash_grid"] and graph["turboprop.gaussians.renderer"]
    without_registry = {name: imports - {REGISTRY} for name, imports in graph.items()}
    assert circle_in(without_registry) == []


def test_the_registry_is_there_before_the_rooms():
    statements = ast.parse((PACKAGES[REGISTRY] / "__init__.py").read_text()).body
    own = [node for node in statements if isinstance(node, ast.ImportFrom) and node.level]
    assert own == statements[-1:] and {alias.name for alias in own[0].names} == {"data", "models", "systems"}


CIRCLES = {
    "late": {"a": "def f():\n    from package.b import g", "b": "import package.a"},
    "for types": {"a": "if TYPE_CHECKING:\n    from .b import B", "b": "class C:\n    from . import a"},
    "of three": {"a": "from .b import x", "b": "from .room.c import y", "room/c": "from ..a import z"},
    "by a package": {
        "a": "from package.room import x",
        "room/__init__": "from .c import x",
        "room/c": "from .. import a",
    },
    "within a package": {"room/__init__": "from .c import x", "room/c": "from . import x"},
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_circles_are_found(tmp_path, files):
    for name, text in files.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    circle = circle_in(import_graph({"package": tmp_path}))
    assert len(circle) == len(files) + 1 and circle[0] == circle[-1]
    file.write_text("")  # the last one's import is what closes each of these circles
    assert circle_in(import_graph({"package": tmp_path})) == []
