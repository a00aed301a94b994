"""However a trace ends, nothing of it stays: no thread, hook, patch, or tensor.

Each test is followed by the same look around, in the fixture `clean`. Expected values come from
plain runs of the module.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import faulthandler
import functools
import gc
import inspect
import io
import linecache
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.utils import ModelOutput

import headwater as hw
import tiny_models
import tiny_tasks
from headwater.errors import (
    AmbiguousTraceError,
    HeadwaterError,
    NeverRanError,
    OutOfOrderError,
    OutsideTraceError,
    TraceError,
)
from headwater.models import Model
from headwater.sites import Site
from headwater.trace.registry import blocks_here, runs_here
from headwater.trace.threads import idle_workers
from trace_models import IDS, ONE, Net, first, hooked, loss_of, x

LIMIT = 40
"""Seconds after which a test is taken to be deadlocked."""

PATCHED = [
    (kind, name)
    for kind in (Tensor, torch._C.TensorBase, ModelOutput)
    for name in ("backward", "grad", "retain_grad", "save", "__getattribute__")
]
ABSENT = object()


def patches() -> list[Any]:
    """What a trace may replace in torch and transformers."""
    return [inspect.getattr_static(kind, name, ABSENT) for kind, name in PATCHED]


BEFORE_ANY_TRACE = patches()


def state_of(module: nn.Module) -> list[Any]:
    """Everything a trace could have changed in a module, but for the gradients of parameters."""
    found: list[Any] = []
    for path, one in module.named_modules():
        own = vars(one)
        hooks = [
            (name, tuple(value))
            for name, value in own.items()
            if name.endswith("_hooks") and isinstance(value, dict)
        ]
        found.append((path, one.training, sorted(own), own.get("_compiled_call_impl"), hooks))
    for name, weight in module.named_parameters():
        found.append((name, weight.requires_grad, weight._version, weight.is_leaf))
    config = getattr(module, "config", None)
    found.append(getattr(config, "_attn_implementation", None))
    return found


class Clean:
    """What is looked at after each test."""

    def __init__(self) -> None:
        self.census: list[weakref.ref[Tensor]] = []
        """Everything that any module has returned since the test began."""
        self._models: list[tuple[Model, tuple[Any, ...], Tensor, list[Any]]] = []
        self._threads = set(threading.enumerate())
        self._handler = signal.getsignal(signal.SIGINT)

    def watch(self, model: Model, *inputs: Any) -> Model:
        """Compare this model's state and output afterwards with what they are now."""
        with torch.no_grad():
            before = first_tensor(model.module(*inputs)).clone()
        self._models.append((model, inputs, before, state_of(model.module)))
        return model

    def freed(self, *tensors: Tensor) -> None:
        """Have these tensors be gone afterwards, without the garbage collector."""
        self.census.extend(map(weakref.ref, tensors))

    def alive(self) -> int:
        """How many outputs of modules exist."""
        return len({id(one) for ref in self.census if (one := ref()) is not None})

    def check(self) -> None:
        """Look around."""
        assert self.census_names() == []
        deadline = time.monotonic() + 2
        while set(threading.enumerate()) - self._threads and time.monotonic() < deadline:
            time.sleep(0.005)  # a worker waits a moment for its next trace
        assert [one.name for one in set(threading.enumerate()) - self._threads] == []
        assert patches() == BEFORE_ANY_TRACE
        assert "grad" not in vars(Tensor)
        assert not hasattr(Tensor, "save")
        assert (runs_here(), blocks_here()) == ([], [])
        assert signal.getsignal(signal.SIGINT) is self._handler
        assert torch.is_grad_enabled()
        assert torch._C._is_multithreading_enabled()
        assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0
        for model, inputs, before, state in self._models:
            assert state_of(model.module) == state
            with torch.no_grad():
                assert torch.equal(first_tensor(model.module(*inputs)), before)
            assert free(model.lock)

    def census_names(self) -> list[tuple[int, ...]]:
        """The shapes of the outputs that are still there."""
        return [tuple(there.shape) for ref in self.census if (there := ref()) is not None]


def first_tensor(value: Any) -> Tensor:
    """The tensor of a module's output."""
    return value.logits if isinstance(value, ModelOutput) else first(value)


def free(lock: Any) -> bool:
    """Whether another thread could take a lock."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lock.acquire, timeout=1).result()
        if found:
            pool.submit(lock.release).result()
    return found


class Deadlock(BaseException):
    """A test took far too long."""


def busy_workers() -> int:
    """How many threads of traces have work, or should have ended; waits a moment for them."""
    deadline = time.monotonic() + 2
    while True:
        alive = [one for one in threading.enumerate() if one.name.startswith("headwater-trace")]
        busy = len(alive) - idle_workers()
        if busy <= 0 or time.monotonic() > deadline:
            return busy
        time.sleep(0.002)


@contextlib.contextmanager
def in_time(seconds: float = LIMIT) -> Iterator[None]:
    """Raise in the main thread when time is up; end the process if that does not get through."""

    def ring(*_: Any) -> None:
        faulthandler.dump_traceback()
        raise Deadlock

    main = threading.current_thread() is threading.main_thread()
    timed = main and hasattr(signal, "SIGALRM")
    faulthandler.dump_traceback_later(2 * seconds, exit=True)
    before = signal.signal(signal.SIGALRM, ring) if timed else None
    if timed:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def clean() -> Iterator[Clean]:
    """Run the test without garbage collection, then look whether anything is left."""
    gc.collect()
    gc.disable()
    kept = Clean()

    def note(_: nn.Module, __: Any, output: Any) -> None:
        values = output.values() if isinstance(output, ModelOutput) else [output]
        for value in values:
            for one in value if isinstance(value, tuple) else [value]:
                if isinstance(one, Tensor):
                    kept.census.append(weakref.ref(one))

    handle = register_module_forward_hook(note)
    try:
        with in_time():
            yield kept
    finally:
        handle.remove()
        gc.enable()
    kept.check()


@pytest.fixture
def model(clean: Clean) -> Model:
    """A residual network."""
    return clean.watch(network(), x())


@pytest.fixture
def gpt(clean: Clean) -> Model:
    """A GPT-2, for generation."""
    return clean.watch(language_model(), ONE)


def network(depth: int = 3) -> Model:
    """A `Net` in float64, its weights frozen but for the first layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net(depth).double()
    module.requires_grad_(False)
    module.embed.requires_grad_(True)
    return hw.wrap(module)


