"""What torch keeps for a thread, kept apart for two stacks that take turns in one.

Grad and inference mode, autocast, modes, saved-tensor hooks, the CUDA stream: in one thread, what
the user's code enters between two reads would hold for the model, and the other way round. Here
each side finds at its turn what it had left. While both agree and nothing is special, which is
nearly always, that costs two glances a turn; else they are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import compress
from operator import call, ne
from typing import Any, NamedTuple

import torch

from headwater.errors import TraceError
from headwater.trace import context

# What can be read without looking into a stack of modes. The first _SPECIAL of them are false, zero
# or None unless something special is going on.
_SURFACE: tuple[Callable[[], Any], ...] = (
    context.is_any_autocast_enabled,
    context.functions_length,
    context.dispatches_length,
    context.disabled_saved_hooks,
    # before torch 2.8 the hooks cannot be read: they hold for both sides there
    partial(context.top_saved_hooks or (lambda _: None), True),
    torch.is_inference_mode_enabled,
    context.transform_level,
    *(reader for reader, _ in context.SWITCHES),
)
_SPECIAL, _INFERENCE, _LEVEL, _SWITCHES = 5, 5, 6, 7
_SETTERS = [setter for _, setter in context.SWITCHES]
_inference_mode: Any = context.private("_C._InferenceMode")

_kept_for_good: list[Any] = []
"""Inference guards whose end would change what is in force."""


Dtypes = tuple[tuple[str, torch.dtype], ...]
"""What autocast casts to, by device."""


def begin() -> tuple[tuple[Callable[[], Any], ...], list[Any], Dtypes]:
    """Look at what torch keeps for this thread, before there are two sides.

    Returns:
        What to call, in order, for a glance at it; what a glance shows now; what autocast casts
        to where it is entered without a dtype.
    """
    there = (*_SURFACE, context.cuda_place) if torch.cuda.is_initialized() else _SURFACE
    cpu, cuda = torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")
    return there, list(map(call, there)), (("cpu", cpu), ("cuda", cuda))


def is_special(seen: list[Any]) -> bool:
    """Whether a glance at the surface does not tell all."""
    return any(seen[:_SPECIAL])


class _Special(NamedTuple):
    """What lies below the surface."""

    casts: tuple[tuple[str, bool, torch.dtype], ...]
    nesting: int
    """How many autocasts are entered: torch forgets the casts of weights when the last is left."""
    hooks: tuple[Any, ...]
    dispatches: tuple[Any, ...]
    functions: tuple[Any, ...]
    device: Any

    @classmethod
    def here(cls) -> _Special:
        hooks = _pop_hooks()
        _push_hooks(hooks)
        return cls(
            context.autocasts(),
            _nesting(),
            hooks,
            tuple(map(context.dispatch_at, range(context.dispatches_length()))),
            tuple(map(context.function_at, range(context.functions_length()))),
            getattr(context.default_device, "device_context", None),
        )


class Sides:
    """Two sides of one thread: the outer one, which makes this, and the inner one.

    The inner side begins with what the outer one has. Who changes sides takes a glance at `surface`
    first: while both sides have the same, and nothing special, there is nothing to do.
    """

    def __init__(self, seen: list[Any], dtypes: Dtypes) -> None:
        self._inner = seen
        """What the inner side left."""
        self._inner_special = _Special.here() if is_special(seen) else None
        self._outer_special: _Special | None = None
        self._casts = tuple([(device, False, dtype) for device, dtype in dtypes])
        """Autocast of a side on which nothing is special: what the model's own would cast to."""
        self._guard: Any = None

    def refuse_transform(self, outer: list[Any]) -> None:
        """Refuse to change sides inside a transform that the inner side knows nothing of.

        Args:
            outer: A glance at the outer side.

        Raises:
            TraceError: If the outer side has entered or left a `torch.func` transform.
        """
        if outer[_LEVEL] != self._inner[_LEVEL]:
            raise TraceError(
                "a value was asked for inside a torch.func transform that the body of the trace "
                "has entered, or left, since the last one: it would reach the model in the middle "
                "of its run.\nAsk for the value outside of the transform, or open the whole trace "
                "inside it."
            )

    def enter(self, outer: list[Any]) -> None:
        """Give the turn to the inner side.

        Args:
            outer: A glance at the outer one.
        """
        if self._inner_special is None and not is_special(outer):  # nearly always
            self._outer_special = None
            if not _set_switches(outer, self._inner):
                self._install(self._inner, None)
            return
        self._outer_special = special = self._below(outer)
        if outer != self._inner or special != self._inner_special:
            self._install(self._inner, self._inner_special)

    def leave(self, inner: list[Any], outer: list[Any]) -> None:
        """Give the turn back to the outer side.

        Args:
            inner: A glance at the inner one.
            outer: The one at the outer one before its turn.
        """
        self._inner = inner
        if self._outer_special is None and not is_special(inner):
            self._inner_special = None
            if not _set_switches(inner, outer):
                self._install(outer, None)
            return
        self._inner_special = special = self._below(inner)
        if inner != outer or special != self._outer_special:
            self._install(outer, self._outer_special)
        self._outer_special = None

    def end(self) -> None:
        """The inner side is over."""
        if self._guard is not None:
            _kept_for_good.append(self._guard)
            self._guard = None

    def _below(self, seen: list[Any]) -> _Special:
        """What lies below the surface here."""
        found = _Special.here()
        if not is_special(seen):
            self._casts = found.casts
        return found

    def _install(self, seen: list[Any], special: _Special | None) -> None:
        # modes come off first and go on last, or they would see the switches being set
        context.pop_all(context.functions_length, context.pop_function)
        context.pop_all(context.dispatches_length, context.pop_dispatch)
        self._set_inference(seen[_INFERENCE])
        context.enter_switches([], seen[_SWITCHES : len(_SURFACE)])
        _set_casts(self._casts if special is None else special.casts)
        _set_nesting(0 if special is None else special.nesting)
        _set_hooks(() if special is None else special.hooks, seen[3])
        if len(seen) > len(_SURFACE):
            context.enter_cuda([], *seen[-1])
        if special is not None:
            for mode in special.dispatches:
                context.push_dispatch(mode)
            for mode in special.functions:
                context.push_function(mode)
        device = None if special is None else special.device
        if device is not getattr(context.default_device, "device_context", None):
            context.default_device.device_context = device

    def _set_inference(self, wanted: bool) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.__exit__(None, None, None)
        if torch.is_inference_mode_enabled() != wanted:
            self._guard = _inference_mode(wanted)
            self._guard.__enter__()


