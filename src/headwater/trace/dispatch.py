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
class Watcher(Protocol):
    """A run that wants to see the calls of some modules."""

    thread: int | None
    """The thread in which its model runs."""
    running: bool
    """Whether its model has the turn."""

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module."""

    def has_edited(self, module: nn.Module) -> bool:
        """Whether a value of this module was changed."""
        ...


class Dispatcher:
    """What a watched module is called through.

    Args:
        module: The module.
        before: What stood in the same place, for example a compiled call.
    """

    __slots__ = ("before", "module", "watchers")

    def __init__(self, module: nn.Module, before: Any) -> None:
        self.module = module
        self.before = before
        self.watchers: tuple[Watcher, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module for the run this thread belongs to, or as it always was."""
        here = get_ident()
        for watcher in self.watchers:
            if watcher.thread == here and watcher.running:
                return watcher.call(self.module, args, kwargs)
        task = torch._C._current_graph_task_id()
        if task != -1 and task not in paused_passes:
            self._refuse_recomputation()
        if self.before is _ABSENT or self.before is None:
            return self.module._call_impl(*args, **kwargs)
        return self.before(*args, **kwargs)

    def _refuse_recomputation(self) -> None:
        """A checkpoint runs its modules again in the backward pass, without the run's edits."""
        if any(watcher.has_edited(self.module) for watcher in self.watchers):
            raise TraceError(
                f"a {type(self.module).__name__} edited in this trace is computed again by the "
                "backward pass (activation checkpointing), where the edit is missing: the "
                "gradients would be wrong.\nSwitch checkpointing off, for Hugging Face models with "
                "model.module.eval()."
            )


def watch(modules: Iterable[nn.Module], watcher: Watcher) -> None:
    """Have calls of `modules` go through `watcher`.

    Args:
        modules: The modules.
        watcher: The run.

    Raises:
        ModelStateError: If one of them is checkpointed: its calls are not what they seem.
    """
    with _lock:
        for module in modules:
            own = vars(module)
            if own.get("gradient_checkpointing") and module.training and torch.is_grad_enabled():
                raise ModelStateError(
                    f"gradient checkpointing is on in {type(module).__name__}: the backward pass "
                    "runs it again without the trace.\n"
                    "Switch it off with model.module.eval()."
                )
            there = own.get(CALL, _ABSENT)
            if not isinstance(there, Dispatcher):
                there = own[CALL] = Dispatcher(module, there)
            there.watchers = (*there.watchers, watcher)


def unwatch(modules: Iterable[nn.Module], watcher: Watcher) -> None:
    """Take `watcher` away from `modules`; where it is not, nothing happens.

    Args:
        modules: The modules.
        watcher: The run.
    """
    with _lock:
        for module in modules:
            own = vars(module)
            there = own.get(CALL)
            if not isinstance(there, Dispatcher):
                continue
            there.watchers = tuple([one for one in there.watchers if one is not watcher])
            if there.watchers:
                continue
            if there.before is _ABSENT:
                del own[CALL]
            else:
                own[CALL] = there.before


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
