"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: str) -> Iterator[str]:
    """A path to write to, of the same name, in a folder beside `path`.

    When the block ends, everything in that folder replaces its namesakes in the folder of `path`;
    where it raises, what stood there before is left as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield str(scratch / target.name)
        # The file that names the others comes last: it never names one that is not there yet.
        for file in sorted(scratch.iterdir(), key=lambda file: file.name == target.name):
            os.replace(file, target.parent / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write to, which takes the place of `path`, an empty folder or none, when the block
    ends; where it raises, nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        scratch = holder / path.name
        scratch.mkdir()
        yield scratch
        os.replace(scratch, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
