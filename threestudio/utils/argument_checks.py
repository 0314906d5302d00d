"""Checks of what a config gives to a constructor of another library: each argument's name, type and value.

An error names the full key, what was expected and what came, before the thing is built for good.
"""

import collections.abc
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from threestudio.utils.errors import UserError, one_line, with_suggestion
from threestudio.utils.value_checks import alternatives, expected, fits, shown, type_name


def _constructor(target: Callable) -> Callable:
    return inspect.unwrap(target.__init__) if isinstance(target, type) else target


def _parameters(target: Callable) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(_constructor(target)).parameters)
    parameters.pop("self", None)
    return parameters


def _hints(target: Callable) -> dict[str, Any]:
    """The types of a constructor's arguments; none where an annotation names what is not to be had."""
    function = _constructor(target)
    # Names that a library imports for its type checker alone are mostly of these two modules.
    names = {**vars(collections.abc), **vars(typing), **vars(sys.modules[function.__module__])}
    try:
        return typing.get_type_hints(function, globalns=names)
    except NameError:
        return {}


def _expected_type(hint: Any) -> str:
    """`int or None` as a reader of configs would say it: only what YAML can hold."""
    names = []
    for kind in alternatives(hint):
        if typing.get_origin(kind) is Literal:
            names += [str(choice) for choice in typing.get_args(kind)]
        elif not isinstance(kind, type) or kind in (int, float, bool, str, list, dict, type(None)):
            names.append(type_name(kind))
    return " or ".join(dict.fromkeys(names)) or type_name(hint)


def check_arguments(target: Callable, given: Mapping[str, Any], key: str, reserved: tuple[str, ...] = ()) -> None:
    """Raises UserError where the constructor `target` does not take a name of `given`, or a value of its type.

    Args:
        given: plain values, by the argument's name.
        key: where they stand in the config, as `trainer`.
        reserved: arguments that the config may not give.
    """
    parameters, hints = _parameters(target), _hints(target)
    known = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for name, value in given.items():
        if name in reserved:
            raise UserError(f"{key}.{name}: is set by the launcher")
        if name not in known:
            message = f"unknown key '{key}.{name}' (of {target.__name__})"
            raise UserError(with_suggestion(message, name, known - set(reserved)))
        hint = hints.get(name, Any)
        if fits(value, hint) is False:
            error = expected(f"{key}.{name}", hint, value)
            raise UserError(str(error).replace(type_name(hint), _expected_type(hint), 1))


def check_required(target: Callable, given: Mapping[str, Any], key: str, reserved: tuple[str, ...] = ()) -> None:
    """Raises UserError where an argument without a default is missing."""
    for name, parameter in _parameters(target).items():
        positional = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if positional and parameter.default is inspect.Parameter.empty and name not in (*given, *reserved):
            raise UserError(f"{key}.{name}: a value is required by {target.__name__}")


def at_least(given: Mapping[str, Any], limits: Mapping[str, float], key: str) -> None:
    """Raises UserError for a number below its limit; other values pass."""
    for name, least in limits.items():
        value = given.get(name)
        if isinstance(value, (int, float)) and not value >= least:
            raise UserError(f"{key}.{name}: expected at least {least:g}, got {shown(value)}")


def tried(build: Callable[[dict[str, Any]], Any], given: dict[str, Any], key: str) -> Any:
    """`build(given)`. Where it raises, a UserError that names the argument without which it does not, and its value.

    `build` is another library's code, with values of the user's: whatever it raises means that it cannot take them.
    """
    try:
        return build(given)
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, (ArithmeticError, LookupError, AttributeError)):
            reason = f"{type(error).__name__}: {reason}"
        name = _culprit(build, given)
        if name is None:
            raise UserError(f"{key}: {reason}") from error
        raise UserError(f"{key}.{name}: {reason}; got {shown(given[name])}") from error


def _culprit(build: Callable[[dict[str, Any]], Any], given: dict[str, Any]) -> str | None:
    """The argument without which `build` succeeds; None where no single one is to blame."""
    for name in given:
        try:
            build({other: value for other, value in given.items() if other != name})
        except Exception:
            continue
        return name
    return None
