"""Strict configs: what passes, what fails, and what the failure says."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from threestudio.utils.base import BaseObject
from threestudio.utils.config import ExperimentConfig, load_config, parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.typing import List, Tuple
from threestudio.utils.value_checks import Scheduled


@dataclass
class Inner:
    depth: int = 1


@dataclass
class Part:
    radius: float = 1.0
    threshold: float | str = 0.5
    maybe: float | None = None
    count: int = 3
    size: Any = 64
    words: str | None = None
    flag: bool = True
    text: str = ""
    span: Tuple[float, float] = (0.0, 1.0)
    milestones: List[int] = field(default_factory=list)
    nested: dict = field(default_factory=dict)
    optional_nested: dict | None = None
    inner: Inner = field(default_factory=Inner)


@dataclass
class Owner:
    part: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    "given, key, expected",
    [
        ({"radius": 2}, "radius", 2.0),
        ({"threshold": 10}, "threshold", 10.0),
        ({"threshold": "auto"}, "threshold", "auto"),
        ({"maybe": 2}, "maybe", 2.0),
        ({"maybe": None}, "maybe", None),
        ({"radius": [0, 0.4, 0.2, 200]}, "radius", [0, 0.4, 0.2, 200]),
        ({"radius": "1.5"}, "radius", 1.5),
        ({"text": 3}, "text", "3"),
        ({"flag": 0}, "flag", False),
        ({"count": [0, 1, 2, 3]}, "count", [0, 1, 2, 3]),
        ({"span": [1, 2]}, "span", [1, 2]),
        ({"maybe": ""}, "maybe", None),
        ({"maybe": [0.0, 1.0, 5]}, "maybe", [0.0, 1.0, 5]),
        ({"milestones": [5000]}, "milestones", [5000]),
        ({"size": [64, 128]}, "size", [64, 128]),
        ({"nested": {"a": {"b": 1}}}, "nested", {"a": {"b": 1}}),
        ({"optional_nested": {"a": 1}}, "optional_nested", {"a": 1}),
        ({"inner": {"depth": 4}}, "inner", {"depth": 4}),
    ],
)
def test_values_that_pass(given, key, expected):
    config = parse_structured(Part, given)
    assert config[key] == expected
    assert type(config[key]) is type(expected) or OmegaConf.is_config(config[key])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"radiuss": 1}, r"unknown key 'system.part.radiuss' \(of Part\); nearest: radius"),
        ({"radius": "wide"}, r"system.part.radius: expected float, got 'wide' \(str\)"),
        ({"radius": {"a": 1}}, r"system.part.radius: expected float, got .* \(dict\)"),
        ({"radius": ["a"]}, r"system.part.radius: expected float, got .* \(list\)"),
        ({"radius": float("nan")}, r"system.part.radius: expected float, got nan \(float\)"),
        ({"maybe": "nan"}, r"system.part.maybe: expected float \| None, got 'nan' \(str\)"),
        ({"text": True}, r"system.part.text: expected str, got True \(bool\); write quotes around"),
        ({"radius": None}, r"system.part.radius: expected float, got null"),
        ({"count": 2.5}, r"system.part.count: expected int, got 2.5 \(float\)"),
        ({"flag": "perhaps"}, r"system.part.flag: expected bool, got 'perhaps' \(str\)"),
        ({"text": [1, 2]}, r"system.part.text: expected str, got \[1, 2\] \(list\)"),
        ({"span": 3}, r"system.part.span: expected Tuple\[float, float\], got 3 \(int\)"),
        ({"span": [1, 2, 3]}, r"system.part.span: expected 2 values, Tuple\[float, float\], got \[1, 2, 3\] \(list\)"),
        ({"radius": [0.0, 1.0]}, r"system.part.radius: expected a number, or a schedule of .*; got \[0.0, 1.0\]"),
        ({"radius": [0, 1, 2, 3, 4]}, r"system.part.radius: .*got \[0, 1, 2, 3, 4\]"),
        ({"maybe": [0, 1, 2, 3, 4]}, r"system.part.maybe: .*got \[0, 1, 2, 3, 4\]"),
        ({"radius": [9, 1.0, 2.0, 3]}, r"system.part.radius: expected a schedule whose steps rise, got .*: 3 after 9"),
        ({"radius": ""}, r"system.part.radius: expected float, got '' \(str\)"),
        ({"words": "None"}, r"system.part.words: expected str \| None, got 'None' \(str\); write null for none"),
        ({"maybe": "None"}, r"system.part.maybe: expected float \| None, got 'None' \(str\); write null for none"),
        ({"span": ["a", 1]}, r"system.part.span\[0\]: expected float, got 'a' \(str\)"),
        ({"milestones": 5}, r"system.part.milestones: expected List\[int\], got 5 \(int\)"),
        ({"nested": 5}, r"system.part.nested: expected dict, got 5 \(int\)"),
        ({"text": "???"}, r"system.part.text: a value is required"),
        ({"text": None}, r"system.part.text: expected str, got null"),
        ({"flag": 3}, r"system.part.flag: expected bool, got 3 \(int\)"),
    ],
)
def test_values_that_fail_name_the_key_the_type_and_the_value(given, message):
    @dataclass
    class Root:
        system: dict = field(default_factory=dict)

    root = parse_structured(Root, {"system": {"part": given}})
    owner = parse_structured(Owner, root.system)
    with pytest.raises(UserError, match=message):
        parse_structured(Part, owner.part)


@dataclass
class Marked:
    """The config of a package that marks the keys which take schedules."""

    scale: Scheduled = 1.0
    clip: Scheduled | None = None
    ratio: float = 0.1
    count: int = 1


@dataclass
class MarkedFurther(Marked):
    ratio: Scheduled = 0.2


@pytest.fixture()
def of_a_package_that_marks(monkeypatch):
    monkeypatch.setattr(Marked, "__module__", "threestudio.elsewhere")
    monkeypatch.setattr(MarkedFurther, "__module__", "threestudio.elsewhere")


SCHEDULE = [0, 0.4, 0.2, 200]


@pytest.mark.parametrize("config, key", [(Marked, "scale"), (Marked, "clip"), (MarkedFurther, "ratio")])
def test_marked_keys_take_schedules(config, key, of_a_package_that_marks):
    assert parse_structured(config, {key: SCHEDULE})[key] == SCHEDULE
    assert parse_structured(config, {key: 2})[key] == 2.0
    with pytest.raises(UserError, match=f"{key}: expected a number, or a schedule of 3 numbers"):
        parse_structured(config, {key: [0, 1]})


@pytest.mark.parametrize("key, kind", [("ratio", "float"), ("count", "int")])
def test_other_keys_of_such_a_package_take_none(key, kind, of_a_package_that_marks):
    message = rf"{key}: expected {kind}, got \[0, 0.4, 0.2, 200\] \(list\); this key takes no schedule"
    with pytest.raises(UserError, match=message):
        parse_structured(Marked, {key: SCHEDULE})


def test_a_plugins_numbers_may_all_be_schedules():
    """Also those that it adds to a config of ours, or says again."""

    @dataclass
    class Plugin(Marked):
        own: float = 1.0

    assert parse_structured(Plugin, {"own": SCHEDULE}).own == SCHEDULE
    assert parse_structured(Marked, {"ratio": SCHEDULE}).ratio == SCHEDULE


def test_a_config_is_a_mapping():
    with pytest.raises(UserError, match="expected a mapping of keys to values, got 3"):
        parse_structured(Part, 3)
    assert parse_structured(Part, None) == parse_structured(Part, {})


def test_a_config_takes_no_new_keys():
    config = parse_structured(Part, {})
    with pytest.raises(Exception, match="'Part' does not have|not in struct|radiuss"):
        config.radiuss = 2
    assert config.get("radius") == 1.0 and "radius" in config


def test_objects_parse_their_own_config():
    class Thing(BaseObject):
        @dataclass
        class Config(BaseObject.Config):
            scale: float = 1.0

        def configure(self, extra):
            self.extra = extra

    thing = Thing({"scale": 3}, extra=5)
    assert thing.cfg.scale == 3.0 and thing.extra == 5
    with pytest.raises(UserError, match=r"unknown key 'scal' \(of .*Thing\); nearest: scale"):
        Thing({"scal": 3}, extra=5)


RESOLVED = """
tag: ${rmspace:"a red chair",_}
data:
  rate: ${calc_exp_lr_decay_rate:0.1,2}
  add: ${add:1,2}
  sub: ${sub:5,2}
  mul: ${mul:2,3}
  div: ${div:3,2}
  idiv: ${idiv:7,2}
  base: ${basename:a/b/c.png}
  pair: ${tuple2:2}
  positive: ${gt0:0.1}
  rises: ${cmaxgt0:[0,0.0,1.0,200]}
  zero: ${cmaxgt0:[0,0.0,0.0,200]}
  three: ${cmaxgt0:[0.0,1.0,200]}
  number: ${cmaxgt0:0}
  negated: ${not:true}
  either: ${cmaxgt0orcmaxgt0:0,[0,0.0,1.0,9]}
  neither: ${cmaxgt0orcmaxgt0:0,0}
