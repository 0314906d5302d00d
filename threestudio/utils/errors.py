"""The error that means: the user's input is wrong, and this line says how."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. Its message is one clear line; the command line prints it without a traceback.

    Whatever else is raised is taken for a bug and shows where it comes from. So raise this where a config, a file or
    a command is wrong, and a plain ValueError where code calls a function in a wrong way.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user names is not there."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, of libraries that say much; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def errors_begin_with(key: str) -> Iterator[None]:
    """Puts `key: ` before the message of a UserError of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


@contextmanager
def key_of_errors(part: str) -> Iterator[None]:
    """Gives a UserError of the block the full key of a system's part, as `system.geometry`, where it lacks that."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if text.startswith("system."):
            raise
        where = "system." if text.startswith((f"{part}.", f"{part}:", f"{part}_")) else f"system.{part}: "
        raise type(error)(f"{where}{text}") from error


def nearest_names(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names of `valid` that look like `name`, best first."""
    names = {v.lower(): v for v in valid}
    matches = difflib.get_close_matches(name.lower(), names, n=count, cutoff=0.5)
    contained = [n for n in names if name and name.lower() in n and n not in matches]
    return [names[m] for m in (matches + sorted(contained))[:count]]


def with_suggestion(message: str, name: str, valid: Iterable[str]) -> str:
    """`message`, followed by the names of `valid` nearest to `name`, or by all if none is near."""
    valid = sorted(str(v) for v in valid)
    near = nearest_names(name, valid)
    if near:
        return f"{message}; nearest: {', '.join(near)}"
    if 0 < len(valid) <= 40:
        return f"{message}; known: {', '.join(valid)}"
    return message
