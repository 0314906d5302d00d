"""What the plugin imports: what the host has, nothing by a path out of its folder, nothing heavy until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[1] / "custom" / "turboprop"
FILES = sorted(PLUGIN.rglob("*.py"))
NAMES = [str(path.relative_to(PLUGIN)) for path in FILES]

# Modules of classes that derive from a heavy package's; they are themselves imported where they are used.
LATE = {"teachers/multi_view/network.py"}
HEAVY = {"diffusers", "transformers", "trimesh", "skimage", "matplotlib", "imageio", "warp", "xatlas", "scipy"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def leaving_imports(tree: ast.Module, depth: int) -> list[str]:
    """Imports that reach outside of the plugin's folder; `depth` folders lie between it and the file."""
    wrong = []
    for node in imports(tree):
        if isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            wrong.append("." * node.level + (node.module or ""))
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        absolute = isinstance(node, ast.Import) or node.level == 0
        wrong += [name for name in names if absolute and name.split(".")[0] in ("custom", "turboprop")]
    return wrong


def imported_at_once(body: list[ast.stmt]) -> set[str]:
    """Top-level packages that importing the module imports: not those in functions or under TYPE_CHECKING."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= imported_at_once(node.orelse)
        else:
            for block in ("body", "orelse", "finalbody"):
                found |= imported_at_once(getattr(node, block, None) or [])
            for handler in getattr(node, "handlers", []):
                found |= imported_at_once(handler.body)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_import_leaves_the_plugin(path):
    depth = len(path.relative_to(PLUGIN).parts) - 1
    assert leaving_imports(tree_of(path), depth) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_packages_are_imported_where_they_are_used(path):
    if str(path.relative_to(PLUGIN)) not in LATE:
        assert imported_at_once(tree_of(path).body) & HEAVY == set()


def test_the_plugin_comes_without_diffusers():
    """In a process of its own: no module of LATE is imported on the way. (Lightning's metrics import transformers.)"""
    code = "import sys, threestudio, custom.turboprop; print([name for name in sys.modules if name == 'diffusers'])"
    root = str(PLUGIN.parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_plugin_was_walked():
    assert len(FILES) > 30 and "__init__.py" in NAMES
    assert any("threestudio" in imported_at_once(tree_of(path).body) for path in FILES)


def test_the_host_offers_all_that_the_plugin_takes():
    import importlib

    for path in FILES:
        for node in imports(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("threestudio"):
                module = importlib.import_module(node.module)
                assert all(getattr(module, alias.name, None) is not None for alias in node.names), node.module


def test_the_walk_tells_heavy_imports_from_late_ones():
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trimesh\ndef f():\n    import scipy\n"
    assert imported_at_once(ast.parse(late).body) & HEAVY == set()
    early = "try:\n    import warp\nexcept ImportError:\n    import scipy\nclass A:\n    import trimesh\n"
    assert imported_at_once(ast.parse(early).body) & HEAVY == {"warp", "scipy", "trimesh"}
    assert leaving_imports(ast.parse("from ..x import y"), 0) == ["..x"]
    assert leaving_imports(ast.parse("from ..x import y\nfrom . import z"), 1) == []
    assert leaving_imports(ast.parse("import turboprop.world\nfrom custom.turboprop import x"), 3) != []
