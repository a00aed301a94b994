"""Which runs are open in this thread, and what of torch is changed while any is.

`Tensor.backward` and `.save` are replaced only while a trace is open somewhere in the process, and
act only in threads that have one open.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent
from torch import Tensor
from transformers.utils.generic import ModelOutput

from headwater.trace.dispatch import unwatch
from headwater.trace.frames import user_frame
from headwater.trace.greenlets import Deep, end_orphans
from headwater.trace.opcodes import enters_with
from headwater.trace.views import laid_out_as, part_of, viewed

if TYPE_CHECKING:
    from headwater.models import Model
    from headwater.trace.backward import Backward
    from headwater.trace.run import Run


class Open:
    """Runs and backward blocks, innermost last."""

    def __init__(self) -> None:
        self.runs: list[weakref.ref[Run]] = []
        self.blocks: list[weakref.ref[Backward]] = []


class _OpenInThread(Open, threading.local):
    pass


_in_thread = _OpenInThread()
_lock = threading.RLock()  # a trace may be collected, and closed, in the middle of another's turn
_all: set[Opened] = set()
_backward = Tensor.backward
_retain_grad: Any = torch._C.TensorBase.retain_grad
_grad: Any = torch._C.TensorBase.grad  # pyright: ignore[reportAttributeAccessIssue]


def open_here() -> Open:
    """What is open where the caller stands: in its thread, or inside a model that a trace runs."""
    inside = getcurrent()
    if type(inside) is not Deep:
        return _in_thread
    if inside.notes is None:
        inside.notes = Open()
    return inside.notes


def run_here(model: Model) -> Run | None:
    """The run open here, if there is only one and it is of `model`.

    Args:
        model: The model.

    Returns:
        The run; None if one must look closer.
    """
    references = (_in_thread if type(getcurrent()) is not Deep else open_here()).runs
    run = references[0]() if len(references) == 1 else None
    return run if run is not None and run._model is model else None


def runs_here() -> list[Run]:
    """The runs open here, innermost last."""
    return [run for reference in open_here().runs if (run := reference()) is not None]


def blocks_here() -> list[Backward]:
    """The backward blocks open here, innermost last."""
    return [block for reference in open_here().blocks if (block := reference()) is not None]


def forget(references: list[Any], reference: Any) -> None:
    """Take a reference off a list, if it is there."""
    if reference in references:
        references.remove(reference)


class Opened:
    """The note that a run is open here; closed once, from any thread.

    Args:
        run: The run, held weakly.
    """

    def __init__(self, run: Run) -> None:
        self._ident = threading.get_ident()
        self._runs = open_here().runs
        self._reference = weakref.ref(run)

    def open(self) -> None:
        """The run begins; `close` undoes as much of this as was done when it was interrupted."""
        end_orphans()
        with _lock:
            _all.add(self)
            self._runs.append(self._reference)
            if "save" not in vars(Tensor):
                # plain assignments: looked up on the class by every tensor
                Tensor.backward = _backward_or_block  # pyright: ignore[reportAttributeAccessIssue]
                Tensor.retain_grad = _retain_grad_or_part  # pyright: ignore
                for kind in (ModelOutput, Tensor):
                    kind.save = _save  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """The run is over."""
        with _lock:
            if self not in _all:
                return
            _all.discard(self)
            forget(self._runs, self._reference)
            if not _all:
                _restore()

    def forget_after_fork(self) -> None:
        """Leave nothing of a run whose threads stayed in the parent process."""
        run = self._reference()
        forward = None if run is None else run._state
        if forward is not None and forward.thread != threading.get_ident():
            forward.thread = forward.turn = (
                None  # a new thread may get the number of the one that is gone
            )
        if self._ident != threading.get_ident():
            if forward is not None:
                unwatch(list(forward.places.values()))
            self.close()


def _restore() -> None:
    Tensor.backward = _backward
    for kind, name in ((Tensor, "save"), (Tensor, "retain_grad"), (ModelOutput, "save")):
        if name in vars(kind):
            delattr(kind, name)


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it
    for opened in list(_all):
        opened.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


@atexit.register
def _close_what_is_open() -> None:
    """End what the main thread has left open while the threads of the models can still end."""
    for one in (*blocks_here(), *runs_here()):
        one._close()


def original_backward() -> Any:
    """`torch.Tensor.backward` as torch has it."""
    return _backward


def save(value: Any) -> Any:
    """Return `value`: values of a trace are ordinary objects and need no saving.

    Args:
        value: Anything.

    Returns:
        The same.
    """
    return value


def _retain_grad_or_part(self: Tensor) -> None:
    """What `Tensor.retain_grad` is while a trace is open: works for views of values, too."""
    for run in reversed(runs_here()):
        values = [tensor for _, tensor in run._entries() if tensor.requires_grad]
        whole = None if any(self is one for one in values) else viewed(self, values)
        if whole is not None:
            _retain_grad(whole)
            run._retained.append((self, whole))
            break
    else:
        _retain_grad(self)


def fill_retained() -> None:
    """After a backward pass: give views of values the gradient that they asked to retain."""
    for run in runs_here():
        for view, whole in run._retained:
            gradient = _grad.__get__(whole)
            if gradient is not None:
                laid_out = laid_out_as(whole, gradient)
                _grad.__set__(view, part_of(laid_out, whole, view).clone())


def _save(self: Any) -> Any:
    return self


def _backward_or_block(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> Any:
    """What `Tensor.backward` is while a trace is open: a block in a `with`, else torch's own."""
    if not open_here().runs:
        return _backward(self, gradient, retain_graph, create_graph, inputs)
    from headwater.trace.backward import Backward, bare

    if enters_with(user_frame()):
        return Backward(self, gradient, retain_graph, create_graph, inputs)
    return bare(self, gradient, retain_graph, create_graph, inputs)
