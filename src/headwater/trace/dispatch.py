"""Stand before the calls of a module while a run watches it.

torch calls a module's `_compiled_call_impl`, if it has one, before it looks at hooks. What stands
there costs less than a pair of hooks, can leave the module out altogether, and belongs to the
threads of its runs: a call from any other thread goes through as if nothing were there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn

from headwater.errors import ModelStateError, TraceError

CALL = "_compiled_call_impl"
"""The attribute torch looks at first when a module is called."""

paused_passes: set[int] = set()
"""Backward passes that wait for the user's code: what runs meanwhile is not of the pass."""

_lock = threading.RLock()  # a trace may be collected, and closed, while another one is opened
ABSENT = object()
"""What `Watch.before` is where nothing stood."""


class Watch:
    """One module in a run that watches it.

    Args:
        module: The module.
    """

    __slots__ = ("before", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: Any = ABSENT
        """What stood in its place, for example a compiled call."""

    @property
    def edited(self) -> bool:
        """Whether the run has changed a value of this module."""
        return False

    def is_due(self) -> bool:
        """Whether a call here and now is one of the run's model."""
        raise NotImplementedError

    def dispatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """What torch calls: the module for the run if a call is due, else as it always was."""
        raise NotImplementedError


class _Several(Watch):
    """Several runs that watch one module."""

    __slots__ = ("watches",)

    def __init__(self, module: nn.Module, before: Any, watches: tuple[Watch, ...]) -> None:
        super().__init__(module)
        self.before = before
        self.watches = watches

    @property
    def edited(self) -> bool:
        return any(one.edited for one in self.watches)

    def dispatch(self, /, *args: Any, **kwargs: Any) -> Any:
        for one in self.watches:
            if one.is_due():
                return one.dispatch(*args, **kwargs)
        return as_ever(self, args, kwargs)


def as_ever(watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module as if nothing watched it.

    Args:
        watch: What watches it.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        What the module returns.

    Raises:
        TraceError: If this is a checkpoint's second run of a module that was edited.
    """
    task = torch._C._current_graph_task_id()
    if task != -1 and task not in paused_passes and watch.edited:
        # a checkpoint runs its modules again in the backward pass, without the run's edits
        raise TraceError(
            f"a {type(watch.module).__name__} edited in this trace is computed again by the "
            "backward pass (activation checkpointing), where the edit is missing: the "
            "gradients would be wrong.\nSwitch checkpointing off, for Hugging Face models with "
            "model.module.eval()."
        )
    if watch.before is ABSENT or watch.before is None:
        return watch.module._call_impl(*args, **kwargs)
    return watch.before(*args, **kwargs)


def watch(watches: Iterable[Watch]) -> None:
    """Stand before the calls of modules.

    Args:
        watches: One a module.

    Raises:
        ModelStateError: If one of them is checkpointed: its calls are not what they seem.
    """
    with _lock:
        for one in watches:
            own = one.module.__dict__
            if own.get("gradient_checkpointing"):
                _refuse_checkpointing(one.module)
            if CALL in own:
                there = own[CALL]
                present = _watch_of(there)
                if present is not None:
                    if type(present) is _Several:
                        present.watches += (one,)
                    else:
                        both = _Several(one.module, present.before, (present, one))
                        own[CALL] = both.dispatch
                    continue
                one.before = there
            # a bound method: an object with __call__ would take torch longer to call
            own[CALL] = one.dispatch


def unwatch(watches: Iterable[Watch]) -> None:
    """Stand before the calls no longer; where one does not, nothing happens.

    Args:
        watches: One a module.
    """
    with _lock:
        for one in watches:
            own = one.module.__dict__
            there = own.get(CALL)
            if one.before is ABSENT and there == one.dispatch:
                del own[CALL]
                continue
            present: Any = there.__self__ if type(there) is MethodType else None
            if type(present) is _Several:
                present.watches = tuple([other for other in present.watches if other is not one])
                if present.watches:
                    continue
            elif present is not one:
                continue
            if present.before is ABSENT:
                del own[CALL]
            else:
                own[CALL] = present.before


def is_ours(call: Any) -> bool:
    """Whether what torch calls a module through is of a run that watches it."""
    return _watch_of(call) is not None


def _watch_of(call: Any) -> Watch | None:
    if type(call) is MethodType and isinstance(call.__self__, Watch):
        return call.__self__
    return None


def _refuse_checkpointing(module: nn.Module) -> None:
    if module.training and torch.is_grad_enabled():
        raise ModelStateError(
            f"gradient checkpointing is on in {type(module).__name__}: the backward pass "
            "runs it again without the trace.\n"
            "Switch it off with model.module.eval()."
        )


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
