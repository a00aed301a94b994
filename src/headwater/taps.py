"""Look at and replace tensors of a stock module while it runs, by plain hooks.

A tap gets the tensor at its site in the site's shape and may return a replacement. What it gets
lies on the path to the logits, so gradients with respect to it exist. Everything installed here
is taken away again when the block ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headwater.architectures.adapter import Adapter, Point
from headwater.attention import AttentionTaps, listening
from headwater.errors import GateError, ModelStateError, UnavailableSiteError
from headwater.sites import Site
from headwater.splits import SplitTaps
from headwater.trace.dispatch import CALL, Watch, as_ever, is_ours, unwatch, watch

Tap = Callable[[Tensor], Tensor | None]
"""Gets the value at a site; returns its replacement, or None to leave it."""

INSIDE_ATTENTION = {"query": "q", "key": "k", "value": "v", "pattern": "pattern"}
"""The sides that only the attention interface shows, and their names in `AttentionTaps`."""


def keeper(kept: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
    """Return a tap that keeps a copy of what it sees."""

    def tap(value: Tensor) -> None:
        kept[key] = value.detach().clone()

    return tap


def in_turn(*taps: Tap) -> Callable[[Tensor], Tensor]:
    """Call taps at one site one after the other; each sees what those before it returned."""

    def tap(value: Tensor) -> Tensor:
        for one in taps:
            replacement = one(value)
            value = value if replacement is None else replacement
        return value

    return tap


def needs_attention(adapter: Adapter, taps: Mapping[Site, Tap]) -> bool:
    """Whether any tap sits inside the attention interface (queries, keys, values, pattern)."""
    return any(adapter.point(site).side in INSIDE_ATTENTION for site in taps)


@contextmanager
def tapped(adapter: Adapter, taps: Mapping[Site, Tap], shape: Sequence[int]) -> Iterator[None]:
    """Install taps for the runs inside the block.

    Args:
        adapter: Where the sites are.
        taps: What to call where; a tap at `logits` is not installed, the caller applies it.
        shape: Batch and positions of the run, for models that flatten them.

    Yields:
        Nothing.

    Raises:
        UnavailableSiteError: If the model does not offer one of the sites.
        ModelStateError: While it runs, if a module computes a site in a fused kernel.
    """
    listeners: dict[nn.Module, AttentionTaps] = {}
    splits = SplitTaps()
    with ExitStack() as stack:
        # in the order of the run: of two taps at one tensor the later sees what the earlier did
        for site, tap in sorted(taps.items(), key=lambda one: one[0].order):
            point = adapter.point(site)
            if point.inside is not None:
                tap = _surely_called(site, point.inside, tap, stack)
            if point.side == "split":
                _split(point, tap, shape, splits, stack)
            elif point.side in INSIDE_ATTENTION:
                listener = listeners.setdefault(point.module, AttentionTaps())
                # what it returns lies on the path, so a tap that returns nothing returns its value
                setattr(listener, INSIDE_ATTENTION[point.side], in_turn(tap))
            elif point.side != "logits":
                stack.callback(_hooked(point, tap, shape).remove)
        if listeners:
            stack.enter_context(listening(listeners))
        if any(adapter.point(site).side == "split" for site in taps):
            stack.enter_context(splits)
        yield


@contextmanager
def starting_at(
    adapter: Adapter, layer: int, residual: Float[Tensor, "batch pos d_model"]
) -> Iterator[None]:
    """Skip the layers before `layer` and give it `residual` as its input.

    A skipped layer is not called at all, so hooks of yours on it don't run either: what they do is
    already in `residual`, which is what a tap at the layer's `resid_pre` gets in a whole run.

    Args:
        adapter: Where the layers are.
        layer: The first layer that runs; the number of layers means only norm and unembedding.
        residual: What enters it.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for number, skipped in enumerate(adapter.layers[:layer]):
            # nothing of ours runs before the final norm, so the last layer hands the residual on
            given = residual if number == adapter.n_layers - 1 else None
            stub = _Stub(skipped, given, as_tuple=adapter.family.returns_tuple)
            watch((stub,))
            stack.callback(unwatch, (stub,))
        if layer < adapter.n_layers:
            # registered last: hooks of the user on the layer's input are in the residual already
            handle = adapter.layers[layer].register_forward_pre_hook(
                _here_only(lambda _, args, kwargs: _with_input(args, kwargs, residual)),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        yield


@contextmanager
def reading(adapter: Adapter, read: int | Sequence[int] | None) -> Iterator[None]:
    """Unembed only some positions.

    Args:
        adapter: Where the unembedding is.
        read: The last `read` positions, or a list of them (negative counts from the end).

    Yields:
        Nothing.
    """
    if read is None:
        yield
        return

    def slice_positions(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = _input(args, kwargs)
        kept = hidden[:, -read:] if isinstance(read, int) else hidden[:, list(read)]
        # a strided slice would be multiplied row by row, at twice the cost
        return _with_input(args, kwargs, kept.contiguous())

    handle = adapter.unembed.register_forward_pre_hook(
        _here_only(slice_positions), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def plainly(module: nn.Module) -> Iterator[None]:
    """Run a model's own Python code once a forward pass.

    Compiled parts skip hooks, and gradient checkpointing runs layers again in the backward pass,
    when the taps are gone.

    Args:
        module: The model.

    Yields:
        Nothing.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for part in module.modules():
            for name in (CALL, "gradient_checkpointing"):
                value = part.__dict__.get(name)
                if value and not is_ours(value):
                    before.append((part, name, value))
                    part.__dict__[name] = None if name == CALL else False
        yield
    finally:
        for part, name, value in before:
            part.__dict__[name] = value


def refuse_skipped(taps: Mapping[Site, Tap], layer: int) -> None:
    """Refuse taps in layers that a run from `layer` skips: they would silently never be called.

    Args:
        taps: The taps of the run.
        layer: Where the run starts.

    Raises:
        UnavailableSiteError: If a tap would never be called.
    """
    for site in taps:
        skipped = site.layer < layer if site.layer is not None else site.name == "embed" and layer
        if skipped:
            raise UnavailableSiteError(
                f"tap at '{site}', but the run starts at layer {layer}: it would never be called.\n"
                f"Start at layer {site.layer or 0} or earlier."
            )


def _hooked(point: Point, tap: Tap, shape: Sequence[int]) -> Any:
    if point.side == "output":

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (_tap(point, tap, output[0], shape), *output[1:])
            return _tap(point, tap, output, shape)

        return point.module.register_forward_hook(_here_only(after))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _input(args, kwargs)
        if point.in_place:
            # the tap's graph may need the old value: it gets a copy, the residual is overwritten
            value.copy_(_tap(point, tap, value.clone(), shape))
            return None
        return _with_input(args, kwargs, _tap(point, tap, value, shape))

    return point.module.register_forward_pre_hook(_here_only(before), with_kwargs=True)


def _split(
    point: Point, tap: Tap, shape: Sequence[int], splits: SplitTaps, stack: ExitStack
) -> None:
    """Tap the tensor that a module splits: awaited from the module's start to its end."""
    assert point.parts is not None
    parts = point.parts

    def before(*_: Any) -> None:
        splits.begin(parts, lambda value: _tap(point, tap, value, shape))

    def after(*_: Any) -> None:
        splits.end()

    stack.callback(point.module.register_forward_pre_hook(_here_only(before)).remove)
    stack.callback(point.module.register_forward_hook(_here_only(after), always_call=True).remove)


def _surely_called(site: Site, module: nn.Module, tap: Tap, stack: ExitStack) -> Tap:
    """Have a module's end refuse that it did not come past a tap inside it."""
    called = False

    def noticed(value: Tensor) -> Tensor | None:
        nonlocal called
        called = True
        return tap(value)

    def before(*_: Any) -> None:
        nonlocal called
        called = False

    def after(*_: Any) -> None:
        if not called:
            raise ModelStateError(
                f"{type(module).__name__} computed '{site}' in a fused kernel, out of reach of "
                f"hooks{' (it is in training mode)' if module.training else ''}.\n"
                "Call model.eval() first; if it is in evaluation mode, run without the mamba_ssm "
                "and causal_conv1d packages, or gate hw.mixers(), which needs no inside."
            )

    stack.callback(module.register_forward_pre_hook(_here_only(before)).remove)
    stack.callback(module.register_forward_hook(_here_only(after)).remove)
    return noticed


def _tap(point: Point, tap: Tap, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Call `tap` with `value` in the site's shape; return what goes on, in the model's shape."""
    if point.mutated:
        value = value.clone()
    seen = in_site_shape(point, value, shape)
    replacement = tap(seen)
    result = in_model_shape(point, value, seen, seen if replacement is None else replacement)
    # the model writes into this tensor next: the tap's own must stay as it was
    return result.clone() if point.mutated else result


def in_site_shape(point: Point, value: Tensor, shape: Sequence[int]) -> Tensor:
    """View a module's tensor in the shape of a site.

    Args:
        point: The site in this model.
        value: The module's tensor.
        shape: Batch and positions of the run, for models that flatten them.

    Returns:
        A view of `value`.
    """
    seen = value
    if point.half is not None:
        seen = seen.chunk(2, dim=-1)[point.half]
    if point.span is not None:
        seen = seen[..., slice(*point.span)]
    if seen.ndim == 2:
        seen = seen.unflatten(0, tuple(shape))
    if point.heads is not None:
        seen = seen.unflatten(-1, (point.heads, -1))
    return seen


def in_model_shape(point: Point, value: Tensor, seen: Tensor, result: Tensor) -> Tensor:
    """Put the new value of a site back into the shape of the module's tensor.

    Args:
        point: The site in this model.
        value: The module's tensor.
        seen: `value` in the site's shape.
        result: The new value in the site's shape.

    Returns:
        What replaces `value`.

    Raises:
        GateError: If `result` has another shape than `seen`.
    """
    if result.shape != seen.shape:
        raise GateError(
            f"a tap at the {point.side} of {type(point.module).__name__} returned shape "
            f"{tuple(result.shape)} for a value of shape {tuple(seen.shape)}.\n"
            "Return a tensor of the same shape, or None to leave the value as it is."
        )
    if point.heads is not None:
        result = result.flatten(-2)
    if value.ndim == 2:
        result = result.flatten(0, 1)
    if point.half is not None:
        halves = list(value.chunk(2, dim=-1))
        halves[point.half] = result
        result = torch.cat(halves, dim=-1)
    if point.span is not None:
        first, end = point.span
        result = torch.cat([value[..., :first], result, value[..., end:]], dim=-1)
    return result


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Any:
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": value}


class _Stub(Watch):
    """Stands in for a layer in this thread: its calls return their input, or a given residual."""

    def __init__(self, module: nn.Module, residual: Tensor | None, *, as_tuple: bool) -> None:
        super().__init__(module)
        self._thread = get_ident()
        self._residual = residual
        self._as_tuple = as_tuple

    def is_due(self) -> bool:
        """Whether the call comes from this thread."""
        return self._thread == get_ident()

    def dispatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's successor gets."""
        if not self.is_due():
            return as_ever(self, args, kwargs)
        value = _input(args, kwargs) if self._residual is None else self._residual
        return (value, None) if self._as_tuple else value


def _here_only(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Have a hook see only the calls of this thread: others may use the model at the same time."""
    owner = get_ident()

    def checked(*args: Any) -> Any:
        return hook(*args) if get_ident() == owner else None

    return checked
