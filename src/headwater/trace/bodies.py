"""Several bodies on one forward: each is a function of its run, in a coroutine of its own."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch

from headwater.errors import TraceError
from headwater.interrupts import Held
from headwater.trace.context import CallerState, refuse_transforms
from headwater.trace.forward import Forward
from headwater.trace.handed import Where
from headwater.trace.inputs import prepared
from headwater.trace.registry import Opened
from headwater.trace.run import Run
from headwater.trace.threads import ThreadCoroutine
from headwater.trace.tracing import OPTIONS, annotated, checked, leaves, shape_of

if TYPE_CHECKING:
    from headwater.models import Model

BodyFunction = Callable[[Run], Any]
"""User code on a run; what it returns is its result."""


class BodyRun(Run):
    """The run as one of several bodies sees it."""

    def __init__(self, model: Model, forward: Forward, function: BodyFunction) -> None:
        super().__init__(model, forward)
        self._returned: Any = None
        state = CallerState.capture()
        self._coroutine = ThreadCoroutine(functools.partial(state.run, self._body, function))

    def receive(self) -> None:
        """Give the turn to the body, until it waits again or ends."""
        self._coroutine.resume()
        if self._coroutine.error is not None:
            error, self._coroutine.error = self._coroutine.error, None
            raise _BodyFailed(error)

    def stop(self) -> None:
        """Refused: the other bodies may need the rest of the model.

        Raises:
            TraceError: Always.
        """
        raise TraceError(
            "run.stop() in a body would end the model for the other bodies too: return instead."
        )

    @property
    def result(self) -> Any:
        """What the model returned, once it is through."""
        forward = self._forward(None, "run.result")
        if not forward.ended:
            self._settle(forward)
            self._wait(forward, _END)
        return forward.result

    def _body(self, function: BodyFunction) -> None:
        self._ident = get_ident()
        opened = Opened(self)
        try:
            opened.open()
            if self._state is not None:
                self._tell_of(self._state.handed.look())
            self._returned = function(self)
            if self._state is not None:
                self._settle(self._state)
                self._state.handed.held = None
        finally:
            opened.close()

    def _arrange(self, errand: Callable[[], Any]) -> None:
        if self._state is not None:
            self._state.errands.append(errand)  # done and undone in the model's thread

    def _wait(self, forward: Forward, where: Where | None, end: Where | None = None) -> None:
        for place in (where, end):
            if place == _END:
                forward.wanted.setdefault(_END, []).append(self)
            elif place is not None:
                forward.want(place, self)
        forward.handed.held = None
        self._coroutine.pause()
        for place in (where, end):
            waiting = forward.wanted.get(place, []) if place is not None else []
            if self in waiting:  # it was the other of the two
                waiting.remove(self)
            if place is not None and not waiting:
                forward.wanted.pop(place, None)
        self._tell_of(forward.handed.look())


_END: Any = "end"


class _BodyFailed(BaseException):
    """A body failed: carries its error out through the model."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def run_bodies(
    model: Model, inputs: Any, bodies: Sequence[BodyFunction], kwargs: dict[str, Any]
) -> Any:
    """Run the model once, in this thread, with several bodies reading and editing it.

    A body that waits for the same value as another gets it in the order of the bodies, with the
    edits of those before.

    Args:
        model: The model.
        inputs: One positional input, as for `model.trace`; a tuple is several.
        bodies: Functions of a run.
        kwargs: Keyword inputs and options of the trace.

    Returns:
        What the bodies returned: a list, or the value of the only one.

    Raises:
        TraceError: If no body is given.
    """
    if not bodies or not all(callable(body) for body in bodies):
        raise TraceError(
            "model.run(inputs, body, ...) takes at least one function of a run: "
            "def body(run): return run.model.layers[0].output"
        )
    for body in bodies:
        if inspect.isgeneratorfunction(body) or inspect.iscoroutinefunction(body):
            raise TraceError(
                f"{body.__name__} is a generator or async function, so calling it runs nothing.\n"
                "Give plain functions: def body(run): return run.model.layers[0].output"
            )
    options = checked({name: kwargs.pop(name) for name in OPTIONS if name in kwargs})
    refuse_transforms()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    args, kwargs = prepared(model, args, kwargs, options=OPTIONS)
    if options["requires_grad"]:
        args, kwargs = leaves(args), leaves(kwargs)
    forward = Forward(
        model,
        leaf=options["requires_grad"] is not False and torch.is_grad_enabled(),
        strict=options["order"] == "strict",
    )
    if options["keep"]:
        raise TraceError("model.run takes no keep=: each body reads what it needs.")
    runs = [BodyRun(model, forward, body) for body in bodies]
    for run in runs:
        run._shape = shape_of(args, kwargs)
    failed: BaseException | None = None
    try:
        forward.begin()
        contextvars.copy_context().run(_run_all, forward, runs, args, kwargs)
    except _BodyFailed as error:
        failed = error.error
    finally:
        forward.abandoned = True
        for run in runs:
            run._coroutine.close()
            run._state = None
        with Held():
            forward.close(None)
    if failed is not None:
        # raised here, not where it was caught: its context stays what the body made it
        try:
            raise failed
        finally:
            del failed  # or the error's frames and the error would hold each other
    returned = [run._returned for run in runs]
    return returned[0] if len(returned) == 1 else returned


def _run_all(
    forward: Forward, runs: list[BodyRun], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for run in runs:
        run.receive()
    try:
        forward.run(forward.model.module, args, kwargs)
    except _BodyFailed:
        raise
    except Exception as error:
        annotated(error, forward, None)
        raise
    forward.refuse_unused_skips()
    # those that wait for what never came learn it here, and may ask for something else
    while any(not run._coroutine.finished for run in runs):
        forward.wanted.clear()
        for run in runs:
            if not run._coroutine.finished:
                run.receive()
