"""What torch keeps for a thread, kept apart for two stacks that take turns in one.

Grad and inference mode, autocast, modes, saved-tensor hooks, the CUDA stream: in one thread, what
the user's code enters between two reads would hold for the model, and the other way round. Here
each side finds at its turn what it had left. That costs two glances a turn, about two microseconds,
while both sides agree and nothing is special, which is nearly always; else they are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any, NamedTuple

import torch

from headwater.trace import context

# What can be read without looking into a stack of modes. The first _SPECIAL of them are false, zero
# or None unless something special is going on; the inference mode and the switches follow.
_READERS: tuple[Callable[[], Any], ...] = (
    context.is_any_autocast_enabled,
    context.functions_length,
    context.dispatches_length,
    context.disabled_saved_hooks,
    # before torch 2.8 the hooks cannot be read: they hold for both sides there
    partial(context.top_saved_hooks or (lambda _: None), True),
    torch.is_inference_mode_enabled,
    *(reader for reader, _ in context.SWITCHES),
)
_SPECIAL = 5
_inference_mode: Any = context.private("_C._InferenceMode")

_kept_for_good: list[Any] = []
"""Inference guards whose end would change what is in force."""


def glance() -> list[Any]:
    """What torch keeps for this thread, as far as a look at its surface tells."""
    found = list(map(call, _READERS))
    if torch.cuda.is_initialized():
        found.append(context.cuda_place())
    return found


class _Special(NamedTuple):
    """What lies below the surface."""

    casts: tuple[tuple[str, bool, torch.dtype], ...]
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
            hooks,
            tuple(map(context.dispatch_at, range(context.dispatches_length()))),
            tuple(map(context.function_at, range(context.functions_length()))),
            getattr(context.default_device, "device_context", None),
        )


class Sides:
    """Two sides of one thread: the outer one, which makes this, and the inner one.

    The inner side begins with what the outer one has.
    """

    def __init__(self) -> None:
        self._inner = glance()
        """What the inner side left."""
        self._inner_special = _special(self._inner)
        self._usual = None if self._inner_special is not None else self._inner
        """What both sides have as long as neither does anything special."""
        self._outer: list[Any] | None = None
        """What the outer side left, while the inner one has the turn."""
        self._outer_special: _Special | None = None
        self._guard: Any = None

    def enter(self) -> None:
        """Give the turn to the inner side."""
        outer, usual = glance(), self._usual
        if outer == usual:
            if self._inner is not usual:
                self._install(self._inner, self._inner_special)
            self._outer, self._outer_special = usual, None
            return
        special = _special(outer)
        if outer != self._inner or special != self._inner_special:
            self._install(self._inner, self._inner_special)
        self._outer, self._outer_special = outer, special

    def leave(self) -> None:
        """Give the turn back to the outer side; does nothing if it has it."""
        outer, usual = self._outer, self._usual
        if outer is None:
            return
        inner = glance()
        if inner == usual:
            self._inner, self._inner_special = usual, None
            if outer is not usual:
                self._install(outer, self._outer_special)
        else:
            self._inner, self._inner_special = inner, _special(inner)
            if inner != outer or self._inner_special != self._outer_special:
                self._install(outer, self._outer_special)
        self._outer = None

    def end(self) -> None:
        """The inner side is over."""
        self.leave()
        if self._guard is not None:
            _kept_for_good.append(self._guard)
            self._guard = None

    def _install(self, seen: list[Any], special: _Special | None) -> None:
        # modes come off first and go on last, or they would see the switches being set
        context.pop_all(context.functions_length, context.pop_function)
        context.pop_all(context.dispatches_length, context.pop_dispatch)
        self._set_inference(seen[_SPECIAL])
        for (reader, setter), value in zip(context.SWITCHES, seen[_SPECIAL + 1 :], strict=False):
            if reader() != value:
                setter(value)
        _set_casts(() if special is None else special.casts)
        _set_hooks(() if special is None else special.hooks, seen[3])
        if len(seen) > len(_READERS):
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


def _special(seen: list[Any]) -> _Special | None:
    return _Special.here() if any(seen[:_SPECIAL]) else None


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
