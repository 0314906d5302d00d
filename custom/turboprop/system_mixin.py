"""Parts that are mixed into any system by its name: `system_type: "dreamfusion-system:turboprop-evaluated"`."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any, ClassVar


class SystemMixin:
    """A part of a system that brings config keys of its own.

    The registry mixes by making a class with the bases (mixin, ..., system). Its Config is then the system's, plus
    each mixin's `config_group`: one key, whose value is a mapping that the mixin parses itself.
    """

    config_group: ClassVar[str] = ""  # name of the key, e.g. "evaluation": system.evaluation.judge=...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mixins = [base for base in cls.__mro__ if issubclass(base, SystemMixin)]
        config = next((base.__dict__["Config"] for base in cls.__mro__ if "Config" in base.__dict__), None)
        if config is None:  # a mixin by itself, not yet mixed with a system
            return
        groups = {base.config_group for base in mixins} - {"", *config.__dataclass_fields__}
        fields = [(name, dict, field(default_factory=dict)) for name in sorted(groups)]
        cls.Config = make_dataclass("Config", fields, bases=(config,))
        cls.Config.__qualname__ = f"{cls.__name__}.Config"
