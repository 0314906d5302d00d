"""How the running program is started by hand."""

import os
import shutil


def program_words(path: str) -> list[str]:
    """The words of a shell that start the program at `path`: a script by Python, an installed command by its name."""
    if path.endswith(".py"):
        return ["python", path]
    name = os.path.basename(path)
    found = shutil.which(name)
    return [name if found and os.path.exists(path) and os.path.samefile(found, path) else path]
