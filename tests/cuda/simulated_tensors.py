"""Tensors that say that they lie on cuda:0, and whose values are computed on the CPU.

torch's own fake tensors (``FakeTensorMode``) have no values, so they stop at the first ``item()``, ``nonzero()`` or
``numpy()``, and in a build of torch without CUDA autograd ends the process on them. A ``CudaTensor`` holds its values
beside it (``on_cpu``), as an ordinary tensor on the CPU, so that whole training steps run. What it adds to a run on
the CPU is the rule of devices:

- Tensors of one device may meet. Where those of two devices meet in one operation, torch's fake tensors are asked
  whether CUDA would take it (a number of no dimension on the CPU, indices on the CPU); where they say no, or cannot
  say, the operation raises what CUDA raises.
- What a CPU alone can do (``numpy()``, a gradient on another device than its tensor's) raises too.

What it cannot show: kernels, half precision's rounding, memory, streams, and speed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")


def leaves(value: Any) -> Iterator[Any]:
    """What lies in nested lists, tuples and dicts. torch's pytree does the same in several times the time."""
    if isinstance(value, list | tuple):
        for x in value:
            yield from leaves(x)
    elif isinstance(value, dict):
        for x in value.values():
            yield from leaves(x)
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of each of a value's leaves, in the same lists, tuples and dicts."""
    kind = type(value)
    if kind is tuple:
        return tuple([mapped(function, x) for x in value])
    if kind is dict:
        return {name: mapped(function, x) for name, x in value.items()}
    if isinstance(value, list | tuple):  # torch's named results are tuples too
        return kind([mapped(function, x) for x in value])
    return function(value)


class DeviceMismatch(RuntimeError):
    """Tensors of two devices met in an operation that takes those of one."""


class HeldTensor(Tensor):
    """A tensor whose values another one holds, ``on_cpu``."""

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.on_cpu!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run_operation(func, args, kwargs or {})


class CudaTensor(HeldTensor):
    """A tensor of cuda:0, as far as Python sees."""

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> CudaTensor:
        # To C++ it lies on the CPU: in a build without CUDA, autograd has no queue for another device.
        return Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=CPU,
        )

    def __init__(self, on_cpu: Tensor) -> None:
        self.on_cpu = on_cpu

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False


class ReturnedTensor(HeldTensor):
    """What has been a CudaTensor and was moved to the CPU in place, as a module's parameters are."""


# Operations that make Python wait for the device: their result is on the CPU, or its size hangs on values, or they look
# whether they have failed.
_WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.unique_dim, aten._unique2, aten.unique_consecutive, aten.masked_select,
    aten.is_nonzero, aten.equal, aten.bincount, aten._linalg_check_errors,
}  # fmt: skip


_OURS = ("/threestudio/", "/turboprop/")


class Waits:
    """Counts, by the line of this project that asks, how often Python waits for the simulated device."""

    def __init__(self) -> None:
        self.by_place: Counter[str] = Counter()

    def note(self) -> None:
        frame = sys._getframe(1)
        while frame is not None and not any(folder in frame.f_code.co_filename for folder in _OURS):
            frame = frame.f_back
        place = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self.by_place[place] += 1


waits = Waits()


