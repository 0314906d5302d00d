"""Weights in eight bits, against what rounding allows."""

import torch
from turboprop.novelview.eight_bits import from_eight_bits, to_eight_bits


def test_rounding_moves_a_weight_by_at_most_half_a_scale():
    weight = torch.randn(64, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-6, 3, 64)[:, None, None, None]
    weight[5] = 0.0
    stored = to_eight_bits({"conv.weight": weight})
    again = from_eight_bits(stored, "here")["conv.weight"]
    scale = stored["conv.weight_scale"].float()
    assert bool(((again - weight).flatten(1).abs().amax(1) <= scale * 0.51).all())
    normal = weight.flatten(1).abs().amax(1) > 0.01  # above what half precision holds in full
    largest = weight.flatten(1).abs().amax(1) / 127
    torch.testing.assert_close(scale[normal], largest[normal], rtol=1e-3, atol=0.0)
    assert not bool(again[5].any())


def test_small_tensors_and_vectors_stay_in_half_precision():
    tensors = {"a": torch.randn(300, 10), "b": torch.randn(5000), "c": torch.tensor(3.0)}
    stored = to_eight_bits(tensors)
    assert {value.dtype for value in stored.values()} == {torch.float16} and stored.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key].half().float()) for key, value in from_eight_bits(stored, "").items())


def test_other_tensors_that_end_as_a_scale_does_are_kept():
    stored = {"layer_scale": torch.ones(4, dtype=torch.float16), "w": torch.zeros(4, 2, dtype=torch.float16)}
    assert from_eight_bits(stored, "").keys() == stored.keys()
