"""Experiment configs: YAML files and command-line overrides, checked strictly.

`parse_structured` turns a mapping into a checked config of a dataclass. Its errors name the full
dotted key, what was expected, what came, and the nearest valid key.
"""

import os
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from threestudio.utils.config_blocks import apply_blocks
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.project_files import find_project_files
from threestudio.utils.swapped_types import leave_out_keys_of_old_types
from threestudio.utils.value_checks import (
    alternatives,
    check_elements,
    check_schedule,
    expected,
    is_number,
    is_number_list,
    is_scheduled,
    shown,
)


def _tuple2(value: Any) -> list:
    return [float(value), float(value)]


def _largest(value: Any) -> float:
    """The largest value a schedule reaches: itself, or the largest of its values."""
    if isinstance(value, (int, float)):
        return value
    schedule = list(value)
    if len(schedule) == 3:
        schedule = [0, *schedule]
    return max([schedule[1], *schedule[2::2]])


_RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda text, replacement: str(text).replace(" ", replacement),
    "tuple2": _tuple2,
    "gt0": lambda value: value > 0,
    "cmaxgt0": lambda value: _largest(value) > 0,
    "not": lambda value: not value,
    "cmaxgt0orcmaxgt0": lambda a, b: _largest(a) > 0 or _largest(b) > 0,
}

for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_resolver(_name, _resolver, replace=True)


# --------------------------------------------------------------------- checking of single values


def _container_kind(hint: Any) -> type | None:
    origin = typing.get_origin(hint) or hint
    if origin in (list, tuple, dict):
        return origin
    if isinstance(origin, type) and issubclass(origin, (DictConfig, typing.Mapping)):
        return dict
    return None


# Packages whose configs say by `value_checks.Scheduled` which numbers may be schedules. In configs of others, as those
# of plugins that were written for upstream, any number may be one.
_packages_that_mark_schedules = {"threestudio"}


def marks_schedules(package: str) -> None:
    """Says that the configs of a package mark each key that takes a schedule; all other numbers take none."""
    _packages_that_mark_schedules.add(package)


def _keys_that_take_schedules(config_class: type) -> set[str]:
    """Keys of number fields whose values may be schedules."""
    keys = set()
    for key, hint in typing.get_type_hints(config_class, include_extras=True).items():
        owner = next(base for base in config_class.__mro__ if key in base.__dict__.get("__annotations__", {}))
        marks = any(f"{owner.__module__}.".startswith(f"{name}.") for name in _packages_that_mark_schedules)
        if is_scheduled(hint) or not marks:
            keys.add(key)
    return keys


def _checked_value(value: Any, hint: Any, key: str, takes_schedule: bool) -> Any:
    """`value` made ready for a field of type `hint`; scalars are left to omegaconf.

    Lists of numbers pass for number fields that take schedules (`threestudio.utils.misc.C`). An empty text is
    null for a field that may be null and holds no text: `key=""` reaches this program as `key=`.
    """
    kinds = alternatives(hint)
    if hint is Any or Any in kinds:
        return value
    if value is None and type(None) not in kinds:
        raise expected(key, hint, value)
    if type(None) in kinds and value == "None":  # Python's name for it, which YAML takes for a text
        raise expected(key, hint, value)
    if value == "" and type(None) in kinds and str not in kinds:
        return None
    if isinstance(value, (dict, DictConfig)):
        if all(_container_kind(k) is not dict and not is_dataclass(k) for k in kinds):
            raise expected(key, hint, value)
        return value
    if isinstance(value, (list, tuple, ListConfig)):
        lists = [k for k in kinds if _container_kind(k) in (list, tuple)]
        if lists:
            check_elements(value, lists[0], key)
        elif any(k in (int, float) for k in kinds) and is_number_list(value):
            if not takes_schedule:
                raise UserError(f"{expected(key, hint, value)}; this key takes no schedule")
            check_schedule(value, key)
        else:
            raise expected(key, hint, value)
        return value
    if isinstance(value, bool) and str in kinds and bool not in kinds:  # yes, no, on and off among them
        raise UserError(f"{expected(key, hint, value)}; write quotes around a text that YAML takes for a truth value")
    if float in kinds and str not in kinds and _is_nan(value):
        raise expected(key, hint, value)
    if is_number(value):
        numbers = {int, float} & set(kinds)
        if str in kinds and not numbers:  # of a tag=3
            return str(value)
        if bool in kinds and not numbers and value not in (0, 1):
            raise expected(key, hint, value)
        if isinstance(value, int) and numbers == {float}:
            return float(value)
    return value


def _is_nan(value: Any) -> bool:
    """Whether it is not a number; YAML writes .nan, and omegaconf makes one of the text nan too."""
    return value != value if isinstance(value, float) else isinstance(value, str) and value.lower() == "nan"


# ----------------------------------------------------------------------------- structured configs


