"""Backward passes that pause at gradients: `with loss.backward(): hidden.grad[:] = 0`.

Autograd hands one buffer to both arms of a sum, so what the user gets is a copy, and the tensor's
hook returns the copy if it was edited: an edit in place then changes this path and no other.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from threading import get_ident
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwater.errors import (
    GradientError,
    HeadwaterNotice,
    LateWriteError,
    OutOfOrderError,
    TraceError,
)
from headwater.interrupts import Held
from headwater.trace.context import CallerState, set_multithreading
from headwater.trace.coroutines import Coroutine
from headwater.trace.dispatch import paused_passes
from headwater.trace.edited import remember
from headwater.trace.frames import user_frame
from headwater.trace.greenlets import GreenletCoroutine
from headwater.trace.handed import Entry, version_of
from headwater.trace.names import Named, name_of
from headwater.trace.pausing import Abandoned
from headwater.trace.registry import (
    blocks_here,
    fill_retained,
    forget,
    open_here,
    original_backward,
    runs_here,
)
from headwater.trace.threads import ThreadCoroutine
from headwater.trace.views import laid_out_as, part_of, viewed

_lock = threading.RLock()  # a block may be collected, and closed, while another one is entered
_all: set[weakref.ref[Backward]] = set()
_grad: Any = torch._C.TensorBase.grad  # pyright: ignore[reportAttributeAccessIssue]


class Gradient:
    """What one tensor's gradient is in one backward pass."""

    __slots__ = (
        "arrived",
        "base",
        "edits",
        "handed",
        "handle",
        "named",
        "original",
        "parts",
        "tensor",
        "version",
    )

    def __init__(self, tensor: Tensor, named: Named) -> None:
        self.tensor = tensor
        self.named = named
        self.base: Gradient | None = None
        """The gradient this one is a part of, for a view of a value that was handed out."""
        self.parts: tuple[Gradient, ...] = ()
        self.original: Tensor | None = None
        """What autograd gave."""
        self.handed: Tensor | None = None
        """The copy that the user has."""
        self.version = 0
        """What the copy's version was when it was handed out; -1 for one that the user assigned."""
        self.edits: tuple[str, ...] = ()
        """What the user calls the values whose gradients were edited before this one came."""
        self.arrived = False
        self.handle: RemovableHandle | None = None

    @property
    def name(self) -> str:
        """What the user calls the tensor."""
        return name_of(self.named)

    @property
    def is_edited(self) -> bool:
        """Whether the user has changed the copy, or assigned another, since it was last asked."""
        return self.handed is not None and self.handed._version != self.version