"""


def test_resolvers():
    data = load_config(RESOLVED, from_string=True).data
    assert data.rate == pytest.approx(0.1**0.5)
    assert [data[k] for k in ("add", "sub", "mul", "div", "idiv")] == [3, 3, 6, 1.5, 3]
    assert data.base == "c.png" and list(data.pair) == [2.0, 2.0]
    assert [data[k] for k in ("positive", "rises", "zero", "three", "number")] == [
        True, True, False, True, False
    ]  # fmt: skip
    assert [data[k] for k in ("negated", "either", "neither")] == [False, True, False]


def test_overrides_win_and_folders_follow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yaml = "name: exp\ntag: ${rmspace:${system.prompt},_}\nsystem: {prompt: '???'}\nseed: 1"
    config = load_config(yaml, from_string=True, cli_args=["system.prompt=a red chair", "seed=5", "timestamp=@T"])
    assert config.seed == 5
    assert config.trial_dir == "outputs/exp/a_red_chair@T"
    assert list(tmp_path.iterdir()) == []  # reading a config makes no folder


def test_names_that_yaml_takes_for_numbers_are_texts():
    config = load_config("name: 2024\ntag: 7\nexp_root_dir: 3\nuse_timestamp: false", from_string=True)
    assert config.trial_dir == "3/2024/7"


def test_a_file_may_put_a_list_in_the_place_of_what_is_not_there(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("tag: t\ndata: {a: null, b: '${data.e}', c: {d: 1}, e: 3, f: '${data.c}'}\n")
    second.write_text("data: {a: [1], b: [2], e: [4]}\n")
    data = load_config(str(first), str(second)).data
    assert (data.a, data.b, data.e) == ([1], [2], [4])
    for key in "cf":
        second.write_text(f"data: {{{key}: [1]}}\n")
        with pytest.raises(UserError, match=rf"data.{key}: expected a mapping of keys to values, got \[1\]"):
            load_config(str(first), str(second))


def test_later_files_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nname: a\ntag: t")
    (tmp_path / "b.yaml").write_text("seed: 2")
    config = load_config(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), n_gpus=2)
    assert (config.seed, config.name, config.n_gpus) == (2, "a", 2)
    assert config.trial_name == "t"  # several processes could not agree on a time


def test_a_parsed_config_reads_back_as_the_same_trial(tmp_path):
    config = load_config("name: x\ntag: t", from_string=True)
    OmegaConf.save(config, tmp_path / "parsed.yaml")
    assert load_config(str(tmp_path / "parsed.yaml")).trial_dir == config.trial_dir


@pytest.mark.parametrize(
    "yaml, overrides, message",
    [
        ("systm: {}", [], "unknown key 'systm'.*nearest: system"),
        ("a: [1", [], "not valid YAML"),
        ("- 1\n- 2", [], "mapping"),
        ("seed: x", [], "seed: expected int, got 'x'"),
        ("tag: ${system.prompt}\nsystem: {prompt: '???'}", [], "^system.prompt: a value is required "),
        ("tag: ${nothing}", [], "tag: .*nothing"),
        ("tag: ${nothing:1}", [], "nothing"),
        ("tag: ''\nuse_timestamp: false", [], "tag"),
        ("tag: a/b", [], "tag: 'a/b.*without slashes"),
        ("tag: ..\nuse_timestamp: false", [], "not a folder name"),
        (f"tag: {'x' * 300}", [], "tag: longer than the 255 bytes"),
        ("name: ../../etc\ntag: t", [], "name: .*not a folder name"),
        ("tag: t", ["seed"], "bad override 'seed': expected key=value"),
        ("tag: t", ["--seed=3"], "bad override '--seed=3'"),
        ("tag: t", ["data.x=[1"], "bad override"),
        ("tag: t", ["name=null"], "name: expected str, got null"),
        ("tag: t", ["tag=null"], "tag: expected str, got null"),
        ("tag: t\ndata: {x: {y: 1}}", ["data.x=[1]"], r"data.x: expected a mapping of keys to values, got \[1\]"),
        ("tag: t\ndata: {x: {y: 1}}", ["data.x.z=[1]", "data.x.z.w=2"], r"data.x.z: expected a list, got {'w': 2}"),
        ("tag: t\ndata: {x: [1]}", ["data.x={y: 1}"], r"data.x: expected a list, got {'y': 1}"),
        ("tag: t\ntrainer: {max_steps: 1}", ["trainer=[]"], r"trainer: expected a mapping of keys to values, got \[\]"),
    ],
)
def test_bad_experiments(yaml, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(yaml, from_string=True, cli_args=overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file():
    with pytest.raises(UserError, match="config not found: nowhere.yaml"):
        load_config("nowhere.yaml")


def test_experiment_defaults_need_nothing():
    assert ExperimentConfig().trial_name.startswith("@")


@pytest.mark.parametrize(
    "text, value",
    [
        ("a chair: red", "a chair: red"),
        ("@home", "@home"),
        ('it\'s "so"', 'it\'s "so"'),
        ("1e-3", 1e-3),
        ("[1,2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("a=b", "a=b"),
        ("null", None),
        ("", ""),
    ],
)
def test_override_values(text, value):
    assert load_config("tag: t", from_string=True, cli_args=[f"data.x={text}"]).data.x == value


@pytest.mark.parametrize("key, value", [("text", ""), ("words", ""), ("maybe", None), ("optional_nested", None)])
def test_an_empty_override_is_the_empty_text_or_null_by_the_keys_type(key, value):
    config = load_config("tag: t", from_string=True, cli_args=[f"system.part.{key}="])
    part = parse_structured(Part, parse_structured(Owner, config.system).part)
    assert part[key] == value and part.radius == 1.0
    with pytest.raises(UserError, match=r"seed: expected int, got '' \(str\)"):
        load_config("tag: t", from_string=True, cli_args=["seed="])