def config_path(cfg: Any, key: str = "") -> str:
    """The dotted path of a config node (and of `key` in it) from the root of its experiment."""
    parts = [key] if key else []
    node = cfg if OmegaConf.is_config(cfg) else None
    while node is not None:
        if node._key() is not None:
            parts.insert(0, str(node._key()))
        node = node._get_parent()
    return ".".join(parts)


def _as_items(config_class: type, cfg: Any) -> dict[str, Any]:
    """The entries of `cfg` with containers as config nodes, which keep their own types."""
    if cfg is None:
        return {}
    if isinstance(cfg, config_class):
        return {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.init}
    if not isinstance(cfg, (dict, DictConfig)):
        where = config_path(cfg) or config_class.__qualname__
        raise UserError(f"{where}: expected a mapping of keys to values, got {shown(cfg)}")
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    try:
        return {str(key): node[key] for key in node}
    except OmegaConfBaseException as error:
        raise UserError(_omegaconf_reason(error, config_path(cfg))) from error


_MISSING = "a value is required (it is ??? in the config)"


def _omegaconf_reason(error: OmegaConfBaseException, prefix: str = "") -> str:
    key = getattr(error, "full_key", None) or ""
    if prefix and not key.startswith(prefix):
        key = f"{prefix}.{key}" if key else prefix
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: {_MISSING}"
    reason = str(error).splitlines()[0]
    return f"{key}: {reason}" if key else reason


def parse_structured(config_class: type, cfg: Any = None) -> Any:
    """A checked config: the dataclass `config_class` filled from the mapping `cfg`.

    Unknown keys, missing required keys and values of the wrong type raise UserError.
    """
    items = _as_items(config_class, cfg)
    path = config_path(cfg)
    known = {f.name: f for f in fields(config_class) if f.init}
    owner = config_class.__qualname__.removesuffix(".Config")
    for key in items:
        if key not in known:
            full = f"{path}.{key}" if path else key
            raise UserError(with_suggestion(f"unknown key '{full}' (of {owner})", key, known))
    hints, scheduled = typing.get_type_hints(config_class), _keys_that_take_schedules(config_class)
    for key, value in items.items():
        items[key] = _checked_value(value, hints[key], f"{path}.{key}" if path else key, key in scheduled)
    for key, spec in known.items():
        if key not in items and spec.default is MISSING and spec.default_factory is MISSING:
            raise UserError(f"{path}.{key}".lstrip(".") + f": a value is required by {owner}")
    try:
        structured = OmegaConf.structured(config_class(**items))
    except OmegaConfBaseException as error:
        key = (getattr(error, "full_key", None) or getattr(error, "key", None) or "").split(".")[-1]
        if key in items:
            raise expected(f"{path}.{key}" if path else key, hints[key], items[key]) from error
        raise UserError(_omegaconf_reason(error, path)) from error
    if path:
        structured._metadata.key = path  # so that a config nested in this one knows its full path
    return structured


def dump_config(path: str, config: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        OmegaConf.save(config=config, f=file)


# ----------------------------------------------------------------------------------- experiments


LARGEST_SEED = 2**31 - 1  # numpy takes 32 bits, and each process of a run adds its rank


@dataclass
class ExperimentConfig:
    name: str = "default"  # of the experiment: the folder that holds its trials
    description: str = ""
    tag: str = ""  # of the trial
    seed: int = 0  # every random draw of the run is keyed by it
    use_timestamp: bool = True  # whether the trial's folder name ends in the time of its start; one process alone
    timestamp: str | None = None  # "@YYYYmmdd-HHMMSS", set at the start
    stamped_now: bool = False  # set: whether the timestamp is of this start, so that its folder is one nobody has
    exp_root_dir: str = "outputs"
    exp_dir: str = ""  # set: {exp_root_dir}/{name}
    trial_name: str = ""  # set: {tag}{timestamp}
    trial_dir: str = ""  # set: {exp_dir}/{trial_name}
    n_gpus: int = 1  # set: number of devices
    resume: str | None = None  # path of a checkpoint

    data_type: str = ""  # registered name of the data module
    data: dict = field(default_factory=dict)
    system_type: str = ""  # registered name of the system
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)  # arguments of pytorch_lightning.Trainer
    checkpoint: dict = field(default_factory=dict)  # arguments of ModelCheckpoint

    def __post_init__(self) -> None:
        if isinstance(self.seed, int) and not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"seed: expected 0 to {LARGEST_SEED}, got {self.seed}")
        if not self.tag and not self.use_timestamp:
            raise UserError("tag: a trial needs a tag or use_timestamp=true; both are unset")
        self.stamped_now = False
        if self.timestamp is None:
            self.stamped_now = self.use_timestamp and self.n_gpus <= 1 and not _of_several_processes()
            self.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S") if self.stamped_now else ""
        if not self.tag and not self.timestamp:
            raise UserError("tag: a run of several processes has no timestamp, so its trial needs a tag")
        self.trial_name = f"{self.tag}{self.timestamp}"
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)
        _check_folder_name("name", self.name, may_nest=True)
        _check_folder_name("tag", self.trial_name, may_nest=False)