class Backward:
    """A backward pass around the user's code; made by `loss.backward()` in a `with`.

    Args:
        loss: What is differentiated.
        gradient: The gradient of `loss`, for a loss that is no single number.
        retain_graph: Whether the graph can be used again; None is True in a block.
        create_graph: Whether gradients are differentiable.
        inputs: The only tensors into which gradients are accumulated.

    Raises:
        GradientError: If the loss has no graph; says why.
    """

    _open_here: list[weakref.ref[Backward]] | None = None
    """The blocks that are open where this one was entered."""
    _entered = False

    def __init__(
        self,
        loss: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        self._loss = loss
        retain = True if retain_graph is None else retain_graph
        self._arguments = (gradient, retain, create_graph, inputs)
        self._gradients: dict[int, Gradient] = {}
        self._copies: list[Tensor] = []
        """The gradients that the user has."""
        self._versions: list[int] = []
        """What their versions were when they were looked at."""
        self._edits: tuple[str, ...] = ()
        """What the user calls the values whose gradients were edited by now."""
        self._wanted: Gradient | None = None
        self._current: Gradient | None = None
        self._coroutine: Coroutine | None = None
        self._interrupted = False
        self._ident: int | None = None
        self._multithreading = True
        self.owner = 0
        """The frame whose block this is; alive as long as the block."""
        self._strict = False

    def __enter__(self) -> Backward:
        self._entered = True
        refuse_no_graph(self._loss)
        try:
            self._open()
            return self
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        # the pass and its hooks refer to the block weakly, so that a dropped block is noticed
        self._reference: weakref.ref[Backward] = weakref.ref(self)
        self._pass = functools.partial(_pass, self._reference, self._loss, self._arguments)
        self._ident, self._multithreading = get_ident(), torch._C._is_multithreading_enabled()
        runs = runs_here()
        if _inside_pass() or any(run._threaded for run in runs):
            self._coroutine = self._in_thread()
        else:
            self._coroutine = GreenletCoroutine(self._pass)
        for run in runs:
            run._settle_here()
            self._strict |= run._state is not None and run._state.strict
            for entry, tensor in run._entries():
                if tensor.requires_grad and id(tensor) not in self._gradients:
                    self._register(tensor, entry.named, entry)
        frame = user_frame()
        while frame.f_back is not None and frame.f_globals.get("__name__") == "contextlib":
            frame = frame.f_back
        self.owner = id(frame)
        # Python does not leave a block that it was interrupted in entering: `_close` undoes what
        # was done by then
        self._open_here = open_here().blocks
        with _lock:
            _all.add(self._reference)
            self._open_here.append(self._reference)
            if "grad" not in vars(Tensor):
                Tensor.grad = _GRADIENT  # pyright: ignore

    def _in_thread(self) -> ThreadCoroutine:
        return ThreadCoroutine(functools.partial(CallerState.capture().run, self._pass))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._settle()
                self._run_out()
                fill_retained()
        finally:
            self._close()

    def __del__(self) -> None:
        if self._open_here is not None:
            self._close()
        elif not self._entered:
            warnings.warn(
                "hw.backward(loss) was made and never entered, so no backward pass ran.\n"
                "Write with hw.backward(loss): ..., or loss.backward() for a pass without a block.",
                HeadwaterNotice,
                stacklevel=2,
            )

    def save(self) -> Backward:
        """Return the block: nothing needs saving."""
        return self

    # ---- the user's side --------------------------------------------------------------------

    def read(self, tensor: Tensor) -> Tensor:
        """The gradient that flows into a tensor in this pass; edit it in place or assign.

        Args:
            tensor: A value of the trace, or computed from one.

        Returns:
            A copy in the tensor's shape.

        Raises:
            GradientError: If no gradient flows into it; says why.
        """
        self._settle()
        found = self._gradients.get(id(tensor)) or self._first_asked(tensor)
        if found.handed is not None:
            self._refuse_backwards(found)
            return found.handed
        if not (found.base or found).arrived:
            self._wait(found)
        else:
            self._refuse_backwards(found)
        self._hand(found)
        assert found.handed is not None
        return found.handed

    def write(self, tensor: Tensor, value: Tensor | None) -> None:
        """Replace the gradient that flows on from a tensor.

        Args:
            tensor: A value of the trace, or computed from one.
            value: The new gradient.

        Raises:
            LateWriteError: If the pass has used the gradient already.
            GradientError: If there is no gradient, or `value` does not fit.
        """
        held = self.read(tensor)
        found = self._gradients[id(tensor)]
        name = found.name
        if not isinstance(value, Tensor):
            raise GradientError(
                f"{name}.grad = {value!r} in a backward block: assign a tensor, for no gradient "
                "torch.zeros_like(...)."
            )
        if value.shape != held.shape:
            raise GradientError(
                f"the gradient of {name} has shape {tuple(held.shape)}, the one assigned has "
                f"{tuple(value.shape)}.\nAssign a tensor of the same shape."
            )
        if not self._is_at(found):
            raise LateWriteError(self._late(found))
        if value is held:
            return
        if found.base is not None:
            held.copy_(value)
            return
        found.handed = value.to(held.dtype)
        found.version = -1
        self._note(found.handed)

    # ---- turns ----------------------------------------------------------------------------------

    def _first_asked(self, tensor: Tensor) -> Gradient:
        """Register a tensor that was computed in the body, or is a view of one handed out."""
        name = named(tensor)
        base = self._base_of(tensor)
        if not tensor.requires_grad:
            raise GradientError(without_gradient(tensor, name))
        if base is None:
            return self._register(tensor, name)
        # also if the loss uses the part itself: its gradient is what flows into that part of the
        # whole, on every path
        found = self._gradients[id(tensor)] = Gradient(tensor, name)
        found.base = base
        base.parts += (found,)
        self._notice_zero(tensor, base)
        return found

    def _register(self, tensor: Tensor, name: Named, entry: Entry | None = None) -> Gradient:
        found = self._gradients[id(tensor)] = Gradient(tensor, name)
        # torch 2.13 and before crash on a hook for a view whose base was edited since (pytorch
        # issue 196459), unless its grad_fn was asked for: so it comes first
        now, node = tensor.grad_fn, None if entry is None else entry.node
        if entry is not None and node is not None and node is not now:
            # the model has written into it since: its gradient is that of what was handed out
            found.handle = node.register_prehook(
                functools.partial(_arrive_among, self._reference, found, entry.number)
            )
        elif tensor.requires_grad:
            found.handle = tensor.register_hook(functools.partial(_arrive, self._reference, found))
        return found

    def _base_of(self, tensor: Tensor) -> Gradient | None:
        """The value handed out that `tensor` is a view of: the smallest that holds it all."""
        values = [one for one in self._gradients.values() if one.base is None]
        whole = viewed(tensor, [one.tensor for one in values if one.tensor.requires_grad])
        return None if whole is None else self._gradients[id(whole)]

    def _receive(self, found: Gradient, gradient: Tensor) -> Coroutine | None:
        """Note a gradient that has arrived; return what is to pause, if somebody waits for it."""
        coroutine = self._coroutine
        if coroutine is None or not coroutine.is_current():
            return None  # another pass over the same graph
        if coroutine.abandoned:
            raise Abandoned
        found.original = gradient
        found.arrived = True
        found.edits = self._edits
        wanted = self._wanted
        if wanted is None or (wanted is not found and wanted.base is not found):
            return None
        self._current = found
        return coroutine

    def _go_on(self, found: Gradient) -> Tensor | None:
        """The body has handed the turn back: what flows on, if the gradient was edited."""
        self._current = None
        for part in found.parts:  # what was edited by now has been edited in time
            if part.handed is not None:
                part.version = part.handed._version
        handed = found.handed
        if handed is None or not found.is_edited:
            return None
        found.version = handed._version
        self._edits = found.edits = (*found.edits, found.name)
        remember(handed, found.edits)
        return handed

    def _hand(self, found: Gradient) -> None:
        """Give the user a copy of a gradient that has arrived."""
        if found.arrived and found.original is not None:
            found.handed = _copy(found.original, self._arguments[2])
            found.original = None
        elif found.base is not None:
            base = found.base
            if base.handed is None:
                self._hand(base)
            assert base.handed is not None
            if base.handed.stride() != base.tensor.stride():
                was_edited = base.is_edited
                with torch.no_grad():  # the user may have it: it stays the one that is written into
                    base.handed.set_(laid_out_as(base.tensor, base.handed))  # pyright: ignore
                base.version = -1 if was_edited else base.handed._version
                self._note(base.handed)
            found.handed = part_of(base.handed, base.tensor, found.tensor)  # writes go through
        assert found.handed is not None
        found.version = found.handed._version
        self._note(found.handed)
        remember(found.handed, (found.base or found).edits)

    def _note(self, copy: Tensor) -> None:
        """Look at this tensor, too, for edits that come too late."""
        self._copies.append(copy)
        self._versions.append(copy._version)

    def _wait(self, found: Gradient) -> None:
        self._wanted = found
        self._resume()
        self._wanted = None
        if (found.base or found).arrived:
            return
        raise GradientError(self._absent(found))

    def _resume(self) -> None:
        coroutine = self._coroutine
        if self._interrupted:
            raise TraceError("this backward pass was interrupted.\nOpen another block.")
        if coroutine is None or coroutine.finished:
            return
        if not coroutine.started and type(coroutine) is GreenletCoroutine and _inside_pass():
            # autograd keeps the passes of one thread in one queue: they must end innermost first,
            # which blocks that take turns need not do
            coroutine.close()
            coroutine = self._coroutine = self._in_thread()
        try:
            coroutine.resume()
        except TraceError:  # refused, and nothing has happened
            raise
        except BaseException:  # Ctrl-C: the pass and the body are out of step now
            self._interrupted = True
            coroutine.close()
            raise
        if coroutine.error is not None:
            error, coroutine.error = coroutine.error, None
            try:
                raise freed(error) or error
            finally:
                del error  # or the error's frames and the error would hold each other

    def _run_out(self) -> None:
        coroutine = self._coroutine
        if coroutine is not None and not coroutine.started and self._wanted is None:
            self._coroutine = None  # nobody asked for anything: no need of a thread
            try:
                original_backward()(self._loss, *self._arguments)
            except RuntimeError as error:
                raise freed(error) or error from None
        while (
            self._coroutine is not None and not self._coroutine.finished and not self._interrupted
        ):
            self._resume()

    def _settle(self) -> None:
        """Refuse edits of gradients that the pass has used."""
        # asked at every read, for all that were read: so versions are compared as whole lists
        versions = list(map(version_of, self._copies))
        if versions == self._versions:
            return
        for found in self._gradients.values():
            handed = found.handed
            if handed is None or self._is_at(found):
                continue
            if found.version not in (-1, handed._version):
                found.version = handed._version
                raise LateWriteError(self._late(found))
        self._versions = versions

    def _is_at(self, found: Gradient) -> bool:
        """Whether the pass waits at a gradient, or at the one it is a part of."""
        current = self._current
        return current is not None and (found is current or found.base is current)

    def _refuse_backwards(self, found: Gradient) -> None:
        if self._strict and not self._is_at(found):
            raise OutOfOrderError(
                f'{found.name}.grad is read out of order (order="strict"): the backward pass has '
                "passed it.\nRead gradients in the order of backpropagation, last layer first."
            )

    def _late(self, found: Gradient) -> str:
        at = "its end" if self._current is None else f"{self._current.name}"
        return (
            f"{found.name}.grad is edited too late: the backward pass has used it and is at {at}, "
            "so the edit would change nothing.\nEdit gradients in the order of backpropagation, "
            "last layer first; to work on a copy, write .clone() first."
        )

    def _absent(self, found: Gradient) -> str:
        name = found.name
        if reaches(self._loss, found.tensor):
            if self._arguments[3] is not None:
                return (
                    f"this pass computes no {name}.grad: backward(inputs=...) follows only what "
                    "leads to the inputs named.\nName it there too, or leave inputs out."
                )
            if found.tensor.is_leaf:
                return (
                    f"the backward pass has used {name}.grad already.\nA leaf, such as a "
                    "parameter, has what has accumulated in it when the block is over: read it "
                    "after the block."
                )
            return (
                f"{name}.grad is asked for too late: the backward pass had passed it.\nValues that "
                "you computed are seen from the moment you ask: read .grad in the order of "
                "backpropagation, or read the gradient of a module's output, which is kept."
            )
        return (
            f"no gradient flows into {name}: the loss does not depend on it.\nIs it computed after "
            "the loss, or was it replaced or detached on the way there?"
        )

    def _notice_zero(self, view: Tensor, base: Gradient) -> None:
        whole = base.tensor
        first = (
            view.shape == whole.shape[1:]
            and whole.shape[:1] > (1,)
            and view.storage_offset() == whole.storage_offset()
        )
        if not first or not base.name.endswith("].output"):
            return
        for run in runs_here():
            if run._state is not None and run._state.handed.find(whole) is not None:
                run._model._notice(
                    base.name,
                    f"{base.name} is a tensor, not a tuple: [0] is the first prompt of the batch, "
                    f"and this is its gradient. Write {base.name} for all of them.",
                    stacklevel=5,
                )

    def _close(self) -> None:
        with Held():
            try:
                coroutine = self._coroutine
                if coroutine is not None:
                    coroutine.close()
                # the pass may have been interrupted; one in another thread changed nothing here
                ours = type(coroutine) is GreenletCoroutine and coroutine.started
                if ours and self._ident == get_ident():
                    set_multithreading(self._multithreading)
            finally:
                for found in self._gradients.values():
                    if found.handle is not None:
                        found.handle.remove()
                self._gradients.clear()
                self._copies.clear()
                self._coroutine = self._current = self._wanted = None
                if self._open_here is not None:
                    forget(self._open_here, self._reference)
                    self._open_here = None
                    self._leave()

    def _leave(self) -> None:
        with _lock:
            _all.discard(self._reference)
            if not _all and "grad" in vars(Tensor):
                del Tensor.grad  # pyright: ignore


def _pass(block: weakref.ref[Backward], loss: Tensor, arguments: tuple[Any, ...]) -> None:
    """The backward pass of a block, in its coroutine."""
    if block() is None:
        raise Abandoned
    # a device's own thread must run no hook that pauses: it is another thread, and others need it
    before = torch._C._is_multithreading_enabled()
    try:
        set_multithreading(False)
        original_backward()(loss, *arguments)
    finally:
        set_multithreading(before)


def _inside_pass() -> bool:
    """Whether autograd is in the middle of a pass in this thread."""
    return torch._C._current_graph_task_id() != -1


def _arrive(block: weakref.ref[Backward], found: Gradient, gradient: Tensor) -> Tensor | None:
    """The hook of a tensor: while it pauses, it does not keep the block alive."""
    here = block()
    coroutine = None if here is None else here._receive(found, gradient)
    if coroutine is None:
        return None
    del here
    task = torch._C._current_graph_task_id()
    paused_passes.add(task)
    try:
        coroutine.pause()
    finally:
        paused_passes.discard(task)
    here = block()
    return None if here is None else here._go_on(found)


def _arrive_among(
    block: weakref.ref[Backward],
    found: Gradient,
    number: int,
    gradients: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """The hook of a node with several outputs, for the one at `number`."""
    gradient = gradients[number]
    changed = None if gradient is None else _arrive(block, found, gradient)
    if changed is None:
        return None
    return (*gradients[:number], changed, *gradients[number + 1 :])


def backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> Backward:
    """A backward pass around a block: `with hw.backward(loss): grad = hidden.grad`.

    The explicit form of `with loss.backward():`, which needs an open trace; this works anywhere.

    Args:
        loss: What is differentiated.
        gradient: The gradient of `loss`, for a loss that is no single number.
        retain_graph: Whether the graph can be used again; None is True.
        create_graph: Whether the gradients are differentiable themselves.
        inputs: The only tensors into which gradients are accumulated.

    Returns:
        A context manager. Inside, `.grad` of a tensor is the gradient that flows into it in this
        pass, writable.
    """
    return Backward(loss, gradient, retain_graph, create_graph, inputs)


def bare(loss: Tensor, gradient: Any, retain_graph: Any, create_graph: bool, inputs: Any) -> Any:
    """`loss.backward()` that is not in a `with`, while a trace is open: torch's own.

    Args:
        loss: What is differentiated.
        gradient: As in torch.
        retain_graph: As in torch.
        create_graph: As in torch.
        inputs: As in torch.

    Returns:
        What torch returns.

    Raises:
        GradientError: If the loss has no graph, or its graph was freed.
    """
    refuse_no_graph(loss)
    try:
        returned = original_backward()(loss, gradient, retain_graph, create_graph, inputs)
    except RuntimeError as error:
        raise freed(error) or error from None
    fill_retained()
    return returned


def freed(error: BaseException) -> GradientError | None:
    """Answer torch's error about a graph that is gone.

    Args:
        error: What torch raised.

    Returns:
        Our error, or None if it is about something else.
    """
    if not isinstance(error, RuntimeError) or "second time" not in str(error):
        return None
    return GradientError(
        "this graph was used by an earlier backward pass and freed.\nGive the earlier one "
        "retain_graph=True: loss.backward(retain_graph=True). In a block, with loss.backward():, "
        "the graph is kept unless you say retain_graph=False."
    )


def refuse_no_graph(loss: Tensor) -> None:
    """Refuse a loss that nothing was recorded for.

    Args:
        loss: What is to be differentiated.

    Raises:
        GradientError: Says why there is no graph.
    """
    if not loss.requires_grad:
        raise GradientError(without_gradient(loss, "the loss"))


def without_gradient(tensor: Tensor, name: str) -> str:
    """Say why a tensor has no gradient.

    Args:
        tensor: The tensor.
        name: What the user calls it.

    Returns:
        The reason and what to type.
    """
    runs = runs_here()
    head = f"{name} has no gradient: "
    if tensor.is_inference():
        return head + "it was computed under torch.inference_mode().\nLeave that mode out."
    if not tensor.is_floating_point() and not tensor.is_complex():
        return head + f"it holds {tensor.dtype}, which has no derivative."
    if any(run._state is not None and getattr(run, "_generating", False) for run in runs):
        return head + (
            "model.generate runs under torch.no_grad().\nTrace the ids it returns: with "
            "model.trace(ids)."
        )
    graphless = any(run._state is not None and not run._state.grad for run in runs)
    if graphless or not torch.is_grad_enabled():
        return head + "it was computed under torch.no_grad().\nOpen the trace outside of it."
    if any(run._state is not None and run._state.leafless for run in runs):
        return head + (
            "the parameters are frozen and the trace has requires_grad=False.\nLeave that out, or "
            "load the model with hw.load(name, frozen=False)."
        )
    return head + (
        "nothing it was computed from asks for one, or it was detached on the way.\nGive the trace "
        "requires_grad=True, or take .detach() and torch.no_grad() away."
    )


def named(tensor: Tensor) -> str:
    """What the user calls a tensor: its module if it was handed out, else its variable.

    Args:
        tensor: The tensor.

    Returns:
        A name, never an id.
    """
    for run in runs_here():
        entry = None if run._state is None else run._state.handed.find(tensor)
        if entry is not None:
            return entry.name
    frame = user_frame()
    for scope in (frame.f_locals, frame.f_globals):
        for name, value in scope.items():
            if value is tensor:
                return name
    return f"a tensor of shape {tuple(tensor.shape)}"


def reaches(loss: Tensor, tensor: Tensor) -> bool:
    """Whether `tensor` is an ancestor of `loss` in the graph; walks all of it.

    Args:
        loss: What is differentiated.
        tensor: A tensor.

    Returns:
        Whether a gradient could flow.
    """
    target = tensor.grad_fn
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node is target or getattr(node, "variable", None) is tensor:
            return True
        seen.add(node)
        todo.extend(following for following, _ in node.next_functions)
    return False


def _copy(gradient: Tensor, differentiable: bool) -> Tensor:
    """A writable copy; of an expanded gradient too."""
    strided = gradient.layout == torch.strided
    copied = gradient.clone(memory_format=torch.contiguous_format) if strided else gradient.clone()
    return copied if differentiable or not copied.requires_grad else copied.detach()


def _block() -> Backward | None:
    blocks = blocks_here()
    if not blocks:
        return None
    if len(blocks) == 1:
        return blocks[0]
    # generators and asyncio tasks take turns in one thread: whose line is this?
    owners = {block.owner: block for block in blocks}
    frame = user_frame()
    while frame is not None:
        if id(frame) in owners:
            return owners[id(frame)]
        frame = frame.f_back
    return blocks[-1]  # entered by a context manager of the user's


def _read(tensor: Tensor) -> Tensor | None:
    block = _block()
    if block is None:
        return _grad.__get__(tensor)
    return block.read(tensor)


def _write(tensor: Tensor, value: Tensor | None) -> None:
    block = _block()
    if block is None:
        _grad.__set__(tensor, value)
    else:
        block.write(tensor, value)


def _delete(tensor: Tensor) -> None:
    if _block() is not None:
        raise TraceError("del x.grad in a backward block: do it after the block.")
    _grad.__delete__(tensor)


_GRADIENT = property(_read, _write, _delete)


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it
    here = open_here().blocks
    for reference in list(_all):
        block = reference()
        if block is not None and reference not in here:
            block._leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
