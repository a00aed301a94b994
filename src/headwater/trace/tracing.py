"""Open a run around the user's code: the model in a worker, or several bodies on one forward."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from headwater.errors import (
    GradientError,
    HeadwaterError,
    OutOfOrderError,
    OutsideTraceError,
    TraceError,
    UnknownModuleError,
    UnknownOptionError,
    did_you_mean,
)
from headwater.interrupts import Held
from headwater.trace import coroutines
from headwater.trace.context import CallerState, refuse_transforms
from headwater.trace.forward import Forward, path_of
from headwater.trace.handed import Where
from headwater.trace.inputs import prepared
from headwater.trace.names import typed
from headwater.trace.registry import Opened
from headwater.trace.run import Run
from headwater.trace.threads import ThreadCoroutine

if TYPE_CHECKING:
    from headwater.models import Model

OPTIONS = ("requires_grad", "order", "keep", "worker", "remote")
"""Keywords of a trace that are not the model's."""


_USUAL: dict[str, Any] = {
    "requires_grad": None,
    "order": "any",
    "keep": (),
    "worker": "greenlet",
    "remote": False,
}


class Trace(Run):
    """A run in a `with` block: `with model.trace(prompt) as run: ...`.

    Args:
        model: The model.
        args: What the user gave, positional.
        kwargs: What the user gave by keyword; includes the trace's own options.
        generating: Whether the model's `generate` runs rather than the model.

    Raises:
        UnknownOptionError: If an option has a value it cannot have.
    """

    _options: dict[str, Any]
    _given: tuple[tuple[Any, ...], dict[str, Any]]
    _generating: bool
    _coroutine: coroutines.Coroutine | None = None
    _opened: Opened | None = None
    _result: Any = None
    _stopped: str | None = None
    _has_result = False

    def __init__(
        self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], *, generating: bool
    ) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs} if kwargs else {}
        super().__init__(
            model,
            None,
            _options=checked(options) if options else _USUAL,
            _given=(args, kwargs),
            _generating=generating,
        )

    def __enter__(self) -> Trace:
        if self._opened is not None:
            raise TraceError("this trace was entered before; write model.trace(...) again.")
        try:
            self._open()
            if self._options["keep"]:
                self.keep(self._options["keep"])
            return self
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        options, model = self._options, self._model
        kind = coroutines.WORKERS[options["worker"]]
        threaded = kind is ThreadCoroutine
        if threaded:
            refuse_transforms()
        args, kwargs = self._given
        args, kwargs = prepared(model, args, kwargs, for_generate=self._generating, options=OPTIONS)
        wants = options["requires_grad"]
        if wants and not self._generating:
            args, kwargs = leaves(args), leaves(kwargs)
        # Python does not leave a block that it was interrupted in entering: so what there is to
        # close is known before it is there
        own = self.__dict__
        forward = own["_state"] = Forward(
            model,
            leaf=wants is not False and not self._generating and torch.is_grad_enabled(),
            strict=options["order"] == "strict",
            generating=self._generating,
        )
        function: Any = model.module.generate if self._generating else model.module
        # refers to no trace, so that a dropped trace is noticed
        go = functools.partial(forward.run, function, args, kwargs)
        if threaded:
            go = functools.partial(CallerState.capture().run, go)
        coroutine = kind(go)
        opened = Opened(self)
        own.update(
            _given=((), {}),
            _shape=shape_of(args, kwargs),
            _threaded=threaded,
            _coroutine=coroutine,
            _ident=get_ident(),
            _opened=opened,
        )
        forward.begin()
        opened.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            answer, forward = None, self._state
            if forward is not None and error is None:
                self._settle(forward)
                self._run_out(forward)
                if forward.skips and forward.stopped is None:
                    forward.refuse_unused_skips()
            elif forward is not None and error is not None:
                answer = explained(error, forward)
        finally:
            self._close()
        if answer is not None:
            raise answer from error

    def __del__(self) -> None:
        if self.__dict__.get("_state") is not None:
            self._close()

    def __repr__(self) -> str:
        state = "open" if self._state is not None else "closed" if self._opened else "not entered"
        return f"<trace of {self._model.name}, {state}>"

    def stop(self) -> None:
        """End the model here; what it has not computed stays uncomputed."""
        forward = self._forward(None, "run.stop")
        self._settle(forward)
        forward.stopped = f"run.stop() ended the model at {forward.position()}"
        if self._coroutine is not None:
            self._coroutine.close()
        forward.end()

    @property
    def result(self) -> Any:
        """What the model returned: runs it to its end. Generated ids for `model.generate`.

        Raises:
            OutOfOrderError: If the run was stopped.
            OutsideTraceError: If the run is over and the result was not asked for inside.
        """
        if self._has_result:
            return self._result
        if self._opened is not None and self._state is None and self._stopped is not None:
            raise OutsideTraceError(f"{self._stopped}, so there is no run.result.")
        if self._opened is not None and self._state is None:
            raise OutsideTraceError(
                "run.result was not asked for in the trace, so it was not kept.\n"
                "Write run.result (or model.output) inside the with block."
            )
        forward = self._forward(None, "run.result")
        if forward.stopped is not None:
            raise OutOfOrderError(f"{forward.stopped}, so there is no run.result.")
        self._settle(forward)
        self._run_out(forward)
        self._result, self._has_result = forward.result, True
        return self._result

    def _run_out(self, forward: Forward) -> None:
        coroutine = self._coroutine
        while coroutine is not None and not coroutine.finished and forward.stopped is None:
            self._wait(forward, None)
        if self._generating and forward.stopped is None:
            self._result, self._has_result = forward.result, True

    def _wait(self, forward: Forward, where: Where | None, end: Where | None = None) -> None:
        coroutine = self._coroutine
        if coroutine is None or coroutine.finished or forward.ended:
            return
        if where is not None:
            forward.want(where, coroutine)
        if end is not None:
            forward.want(end, coroutine)
        forward.handed.held = None
        try:
            coroutine.resume()
        except TraceError:  # refused, and nothing has happened
            forward.wanted.clear()
            raise
        except BaseException:  # Ctrl-C: the model and the body are out of step now
            forward.stopped = "the model was interrupted"
            forward.interrupt()
            coroutine.close()
            forward.end()
            raise
        if end is not None:
            forward.wanted.clear()  # the other of the two
        if coroutine.error is not None:
            self._fail(forward, coroutine, where)
        changed = forward.handed.look()
        if changed:
            self._tell_of(changed)

    def _fail(
        self, forward: Forward, coroutine: coroutines.Coroutine, where: Where | None
    ) -> NoReturn:
        """Raise what the model has raised, at the line that waited."""
        error, coroutine.error = coroutine.error, None
        assert error is not None
        interrupted = isinstance(error, KeyboardInterrupt)
        forward.stopped = "the model was interrupted" if interrupted else "the model failed"
        forward.end()
        annotated(error, forward, where)
        self._failed = error if isinstance(error, AttributeError) else None
        try:
            raise error
        finally:
            del error  # or the error's frames and the error would hold each other

    def _close(self) -> None:
        own = self.__dict__  # plain assignments would go through __setattr__
        with Held():
            forward = own["_state"]
            own["_state"] = own["_failed"] = None
            if forward is None:
                return
            own["_stopped"] = forward.stopped
            try:
                if forward.keeping:
                    kept = {w: v for w, v in forward.values.items() if w[:2] in forward.keeping}
                    own["_kept"] = kept
                forward.close(self._coroutine)
            finally:
                own["_coroutine"] = None
                self._windows.clear()
                self._retained.clear()
                if self._opened is not None:
                    self._opened.close()


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a trace.

    Args:
        options: Those that were given.

    Returns:
        All of them.

    Raises:
        UnknownOptionError: If one has a value it cannot have.
    """
    found = {**_USUAL, **options}
    if found["remote"]:
        raise UnknownOptionError(
            "trace(remote=True): headwater runs models in this process only, it sends nothing to a "
            "server.\nLeave remote out, or load a model that fits here: hw.load(name, "
            "device_map='auto', dtype='bfloat16')."
        )
    if found["order"] not in ("any", "strict"):
        raise UnknownOptionError(
            f"no order {found['order']!r}.{did_you_mean(str(found['order']), ('any', 'strict'))}\n"
            "Use order='any' (values handed out are served late) or order='strict'."
        )
    if found["requires_grad"] not in (None, True, False):
        raise UnknownOptionError(
            f"requires_grad={found['requires_grad']!r}: use True, False, or None (gradients from "
            "the embedding's output on, if nothing before it asks for them)."
        )
    coroutines.worker(found["worker"])
    return found


def shape_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Batch and positions of a model's inputs, for models that flatten them.

    Args:
        args: Positional inputs.
        kwargs: Keyword inputs.

    Returns:
        The first two sizes of the first tensor that has them.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim >= 2:
            return tuple(value.shape[:2])
    return ()


def leaves(value: Any) -> Any:
    """Have gradients begin at the floating tensors of a model's arguments.

    Args:
        value: Tensors in tuples, lists and mappings.

    Returns:
        The same with copies that require grad in place of tensors that do not.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.requires_grad or not torch.is_grad_enabled():
            return value
        return value.detach().requires_grad_().clone()
    if type(value) in (tuple, list):
        return type(value)(leaves(item) for item in value)
    if isinstance(value, Mapping):
        return {key: leaves(item) for key, item in value.items()}
    return value


