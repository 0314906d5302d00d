"""A library of prompts: {"train": [...], "val": [...], "test": [...]} in a JSON file, as ScaleDreamer's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threestudio.utils.errors import MissingFileError, UserError, with_suggestion

SPLITS = ("train", "val", "test")
SHIPPED = Path(__file__).resolve().parents[2] / "world" / "libraries"


@dataclass(frozen=True)
class PromptLibrary:
    """The prompts of three splits. A prompt may stand in several, and more than once in one."""

    train: list[str]
    val: list[str]
    test: list[str]

    def split(self, name: str) -> list[str]:
        """The prompts of a split. Raises ValueError for an unknown one."""
        if name not in SPLITS:
            message = f"prompt library: expected a split of {', '.join(SPLITS)}, got {name!r}"
            raise UserError(with_suggestion(message, name, SPLITS))
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def distinct(self) -> list[str]:
        """Every prompt once, in the order of its first appearance."""
        return list(dict.fromkeys([*self.train, *self.val, *self.test]))


def load_prompt_library(name_or_path: str, folder: str = "load") -> PromptLibrary:
    """Reads a prompt library.

    Args:
        name_or_path: a JSON file, the name of one in `folder` ("name" or "name_prompt_library"), or of one that ships
            (world_16, world_512). A split that the file lacks, but for "train", is the train split.
    Raises FileNotFoundError where there is no such file, and ValueError where it is not JSON of the form above, or has
    an unknown split, no train prompts, or an empty prompt.
    """
    path = _library_path(name_or_path, folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"prompt_library: {path} is not valid JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(
            f'prompt_library: {path}: expected {{"train": [...], "val": [...], "test": [...]}}, '
            f"got a {type(content).__name__}"
        )
    for key in content:
        if key not in SPLITS:
            raise UserError(with_suggestion(f"prompt_library: {path}: unknown split {key!r}", str(key), SPLITS))
    if not content.get("train"):
        raise UserError(f'prompt_library: {path} is empty: expected at least one prompt in "train"')
    splits = [_checked(content.get(name) or content["train"], f"{path}: {name}") for name in SPLITS]
    return PromptLibrary(*splits)


def prompt_list(prompts: Sequence[str], where: str = "prompts") -> PromptLibrary:
    """A library whose three splits are one list. Raises ValueError if it is empty or holds an empty prompt."""
    if not prompts:
        raise UserError(f"{where} is empty: expected at least one prompt")
    checked = _checked(list(prompts), where)
    return PromptLibrary(checked, checked, checked)


def chosen_library(
    prompt_library: str, prompts: Sequence[str] | None, where: str, folder: str = "load"
) -> PromptLibrary:
    """The library of a config that names one or lists prompts. Raises UserError, after `where`, for both or neither."""
    if prompt_library and prompts is not None:
        raise UserError(f"{where}: expected prompt_library or prompts, got both")
    if prompt_library:
        return load_prompt_library(prompt_library, folder)
    if prompts is None:
        raise UserError(f"{where}: expected prompt_library (a JSON file or name) or prompts, got neither")
    return prompt_list(prompts)


def _checked(prompts: Any, where: str) -> list[str]:
    if not isinstance(prompts, list):
        raise UserError(f"{where}: expected a list of prompts, got a {type(prompts).__name__}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"{where}[{index}]: expected a text, got {prompt!r}")
        if not prompt.strip():
            raise UserError(f"{where}[{index}]: expected a text, got an empty prompt")
    return prompts


def _library_path(name_or_path: str, folder: str) -> Path:
    if not name_or_path.strip():
        raise UserError("prompt_library: expected a JSON file or a name, got an empty text")
    tried = [
        Path(name_or_path).expanduser(),
        Path(folder).expanduser() / f"{name_or_path}.json",
        Path(folder).expanduser() / f"{name_or_path}_prompt_library.json",
    ]
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}
    for path in [*tried, *([shipped[name_or_path]] if name_or_path in shipped else [])]:
        if path.is_file():
            return path
    raise MissingFileError(
        f"prompt_library: no file {name_or_path!r}; looked at {', '.join(str(path) for path in tried)}, "
        f"and among those that ship: {', '.join(shipped)}"
    )
