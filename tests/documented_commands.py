"""The commands that README, docs, cards of models and heads of configs show, as a shell splits them into words."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("python", "torchrun", "pip", "npm")

# A page's placeholders stand for a trial's folder, or a config, which the test makes.
PLACEHOLDERS = {
    "<trial>": "outputs/made/trial",
    "outputs/NAME/TRIAL": "outputs/made/trial",
    "<refine>.yaml": "refine.yaml",
    "outputs/<name>/<tag>@LAST": "outputs/made/LAST",
}


@dataclass(frozen=True)
class Block:
    """Lines of a shell that stand together on a page."""

    page: str  # relative to the project
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The programs that a shell starts for this block, each with its arguments; none of them is run."""
        text = self.text
        for placeholder, given in PLACEHOLDERS.items():
            text = text.replace(placeholder, given)
        stand_ins = "\n".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\1'; }}" for name in PROGRAMS)
        done = subprocess.run(["bash", "-euc", f"{stand_ins}\n{text}"], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{self}: {done.stderr}"
        return [command.split("\0")[:-1] for command in done.stdout.split("\1")[:-1]]


def _blocks_of_page(path: Path) -> list[Block]:
    """Fenced blocks, and blocks that are indented by four spaces, that begin a line with one of the programs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    blocks, start, fence = [], None, None
    for number, line in enumerate([*lines, ""], start=1):
        is_fence = line.startswith("```")
        inside = fence or line.startswith("    ")
        if start is None and (is_fence or inside):
            start, fence = number, "```" if is_fence else None
        elif start is not None and ((fence and is_fence) or not inside):
            kept = lines[start if fence else start - 1 : number - 1]
            blocks.append(Block(str(path.relative_to(ROOT)), start, "\n".join(kept)))
            start = fence = None
    return [block for block in blocks if re.search(rf"^\s*({'|'.join(PROGRAMS)}) ", block.text, flags=re.M)]


def _block_of_config(path: Path) -> list[Block]:
    """The commands in the comments at the head of a config."""
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#"))
    commands, going_on = [], False
    for line in head:
        if going_on or line.strip().startswith(tuple(f"{name} " for name in PROGRAMS)):
            commands.append(line.strip())
            going_on = line.endswith("\\")
    return [Block(str(path.relative_to(ROOT)), 1, "\n".join(commands))] if commands else []


def documented_blocks() -> list[Block]:
    folders = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "notes").glob("*.md"))]
    pages = [ROOT / "README.md", *folders, *sorted((ROOT / "assets").rglob("*.md"))]
    blocks = [block for page in pages for block in _blocks_of_page(page)]
    return blocks + [block for path in sorted((ROOT / "configs").rglob("*.yaml")) for block in _block_of_config(path)]


def documented_python(path: Path) -> list[str]:
    """Fenced blocks of Python on a page, and indented ones that begin with an import."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    indented = re.findall(r"^((?:    (?:from|import) [^\n]*\n)+)", text, flags=re.M)
    return fenced + [re.sub(r"^    ", "", block, flags=re.M) for block in indented]