def run_operation(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation of torch's dispatcher: the device of its result by CUDA's rules, its values by the CPU's kernel."""
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_cuda = _device_of_result(func, args, kwargs, tensors).type == "cuda"
    if any(isinstance(x, CudaTensor) for x in tensors) and _makes_python_wait(func, args, kwargs):
        waits.note()
    out = func(*mapped(_on_cpu, args), **mapped(_on_cpu, kwargs))
    written = _written_arguments(func, args, kwargs)
    if written:  # in place, or into out=: the caller's own tensors come back
        return written[0] if isinstance(out, Tensor) else out if out is None else type(out)(written)
    if not on_cuda and _is_made_by_torch(tensors):
        for x in leaves(out):
            if isinstance(x, Tensor):
                x.made_by_torch = True
    return mapped(lambda x: CudaTensor(x) if on_cuda and isinstance(x, Tensor) else x, out)


def _makes_python_wait(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operation that a CudaTensor takes part in ends only when the device has come so far."""
    if func.overloadpacket in _WAITING:
        return True
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func.overloadpacket not in _INDEXING:
        return False
    masks = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
    if masks and (len(args) < 3 or args[2].numel() > 1):  # x[mask] = number is a masked_fill: nothing is read back
        return True
    return any(isinstance(i, Tensor) and not i.is_cuda for i in args[1])  # indices that have to be sent


# The functions of torch that Python is in, the innermost last, each with whether it was given a CudaTensor.
_calls: list[tuple[Any, bool]] = []
_BACKWARD = (Tensor.backward, torch.autograd.grad, torch.autograd.backward)


def is_made_by_torch(x: Tensor) -> bool:
    """Whether torch has made the tensor out of nothing inside of a function on CudaTensors, as backward makes zeros for
    a gradient that is not there. On CUDA it lies where they do; here C++ sees them on the CPU and puts it there."""
    return getattr(x, "made_by_torch", False)


def _is_made_by_torch(tensors: Sequence[Tensor]) -> bool:
    """Whether what an operation on these makes is so."""
    if tensors:
        return all(is_made_by_torch(x) for x in tensors)
    return _in_backward() or bool(_calls) and _calls[-1][1]


def _in_backward() -> bool:
    """Whether it is C++'s backward that asks for an operation, not Python."""
    return bool(_calls) and _calls[-1][0] in _BACKWARD


def _on_cpu(x: Any) -> Any:
    if isinstance(x, HeldTensor):
        return x.on_cpu
    return CPU if isinstance(x, torch.device) and x.type == "cuda" else x


def _written_arguments(func: Any, args: tuple, kwargs: dict) -> list[Any]:
    """The arguments that the operation gives back after writing to them."""
    aliases = [r.alias_info for r in func._schema.returns if r.alias_info and r.alias_info.is_write]
    returned = {name for alias in aliases for name in alias.before_set}
    if not returned:
        return []
    named = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    chosen = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.before_set & returned]
    return [named[name] for name in chosen if name in named]


def _device_of_result(func: Any, args: tuple, kwargs: dict, tensors: Sequence[Tensor]) -> torch.device:
    asked = kwargs.get("device")
    if asked == CPU and tensors and (func is aten._to_copy.default or _in_backward()):
        return tensors[0].device  # C++'s own wish, by the device that it sees; Python's wishes go through `moved`
    if asked is not None:
        return torch.device(asked)
    devices = {x.device for x in tensors if not is_made_by_torch(x)} or {x.device for x in tensors}
    if len(devices) < 2:
        return devices.pop() if devices else CPU
    if func.overloadpacket in _INDEXING:
        return _device_of_indexing(func, args)
    if func.overloadpacket in _JOINING:
        raise _mismatch(func, tensors)
    return _ask_fake_tensors(func, args, kwargs)


# Fake tensors are more lenient in these than CUDA is.
_JOINING = {aten.cat, aten.stack}
_INDEXING = {
    aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index, aten._unsafe_index_put,
}  # fmt: skip


def _device_of_indexing(func: Any, args: tuple) -> torch.device:
    """x[indices], and x[indices] = values: indices may stay on the CPU, never lie on CUDA for an x on the CPU."""
    x, indices, *values = args
    wrong = [i for i in indices if i is not None and i.device not in (CPU, x.device)]
    others = [v for v in values if isinstance(v, Tensor) and v.device != x.device]
    wrong += [v for v in others if v.dim() > 0 or v.device != CPU]
    if wrong:
        raise _mismatch(func, [x, *wrong])
    return x.device


def _mismatch(func: Any, tensors: Sequence[Tensor]) -> DeviceMismatch:
    shapes = ", ".join(f"{x.device} {list(x.shape)}" for x in tensors)
    return DeviceMismatch(f"Expected all tensors to be on the same device: {func} of {shapes}")


def _ask_fake_tensors(func: Any, args: tuple, kwargs: dict) -> torch.device:
    """The device of the result of an operation on tensors of two devices; raises DeviceMismatch where CUDA would."""
    mode = FakeTensorMode()

    def fake(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        with no_dispatch():
            meta = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")
        return FakeTensor(mode, meta, x.device)

    try:
        with mode:
            out = func(*mapped(fake, args), **mapped(fake, kwargs))
    except Exception as error:  # whatever it is: fake tensors do not vouch for this mix
        raise _mismatch(func, [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]) from error
    results = [x for x in leaves(out) if isinstance(x, Tensor)]
    return results[0].device if results else CPU


class Operations(TorchDispatchMode):
    """Sees all operations, also those that no CudaTensor takes part in; counts those that a CudaTensor comes out of."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = run_operation(func, args, kwargs or {})
        self.count += isinstance(out, CudaTensor)
        return out


class _Moved(torch.autograd.Function):
    """A copy on the other device; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        ctx.back = x.device
        if not non_blocking:  # CUDA copies either way in its stream, and waits for that
            waits.note()
        if device == CUDA:
            return CudaTensor(x.detach().clone())
        return _on_cpu(x).detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return moved(grad, ctx.back), None, None


def moved(
    x: Tensor,
    device: Any = None,
    dtype: torch.dtype | None = None,
    copy: bool = False,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Tensor:
    """``x.to(...)`` by the device that Python sees."""
    device, dtype = torch.device(device or x.device), dtype or x.dtype
    if {device, x.device} - {CPU, CUDA}:  # meta
        return aten._to_copy.default(x, dtype=dtype, device=device, **kwargs)
    copied = device == x.device and copy
    if device != x.device:
        x = _Moved.apply(x, device, non_blocking)
    return aten._to_copy.default(x, dtype=dtype, **kwargs) if copied or dtype != x.dtype or kwargs else x


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    other = kwargs.pop("other", None)
    if args and isinstance(args[0], Tensor):
        other, args = args[0], args[1:]
    if other is not None:
        return moved(x, other.device, other.dtype, copy, kwargs.get("non_blocking", False))
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    formats = {} if memory_format is None else {"memory_format": memory_format}
    return moved(x, device, dtype, copy, non_blocking, **formats)


def _tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
    """``torch.tensor``: made on the CPU and then moved, without a gradient's history."""
    out = moved(torch.tensor(data, device=CPU, **kwargs), device)
    return out.requires_grad_(requires_grad)


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    return moved(data, device, dtype) if isinstance(data, Tensor) else _tensor(data, dtype=dtype, device=device)


def _new_tensor(x: Tensor, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Tensor:
    return _tensor(data, dtype=dtype or x.dtype, device=device or x.device, **kwargs)


def _numpy(x: HeldTensor, *args: Any, **kwargs: Any) -> Any:
    if x.device == CPU:
        return x.on_cpu.numpy()
    raise TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory"
    )


def _set_data(x: Tensor, new: Tensor) -> None:
    """``x.data = new``, by which a module's parameters move and stay the objects that they are."""
    Tensor.data.__set__(x, new)
    x._is_param = isinstance(x, torch.nn.Parameter)
    if isinstance(new, CudaTensor):
        x.__class__, x.on_cpu = CudaTensor, new.on_cpu
    elif isinstance(x, HeldTensor):
        x.__class__, x.on_cpu = ReturnedTensor, _on_cpu(new)


def _set_gradient(x: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None and gradient.device != x.device:
        raise DeviceMismatch(f"a gradient on {gradient.device} for a tensor on {x.device}")
    Tensor.grad.__set__(x, gradient)


# What C++ would answer by the device that it sees, or by reading memory that a CudaTensor does not have.
_BY_PYTHON: dict[Any, Callable] = {
    Tensor.to: _to,
    Tensor.cpu: lambda x, **kwargs: moved(x, CPU),
    Tensor.cuda: lambda x, *args, **kwargs: moved(x, CUDA),
    Tensor.pin_memory: lambda x, *args: x,
    Tensor.type_as: lambda x, other: moved(x, other.device, other.dtype),
    torch.as_tensor: _as_tensor,
    torch.tensor: _tensor,
    Tensor.new_tensor: _new_tensor,
    Tensor.grad.__set__: _set_gradient,
    Tensor.data.__set__: _set_data,
}
_OF_HELD_TENSORS: dict[Any, Callable] = {
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: lambda x: moved(x.detach(), CPU).tolist(),
    Tensor.__reduce_ex__: lambda x, protocol: x.detach().on_cpu.__reduce_ex__(protocol),
    Tensor.get_device: lambda x: 0 if x.is_cuda else -1,
    Tensor.is_pinned: lambda x: False,
}


def _copied(x: HeldTensor) -> Tensor:
    copy = x.on_cpu.detach().clone()
    copy = CudaTensor(copy) if x.is_cuda else copy
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(copy, x.requires_grad)
    return copy.requires_grad_(x.requires_grad)


class _Functions(TorchFunctionMode):
    """Calls from Python: "cuda" means cuda:0, and what is in the tables above is answered there."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is Tensor.__deepcopy__:  # its memo holds all that was copied so far, and names no device
            return _copied(args[0]) if isinstance(args[0], HeldTensor) else func(*args)
        args, kwargs = mapped(_numbered, args), mapped(_numbered, kwargs or {})
        answer = _BY_PYTHON.get(func)
        if answer is None and args and isinstance(args[0], HeldTensor):
            answer = _OF_HELD_TENSORS.get(func)
        _calls.append((func, any(isinstance(x, CudaTensor) for x in leaves((args, kwargs)))))
        try:
            return (answer or func)(*args, **kwargs)
        finally:
            _calls.pop()


def _numbered(x: Any) -> Any:
    """The device "cuda" as cuda:0."""
    if isinstance(x, torch.device):
        return CUDA if x.type == "cuda" and x.index is None else x
    return CUDA if isinstance(x, str) and x in ("cuda", "cuda:0") else x


@contextmanager
def cuda_tensors() -> Iterator[Operations]:
    """Within the block, what is made on or sent to "cuda" is a CudaTensor; gives the counter of operations."""
    with Operations() as counter, _Functions():
        yield counter
