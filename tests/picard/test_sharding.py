"""Shards of parameters: how they are cut, that nothing is lost, and that updates of slices are slices of updates."""

import pytest
import torch
from turboprop.picard.engine.distances import BLOCK, squared_differences
from turboprop.picard.engine.state import State
from turboprop.picard.processes.sharding import Sharding

from tests.picard.regression import OPTIMIZERS, Problem, update_of

SHAPES = {"grid": (700, 2), "scalar": (), "bias": (3,), "nothing": (0, 4), "net": (5, 7)}


def tensors(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("block", [1, 64, 512, BLOCK])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 2000])
def test_shards_are_all_of_it_and_each_element_once(ranks, block):
    whole = tensors()
    sharding = Sharding(whole, ranks, block)
    parts = [sharding.part(whole, rank) for rank in range(ranks)]
    assert all(part.keys() == whole.keys() for part in parts)
    for name, value in whole.items():
        owners = [rank for rank in range(ranks) if name in {piece.name for piece in sharding.owned(rank)}]
        assert torch.equal(sharding.join([parts[rank][name] for rank in owners], name), value)
        for pieces in sharding.pieces:
            (piece,) = (piece for piece in pieces if piece.name == name)
            assert piece.start % block == 0 or piece.start == value.numel()
    sizes = [sum(value.numel() for value in part.values()) for part in parts]
    assert sum(sizes) == 1439 and max(sizes) <= 1439 / ranks + min(block, 1400) + 1


def test_moments_are_cut_as_their_parameters_and_counts_are_not():
    whole = tensors()
    moments = {
        name: {"step": torch.tensor(5.0), "exp_avg": value + 1, "exp_avg_sq": value.square()}
        for name, value in whole.items()
        if name != "bias"
    }
    sharding = Sharding(whole, 3, block=1)
    for rank in range(3):
        state = sharding.part_of_state(State(5, whole, {}, moments), rank)
        for piece in sharding.pieces[rank]:
            if piece not in sharding.owned(rank) or piece.name == "bias":
                assert piece.name not in state.moments
                continue
            kept = state.moments[piece.name]
            assert float(kept["step"]) == 5 and torch.equal(kept["exp_avg"], state.parameters[piece.name] + 1)
            assert kept["step"] is not moments[piece.name]["step"]
    assert all("bias" not in sharding.part_of_moments(moments, rank) for rank in range(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_of_slices_are_slices_of_updates_bit_for_bit(name, dtype):
    """At lengths where vectorized loops have tails at other places; only fused kernels mind those."""
    problem, update = Problem(dtype), update_of(name)
    state = problem.start()
    state.parameters = {key: value.repeat(*([37] * value.dim())) for key, value in state.parameters.items()}
    sharding = Sharding(state.parameters, 5, block=16 if "fused" in name else 1)
    shards = [sharding.part_of_state(state, rank) for rank in range(5)]
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        gradients = {
            key: torch.randn(value.shape, generator=generator, dtype=dtype).exp() - 1.2
            for key, value in state.parameters.items()
        } | {"unused": None}
        for rank, shard in enumerate(shards):
            own = {p.name: sharding.slice(gradients[p.name], p) for p in sharding.pieces[rank] if p.name != "unused"}
            update(shard, {**own, "unused": None})
        update(state, gradients)
        for key, value in state.parameters.items():
            assert torch.equal(sharding.join([shard.parameters[key].reshape(-1) for shard in shards], key), value)
    assert all("unused" not in shard.moments for shard in shards)


def test_squared_differences_of_shards_add_up_to_the_same_bits():
    """Cuts lie where the sums of a whole tensor are cut too."""
    generator = torch.Generator().manual_seed(0)
    one = {"a": torch.randn(3 * BLOCK + 17, generator=generator), "b": torch.randn(1000, generator=generator)}
    other = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in one.items()}
    groups = [["a"], ["b"]]
    whole = squared_differences(one, other, groups)
    for ranks in (2, 3, 7):
        sharding = Sharding(one, ranks)
        parts = [
            squared_differences(sharding.part(one, rank), sharding.part(other, rank), groups) for rank in range(ranks)
        ]
        assert torch.equal(torch.stack(parts).sum(0).float(), whole.float())
