"""Every updateable thing is reached, each once a step, and its errors are seen."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from threestudio.utils.base import (
    BaseModule,
    BaseObject,
    Updateable,
    already_updated,
    update_if_possible,
)


class Counter(Updateable):
    def __init__(self, **children):
        self.calls, self.ends = [], []
        vars(self).update(children)

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.calls.append((epoch, global_step, on_load_weights))

    def update_step_end(self, epoch, global_step):
        self.ends.append((epoch, global_step))


class CountingModule(BaseModule):
    def configure(self, **children):
        self.calls = 0
        for name, child in children.items():
            setattr(self, name, child)

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.calls += 1


class Parts(NamedTuple):
    geometry: Updateable


def test_everything_is_reached_once():
    """In attributes, lists, dicts, tuples, ModuleLists and plain modules, by several paths."""
    shared = Counter()
    leaves = [Counter() for _ in range(4)]
    module = CountingModule(shared=shared)
    deep = CountingModule()
    plain = nn.Sequential(nn.Linear(1, 1), nn.Sequential(deep))
    in_list = CountingModule()
    root = CountingModule(
        first=shared,
        again=module,
        in_list=[leaves[0], {"key": leaves[1]}],
        parts=Parts(leaves[2]),
        plain=plain,
        modules_list=nn.ModuleList([in_list, module]),
        _hidden=leaves[3],
    )
    root.do_update_step(1, 7)
    assert shared.calls == [(1, 7, False)]
    assert [leaf.calls for leaf in leaves] == [[(1, 7, False)]] * 4
    assert [m.calls for m in (root, module, deep, in_list)] == [1, 1, 1, 1]
    root.do_update_step_end(1, 7)
    assert shared.ends == [(1, 7)]
    assert [leaf.ends for leaf in leaves] == [[(1, 7)]] * 4


def test_children_come_before_their_owner():
    order = []

    class Named(Updateable):
        def __init__(self, name, child=None):
            self.name, self.child = name, child

        def update_step(self, epoch, global_step, on_load_weights=False):
            order.append(self.name)

    Named("owner", Named("child", Named("grandchild"))).do_update_step(0, 0)
    assert order == ["grandchild", "child", "owner"]


def test_circles_end():
    a, b = Counter(), Counter()
    a.other, b.other = b, a
    a.itself = [a]
    a.itself.append(a.itself)
    a.do_update_step(0, 3)
    assert len(a.calls) == len(b.calls) == 1
    a.do_update_step(0, 4)
    assert len(a.calls) == len(b.calls) == 2


def test_errors_are_not_swallowed():
    class Failing(Updateable):
        def update_step(self, epoch, global_step, on_load_weights=False):
            raise AttributeError("the field is gone")

    root, good = Counter(child=Failing()), Counter()
    with pytest.raises(AttributeError, match="the field is gone"):
        root.do_update_step(0, 0)
    good.do_update_step(0, 0)  # the walk that failed leaves nothing behind
    assert len(good.calls) == 1


def test_properties_are_not_evaluated():
    class WithProperty(Counter):
        @property
        def expensive(self):
            raise RuntimeError("was evaluated")

    root = WithProperty()
    root.do_update_step(0, 0)
    assert len(root.calls) == 1


def test_what_was_updated_already_is_left_out():
    dataset, rest = Counter(), Counter()
    root = Counter(dataset=dataset, rest=rest)
    with already_updated(dataset):
        root.do_update_step(0, 0)
    assert (len(dataset.calls), len(rest.calls), len(root.calls)) == (0, 1, 1)


def test_an_own_walk_of_a_module_is_respected():
    class Frozen(CountingModule):
        def do_update_step(self, epoch, global_step, on_load_weights=False):
            self.calls = -1

    root = CountingModule(frozen=Frozen())
    root.do_update_step(0, 0)
    assert root.frozen.calls == -1


def test_update_if_possible():
    thing = Counter()
    update_if_possible(thing, 0, 5)
    update_if_possible(object(), 0, 5)
    assert thing.calls == [(0, 5, False)]


class Weighted(BaseModule):
    def configure(self):
        self.layer = nn.Linear(2, 2)
        self.loaded_at = None

    def update_step(self, epoch, global_step, on_load_weights=False):
        if on_load_weights:
            self.loaded_at = (epoch, global_step)


def test_a_module_loads_its_weights_from_a_checkpoint(tmp_path):
    source = Weighted()
    state = {f"geometry.{k}": v for k, v in source.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 2, "global_step": 40}, path)
    module = Weighted({"weights": f"{path}:geometry"})
    assert torch.equal(module.layer.weight, source.layer.weight)
    assert module.loaded_at == (2, 40)
    with pytest.raises(ValueError, match="no weights of a module 'material'"):
        Weighted({"weights": f"{path}:material"})
    with pytest.raises(ValueError, match="'path.ckpt:module_name'"):
        Weighted({"weights": "last.ckpt"})


def test_objects_have_a_device_and_no_weights_in_modules():
    class Guidance(BaseObject):
        def configure(self):
            self.net = nn.Linear(1, 1)

    class Holder(BaseModule):
        def configure(self):
            self.guidance = Guidance()

    assert list(Holder().state_dict()) == []
    assert Guidance().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