@functools.cache
def language_model() -> Model:
    """A GPT-2 in float64."""
    return hw.wrap(tiny_models.build("GPT-2", dtype=torch.float64))


def plain(module: nn.Module, *paths: str, given: Tensor | None = None) -> list[Tensor]:
    """Outputs of modules in a plain run, then the gradients of the squared output there."""
    kept: dict[str, Tensor] = {}
    with hooked(module, {path: functools.partial(kept.__setitem__, path) for path in paths}):
        loss = module(x() if given is None else given).square().sum()
    values = [kept[path] for path in paths]
    return [*values, *torch.autograd.grad(loss, values)]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """The tensors are equal to the last bit."""
    assert len(actual) == len(expected)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), number


def traced(model: Model, given: Tensor | None = None) -> list[Tensor]:
    """What `plain` finds for block 1, in a trace."""
    with model.trace(x() if given is None else given) as run:
        hidden = run.blocks[1].output
        with run.output.square().sum().backward():
            gradient = hidden.grad.clone()
    return [hidden.detach().clone(), gradient]


def works(model: Model) -> None:
    """The next trace of a `Net` gives what a plain run gives."""
    same(traced(model), plain(model.module, "blocks.1"))


class Boom(Exception):  # noqa: N818
    """What fails here."""


# ---- the body fails ------------------------------------------------------------------------------

Fail = Callable[[], None]


