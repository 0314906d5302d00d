"""Which reader reads which mesh file. Plugins add theirs with `register_mesh_reader`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.part import MeshPart


@dataclass(frozen=True)
class MeshReader:
    """One format. Its functions raise UserError, in one line with the path, for a file that is broken."""

    name: str  # of the format
    endings: tuple[str, ...]  # of its files, lower case, with the dot
    read: Callable[[str, bool], list[MeshPart]]  # path, and whether colours are wanted -> parts in the file's axes
    recognizes: Callable[[str], bool] | None = None  # whether a file of one of the endings is of this format
    up: str = "+z"  # the axis of the file that points up, where nobody says another
    front: str = "+x"


_readers: dict[str, MeshReader] = {}


def register_mesh_reader(reader: MeshReader) -> None:
    """Adds a reader. Of those with one ending the first that recognizes a file reads it; raises UserError if the
    name is taken."""
    if reader.name in _readers:
        raise UserError(f"a mesh reader named {reader.name!r} exists already")
    _readers[reader.name] = reader


def mesh_endings() -> list[str]:
    return list(dict.fromkeys(ending for reader in _readers.values() for ending in reader.endings))


def mesh_reader_of(path: str) -> MeshReader:
    """The reader of a file that is there. Raises UserError for an ending that none reads.

    A file that no reader recognizes loads the bundled extensions first, which may bring one; then the first reader of
    its ending gets it, to say what is wrong with it.
    """
    reader = _recognizing(path)
    if reader is None:
        from threestudio.utils.extensions import load_extensions

        load_extensions()
        reader = _recognizing(path)
    if reader is not None:
        return reader
    of_ending = _of_ending(path)
    if not of_ending:
        raise UserError(f"expected a file ending in {', '.join(mesh_endings())}, got {path}")
    return of_ending[0]


def _of_ending(path: str) -> list[MeshReader]:
    ending = os.path.splitext(path)[1].lower()
    return [reader for reader in _readers.values() if ending in reader.endings]


def _recognizing(path: str) -> MeshReader | None:
    fits = (reader for reader in _of_ending(path) if reader.recognizes is None or reader.recognizes(path))
    return next(fits, None)