def _set_switches(now: list[Any], wanted: list[Any]) -> bool:
    """Exchange the sides if nothing but switches differs; say whether that is so."""
    differing = list(compress(range(len(now)), map(ne, now, wanted)))
    if not differing:
        return True
    if differing[0] < _SWITCHES or differing[-1] >= len(_SURFACE):
        return False
    for number in differing:
        _SETTERS[number - _SWITCHES](wanted[number])
    return True


def _set_casts(wanted: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    devices = {device for device, _, _ in wanted}
    for device, enabled, _ in context.autocasts():
        if enabled and device not in devices:
            torch.set_autocast_enabled(device, False)
    for device, enabled, dtype in wanted:
        if torch.is_autocast_enabled(device) != enabled:
            torch.set_autocast_enabled(device, enabled)
        if torch.get_autocast_dtype(device) != dtype:
            torch.set_autocast_dtype(device, dtype)


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_nesting(wanted: int) -> None:
    for _ in range(_nesting(), wanted):
        torch.autocast_increment_nesting()
    for _ in range(wanted, _nesting()):
        torch.autocast_decrement_nesting()


def _set_hooks(wanted: tuple[Any, ...], disabled: str | None) -> None:
    if context.disabled_saved_hooks() is not None:
        context.enable_saved_hooks()
    _pop_hooks()
    _push_hooks(wanted)
    if disabled is not None:
        context.disable_saved_hooks(disabled)


def _pop_hooks() -> tuple[Any, ...]:
    """All pairs of saved-tensor hooks, the innermost first."""
    found: list[Any] = []
    top = context.top_saved_hooks
    while top is not None and (pair := top(True)) is not None:
        found.append(pair)
        context.pop_saved_hooks()
    return tuple(found)


def _push_hooks(pairs: tuple[Any, ...]) -> None:
    for pair in reversed(pairs):
        context.push_saved_hooks(*pair)
