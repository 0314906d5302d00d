"""Turboprop's embedded host: threestudio's extension API for today's PyTorch, on CPU and GPU.

Importing this package registers everything that the host itself brings. Extensions under
`custom/` register more; see `threestudio.utils.extensions`.
"""

import logging
from collections.abc import Callable

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from threestudio.utils.errors import UserError, with_suggestion

__version__ = "0.2.3"  # the version of the extension API that plugins check for
__modules__: dict[str, type] = {}

logger = logging.getLogger("pytorch_lightning")


@rank_zero_only
def info(*args, **kwargs) -> None:
    logger.info(*args, **kwargs)


@rank_zero_only
def debug(*args, **kwargs) -> None:
    logger.debug(*args, **kwargs)


@rank_zero_only
def warn(*args, **kwargs) -> None:
    logger.warning(*args, **kwargs)


def register(name: str) -> Callable[[type], type]:
    """Class decorator: makes the class findable under `name`. Raises UserError if it is taken."""

    def decorator(cls: type) -> type:
        if name in __modules__:
            raise UserError(
                f"Module {name} already exists! Names of extensions conflict! "
                f"({__modules__[name].__module__} and {cls.__module__})"
            )
        __modules__[name] = cls
        return cls

    return decorator


def _find_one(name: str) -> type:
    if name not in __modules__:
        from threestudio.utils.extensions import load_extensions

        load_extensions()
    if name not in __modules__:
        raise UserError(with_suggestion(f"unknown registered name '{name}'", name, __modules__))
    return __modules__[name]


def find(name: str) -> type:
    """The class registered under `name`.

    `"main:sub1,sub2"` makes a class with the bases (sub1, sub2, main): the subs override the main
    class, an earlier sub a later one. A name that is not known yet loads the bundled extensions
    first. Raises UserError with the nearest names if the name stays unknown.
    """
    if ":" not in name:
        return _find_one(name)
    main_name, sub_names = name.split(":", 1)
    subs = [_find_one(sub) for sub in sub_names.split(",")]
    main = _find_one(main_name)
    return type(f"{main_name}.{sub_names}", (*subs, main), {})


from . import data, models, systems  # noqa: E402