def _of_several_processes() -> bool:
    """Or of one that torchrun restarts: several clocks would part a run into several folders."""
    return "TORCHELASTIC_RESTART_COUNT" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1


def _check_folder_name(key: str, name: str, may_nest: bool) -> None:
    """A trial never lies outside of its experiment's folder, whatever its prompt contains."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith("/") or (len(parts) > 1 and not may_nest):
        raise UserError(f"{key}: '{name}' is not a folder name; set {key}=... without slashes")
    if max(len(part.encode()) for part in parts) > 255:
        raise UserError(f"{key}: longer than the 255 bytes of a folder name; set {key}=...")


def _read_yaml(source: str, from_string: bool) -> Any:
    import yaml

    where = "config string" if from_string else source
    try:
        return OmegaConf.create(source) if from_string else OmegaConf.load(source)
    except FileNotFoundError:
        raise UserError(f"config not found: {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a YAML file that can be read ({type(error).__name__})") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {reason}") from error


def _one_override(argument: str) -> DictConfig:
    """The config of one key=value, where a value that is no YAML, or is "a: b", is plain text."""
    import yaml

    key, text = argument.split("=", 1)
    if not text:  # of key="", whose quotes the shell takes
        return _text_override(key, "")
    nested = text.lstrip().startswith(("[", "{"))
    try:
        override = OmegaConf.from_dotlist([argument])
        if nested or not isinstance(OmegaConf.select(override, key), DictConfig):
            return override
    except yaml.YAMLError as error:
        if nested:
            reason = " ".join(str(error).split())
            raise UserError(f"bad override '{argument}': not valid YAML: {reason}") from error
    return _text_override(key, text)


def _text_override(key: str, text: str) -> DictConfig:
    override = OmegaConf.create()
    OmegaConf.update(override, key, text)
    return override


def _read_overrides(cli_args: list[str]) -> DictConfig:
    overrides = []
    for argument in cli_args:
        key = argument.split("=", 1)[0]
        if argument.startswith("-") or "=" not in argument or not key:
            raise UserError(f"bad override '{argument}': expected key=value, as trainer.max_steps=10")
        try:
            overrides.append(_one_override(argument))
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"bad override '{argument}': {reason}") from error
    return _merged(overrides)


def _merged(parts: Iterable[DictConfig]) -> DictConfig:
    """The parts, each over those before it. Raises UserError where one has a list and another a mapping."""
    whole = OmegaConf.create()
    for part in parts:
        _check_same_containers(whole, part)
        leave_out_keys_of_old_types(whole, part)
        whole = OmegaConf.merge(whole, part)
    return whole


def _check_same_containers(below: DictConfig, above: DictConfig, path: str = "") -> None:
    for key in above:
        full = f"{path}.{key}".lstrip(".")
        old, new = _container(below, key), _container(above, key)
        if isinstance(old, DictConfig) and isinstance(new, DictConfig):
            _check_same_containers(old, new, full)
        elif old is not None and new is not None and type(old) is not type(new):
            kind = "a mapping of keys to values" if isinstance(old, DictConfig) else "a list"
            raise UserError(f"{full}: expected {kind}, got {OmegaConf.to_container(new)!r}")


def _container(part: DictConfig, key: Any) -> DictConfig | ListConfig | None:
    """The container at a key, where there is one; an interpolation of one of the same part counts."""
    try:
        value = part.get(key)
    except OmegaConfBaseException:  # an interpolation of what another part has
        return None
    return value if isinstance(value, (DictConfig, ListConfig)) else None


def load_config(*yamls: str, cli_args: list[str] | None = None, from_string: bool = False, **kwargs: Any) -> DictConfig:
    """The checked ExperimentConfig of YAML files (or strings), then overrides, then `kwargs`.

    Nothing is written: the trial's folder is made by the run, not by reading its config.
    """
    parts = [_read_yaml(source, from_string) for source in yamls]
    for part, source in zip(parts, yamls):
        if not isinstance(part, DictConfig):
            where = "config string" if from_string else source
            raise UserError(f"{where}: a config file holds a mapping of keys to values")
    try:
        merged = _merged([*parts, _read_overrides(list(cli_args or [])), OmegaConf.create(dict(kwargs))])
        apply_blocks(merged)
        OmegaConf.resolve(merged)
        for part in ("data", "system"):
            find_project_files(merged.get(part))
    except InterpolationToMissingValueError as error:
        raise UserError(f"{min(OmegaConf.missing_keys(merged))}: {_MISSING}") from error
    except OmegaConfBaseException as error:
        raise UserError(_omegaconf_reason(error)) from error
    return parse_structured(ExperimentConfig, merged)
