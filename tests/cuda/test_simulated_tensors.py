"""The simulated device's own rules: what CUDA refuses it refuses, what CUDA takes it takes."""

import copy

import pytest
import torch
from torch import nn

from tests.cuda.simulated_runtime import simulated_cuda
from tests.cuda.simulated_tensors import CudaTensor, DeviceMismatch

REFUSED = {
    "sum": lambda x: x + torch.ones(4),
    "a number on CUDA and a tensor on the CPU": lambda x: torch.ones(4) + x.sum(),
    "cat": lambda x: torch.cat([x, torch.ones(2)]),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "matrix product": lambda x: x @ torch.ones(4, 4),
    "index of index_add": lambda x: x.index_add(0, torch.tensor([1]), x[:1]),
    "CUDA indices of a tensor on the CPU": lambda x: torch.ones(4)[x.long()],
    "assignment of a vector": lambda x: x.__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "layer": lambda x: nn.Linear(4, 2)(x),
    "in place": lambda x: x.add_(torch.ones(4)),
    "gradient": lambda x: setattr(x, "grad", torch.ones(4)),
}
TAKEN = {
    "number on the CPU": lambda x: x + torch.tensor(1.0),
    "indices on the CPU": lambda x: x[torch.tensor([1, 2])],
    "mask on the CPU": lambda x: x[torch.ones(4) > 0],
    "assignment of a number": lambda x: x.clone().fill_(torch.tensor(2.0)),
    "copy from the CPU": lambda x: torch.zeros_like(x).copy_(torch.ones(4)),
    "where with a number": lambda x: torch.where(x > 1, torch.tensor(0.0), x),
    "new tensors": lambda x: x.new_zeros(2) + x.new_tensor([1.0, 2.0]) + torch.zeros(2, device="cuda"),
}


@pytest.fixture()
def x():
    with simulated_cuda():
        yield torch.arange(4.0, device="cuda")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(x, name):
    with pytest.raises(DeviceMismatch):
        REFUSED[name](x)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(x, name):
    out = TAKEN[name](x)
    assert isinstance(out, CudaTensor) and out.device == torch.device("cuda:0") and out.cpu().device.type == "cpu"


def test_values_come_back_through_the_cpu_alone(x):
    assert x.tolist() == x.cpu().numpy().tolist() == [0.0, 1.0, 2.0, 3.0] and x.sum().item() == 6.0
    with pytest.raises(TypeError, match="Use Tensor.cpu"):
        x.numpy()


def test_a_module_moves_trains_and_comes_back(x):
    layer = nn.Linear(4, 3)
    weight, on_cpu = layer.weight, copy.deepcopy(layer)
    layer.to("cuda")
    assert layer.weight is weight and weight.is_cuda and isinstance(weight, nn.Parameter)
    for module, data in ((layer, x), (on_cpu, x.cpu())):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        module(data).square().sum().backward()
        assert module.weight.grad.device == data.device
        optimizer.step()
    layer.cpu()
    assert layer.weight is weight and not weight.is_cuda and torch.equal(layer.weight + 0, on_cpu.weight + 0)
    (gradient,) = torch.autograd.grad(layer(x.cpu()).sum(), layer.bias)
    assert gradient.tolist() == [1.0] * 3


def test_gradients_cross_to_the_cpu_and_back():
    with simulated_cuda():
        leaf = torch.ones(3, requires_grad=True)
        (leaf.to("cuda").square().cpu() * 2).sum().backward()
        assert leaf.grad.device.type == "cpu" and leaf.grad.tolist() == [4.0] * 3


def test_half_precision_under_autocast(x):
    layer = nn.Linear(4, 3).to("cuda")
    with torch.autocast("cuda", torch.float16):
        assert layer(x).dtype == torch.float16
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32


def test_a_kernel_of_warp_looks_at_devices(x):
    from threestudio.ops.warp_runtime import as_array, launch, wp

    @wp.kernel
    def doubled(source: wp.array(dtype=float), target: wp.array(dtype=float)):
        target[wp.tid()] = 2.0 * source[wp.tid()]

    target = torch.zeros(4, device="cuda")
    launch(doubled, [4], [as_array(x), as_array(target)], target.device)
    assert target.tolist() == [0.0, 2.0, 4.0, 6.0]
    with pytest.raises(DeviceMismatch, match="an array lies on cpu"):
        launch(doubled, [4], [as_array(torch.zeros(4)), as_array(target)], target.device)
