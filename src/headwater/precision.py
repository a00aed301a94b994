"""True float64: keep a float64 model's numbers in float64 all the way through.

Costs about a microsecond for each torch call, besides float64 itself.
`model.double()` alone is not float64: norms, softmax, rotary embeddings and routers cast down to
float32 on the way, which leaves noise of 1e-8, and finite differences and gradients then
disagree at 1e-4. Everything in headwater that computes in float64 does it in this context.

Rotary frequencies and other constants that a model stores in float32 are taken as they are:
promoted to float64, they define a function that is smooth down to float64's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from headwater.implementations import configs_of, hugging_face_parts, selected

_RAISED = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_HIGH = {torch.float64, torch.complex128}
_CASTS_BY_NAME = {Tensor.float, Tensor.half, Tensor.bfloat16}
_LOWER_TYPE_NAMES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")
# view(dtype) reads the same bits as another type, which is no cast
_NOT_CASTS = {Tensor.view}


class _KeepFloat64(TorchFunctionMode):
    """Answers a float64 tensor's request for a lower floating dtype with float64."""

    @no_type_check  # runs at every torch call: checking shapes here would double each test
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("input")
        if not isinstance(tensor, Tensor) or tensor.dtype not in _HIGH or func in _NOT_CASTS:
            return func(*args, **kwargs)
        if func in _CASTS_BY_NAME:
            return tensor.to(torch.float64, **kwargs)
        if func is Tensor.to or func is Tensor.type_as:
            args, kwargs = _example_spelled_out(args, kwargs)
            func = Tensor.to
        if func is Tensor.type:
            args = tuple(_raised_type_name(argument) for argument in args)
        # The dtype can come under any name and at any place: softmax(x, -1, 3, torch.float32)
        args = tuple(_raised(argument) for argument in args)
        kwargs = {name: _raised(argument) for name, argument in kwargs.items()}
        return func(*args, **kwargs)


def _example_spelled_out(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn `to(other, ...)` and `type_as(other)` into `to(device, dtype, ...)`."""
    named = {name: value for name, value in kwargs.items() if name not in ("tensor", "other")}
    example = kwargs.get("tensor", kwargs.get("other"))
    if example is not None:
        return (*args, example.device, example.dtype), named
    if len(args) > 1 and isinstance(args[1], Tensor):
        return (args[0], args[1].device, args[1].dtype, *args[2:]), named
    return args, kwargs


@no_type_check
def _raised(argument: Any) -> Any:
    return _RAISED.get(argument, argument) if isinstance(argument, torch.dtype) else argument


def _raised_type_name(argument: Any) -> Any:
    """Return the float64 twin of a legacy type such as `"torch.cuda.FloatTensor"`."""
    if isinstance(argument, type):  # torch.FloatTensor itself
        argument = f"{argument.__module__}.{argument.__name__}"
    if not isinstance(argument, str):
        return argument
    package, _, name = argument.rpartition(".")
    return f"{package}.DoubleTensor" if name in _LOWER_TYPE_NAMES else argument


@contextmanager
def true_float64() -> Iterator[None]:
    """Keep float64 tensors in float64 inside the context: casts down return float64 instead.

    Only an operation whose input is float64 (or complex128) is changed: float32 models, integer
    casts and casts up behave as always. Autocast is off inside. The context belongs to one
    thread; a worker thread enters it for itself. A module must not be converted inside:
    `model.float()` would have no effect on a float64 model.

    Numbers written into a float32 buffer, and kernels compiled outside torch (flash attention,
    Mamba's CUDA scans), are beyond its reach: measure the noise of a new architecture.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_KeepFloat64())
        yield


@contextmanager
def eager_experts(module: nn.Module) -> Iterator[None]:
    """Run mixtures of experts as a plain loop inside the context; restore exactly afterwards.

    Their grouped matrix products have no float64. Models without experts are left alone. The
    configs are shared by all threads that use the model: hold the model's lock.
    """
    parts = [part for part in hugging_face_parts(module) if _has_experts(part)]
    with selected(configs_of(parts), "_experts_implementation_internal", "eager"):
        yield


def is_float64(module: nn.Module) -> bool:
    """Return whether `module` has floating parameters and all of them are float64."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes == {torch.float64}


@contextmanager
def context_for(module: nn.Module) -> Iterator[None]:
    """Enter what a run of `module` needs: true float64 and eager experts if it is float64.

    Nothing for any other model.
    """
    with ExitStack() as stack:
        if is_float64(module):
            stack.enter_context(eager_experts(module))
            stack.enter_context(true_float64())
        yield


def _has_experts(part: PreTrainedModel) -> bool:
    asks = getattr(part, "_can_set_experts_implementation", None)
    return asks is not None and bool(asks())
