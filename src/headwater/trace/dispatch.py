"""Stand before the calls of a module while a run watches it.

torch calls a module's `_compiled_call_impl`, if it has one, before it looks at hooks. A dispatcher
there costs less than a pair of hooks, can leave the module out altogether, and belongs to
the threads of its runs: a call from any other thread goes through as if nothing were there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from threading import get_ident
from types import MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from headwater.errors import ModelStateError, TraceError

CALL = "_compiled_call_impl"
"""The attribute torch looks at first when a module is called."""

paused_passes: set[int] = set()
"""Backward passes that wait for the user's code: what runs meanwhile is not of the pass."""

_lock = threading.Lock()
_ABSENT = object()


@runtime_checkable
class Turn(Protocol):
    """Who has the turn in a run."""

    thread: int | None
    """The thread in which its model runs."""
    running: bool
    """Whether its model has the turn."""


@runtime_checkable
class Place(Protocol):
    """One module in a run that watches it."""

    module: nn.Module
    forward: Turn
    """The run."""
    edited: bool
    """Whether a value of this module was changed."""

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module."""


class Dispatcher:
    """What a watched module is called through.

    Args:
        module: The module.
        before: What stood in the same place, for example a compiled call.
    """

    __slots__ = ("before", "module", "places")

    def __init__(self, module: nn.Module, before: Any) -> None:
        self.module = module
        self.before = before
        self.places: tuple[Place, ...] = ()

    def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the module for the run this thread belongs to, or as it always was."""
        for place in self.places:
            run = place.forward
            if run.running and run.thread == get_ident():
                return place.call(args, kwargs)
        task = torch._C._current_graph_task_id()
        if task != -1 and task not in paused_passes:
            self._refuse_recomputation()
        if self.before is _ABSENT or self.before is None:
            return self.module._call_impl(*args, **kwargs)
        return self.before(*args, **kwargs)

    def _refuse_recomputation(self) -> None:
        """A checkpoint runs its modules again in the backward pass, without the run's edits."""
        if any(place.edited for place in self.places):
            raise TraceError(
                f"a {type(self.module).__name__} edited in this trace is computed again by the "
                "backward pass (activation checkpointing), where the edit is missing: the "
                "gradients would be wrong.\nSwitch checkpointing off, for Hugging Face models with "
                "model.module.eval()."
            )


def watch(places: Iterable[Place]) -> None:
    """Have calls of modules go through their places in a run.

    Args:
        places: One a module.

    Raises:
        ModelStateError: If one of them is checkpointed: its calls are not what they seem.
    """
    with _lock:
        for place in places:
            module = place.module
            own = module.__dict__
            if (
                own.get("gradient_checkpointing") is True
                and module.training
                and torch.is_grad_enabled()
            ):
                raise ModelStateError(
                    f"gradient checkpointing is on in {type(module).__name__}: the backward pass "
                    "runs it again without the trace.\n"
                    "Switch it off with model.module.eval()."
                )
            there = own.get(CALL, _ABSENT)
            dispatcher = None if there is _ABSENT else _dispatcher(there)
            if dispatcher is None:
                dispatcher = Dispatcher(module, there)
                # a bound method: an object with __call__ would take torch longer to call
                own[CALL] = dispatcher.call
            dispatcher.places += (place,)


def unwatch(places: Iterable[Place]) -> None:
    """Take a run's places away again; where one is not, nothing happens.

    Args:
        places: One a module.
    """
    with _lock:
        for place in places:
            own = place.module.__dict__
            there = _dispatcher(own.get(CALL))
            if there is None:
                continue
            if there.places != (place,):
                there.places = tuple([one for one in there.places if one is not place])
                if there.places:
                    continue
            if there.before is _ABSENT:
                del own[CALL]
            else:
                own[CALL] = there.before


def is_ours(call: Any) -> bool:
    """Whether what torch calls a module through is a dispatcher's."""
    return _dispatcher(call) is not None


def _dispatcher(there: Any) -> Dispatcher | None:
    if type(there) is MethodType and type(there.__self__) is Dispatcher:
        return there.__self__
    return None


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