def _first_line(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        fail()


def _after_reads(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        hidden = model.blocks[0].output
        hidden[:] = 0
        model.blocks[1].branch.input.save()
        fail()


def _at_the_end(model: Model, fail: Fail) -> None:
    with model.trace(x()) as run:
        model.blocks[0].output.save()
        run.result.save()
        fail()


def _after_a_stop(model: Model, fail: Fail) -> None:
    with model.trace(x()) as run:
        model.blocks[0].output.save()
        run.stop()
        fail()


def _after_edits(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        model.blocks[0].skip(model.blocks[0].input * 2)
        model.blocks[1].output = model.blocks[1].input + 1
        fail()


def _in_a_backward_block(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        hidden = model.blocks[0].output
        with model.output.square().sum().backward():
            fail()
        hidden.save()


def _after_a_gradient(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        first, second = model.blocks[0].output, model.blocks[1].output
        with model.output.square().sum().backward():
            second.grad[:] = 0
            fail()
        first.save()


def _in_a_nested_block(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        first, second = model.blocks[0].output, model.blocks[1].output
        with model.output.square().sum().backward():
            gradient = second.grad
            with second.sum().backward():
                (gradient + first.grad).sum().save()
                fail()


def _in_a_block_before_the_model_is_through(model: Model, fail: Fail) -> None:
    with model.trace(x()):
        first, second = model.blocks[0].output, model.blocks[1].output
        with second.square().sum().backward():
            first.grad.save()
            fail()


def _in_a_loop_over_calls(model: Model, fail: Fail) -> None:
    with model.trace(x()) as run:
        for _ in run.calls(model.blocks[1]):
            model.blocks[1].branch.output.save()
            fail()


def _in_two_traces(model: Model, fail: Fail) -> None:
    with model.trace(x()) as one, model.trace(2 * x()) as other:
        one.blocks[0].output = other.blocks[0].output
        fail()


def _in_a_trace_in_a_trace(model: Model, fail: Fail) -> None:
    with model.trace(x()) as outer:
        outer.blocks[0].output.save()
        with model.trace(2 * x()) as inner:
            inner.blocks[1].output.save()
            fail()


def _in_a_function(model: Model, fail: Fail) -> None:
    def body(run: Any) -> None:
        run.blocks[0].output.save()
        fail()

    model.run(x(), lambda run: run.blocks[2].output, body, lambda run: run.head.output)


BODIES = [
    _first_line,
    _after_reads,
    _at_the_end,
    _after_a_stop,
    _after_edits,
    _in_a_backward_block,
    _after_a_gradient,
    _in_a_nested_block,
    _in_a_block_before_the_model_is_through,
    _in_a_loop_over_calls,
    _in_two_traces,
    _in_a_trace_in_a_trace,
    _in_a_function,
]
every_body = pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__[1:])


@every_body
@pytest.mark.parametrize("kind", [Boom, KeyboardInterrupt, SystemExit, StopIteration])
def test_an_error_of_the_body_leaves_as_it_is(model, body, kind):
    thrown = kind("mine")

    def fail() -> None:
        raise thrown

    def run() -> tuple[bool, list[str], Any]:
        try:
            body(model, fail)
        except kind as error:
            names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            return error is thrown, names, error.__cause__ or error.__context__
        pytest.fail("nothing was raised")

    is_it, names, earlier = run()
    thrown.__traceback__ = None
    assert is_it
    assert names[-1] == "fail"
    assert body.__name__ in names
    assert earlier is None
    works(model)


@every_body
def test_an_error_of_the_body_can_be_handled_in_a_caller_that_goes_on(model, body):
    def fail() -> None:
        raise Boom

    for _ in range(3):
        with contextlib.suppress(Boom):
            body(model, fail)
        assert (runs_here(), patches()) == ([], BEFORE_ANY_TRACE)
    works(model)


def test_an_error_handled_inside_the_body_changes_nothing(model):
    with model.trace(x()) as run:
        with contextlib.suppress(Boom):
            hidden = run.blocks[1].output
            raise Boom
        with run.output.square().sum().backward():
            with contextlib.suppress(Boom):
                raise Boom
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


def test_an_error_that_leaves_a_backward_block_only(model, clean):
    with model.trace(x()) as run:
        hidden, later = run.blocks[1].output, run.blocks[2].output
        loss = run.output.square().sum()
        with contextlib.suppress(Boom), loss.backward():
            clean.freed(later.grad)
            raise Boom
        assert "grad" not in vars(Tensor)
        with loss.backward():
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


def test_an_error_in_an_inner_block_leaves_the_outer_one_going(model):
    with model.trace(x()) as run:
        hidden, later = run.blocks[1].output, run.blocks[2].output
        with run.output.square().sum().backward():
            later.grad.save()
            with contextlib.suppress(Boom), later.sum().backward():
                hidden.grad.save()
                raise Boom
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


def test_an_error_in_a_loop_over_steps(gpt):
    seen = []

    def run() -> None:
        with gpt.generate(ONE, max_new_tokens=4, do_sample=False) as run:
            for step in run.steps():
                seen.append(int(step.output.logits[0, -1].argmax()))
                if len(seen) == 2:
                    raise Boom

    with pytest.raises(Boom):
        run()
    assert len(seen) == 2
    assert torch.equal(
        gpt.generate(ONE, max_new_tokens=2, do_sample=False)[0, -2:], torch.tensor(seen)
    )


# ---- the model fails -----------------------------------------------------------------------------


class Fails(nn.Module):
    """A module that raises, before or after its own child has run."""

    def __init__(self, fail: Callable[[], Any], *, late: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.fail = fail
        self.late = late

    def forward(self, given: Tensor) -> Tensor:
        out = self.inner(given) if self.late else given
        self.fail()
        return out


class Row(nn.Module):
    """Three modules in a row."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.middle = middle
        self.last = nn.Linear(3, 3)

    def forward(self, given: Tensor) -> Tensor:
        return self.last(self.middle(self.first(given)))


SMALL = torch.ones(2, 3)

PLACES: dict[str, Callable[[Any], Any]] = {
    "none": lambda run: None,
    "before": lambda run: run.first.output,
    "its input": lambda run: run.middle.input,
    "inside": lambda run: run.middle.inner.output,
    "at": lambda run: run.middle.output,
    "after": lambda run: run.last.output,
    "the model": lambda run: run.output,
    "the result": lambda run: run.result,
}


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(
    "kind", [Boom, KeyboardInterrupt, SystemExit, StopIteration, AttributeError]
)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_the_model_reaches_the_body(clean, place, kind, late):
    thrown: list[weakref.ref[BaseException]] = []

    class Failure(kind):  # of its own, for weak references
        pass

    def fail() -> None:
        error = Failure("the model's")
        thrown.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    module = Row(Fails(fail, late=late))
    model = hw.wrap(module)
    waits = place not in ("none", "before", "its input") and (place != "inside" or not late)

    def run() -> tuple[bool, bool]:
        reached = False
        try:
            with model.trace(SMALL) as run:
                PLACES[place](run)
                reached = True
        except kind as error:
            return error is thrown[0](), reached
        pytest.fail("nothing was raised")

    assert run() == (True, not waits)
    assert thrown[0]() is None  # it is no part of a reference cycle
    assert clean.alive() == 0
    module.middle.fail = int
    clean.watch(model, SMALL)
    with model.trace(SMALL) as again:
        out = again.last.output
    assert torch.equal(out, module(SMALL))


LATE: dict[str, Callable[[Any], Any]] = {
    "output": lambda run: run.last.output,
    "model": lambda run: run.output,
    "result": lambda run: run.result,
    "failed": lambda run: run.middle.output,
    "calls": lambda run: run.calls("last")[0].output,
    "assign": lambda run: setattr(run.last, "output", None),
    "skip": lambda run: run.last.skip(None),
}


@pytest.mark.parametrize("late", LATE)
def test_a_body_that_handles_the_models_error_may_go_on(clean, late):
    def fail() -> None:
        raise Boom

    model = hw.wrap(Row(Fails(fail)))
    with model.trace(SMALL) as run:
        hidden = run.first.output
        with contextlib.suppress(Boom):
            run.middle.output.save()
        assert run.first.output is hidden
        with hidden.sum().backward():
            gradient = hidden.grad.clone()
        assert [call.index for call in run.steps()] == []
        with pytest.raises(TraceError):
            LATE[late](run)
    assert torch.equal(gradient, torch.ones(2, 3))


def test_an_edit_that_breaks_the_model_is_told(model):
    def run() -> list[str]:
        try:
            with model.trace(x()):
                model.blocks[0].output = torch.zeros(5, 7, dtype=torch.float64)
                model.blocks[2].output.save()
        except RuntimeError as error:
            return error.__notes__
        pytest.fail("nothing was raised")

    assert any("model.blocks[0].output" in note for note in run())
    works(model)


class FailsBackwards(torch.autograd.Function):
    """The identity, whose derivative raises."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise Boom("the derivative's")


class Fragile(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        return FailsBackwards.apply(given)


@pytest.mark.parametrize("where", ["waiting", "leaving after a read", "leaving", "bare"])
def test_an_error_of_the_backward_pass_reaches_the_body(clean, where):
    model = clean.watch(hw.wrap(Row(Fragile())), SMALL)

    def run() -> None:
        with model.trace(SMALL) as run:
            before, after = run.first.output, run.middle.output
            loss = run.output.sum()
            if where == "bare":
                loss.backward()
            with loss.backward():
                if where != "leaving":
                    after.grad.save()
                if where == "waiting":
                    before.grad.save()

    with pytest.raises(Boom, match="the derivative's"):
        run()
    with model.trace(SMALL) as run, run.output.sum().backward(inputs=list(model.last.parameters())):
        pass


class Swallows(nn.Module):
    """A module that catches everything its child raises."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, given: Tensor) -> Tensor:
        try:
            return self.inner(given)
        except BaseException:
            return given


def test_a_model_that_catches_everything_does_not_outlive_its_trace(clean):
    model = clean.watch(hw.wrap(Row(Swallows())), SMALL)
    with contextlib.suppress(Boom), model.trace(SMALL) as run:
        run.middle.inner.input.save()
        raise Boom
    with model.trace(SMALL) as run:
        run.middle.inner.output.save()
        run.stop()


# ---- Ctrl-C --------------------------------------------------------------------------------------

interrupts = pytest.mark.skipif(os.name == "nt", reason="signals are sent to the process")


class Naps(nn.Module):
    """A chain of modules that each sleep a little, after Ctrl-C as often as told."""

    def __init__(self, count: int = 60) -> None:
        super().__init__()
        self.times = 0
        self.taken = 0
        self.naps = nn.ModuleList(Nap() for _ in range(count))

    def forward(self, given: Tensor) -> Tensor:
        times, self.times = self.times, 0
        for _ in range(times):
            ctrl_c()
        for nap in self.naps:
            given = nap(given)
            self.taken += 1
        return given


class Nap(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        time.sleep(0.02)
        return given * 1


def ctrl_c() -> None:
    """What a terminal does, and time for the main thread to wait before and to notice after."""
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)


@interrupts
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("place", ["last", "inside", "result", "leaving"])
def test_ctrl_c_while_the_model_runs(clean, place, times):
    module = Row(Naps())
    model = clean.watch(hw.wrap(module), SMALL)
    module.middle.times = times

    def run() -> None:
        with model.trace(SMALL) as run:
            clean.freed(run.first.output)
            if place == "last":
                run.last.output.save()
            elif place == "inside":
                run.middle.naps[59].output.save()
            elif place == "result":
                run.result.save()

    module.middle.taken = 0
    with pytest.raises(KeyboardInterrupt):
        run()
    assert module.middle.taken < 30
    with model.trace(SMALL) as run:
        out = run.last.output
    assert torch.equal(out, module(SMALL))


@interrupts
def test_ctrl_c_in_a_model_without_modules_left_to_call(clean):
    class Sleeps(nn.Module):
        times = 0

        def forward(self, given: Tensor) -> Tensor:
            times, self.times = self.times, 0
            for _ in range(times):
                ctrl_c()
            return given * 1

    module = Row(Sleeps())
    model = clean.watch(hw.wrap(module), SMALL)
    module.middle.times = 2

    def run() -> None:
        with model.trace(SMALL) as run:
            run.middle.output.save()

    with pytest.raises(KeyboardInterrupt):
        run()


@interrupts
def test_ctrl_c_that_the_body_handles_ends_the_run(clean):
    module = Row(Naps(5))
    model = clean.watch(hw.wrap(module), SMALL)
    module.middle.times = 1
    with model.trace(SMALL) as run:
        hidden = run.first.output
        with contextlib.suppress(KeyboardInterrupt):
            run.last.output.save()
            pytest.fail("no interrupt came")
        assert run.first.output is hidden
        for late in (lambda: run.last.output, lambda: run.result, lambda: run.middle.naps[4].input):
            with pytest.raises(TraceError):
                late()
        with hidden.sum().backward():
            gradient = hidden.grad.clone()
    assert torch.equal(hidden, module.first(SMALL))
    assert torch.equal(gradient, torch.ones(2, 3))


@interrupts
def test_ctrl_c_that_a_backward_block_handles_ends_the_pass(model):
    with model.trace(x()) as run:
        hidden, later = run.blocks[1].output, run.blocks[2].output
        loss = run.output.square().sum()
        middle = later * 1
        _sleepy(middle, 1)
        with (middle.sum() + loss).backward():
            with contextlib.suppress(KeyboardInterrupt):
                hidden.grad.save()
                pytest.fail("no interrupt came")
            with pytest.raises(TraceError):
                hidden.grad.save()
        with loss.backward():
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


def _sleepy(tensor: Tensor, times: int) -> None:
    left = [times]

    def hook(_: Tensor) -> None:
        for _ in range(left[0]):
            ctrl_c()
        left[0] = 0
        time.sleep(0.1)

    tensor.register_hook(hook)


@interrupts
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("where", ["waiting", "leaving after a read", "leaving", "bare"])
def test_ctrl_c_in_a_backward_pass(model, where, times):
    def run() -> None:
        with model.trace(x()) as run:
            early = run.blocks[0].output
            middle = early * 1
            _sleepy(middle, times)
            run.blocks[0].output = middle
            late = run.blocks[2].output
            loss = run.output.square().sum()
            if where == "bare":
                loss.backward()
            with loss.backward():
                if where != "leaving":
                    late.grad.save()
                if where == "waiting":
                    early.grad.save()

    with pytest.raises(KeyboardInterrupt):
        run()
    works(model)


@interrupts
def test_ctrl_c_in_a_generation(gpt, clean):
    calls = []

    def slow(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            ctrl_c()
        time.sleep(0.01)

    steps = []

    def run() -> None:
        with gpt.generate(ONE, max_new_tokens=20, do_sample=False, min_new_tokens=20) as run:
            for step in run.steps():
                steps.append(step.index)
                step.output.logits.sum()

    handle = gpt.module.transformer.h[1].register_forward_hook(slow)
    with pytest.raises(KeyboardInterrupt):
        run()
    handle.remove()
    assert len(steps) == 5
    assert len(calls) <= 6


@interrupts
def test_ctrl_c_in_bodies_as_functions(clean):
    module = Row(Naps(5))
    model = clean.watch(hw.wrap(module), SMALL)
    module.middle.times = 2
    with pytest.raises(KeyboardInterrupt):
        model.run(SMALL, lambda run: run.last.output, lambda run: run.first.output)
    one, two = model.run(SMALL, lambda run: run.last.output, lambda run: run.first.output)
    same([one, two], [module(SMALL), module.first(SMALL)])


@interrupts
def test_ctrl_c_in_a_body_as_function(clean):
    model = clean.watch(hw.wrap(Row(nn.Linear(3, 3))), SMALL)

    def naps(run: Any) -> Tensor:
        hidden = run.first.output
        ctrl_c()
        return hidden

    with pytest.raises(KeyboardInterrupt):
        model.run(SMALL, lambda run: run.last.output, naps, lambda run: run.first.output)


OURS = os.path.dirname(hw.__file__)


def _lines(run: Callable[[], None], stop: int | None = None) -> int:
    """Count the lines of headwater that the main thread executes; Ctrl-C at one of them.

    A tracer sees a `with` line again on the way out, after the block and before `__exit__`, where
    Python itself never delivers a signal: that is no line to be interrupted at. Nor is a `__del__`,
    from which Python lets no exception out.
    """
    count = 0

    def tracer(frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(OURS) or frame.f_code.co_name == "__del__":
            return None
        entered: set[int] = set()

        def lines(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            number = frame.f_lineno
            if event != "line" or number in entered:
                return lines
            if linecache.getline(file, number).lstrip().startswith("with "):
                entered.add(number)
            count += 1
            if count - 1 == stop:
                signal.raise_signal(signal.SIGINT)
            return lines

        return lines

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def _a_bit_of_everything(model: Model) -> None:
    with model.trace(x()) as run:
        hidden, later = run.blocks[0].output, run.blocks[1].branch.output
        later[:] = 0
        with run.output.square().sum().backward():
            later.grad[:] = 1
            hidden.grad.save()


def _interrupt_at(model: Model, lines: range) -> None:
    state = state_of(model.module)
    for line in lines:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "hw.backward.* never entered")  # true at some lines
            with pytest.raises(KeyboardInterrupt):
                _lines(functools.partial(_a_bit_of_everything, model), stop=line)
        assert patches() == BEFORE_ANY_TRACE, line
        assert state_of(model.module) == state, line
        assert (runs_here(), blocks_here()) == ([], []), line
        assert busy_workers() == 0, line


@interrupts
def test_ctrl_c_at_some_lines_of_a_trace(model):
    _a_bit_of_everything(model)  # what is found once and remembered is not counted
    count = _lines(functools.partial(_a_bit_of_everything, model))
    assert count > 300
    _interrupt_at(model, range(0, count, 11))


@pytest.mark.slow
@interrupts
def test_ctrl_c_at_any_line_of_a_trace(model):
    _a_bit_of_everything(model)
    _interrupt_at(model, range(_lines(functools.partial(_a_bit_of_everything, model))))


# ---- traces that are not left --------------------------------------------------------------------


def test_a_generator_that_is_dropped(model, clean):
    def values() -> Iterator[Tensor]:
        with model.trace(x()) as run:
            yield run.blocks[0].output
            pytest.fail("the generator went on")

    going = values()
    clean.freed(next(going))
    del going
    works(model)


def test_a_generator_that_is_dropped_inside_a_backward_block(model, clean):
    def values() -> Iterator[Tensor]:
        with model.trace(x()) as run:
            hidden, later = run.blocks[0].output, run.blocks[2].output
            with run.output.sum().backward(), later.sum().backward():
                yield hidden.grad

    going = values()
    clean.freed(next(going))
    del going
    works(model)


def test_a_generator_that_is_dropped_in_another_thread(model):
    def values() -> Iterator[Tensor]:
        with model.trace(x()) as run:
            yield run.blocks[0].output

    held = [values()]
    next(held[0])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.clear).result(10)
    assert runs_here() == []
    works(model)


def test_two_generators_that_take_turns(model):
    def values(scale: float) -> Iterator[Tensor]:
        with model.trace(scale * x()) as run:
            for block in run.blocks:
                yield block.output.detach().clone()

    pairs = list(zip(values(1), values(2), strict=True))
    for number, (one, two) in enumerate(pairs):
        assert torch.equal(one, plain(model.module, f"blocks.{number}")[0])
        assert torch.equal(two, plain(model.module, f"blocks.{number}", given=2 * x())[0])


def test_traces_in_tasks_that_take_turns(model):
    async def task(scale: float) -> list[Tensor]:
        found = []
        with model.trace(scale * x()) as run:
            for block in run.blocks:
                found.append(block.output.detach().clone())
                await asyncio.sleep(0)
        return found

    async def both() -> list[list[Tensor]]:
        return await asyncio.gather(task(1), task(2))

    found = asyncio.run(both())
    for scale, values in zip((1, 2), found, strict=True):
        paths = [f"blocks.{number}" for number in range(3)]
        same(values, plain(model.module, *paths, given=scale * x())[:3])


def test_a_trace_that_is_never_entered(model):
    ran = []
    handle = model.module.register_forward_hook(lambda *_: ran.append(1))
    held = [model.trace(x()), model.trace("unusable", worker="thread")]
    assert [type(one).__name__ for one in held] == ["Trace", "Trace"]
    with pytest.raises(OutsideTraceError):
        held[0].output.save()
    held.clear()
    handle.remove()
    assert ran == []


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_trace_that_is_entered_and_never_left(model, clean, reads):
    run = model.trace(x()).__enter__()
    for block in run.blocks[:reads]:
        clean.freed(block.output)
    del run
    with contextlib.suppress(NameError):
        del block
    assert patches() == BEFORE_ANY_TRACE  # at once, without the garbage collector
    works(model)


def test_a_trace_that_is_dropped_in_another_thread(model):
    held = [model.trace(x()).__enter__()]
    held[0].blocks[0].output.save()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.clear).result(10)
    works(model)


def test_a_backward_block_that_is_never_left_ends_with_its_trace(model):
    with model.trace(x()) as run:
        hidden = run.blocks[0].output
        block = hw.backward(run.output.sum()).__enter__()
        hidden.grad.save()
        del block
    assert patches() == BEFORE_ANY_TRACE


def test_a_process_ends_with_a_trace_open():
    code = """
        import sys, torch
        sys.path[:0] = {path!r}
        from trace_models import net, x
        run = net().trace(x()).__enter__()
        hidden = run.blocks[0].output
        print(tuple(hidden.shape))
    """
    script = textwrap.dedent(code).format(path=[os.path.dirname(__file__)])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=35)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(5, 4)", "")


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_stop_leaves_what_was_not_asked_for_unrun(model, reads):
    ran = []
    note = functools.partial(ran.append, 1)
    handle = model.module.blocks[2].register_forward_hook(lambda *_: note())
    with model.trace(x()) as run:
        seen = [block.output for block in run.blocks[:reads]]
        run.stop()
        assert all(one is block.output for one, block in zip(seen, run.blocks, strict=False))
        for late in (lambda: run.blocks[2].output, lambda: run.result, lambda: run.output):
            with pytest.raises(OutOfOrderError):
                late()
        run.stop()
    handle.remove()
    assert ran == []
    assert runs_here() == []


def test_stop_in_a_loop_over_steps(gpt):
    steps = []
    with gpt.generate(ONE, max_new_tokens=5, do_sample=False, min_new_tokens=5) as run:
        for step in run.steps():
            steps.append(step.index)
            if step.index == 2:
                run.stop()
    assert steps == [0, 1, 2]
    with pytest.raises(OutsideTraceError):
        run.result.save()


def test_a_break_in_a_loop_over_steps_lets_the_generation_end(gpt):
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    with gpt.generate(ONE, **options) as run:
        for step in run.steps():
            if step.index == 1:
                break
        del step
    assert torch.equal(run.result, gpt.module.generate(ONE, **options))


def test_leaving_twice_is_leaving_once(model):
    run = model.trace(x())
    with run:
        run.blocks[0].output.save()
    run.__exit__(None, None, None)
    with pytest.raises(TraceError), run:
        pass
    works(model)


# ---- threads -------------------------------------------------------------------------------------


def _in_threads(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return [one.result(LIMIT) for one in [pool.submit(work, n) for n in range(count)]]


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
def test_threads_that_trace_at_the_same_time(clean, shared):
    models = [clean.watch(network(), x())] * 4 if shared else [network() for _ in range(4)]

    def work(number: int) -> list[list[Tensor]]:
        return [traced(models[number], (number + 1) * x()) for _ in range(15)]

    for number, found in enumerate(_in_threads(work)):
        expected = plain(models[number].module, "blocks.1", given=(number + 1) * x())
        for values in found:
            same(values, expected)


def test_threads_that_edit_one_model_at_the_same_time(model):
    """Each thread's edits of values and gradients are its own; a plain run sees none of them."""

    def work(number: int) -> list[Tensor]:
        found = []
        for _ in range(15):
            if number == 0:
                with torch.no_grad():
                    found.append(model.module(x()))
                continue
            with model.trace(x()) as run:
                hidden = run.blocks[0].output
                hidden *= number
                run.blocks[1].skip(run.blocks[1].input)
                skipped = run.blocks[1].output
                with run.output.sum().backward():
                    skipped.grad[:] = number
                    found.append(hidden.grad.clone())
        return found

    found = _in_threads(work)
    with torch.no_grad():
        expected = model.module(x())
    assert all(torch.equal(one, expected) for one in found[0])
    for number in (1, 2, 3):
        full = torch.full((5, 4), float(number), dtype=torch.float64)
        assert all(torch.equal(one, full) for one in found[number])


@pytest.mark.parametrize("taps", [True, False], ids=["inside attention", "residual stream"])
def test_traces_beside_runs_with_taps_on_one_model(gpt, taps):
    layers = gpt.module.transformer.h
    kept: dict[str, Tensor] = {}
    keep = {
        f"transformer.h.{number}": functools.partial(kept.__setitem__, number) for number in (0, 1)
    }
    with hooked(gpt.module, keep):
        logits = gpt.module(IDS, use_cache=False).logits
    middle = first(kept[0]).detach()
    expected = [first(kept[0]), first(kept[1])]
    expected += [logits, *torch.autograd.grad(loss_of(logits), expected)]
    zeroed = {Site(1, "attn.z" if taps else "attn.out"): torch.zeros_like}
    with torch.no_grad():
        alone = gpt.forward(IDS, taps=zeroed, start=(1, middle))
    going = threading.Event()

    def attribute() -> None:
        while not going.is_set():
            with torch.no_grad():
                found = gpt.forward(IDS, taps=zeroed, start=(1, middle), read=None)
            torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-11)

    def trace() -> None:
        for _ in range(20):
            with gpt.trace(IDS, use_cache=False) as run:
                values = [first(run.transformer.h[number].output) for number in (0, 1)]
                values.append(run.output.logits)
                with loss_of(run.output.logits).backward():
                    values += [one.grad.clone() for one in values[1::-1]][::-1]
            for one, other in zip(values, expected, strict=True):
                # beside it, attention is computed by another kernel
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)

    with ThreadPoolExecutor(3) as pool:
        attributing = pool.submit(attribute)
        tracing = [pool.submit(trace) for _ in range(2)]
        try:
            for one in tracing:
                one.result(LIMIT)
        finally:
            going.set()
        attributing.result(LIMIT)
    gpt.module.zero_grad(set_to_none=True)
    assert len(layers) == 2


def test_attribution_beside_traces(clean):
    """Neither sees the other, though both run the same modules."""
    given = tiny_tasks.model("GPT-2")
    clean.watch(given, IDS)
    task, what = tiny_tasks.task(5, 7), tiny_tasks.one_of_each(given)
    alone = hw.attribute(given, task, what, hw.Gradient()).scores
    layer = given.module.transformer.h[1]
    with torch.no_grad():
        expected = layer(torch.zeros(2, 6, 24, dtype=torch.float64))
    done = threading.Event()

    def trace() -> int:
        count = 0
        while not done.is_set():
            with torch.no_grad(), given.trace(IDS) as run:
                first(run.transformer.h[0].output)[:] = 0
                found = first(run.transformer.h[1].output)
                torch.testing.assert_close(found, first(expected), rtol=1e-9, atol=1e-11)
                run.stop()
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        tracing = [pool.submit(trace) for _ in range(2)]
        try:
            found = [hw.attribute(given, task, what, hw.Gradient()).scores for _ in range(3)]
        finally:
            done.set()
        assert all(one.result(LIMIT) > 3 for one in tracing)
    for one in found:
        torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-12)


USES: dict[str, Callable[[Any], Any]] = {
    "output": lambda run: run.blocks[1].output,
    "input": lambda run: run.blocks[1].input,
    "late": lambda run: run.blocks[0].output,
    "item": lambda run: run["blocks.1"].output,
    "result": lambda run: run.result,
    "stop": lambda run: run.stop(),
    "keep": lambda run: run.keep("all"),
    "steps": lambda run: next(iter(run.steps())),
    "skip": lambda run: run.blocks[1].skip(None),
    "assign": lambda run: setattr(run.blocks[1], "output", None),
    "call": lambda run: run.calls("blocks.1")[0].output,
}


@pytest.mark.parametrize("use", USES)
def test_a_run_is_refused_in_another_thread(model, use):
    with model.trace(x()) as run:
        hidden = run.blocks[0].output
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(TraceError, match="another thread"):
                pool.submit(USES[use], run).result(10)
            with pytest.raises(OutsideTraceError):
                pool.submit(lambda: model.blocks[1].output).result(10)
        later = run.blocks[1].output
    same([hidden, later], plain(model.module, "blocks.0", "blocks.1")[:2])


def test_a_trace_in_a_thread_started_by_a_body(model):
    with model.trace(x()) as run:
        hidden = run.blocks[1].output
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(traced, model, 2 * x()).result(10)
        with run.output.square().sum().backward():
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))
    same(other, plain(model.module, "blocks.1", given=2 * x()))


# ---- processes -----------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], Any]) -> str:
    """What `work` returns as text, or its error, from a fork of this process."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # a deadlocked child ends here
            answer = str(work())
        except BaseException:
            answer = traceback.format_exc()
        finally:
            os.write(send, answer.encode()[:60000])
            os._exit(0)
    os.close(send)
    answer = os.read(receive, 60000).decode()  # empty when the child died
    os.close(receive)
    os.waitpid(child, 0)
    return answer or "the child was stuck"


def _refused(use: Callable[[], Any]) -> bool:
    try:
        use()
    except TraceError as error:
        return "fork" in str(error)
    return False


@forks
def test_a_child_process_traces(model):
    works(model)
    assert in_child(lambda: works(model)) == "None"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_child, lambda: works(model)).result(LIMIT) == "None"


@forks
@pytest.mark.parametrize("reads", [0, 1])
def test_a_child_forked_inside_a_trace_goes_on_with_it(model, reads):
    expected = plain(model.module, "blocks.1")
    with model.trace(x()) as run:
        seen = [block.output for block in run.blocks[:reads]]

        def child() -> bool:
            later = run.blocks[1].output
            with run.output.square().sum().backward():
                gradient = later.grad.clone()
            run.__exit__(None, None, None)
            same([later, gradient], expected)
            works(model)
            return runs_here() == [] and patches() == BEFORE_ANY_TRACE

        assert in_child(child) == "True"
        assert all(one is block.output for one, block in zip(seen, run.blocks, strict=False))
        later = run.blocks[1].output
        with run.output.square().sum().backward():
            gradient = later.grad.clone()
    same([later, gradient], expected)


@forks
@pytest.mark.parametrize("reads", [0, 1])
def test_a_thread_that_runs_a_model_stays_in_the_parent_of_a_fork(model, reads):
    with model.trace(x(), worker="thread") as run:
        seen = [block.output for block in run.blocks[:reads]]

        def child() -> list[bool]:
            found = [all(one is block.output for one, block in zip(seen, run.blocks, strict=False))]
            uses = (
                lambda: run.blocks[2].output,
                lambda: run.result,
                lambda: list(run.steps()),
                lambda: run.__exit__(None, None, None),
            )
            found += [_refused(use) for use in uses]
            found.append(runs_here() == [] and patches() == BEFORE_ANY_TRACE)
            works(model)
            return found

        assert in_child(child) == str([True] * 6)
        later = run.blocks[1].output
        with run.output.square().sum().backward():
            gradient = later.grad.clone()
    same([later, gradient], plain(model.module, "blocks.1"))


@forks
def test_a_child_forked_inside_a_trace_may_leave_it_by_an_error(model):
    def body() -> str:
        with model.trace(x()) as run:
            run.blocks[0].output.save()
            return in_child(functools.partial(failing, run))

    def failing(run: Any) -> str:
        try:
            raise Boom
        except Boom as error:
            run.__exit__(Boom, error, error.__traceback__)
        works(model)
        return "left"

    assert body() == "left"
    works(model)


@forks
def test_a_child_forked_inside_a_trace_may_stop_it(model):
    with model.trace(x()) as run:
        run.blocks[0].output.save()

        def child() -> str:
            run.stop()
            run.__exit__(None, None, None)
            works(model)
            return "stopped"

        assert in_child(child) == "stopped"


@forks
def test_a_child_forked_inside_a_backward_block_goes_on_with_it(model):
    expected = plain(model.module, "blocks.1")
    with model.trace(x()) as run:
        hidden, later = run.blocks[1].output, run.blocks[2].output
        block = hw.backward(run.output.square().sum())
        with block:
            later.grad.save()

            def child() -> bool:
                same([hidden, hidden.grad], expected)
                block.__exit__(None, None, None)
                run.__exit__(None, None, None)
                works(model)
                return patches() == BEFORE_ANY_TRACE

            assert in_child(child) == "True"
            gradient = hidden.grad.clone()
    same([hidden, gradient], expected)


@forks
def test_a_thread_that_runs_a_backward_pass_stays_in_the_parent_of_a_fork(model):
    with model.trace(x(), worker="thread") as run:
        hidden, later = run.blocks[1].output, run.blocks[2].output
        block = hw.backward(run.output.square().sum())
        with block:
            later.grad.save()

            def child() -> list[bool]:
                found = [
                    _refused(lambda: hidden.grad),
                    _refused(lambda: block.__exit__(None, None, None)),
                ]
                run.__exit__(Boom, Boom(), None)
                found.append(patches() == BEFORE_ANY_TRACE)
                works(model)
                return found

            assert in_child(child) == str([True] * 3)
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


@forks
def test_a_child_forgets_the_traces_of_other_threads(model):
    """Its own new threads may have the numbers of threads that stayed in the parent."""
    ready, done = threading.Event(), threading.Event()

    def hold() -> list[Tensor]:
        with model.trace(x()) as run:
            hidden = run.blocks[1].output
            ready.set()
            done.wait(LIMIT)
            with run.output.square().sum().backward():
                gradient = hidden.grad.clone()
        return [hidden.detach(), gradient]

    def child() -> list[bool]:
        calls = [vars(one).get("_compiled_call_impl") for one in model.module.modules()]
        found = [patches() == BEFORE_ANY_TRACE, calls == [None] * len(calls)]
        works(model)
        found.append(patches() == BEFORE_ANY_TRACE)
        return found

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        ready.wait(LIMIT)
        try:
            assert in_child(child) == str([True] * 3)
        finally:
            done.set()
        same(holding.result(LIMIT), plain(model.module, "blocks.1"))


# ---- several traces ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_failure_of_one_of_two_traces_in_lockstep(model, which):
    def run() -> None:
        with model.trace(x()) as one, model.trace(2 * x()) as other:
            one.blocks[0].output = other.blocks[0].output
            chosen = (one, other)[which]
            chosen.blocks[1].output = torch.zeros(5, 7, dtype=torch.float64)
            chosen.blocks[2].output.save()

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run()
    works(model)


def test_a_failure_of_the_inner_trace_leaves_the_outer_one_going(model):
    with model.trace(x()) as outer:
        hidden = outer.blocks[1].output
        with contextlib.suppress(Boom), model.trace(2 * x()) as inner:
            inner.blocks[0].output.save()
            with pytest.raises(AmbiguousTraceError):
                model.blocks[0].output.save()
            raise Boom
        assert model.blocks[1].output is hidden
        with outer.output.square().sum().backward():
            gradient = hidden.grad.clone()
    same([hidden, gradient], plain(model.module, "blocks.1"))


def test_a_trace_inside_another_is_a_run_of_its_own(model, gpt):
    with model.trace(x()) as outer:
        early = outer.blocks[0].output
        early *= 3
        inner = traced(model)
        with gpt.trace(ONE) as other:
            tokens = other.output.logits.argmax(-1)
        hidden = model.blocks[1].output
    same(inner, plain(model.module, "blocks.1"))
    assert torch.equal(tokens, gpt.module(ONE).logits.argmax(-1))
    with hooked(model.module, {"blocks.0": lambda output: output * 3}):
        same([hidden], plain(model.module, "blocks.1")[:1])


def test_traces_left_in_the_order_they_were_entered(model):
    one, other = model.trace(x()), model.trace(2 * x())
    one.__enter__()
    other.__enter__()
    first, second = one.blocks[0].output, other.blocks[0].output
    one.__exit__(None, None, None)
    later = model.blocks[1].output  # the only one that is open now
    other.__exit__(None, None, None)
    same([first], plain(model.module, "blocks.0")[:1])
    same([second, later], plain(model.module, "blocks.0", "blocks.1", given=2 * x())[:2])


def test_the_body_calls_the_module_itself(model):
    """A plain call in the body is no part of the run, also while the model waits."""
    with model.trace(x()) as run:
        early = run.blocks[0].output
        early *= 0
        with torch.no_grad():
            plainly = model.module(x())
        later = run.blocks[1].output
    with torch.no_grad():
        assert torch.equal(plainly, model.module(x()))
    assert torch.equal(later, model.module.blocks[1](torch.zeros_like(later)))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: _through_file(module),
}


def _through_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_taken_in_a_trace_is_a_plain_model(model, how):
    with model.trace(x()) as run:
        early = run.blocks[0].output
        early *= 0
        copied = COPIES[how](model.module)
        for one in copied.modules():
            assert vars(one).get("_compiled_call_impl") is None
        with torch.no_grad():
            out = copied(x())
        run.blocks[2].output.save()
    with torch.no_grad():
        assert torch.equal(out, model.module(x()))
        assert torch.equal(copied(x()), out)


def test_the_state_dict_in_a_trace_is_the_usual_one(model):
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    with model.trace(x()) as run:
        run.blocks[0].output.save()
        inside = model.module.state_dict()
        assert list(inside) == list(before)
        assert all(torch.equal(inside[name], weight) for name, weight in before.items())
        copied = network()
        copied.module.load_state_dict(inside)
        later = run.blocks[1].output
    same(traced(copied), plain(model.module, "blocks.1"))
    same([later], plain(model.module, "blocks.1")[:1])


def test_weights_moved_and_modes_changed_in_a_trace_stay(clean):
    model = network()
    with model.trace(x()) as run:
        run.blocks[0].output.save()
        model.module.train()
        model.module.blocks[2].register_forward_hook(lambda *_: None)
    assert model.module.training
    assert len(model.module.blocks[2]._forward_hooks) == 1


# ---- memory --------------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_alive_without_gradients(clean):
    model = clean.watch(network(depth=20), x())
    clean.census.clear()
    with torch.no_grad(), model.trace(x()) as run:
        hidden = run.blocks[3].output
        run.head.input.save()
        # the value asked for, and the stream that enters the head
        assert clean.alive() == 2
        out = run.result
        assert clean.alive() == 3  # what was read can be read again until the block ends
        run.blocks[3].output.save()
    assert clean.alive() == 2
    del out
    assert clean.alive() == 2  # the result was asked for, the trace still has it
    del run
    assert clean.alive() == 1
    assert hidden.shape == (5, 4)


def test_a_trace_that_is_over_holds_nothing(clean):
    model = clean.watch(network(depth=20), x())
    clean.census.clear()
    with model.trace(x()) as run:
        hidden = run.blocks[3].output
        with run.output.sum().backward():
            gradient = hidden.grad
        refs = [weakref.ref(hidden), weakref.ref(gradient)]
        del hidden, gradient
    assert clean.alive() == 0
    assert [ref() for ref in refs] == [None, None]
    assert repr(run)  # it is still there


def test_what_is_kept_is_kept_as_long_as_the_run(clean):
    model = clean.watch(network(depth=10), x())
    clean.census.clear()
    with torch.no_grad(), model.trace(x()) as run:
        run.keep(["blocks.1", "blocks.7"])
        out = run.output
    assert clean.alive() == 3
    kept = [run.blocks[1].output, run.blocks[7].output]
    same(kept, plain(model.module, "blocks.1", "blocks.7")[:2])
    del kept
    del run
    assert clean.alive() == 1
    assert out.shape == (5, 2)


def test_inputs_are_not_held_by_a_trace_that_is_over(model):
    given = x()
    ref = weakref.ref(given)
    run = model.trace(given)
    with torch.no_grad(), run:
        run.blocks[0].output.save()
    del given
    assert ref() is None


def test_a_generation_of_many_steps_holds_no_more_than_one_of_a_few(gpt, clean):
    clean.census.clear()
    alive = []
    with gpt.generate(ONE, max_new_tokens=40, min_new_tokens=40, do_sample=False) as run:
        for step in run.steps():
            first(gpt.transformer.h[0].output).mean()
            gpt.transformer.h[1].mlp.output.mean()
            step.output.logits.mean()
            alive.append(clean.alive())
    assert len(alive) == 40
    assert max(alive[2:]) == alive[2]
    del step
    assert clean.alive() == 0


def test_a_generation_without_a_read_holds_nothing(gpt, clean):
    clean.census.clear()
    peak = 0

    def look(*_: Any) -> None:
        nonlocal peak
        peak = max(peak, clean.alive())

    handle = gpt.module.register_forward_hook(look)
    plainly = gpt.module.generate(ONE, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    expected, peak = peak, 0
    with gpt.generate(ONE, max_new_tokens=20, min_new_tokens=20, do_sample=False) as run:
        pass
    handle.remove()
    assert torch.equal(run.result, plainly)
    assert peak <= expected + 1


def test_many_traces_hold_no_more_than_one(model, clean):
    works(model)
    gc.collect()
    before = len(gc.get_objects()) - len(clean.census)
    for _ in range(50):
        works(model)
        with contextlib.suppress(Boom), model.trace(x()) as run:
            run.blocks[0].output.save()
            raise Boom
        with contextlib.suppress(NeverRanError), model.trace(x()) as run:
            run.unused.output.save()
    gc.collect()
    assert len(gc.get_objects()) - len(clean.census) < before + 100


def test_an_error_of_ours_holds_no_tensor_once_it_is_dropped(model, clean):
    def run() -> str:
        try:
            with model.trace(x()) as run:
                clean.freed(run.blocks[1].output)
                run.blocks[0].output.save()
        except HeadwaterError as error:
            return type(error).__name__
        return ""

    assert run() == "OutOfOrderError"
