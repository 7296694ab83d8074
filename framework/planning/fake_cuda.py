"""Lets fake tensors on the CPU pass for tensors on CUDA, so that a step for GPUs runs where there is none.

The modules of a step choose their kernels by the device of a tensor. Within `fake_cuda` fake tensors report a CUDA
device to code of this package and the CPU to torch, which need not be built for CUDA. Triton kernels allocate their
results, but are not started. Autocast follows the rules of the CPU; layers cast by themselves where the rules differ.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from framework.nn import dropout

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

_KERNEL_MODULES = ("framework.nn.dropout_cuda", "framework.nn.norm_cuda")
_CAPABILITY = (9, 0)
_REAL_DEVICE: Any = FakeTensor.device


class _AsCuda(TorchFunctionMode):
    """Lets tensors report that they are on CUDA, and creates tensors for CUDA on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]  # each access makes another object
            return True
        if func is Tensor.pin_memory:
            return args[0]
        # The CPU has no pinned memory.
        on_cpu = {name: _on_cpu(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*[_on_cpu(value) for value in args], **on_cpu)


@contextlib.contextmanager
def _as_cuda() -> Iterator[None]:
    """Context in which tensors report that they are on CUDA. It also decorates functions."""
    with _AsCuda():
        yield


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return CPU if isinstance(value, str) and value.startswith("cuda") else value


def _device(fake: FakeTensor) -> torch.device:
    """Returns CUDA to code of this package, and the CPU to torch."""
    real = _REAL_DEVICE.__get__(fake)
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return CUDA if real.type == "cpu" and caller.startswith("framework.") else real


class _Kernel:
    """Kernel whose launch is reported and does nothing."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report = name, report

    def __getitem__(self, grid: object) -> "_Kernel":
        return self

    def __call__(self, *_: object, **__: object) -> None:
        self._report(self._name)


class _Anything(ModuleType):
    """Module all of whose functions return their first argument."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda value=None, *_, **__: value


def _triton(report: Callable[[str], None]) -> dict[str, ModuleType]:
    """Returns modules that stand for Triton."""

    def jit(function: Any = None, **_: Any) -> Any:
        if function is None:
            return jit
        return _Kernel(f"triton {function.__module__}.{function.__name__}", report)

    language, triton = _Anything("triton.language"), _Anything("triton")
    triton.jit, triton.language = jit, language  # type: ignore[attr-defined]
    triton.next_power_of_2 = lambda number: 1 << (number - 1).bit_length()  # type: ignore[attr-defined]
    triton.cdiv = lambda number, divisor: -(-number // divisor)  # type: ignore[attr-defined]
    return {"triton": triton, "triton.language": language}


@contextlib.contextmanager
def fake_cuda(report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Context in which code of this package takes the branches of CUDA with fake tensors on the CPU.

    Args:
        report: Function that is called with the name of each Triton kernel that is launched.
    """
    autocast = torch.autocast
    # torch leaves the mode for a backward pass, in which layers are recomputed.
    run_backward = _as_cuda()(torch.autograd._engine_run_backward)
    is_enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    kernels = {name: sys.modules.pop(name) for name in _KERNEL_MODULES if name in sys.modules}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, _triton(report)))
        stack.enter_context(patch.object(dropout, "_HAS_TRITON", True))
        stack.enter_context(patch.object(dropout, "detect_fake_mode", lambda: None))
        stack.enter_context(patch.object(torch, "autocast", lambda _, **settings: autocast("cpu", **settings)))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda _="cuda": is_enabled("cpu")))
        stack.enter_context(patch.object(torch, "get_autocast_dtype", lambda _: dtype("cpu")))
        stack.enter_context(patch.object(torch, "get_autocast_gpu_dtype", lambda: dtype("cpu")))  # torchao calls it
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda *_: _CAPABILITY))
        stack.enter_context(patch.object(FakeTensor, "device", property(_device)))
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", run_backward))
        stack.enter_context(_as_cuda())
        try:
            for name in _KERNEL_MODULES:
                importlib.import_module(name)
            yield
        finally:
            for name in _KERNEL_MODULES:
                sys.modules.pop(name, None)
            sys.modules.update(kernels)
