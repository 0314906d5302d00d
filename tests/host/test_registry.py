"""Names to classes: mixins, clashes, misses; and plugins from folders."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import UserError, nearest_names
from threestudio.utils.extensions import ExtensionError, extension_files, load_extensions


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = dict(threestudio.__modules__)
    yield
    threestudio.__modules__.clear()
    threestudio.__modules__.update(before)


class Main(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        scale: float = 1.0

    def name(self) -> str:
        return "main"


class Louder(BaseObject):
    @dataclass
    class Config(Main.Config):
        volume: float = 2.0

    def name(self) -> str:
        return super().name().upper()


class Polite(BaseObject):
    def name(self) -> str:
        return super().name() + ", please"


def test_register_and_find():
    assert threestudio.register("test-main")(Main) is Main
    assert threestudio.find("test-main") is Main


def test_a_taken_name_is_an_error():
    threestudio.register("test-main")(Main)
    with pytest.raises(ValueError, match="Module test-main already exists! Names of extensions"):
        threestudio.register("test-main")(Louder)
    assert threestudio.find("test-main") is Main


def test_mixins_stand_before_the_main_class_in_their_order():
    for name, cls in (("test-main", Main), ("test-loud", Louder), ("test-polite", Polite)):
        threestudio.register(name)(cls)
    mixed = threestudio.find("test-main:test-loud,test-polite")
    assert mixed.__mro__[1:4] == (Louder, Polite, Main)
    thing = mixed({"volume": 3.0})
    assert thing.name() == "MAIN, PLEASE"
    assert thing.cfg.volume == 3.0 and thing.cfg.scale == 1.0


def test_a_miss_names_the_nearest():
    threestudio.register("test-volume-renderer")(Main)
    with pytest.raises(UserError, match="'test-volum-renderer'; nearest: test-volume-renderer"):
        threestudio.find("test-volum-renderer")
    with pytest.raises(UserError, match="unknown registered name 'nothing-like-it-at-all'"):
        threestudio.find("test-volume-renderer:nothing-like-it-at-all")


def test_nearest_names():
    valid = ["orient", "sparsity", "opaque"]
    assert nearest_names("sparsty", valid) == ["sparsity"]
    assert nearest_names("zzz", valid) == []


def test_version_is_what_plugins_check_for():
    from threestudio.utils.misc import parse_version

    assert parse_version(threestudio.__version__) >= parse_version("0.2.1")


def write_plugin(folder, name: str, body: str, package: bool = False) -> None:
    target = folder / name / "__init__.py" if package else folder / f"{name}.py"
    target.parent.mkdir(exist_ok=True)
    target.write_text(textwrap.dedent(body))


def test_plugins_load_once_under_their_basename(tmp_path):
    write_plugin(tmp_path, "h1-package", "from . import inner\n", package=True)
    (tmp_path / "h1-package" / "inner.py").write_text("VALUE = 7\n")
    write_plugin(
        tmp_path,
        "h1_single",
        """
        import threestudio
        from threestudio.utils.base import BaseObject

        @threestudio.register("h1-thing")
        class Thing(BaseObject):
            pass
        """,
    )
    write_plugin(tmp_path, "h1_off_disabled", "raise RuntimeError('must not run')")
    (tmp_path / "put_custom_extensions_here").write_text("")
    assert list(extension_files(tmp_path)) == ["h1-package", "h1_single"]
    assert load_extensions(tmp_path) == ["h1-package", "h1_single"]
    assert sys.modules["h1-package"].inner.VALUE == 7
    assert threestudio.find("h1-thing").__module__ == "h1_single"
    assert load_extensions(tmp_path) == []


def test_a_folder_that_is_not_there_has_no_plugins(tmp_path):
    assert load_extensions(tmp_path / "custom") == []


def test_a_plugin_that_fails_says_which_and_why(tmp_path):
    write_plugin(tmp_path, "h1_broken", "import a_module_that_is_not_there")
    message = "plugin 'h1_broken' .* failed to import: ModuleNotFoundError: .*a_module_that"
    for _ in range(2):  # it stays an error: no second load takes it for loaded
        with pytest.raises(ExtensionError, match=message):
            load_extensions(tmp_path)
    assert "h1_broken" not in sys.modules
