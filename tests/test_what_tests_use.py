"""Tests do not import one another, and keep off private names of the host and the plugin (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests").rglob("*.py"))
OURS = ("threestudio", "turboprop", "custom", "launch")  # top-level packages


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def wrong_uses(tree: ast.Module) -> list[str]:
    """What a test may not use."""
    wrong, ours = [], set()  # names that stand for modules and their members of ours
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [*module.split("."), *(alias.name for alias in node.names)]
            wrong += [f"imports {name}" for name in names if name.startswith("test_")]
            if node.level == 0 and module.split(".")[0] in OURS:
                wrong += [f"imports {name}" for name in names if private(name)]
                ours |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in OURS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) in ours:
            wrong.append(ast.unparse(node))
        if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.args[0]) in ours:
            name = node.args[1]  # of setattr, getattr
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and private(name.value):
                wrong.append(ast.unparse(node))
    return wrong


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_test_uses_what_is_public(path):
    assert wrong_uses(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from .test_other import helper",
        "from tests.novelview import test_other",
        "from threestudio.ops.agreement import _disagreement",
        "from turboprop._hidden import name",
        "import threestudio.ops as ops\nops._secret",
        "from threestudio.ops import agreement\nmonkeypatch.setattr(agreement, '_found', {})",
    ],
)
def test_what_may_not_be_used_is_found(source):
    assert len(wrong_uses(ast.parse(source))) == 1
