"""Each script of benchmarks/ finds this checkout: its folder is on the path before anything of it is imported.

`python benchmarks/x.py` has benchmarks/ alone on its path. Read from the scripts, for starting each takes seconds.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
OURS = ("threestudio", "turboprop", "custom", "tests", "benchmarks")


def events(path: Path, seen: set[Path]) -> Iterator[str]:
    """In the order in which they happen: "path" where sys.path changes, else the package that is imported."""
    seen.add(path)
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = (
                [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
            )
            for name in names:
                neighbour = FOLDER / f"{name}.py"
                if not neighbour.is_file():
                    yield name.split(".")[0]
                elif neighbour not in seen:
                    yield from events(neighbour, seen)
        elif "sys.path" in ast.unparse(statement) and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield "path"


def test_there_are_scripts():
    assert len(SCRIPTS) > 15


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_finds_its_checkout(script):
    happened = list(events(script, set()))
    before = happened[: happened.index("path")] if "path" in happened else happened
    assert [name for name in before if name in OURS] == []
