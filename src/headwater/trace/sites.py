"""Values of a run by the name of their site, in the site's shape on every architecture."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headwater.architectures.adapter import Point
from headwater.attention import AttentionTaps, listen, switched_on
from headwater.errors import LateWriteError, TraceError, UnavailableSiteError
from headwater.sites import Site
from headwater.taps import INSIDE_ATTENTION, in_model_shape, in_site_shape
from headwater.trace.forward import Forward, path_of

if TYPE_CHECKING:
    from headwater.trace.run import Run

_SWITCHABLE = ("sdpa", "eager", "headwater")


def place(run: Run, path: str) -> tuple[Any, str, str]:
    """Where a site is: the module, its path, and which of its values.

    Args:
        run: The run.
        path: The site, for example `layers.1.attn.z`.

    Returns:
        Module, module path and side; for `logits` the model's output.

    Raises:
        UnavailableSiteError: If the model does not offer the site.
        UnknownSiteError: If there is no such site.
    """
    return _place(run, run._model.anatomy().point(Site.parse(path)))


def _place(run: Run, point: Point) -> tuple[Any, str, str]:
    if point.side == "split":
        raise UnavailableSiteError(
            f"{type(point.module).__name__} hands its convolution's output to its scan without "
            "calling a module, so a trace cannot stop there.\n"
            "Read mixer.conv, which enters the convolution, or gate it with hw.ssm()."
        )
    if point.side == "logits":
        return run._model.module, "", "output"
    path = path_of(run._model.module, point.module)
    forward = run._state
    if forward is None:
        return point.module, path, INSIDE_ATTENTION.get(point.side, point.side)
    if point.side in INSIDE_ATTENTION:
        side = INSIDE_ATTENTION[point.side]
        _listen(run, forward, point.module, path)
        return point.module, path, side
    if point.mutated:
        forward.separate |= {(point.module, point.side)}
    return point.module, path, point.side


def read(run: Run, path: str) -> Tensor:
    """The value at a site, in the site's shape; an edit in place lands in the run.

    Args:
        run: The run.
        path: The site.

    Returns:
        The value, a view of the module's tensor.

    Raises:
        UnavailableSiteError: If the model does not offer the site.
        OutOfOrderError: If the model has passed it and it was not kept.
    """
    point = run._model.anatomy().point(Site.parse(path))
    module, name, side = _place(run, point)
    value = _whole(run, module, name, side)
    if point.side == "logits":
        return value.logits
    inside = side not in ("input", "output")
    tensor = value if inside else _tensor(value, side)
    if run._state is not None and point.half is None and point.span is None:
        run._state.handed.rename(tensor, path)  # a half or a span is only a part of the tensor
    return tensor if inside else in_site_shape(point, tensor, run._shape)


def write(run: Run, path: str, new: Tensor) -> None:
    """Replace the value at a site.

    Args:
        run: The run.
        path: The site.
        new: The new value, in the site's shape.

    Raises:
        UnavailableSiteError: If the model does not offer the site.
        LateWriteError: If the model has used the value already.
        GateError: If the shape is another one.
    """
    point = run._model.anatomy().point(Site.parse(path))
    module, name, side = _place(run, point)
    value = _whole(run, module, name, side)
    forward = run._forward(None, path)
    where = run._place(forward, module, name, side, None)
    if where != forward.held:
        raise LateWriteError(run._late(forward, path))
    if point.side == "logits":
        value["logits"] = new
        run._put(forward, where, value, path)
        return
    if side not in ("input", "output"):
        if value.shape != new.shape:
            raise TraceError(
                f"{path} has shape {tuple(value.shape)}, the value assigned {tuple(new.shape)}.\n"
                "Assign a tensor of the same shape."
            )
        run._put(forward, where, new, path)
        return
    tensor = _tensor(value, side)
    seen = in_site_shape(point, tensor, run._shape)
    result = in_model_shape(point, tensor, seen, new)
    if point.in_place:
        # the block uses this very tensor again as its residual
        tensor.copy_(result.clone())
        forward.note_edit(where, f"an assignment to {path}")
        return
    run._put(forward, where, _with(value, side, result), path)


def _whole(run: Run, module: Any, path: str, side: str) -> Any:
    """The output, or all arguments: the site's tensor need not be the first of them."""
    return run._value(module, path, side, what="inputs" if side == "input" else side)


def _tensor(value: Any, side: str) -> Tensor:
    if side == "output":
        return value[0] if isinstance(value, tuple) else value
    args, kwargs = value
    return args[0] if args else kwargs["hidden_states"]


def _with(value: Any, side: str, tensor: Tensor) -> Any:
    if side == "output":
        return (tensor, *value[1:]) if isinstance(value, tuple) else tensor
    args, kwargs = value
    return ((tensor, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tensor})


def _listen(run: Run, forward: Forward, module: Any, path: str) -> None:
    """Have the attention module show queries, keys, values and the pattern from now on."""
    model = run._model
    if not model.anatomy().interface:
        raise UnavailableSiteError(f"{path} does not use the attention interface.")
    forward.look_at(module, path)
    for name, child in module.named_children():
        forward.look_at(child, f"{path}.{name}")  # they run while it is under way
    if not forward.listening:
        chosen = getattr(model.module.config, "_attn_implementation", "eager")
        if forward.started and chosen not in _SWITCHABLE:
            raise TraceError(
                f"queries, keys, values and patterns were asked for while {chosen} attention runs."
                '\nAsk before the first value is read: run.keep(["layers.0.attn.pattern"]).'
            )

        def switch() -> None:
            stack = ExitStack()
            forward.undoing.append(stack.close)
            stack.enter_context(model.lock)
            stack.enter_context(switched_on(model.module))

        run._arrange(switch)
    if module in forward.listening:
        return
    forward.listening |= {module}
    taps = AttentionTaps()
    for side in INSIDE_ATTENTION.values():
        setattr(taps, side, functools.partial(forward.inner, module, side))
    # done in the model's own context, which ends with the run
    forward.errands.append(lambda: listen({module: taps}))