def annotated(error: BaseException, forward: Forward, where: Where | None) -> None:
    """Prepare a model's error for the line that waited: our frames off, the last edit as a note."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    error.__traceback__ = trace
    if where is not None:
        name = f"{typed(path_of(forward.model.module, where[0]))}.{where[1]}"
        error.add_note(f"The model failed while the trace waited for {name}.")
    if forward.last_edit is not None:
        error.add_note(f"The last edit was {forward.last_edit}.")


def _is_ours(trace: TracebackType) -> bool:
    module = trace.tb_frame.f_globals.get("__name__", "")
    return module.startswith("headwater.trace") or module == "contextlib"


def explained(error: BaseException, forward: Forward) -> HeadwaterError | None:
    """Answer mistakes that only show outside of headwater, as attributes of plain tensors.

    Args:
        error: What left the `with` block.
        forward: The run.

    Returns:
        A better error, or None.
    """
    if isinstance(error, UserWarning) and ".grad attribute of a Tensor" in str(error):
        return GradientError(_OLD_GRADIENTS)
    if isinstance(error, TypeError) and "NoneType' object does not support the" in str(error):
        return GradientError(_NO_BLOCK)
    if not isinstance(error, AttributeError) or isinstance(error, HeadwaterError):
        return None
    if isinstance(error.obj, nn.Module) and error.name in ("output", "input", "inputs"):
        path = path_of(forward.model.module, error.obj)
        return UnknownModuleError(
            f"this {type(error.obj).__name__} is the module itself, which has no {error.name}.\n"
            f"Reach it through the model: {typed(path)}.{error.name}."
        )
    if error.name == "save":
        if error.obj is None:
            return GradientError(_OLD_GRADIENTS)
        return TraceError(
            f".save() on {type(error.obj).__name__}: values of a trace are ordinary objects and "
            "need no saving.\nLeave .save() out; hw.save(x) returns x, for code that must run in "
            "both."
        )
    output = forward.values.get((forward.model.module, "output", 1))
    if error.name and isinstance(error.obj, Tensor) and isinstance(output, Mapping):
        fields = list(output.keys())
        if error.name in fields:
            place = next((key for key in fields if output[key] is error.obj), None)
            which = "model.output" if place is None else f"model.output[{fields.index(place)}]"
            what = "" if place is None else f", the {place}"
            return UnknownModuleError(
                f"{which} is a tensor{what}: it has no {error.name!r}.\n"
                f"Write model.output.{error.name}."
            )
    return None


_NO_BLOCK = (
    "None was entered as a block. Is it a backward pass in a context manager of its own? Only "
    "with loss.backward(): is seen; anywhere else write hw.backward(loss), as in "
    "stack.enter_context(hw.backward(loss))."
)
_OLD_GRADIENTS = (
    "the gradient was asked for before the backward pass, so there is none yet.\nRead it in a "
    "block: with model.output.logits.sum().backward(): grad = hidden.grad\nor call "
    "hidden.retain_grad() before a bare .backward() and read hidden.grad after it."
)
