"""Checks of single values against their type hints, and of schedules. Each error names the key and what came."""

import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union

from omegaconf import ListConfig, OmegaConf

from threestudio.utils.errors import UserError

_PLAIN = {int: "int", float: "float", bool: "bool", str: "str"}


def shown(value: Any) -> str:
    """The value and its type, as in `'wide' (str)`; what YAML calls null is called so."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return "null" if plain is None else f"{plain!r} ({type(plain).__name__})"


def type_name(hint: Any) -> str:
    """The type as a reader of configs knows it: `float`, `Optional[int]`, `Tuple[float, float]`."""
    name = getattr(hint, "__name__", None) if not typing.get_args(hint) else None
    return "null" if hint is type(None) else (name or str(hint)).replace("typing.", "").replace("NoneType", "null")


def choices(values: Iterable[Any]) -> str:
    """Values that a key may have, as they are written in YAML: `pred, analytic, null`."""
    return ", ".join("null" if value is None else str(value) for value in values)


def check_choice(key: str, value: Any, known: Iterable[Any]) -> None:
    """Raises UserError for a value that is none of those known."""
    if value not in known:
        raise UserError(f"{key}: expected one of {choices(known)}, got {value!r}")


def check_at_least(key: str, value: float, least: float) -> None:
    """Raises UserError for a number below `least`."""
    if value < least:
        raise UserError(f"{key}: expected at least {least:g}, got {value:g}")


def alternatives(hint: Any) -> tuple:
    """The member types of a Union or Optional, else the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_number_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, ListConfig)) and all(is_number(v) for v in value)


def expected(key: str, hint: Any, value: Any) -> UserError:
    """The error of a value that is not of type `hint`; it says how null is written where that was meant."""
    hints = [h for h in alternatives(hint) if isinstance(h, type) or typing.get_origin(h)]
    hint_of_null = ""
    if type(None) in hints and isinstance(value, str) and value.lower() in ("none", "nil"):
        hint_of_null = "; write null for none"
    return UserError(f"{key}: expected {type_name(hint)}, got {shown(value)}{hint_of_null}")


# ------------------------------------------------------------------------------------- schedules

_TAKES_SCHEDULE = "takes a schedule"
Scheduled = Annotated[float, _TAKES_SCHEDULE]  # the type of a config's key whose value is a number or a schedule


def is_scheduled(hint: Any) -> bool:
    """Whether a key of this type, with its annotations, is marked as one that takes a schedule."""
    return any(_TAKES_SCHEDULE in getattr(kind, "__metadata__", ()) for kind in alternatives(hint))


def schedule_knots(schedule: list) -> tuple[list, list]:
    """The (positions, values) of a schedule list in any of its forms. Raises TypeError for any other list."""
    if len(schedule) == 3:
        schedule = [0, *schedule]
    if len(schedule) == 4:
        start, start_value, end_value, end = schedule
        return [start, end], [start_value, end_value]
    if len(schedule) >= 6 and len(schedule) % 2 == 0:
        start, start_value, *rest = schedule
        return [start, *rest[1::2]], [start_value, *rest[0::2]]
    raise TypeError(
        "expected a number, or a schedule of 3 numbers [start value, end value, end step], 4 [start step, start value, "
        f"end value, end step] or an even number from 6 [s0, v0, v1, s1, v2, s2, ...]; got {list(schedule)}"
    )


def check_schedule(value: Any, key: str) -> None:
    """Raises UserError unless `value` is what `threestudio.utils.misc.C` takes: a number, or a whole schedule."""
    if is_number(value):
        numbers: list = [value]
    elif is_number_list(value):
        numbers = list(value)
        try:
            positions, _ = schedule_knots(numbers)
        except TypeError as error:
            raise UserError(f"{key}: {error}") from None
        for earlier, later in zip(positions, positions[1:]):
            # An int counts steps, a float epochs: those two have no order.
            if type(earlier) is type(later) and later < earlier:
                raise UserError(f"{key}: expected a schedule whose steps rise, got {numbers}: {later} after {earlier}")
    else:
        raise UserError(f"{key}: expected a number or a list of numbers (a schedule), got {shown(value)}")
    if any(math.isnan(number) for number in numbers):
        raise UserError(f"{key}: expected numbers, got {shown(value)}")


def schedule_values(value: Any) -> list:
    """The numbers that a checked schedule goes through: of a number, itself."""
    return [value] if is_number(value) else schedule_knots(list(value))[1]


def schedule_positions(value: Any) -> list:
    """Where a checked schedule's pieces begin and end, ints of steps and floats of epochs: of a number, nowhere."""
    return [] if is_number(value) else schedule_knots(list(value))[0]


# ---------------------------------------------------------------------------------- values by type


def check_elements(value: Any, hint: Any, key: str) -> None:
    """Checks a list against List[T], Tuple[T, ...] or Tuple[T, U, ...]: numbers, and how many of them."""
    elements = [e for e in typing.get_args(hint) if e is not Ellipsis]
    if not elements:
        return
    fixed = (typing.get_origin(hint) or hint) is tuple and Ellipsis not in typing.get_args(hint)
    if fixed and len(value) != len(elements):
        raise UserError(f"{key}: expected {len(elements)} values, {type_name(hint)}, got {shown(value)}")
    for index, item in enumerate(value):
        element = elements[min(index, len(elements) - 1)]
        wrong_number = element in (int, float) and not is_number(item)
        if wrong_number and not isinstance(item, (list, ListConfig)):
            raise expected(f"{key}[{index}]", element, item)


def fits(value: Any, hint: Any) -> bool | None:
    """Whether a plain value is of type `hint`; None where the hint is of a kind that cannot be told here."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (Union, types.UnionType):
        answers = [fits(value, member) for member in args]
        return True if True in answers else (None if None in answers and not isinstance(value, str) else False)
    if hint is Any:
        return True
    if origin is Literal:
        return value in args
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _PLAIN:
        return isinstance(value, hint)
    if origin is tuple and args and Ellipsis not in args:
        is_list = isinstance(value, (list, tuple))
        return is_list and len(value) == len(args) and all(fits(v, a) is not False for v, a in zip(value, args))
    if origin in (list, tuple, Iterable):
        return isinstance(value, (list, tuple)) and all(fits(v, a) is not False for v in value for a in args[:1])
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(origin, type):  # a class that no config holds a value of
        return isinstance(value, origin) and not isinstance(value, str)
    return None
