"""A GPU that is none: tensors that say they lie on `cuda`, are computed on the CPU, and refuse what
a GPU's tensors refuse: to be mixed with the CPU's, or to be read by numpy.

So the paths of a GPU run on any machine, but for its own kernels, streams and speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

_GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_MIXING = {_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default}
# These take indices from the CPU too.
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_INDEXING |= {_aten._index_put_impl_.default, _aten._unsafe_index.Tensor}


class OnGpu(Tensor):
    """host: where its values really are."""

    device = property(lambda self: _GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnGpu":
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, host.size(), **layout, dtype=host.dtype)

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    _check(func, args, [each for each in flat if isinstance(each, Tensor)])
    host = [each.host if isinstance(each, OnGpu) else each for each in flat]
    out = func(*tree_unflatten(host, spec)[0], **tree_unflatten(host, spec)[1])
    target = tree_flatten(args)[0][:1] if func in _MIXING else flat
    if not any(isinstance(each, OnGpu) for each in target):
        return out
    given = {id(h): each for h, each in zip(host, flat) if isinstance(each, OnGpu)}  # in place
    return tree_map_only(Tensor, lambda m: given[id(m)] if id(m) in given else OnGpu(m), out)


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _INDEXING:
        tensors = [each for each in (args[0], *args[2:]) if isinstance(each, Tensor)]
    on_gpu = [isinstance(each, OnGpu) for each in tensors]
    alone = [not there and each.dim() > 0 for each, there in zip(tensors, on_gpu)]
    if func not in _MIXING and any(on_gpu) and any(alone):
        found = ", ".join(str(each.device) for each in tensors)
        raise RuntimeError(f"{func}: expected all tensors on the same device, found {found}")


class _Calls(TorchFunctionMode):
    """What torch decides by the device before it computes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = bool(args) and isinstance(args[0], OnGpu)
        if func in (Tensor.numpy, Tensor.__array__, Tensor.pin_memory) and ours:
            raise TypeError(f"{func.__name__} of a tensor on the GPU")
        if func is Tensor.pin_memory:
            return args[0].clone()
        if func is Tensor.tolist and ours:
            return args[0].host.tolist()
        if func is Tensor.cpu and ours:
            return _to_host(args[0])
        if func is Tensor.to:
            return _to(func, args, kwargs)
        if "device" in kwargs and torch.device(kwargs["device"] or "cpu").type == "cuda":
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if isinstance(made, OnGpu) else OnGpu(made)
        return func(*args, **kwargs)


def _to(func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    tensor, *rest = args
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for each in rest:
        device = each if isinstance(each, (str, torch.device)) else device
        dtype = each if isinstance(each, torch.dtype) else dtype
    more = {name: kwargs[name] for name in ("memory_format",) if kwargs.get(name)}
    if dtype is not None:
        more["dtype"] = dtype
    ours, wanted = isinstance(tensor, OnGpu), device and torch.device(device).type == "cuda"
    if device is not None and ours and not wanted:
        tensor = _to_host(tensor)
    moved = func(tensor, **more) if more else tensor
    return OnGpu(moved.detach().clone()) if wanted and not ours else moved


def _to_host(tensor: OnGpu) -> Tensor:
    copy = tensor.host.detach().clone()
    return copy.requires_grad_() if tensor.requires_grad and torch.is_grad_enabled() else copy


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


class _Scaler(torch.amp.GradScaler):
    def __init__(self, device: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it, torch has one GPU."""
    driver = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda _: 0)
    card = SimpleNamespace(uuid="0", name="pretended", total_memory=80 << 30)
    answers = {
        "is_available": True,
        "device_count": 1,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "cudart": driver,
        "mem_get_info": (40 << 30, 80 << 30),
        "get_device_name": card.name,
        "get_device_capability": (9, 0),
        "get_arch_list": ["sm_90"],
        "get_device_properties": card,
        "is_bf16_supported": True,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    patch.setattr(torch, "autocast", _Autocast)
    patch.setattr(torch.amp, "GradScaler", _Scaler)
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        patch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    keeps = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Ops(), _Calls():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(keeps)
