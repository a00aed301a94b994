"""A model on a greenlet in its caller's thread: two sides that share the thread and nothing else.

Expected values come from plain runs of the module, or from what the other side sees.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import gc
import platform
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from beartype import beartype
from greenlet import getcurrent
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

import headwater as hw
import test_trace_context as entered_by_callers
from headwater.errors import TraceError
from headwater.models import Model
from headwater.trace import greenlets
from headwater.trace.greenlets import Deep, GreenletCoroutine
from trace_models import assert_nothing_left, hooked, net, x

# torch loads its derivatives in forward mode by torch.jit.script, at their first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")

CASES = entered_by_callers.CASES
Case = entered_by_callers.Case
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

# Set without autocast, its dtype is only a default, which belongs to neither side: both share it.
KEPT_APART = {name: case for name, case in CASES.items() if name != "autocast's dtype alone"}

every_case_kept_apart = pytest.mark.parametrize("case", KEPT_APART.values(), ids=KEPT_APART.keys())


@pytest.fixture
def model() -> Iterator[Model]:
    made = net()
    yield made
    assert_nothing_left(made.module)


@pytest.fixture(autouse=True)
def autocast_as_before() -> Iterator[None]:
    """What a failing test leaves of autocast must not reach the next one."""
    before = {device: torch.get_autocast_dtype(device) for device in ("cpu", "cuda")}
    yield
    for device, dtype in before.items():
        torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


class Inside:
    """A side that takes a turn for each function it is given."""

    def __init__(self) -> None:
        self._ended = False
        self._next: Callable[[], Any] = lambda: None
        self._found: Any = None
        self._coroutine = GreenletCoroutine(self._work)
        self.do(lambda: None)

    def _work(self) -> None:
        while not self._ended:
            self._found = self._next()
            self._coroutine.pause()

    def do(self, function: Callable[[], Any]) -> Any:
        """What `function` returns inside, in a turn of its own."""
        self._next = function
        self._coroutine.resume()
        if self._coroutine.error is not None:
            raise self._coroutine.error
        return self._found

    def end(self) -> None:
        """Let the function return."""
        self._ended = True
        self._coroutine.resume()
        assert self._coroutine.finished


class Held:
    """What one side has entered and not left."""

    def __init__(self, case: Case) -> None:
        self._manager: AbstractContextManager[Any] = case.enter()
        self._case = case
        self._entered = self._manager.__enter__()

    def seen(self) -> Any:
        """What the side that calls this sees of it, which need not be the one that entered it."""
        return self._case.seen(self._entered)

    def leave(self) -> None:
        self._manager.__exit__(None, None, None)


# ---- what the caller and the model enter ---------------------------------------------------------


@every_case
def test_what_the_caller_entered_before_is_seen_inside(case: Case) -> None:
    before = entered_by_callers.left_in_thread()
    held = Held(case)
    here = held.seen()
    inside = Inside()
    there = inside.do(held.seen)
    inside.end()
    still_here = held.seen()
    held.leave()
    assert held.seen() != here, "this case would pass without entering anything"
    assert there == still_here == here
    assert entered_by_callers.left_in_thread() == before


@every_case_kept_apart
def test_what_the_caller_has_entered_since_does_not_reach_the_inside(case: Case) -> None:
    before = entered_by_callers.left_in_thread()
    inside = Inside()
    held = Held(case)
    here = held.seen()
    there = inside.do(held.seen)
    still_here = held.seen()
    held.leave()
    there_after = inside.do(held.seen)
    inside.end()
    assert still_here == here
    assert there == there_after == held.seen() != here
    assert entered_by_callers.left_in_thread() == before


@every_case_kept_apart
def test_what_the_caller_leaves_stays_inside(case: Case) -> None:
    before = entered_by_callers.left_in_thread()
    held = Held(case)
    here = held.seen()
    inside = Inside()
    held.leave()
    there = inside.do(held.seen)
    inside.end()
    assert there == here != held.seen()
    assert entered_by_callers.left_in_thread() == before


@every_case_kept_apart
def test_what_the_inside_holds_over_a_pause_does_not_reach_the_caller(case: Case) -> None:
    before = entered_by_callers.left_in_thread()
    inside = Inside()
    held = inside.do(lambda: Held(case))
    there = inside.do(held.seen)
    here = held.seen()
    still_there = inside.do(held.seen)
    inside.do(held.leave)
    there_after = inside.do(held.seen)
    inside.end()
    assert still_there == there
    assert here == there_after != there
    assert entered_by_callers.left_in_thread() == before


def hold_at_the_same_time(outside: Case, within: Case) -> None:
    """Have both sides enter something and take turns; the inside leaves first."""
    before = entered_by_callers.left_in_thread()
    inside = Inside()
    inner = inside.do(lambda: Held(within))
    there = inside.do(inner.seen)
    outer = Held(outside)
    here = outer.seen()
    for _ in range(2):
        assert inside.do(inner.seen) == there
        assert outer.seen() == here
    inside.do(inner.leave)
    assert inside.do(inner.seen) != there
    assert outer.seen() == here
    outer.leave()
    inside.end()
    assert outer.seen() != here
    assert entered_by_callers.left_in_thread() == before


@every_case_kept_apart
def test_both_sides_hold_something_at_the_same_time(case: Case) -> None:
    # a counter of flops hooks every module of the process, and modes see what its hooks do
    counts, modes = CASES["flops"], CASES["function modes"]
    for name, within in KEPT_APART.items():
        apart = {case, within} != {counts, modes}
        if apart and not name.startswith("autocast"):  # which has a test of its own
            hold_at_the_same_time(case, within)


@pytest.mark.parametrize("outside", ["autocast", "function modes", "saved-tensor hooks"])
def test_both_sides_hold_something_and_autocast_at_the_same_time(outside: str) -> None:
    hold_at_the_same_time(CASES[outside], CASES["autocast"])


def test_autocast_of_the_inside_has_no_say_in_an_autocast_of_the_caller() -> None:
    usual = entered_by_callers.own_autocast(None)
    inside = Inside()
    held = inside.do(lambda: Held(CASES["autocast"]))
    here = entered_by_callers.own_autocast(None)
    assert inside.do(held.seen) is torch.float16
    inside.do(held.leave)
    inside.end()
    assert here is usual


def test_autocast_that_the_caller_has_entered_since_has_no_say_in_one_of_the_inside() -> None:
    usual = entered_by_callers.own_autocast(None)
    inside = Inside()
    with torch.autocast("cpu", torch.float16):
        there = inside.do(lambda: entered_by_callers.own_autocast(None))
    inside.end()
    assert there is usual


def test_casts_are_forgotten_when_the_caller_leaves_autocast_though_the_inside_has_not() -> None:
    layer = nn.Linear(3, 3, bias=False)
    inside = Inside()
    held = inside.do(lambda: Held(CASES["autocast"]))
    try:
        with torch.autocast("cpu"):
            assert layer(torch.ones(1, 3)).ne(0).all()
        with torch.no_grad():
            layer.weight.zero_()
        with torch.autocast("cpu"):
            after = layer(torch.ones(1, 3))
    finally:
        inside.do(held.leave)
        inside.end()
    assert after.eq(0).all(), "the weight as it was before the edit"


def test_a_value_read_in_inference_mode_is_an_ordinary_tensor(model: Model) -> None:
    inside: list[bool] = []
    note = model.module.blocks[1].register_forward_hook(
        lambda *_: inside.append(torch.is_inference_mode_enabled())
    )
    with model.trace(x()) as run:
        with torch.inference_mode():
            hidden = run.blocks[1].output
            assert torch.is_inference_mode_enabled()
            assert (hidden * 2).is_inference()
        assert not torch.is_inference_mode_enabled()
        assert not hidden.is_inference()
        assert hidden.requires_grad
        with torch.inference_mode():
            last = run.blocks[2].output
        out = run.output
    note.remove()
    assert not torch.is_inference_mode_enabled()
    assert inside == [False]
    assert not last.is_inference()
    close(out, model.module(x()))


def test_a_model_in_inference_mode_leaves_its_caller_out_of_it(model: Model) -> None:
    with torch.inference_mode():
        run = model.trace(x()).__enter__()
    hidden = run.blocks[0].output
    assert not torch.is_inference_mode_enabled()
    assert hidden.is_inference(), "the model was started in it"
    assert not (hidden * 2).is_inference()
    run.__exit__(None, None, None)
    assert not torch.is_inference_mode_enabled()


# ---- stacks that move ----------------------------------------------------------------------------

CRASH = """
    import random, sys
    import torch
    from headwater.trace import greenlets

    torch.set_num_threads(1)
    if sys.argv[1] == "bare":
        greenlets._CHAIN = greenlets._Bottom()  # nothing below the function
    random.seed(0)
    left = torch.zeros(2, 3)
    raised = 0


    def fail():
        global raised
        for _ in range(3):
            try:
                left @ left
            except RuntimeError:
                raised += 1


    def body():
        while True:
            coroutine.pause()
            fail()


    def at(depth, function):
        # each kind puts other C frames, of other sizes, between here and the function
        if depth == 0:
            function()
            return 0
        kind, deeper = random.randrange(4), lambda _: at(depth - 1, function)
        if kind == 0:
            list(map(deeper, (0,)))
        elif kind == 1:
            sorted([1], key=deeper)
        elif kind == 2:
            max([1], key=deeper)
        else:
            deeper(0)
        return 0


    for _ in range(300):
        coroutine = greenlets.GreenletCoroutine(body)
        at(random.randrange(7), coroutine.resume)
        for _ in range(4):
            at(random.randrange(5), coroutine.resume)
        coroutine.close()
    print(raised)
"""


def crash(kind: str) -> subprocess.CompletedProcess[str]:
    """Run `CRASH` with or without native frames below the function."""
    command = [sys.executable, "-c", textwrap.dedent(CRASH), kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_errors_of_torch_on_a_stack_that_was_moved_do_not_end_the_process(
    record_property: Callable[[str, object], None],
) -> None:
    done = crash("deep")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{300 * 4 * 3}\n", "")
    # whether it dies without the frames depends on how Python and torch were built
    record_property("without frames below, the process ends with", crash("bare").returncode)


def native_frames() -> int:
    """How many frames libc finds when it walks up this stack, which must be the main one."""
    buffer = (ctypes.c_void_p * 2000)()
    found = ctypes.CDLL(None).backtrace(buffer, len(buffer))
    assert 0 < found < len(buffer)
    return found


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.libc_ver()[0] == "glibc"), reason="asks glibc"
)
def test_there_are_more_native_frames_below_a_function_than_torch_walks() -> None:
    class Out(Exception):  # noqa: N818
        pass

    inside: list[int] = []

    def probe() -> None:
        inside.append(native_frames())
        raise Out  # there is nobody to switch to: this is no greenlet, whose stack has no bottom

    here: Any = getcurrent()
    assert here.parent is None
    here.function = probe
    try:
        with pytest.raises(Out):
            next(greenlets._CHAIN)
    finally:
        del here.function
    # torch's own walk is of 64 frames, of which it leaves out 2
    assert greenlets.FRAMES >= 66
    assert inside[0] - native_frames() >= greenlets.FRAMES


# ---- greenlets that wait for work ----------------------------------------------------------------


def greenlet_of(model: Model) -> Deep:
    """What a trace runs its model on."""
    found: list[Any] = []
    handle = model.module.blocks[0].register_forward_hook(lambda *_: found.append(getcurrent()))
    with model.trace(x()):
        pass
    handle.remove()
    (one,) = found
    assert type(one) is Deep
    return one


def test_the_next_trace_runs_on_the_same_greenlet(model: Model) -> None:
    assert greenlet_of(model) is greenlet_of(model)


class Thing:
    """What can be weakly referred to."""


NOTE: contextvars.ContextVar[Thing] = contextvars.ContextVar("NOTE")


def test_a_greenlet_that_waits_holds_nothing_of_the_last_trace(model: Model) -> None:
    outputs: list[weakref.ref[Tensor]] = []
    handle = model.module.blocks[1].register_forward_hook(
        lambda _, __, output: outputs.append(weakref.ref(output))
    )
    token = NOTE.set(Thing())
    thing = weakref.ref(NOTE.get())
    one = greenlet_of(model)
    handle.remove()
    NOTE.reset(token)
    del token
    gc.collect()
    assert not one.dead
    assert (one.function, one.notes, one.gr_context, one.shapes) == (None, None, None, [])
    assert outputs[0]() is None
    assert thing() is None


def test_a_greenlet_that_waits_does_not_hold_the_coroutine_it_ran() -> None:
    found: list[Any] = []
    coroutine = GreenletCoroutine(lambda: found.append(getcurrent()))
    coroutine.resume()
    reference = weakref.ref(coroutine)
    del coroutine
    gc.collect()
    assert not found[0].dead
    assert reference() is None


def test_a_thread_that_ends_leaves_no_greenlet(model: Model) -> None:
    found: list[weakref.ref[Deep]] = []

    def twice() -> None:
        found.extend(weakref.ref(greenlet_of(model)) for _ in range(2))
        assert found[0]() is found[1]() is not None

    with ThreadPoolExecutor(1) as pool:
        pool.submit(twice).result(30)
    assert [one() for one in found] == [None, None]


def test_a_changed_recursion_limit_holds_in_the_next_trace(model: Model) -> None:
    before, limit = greenlet_of(model), sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 100)
    try:
        during = greenlet_of(model)
        again = greenlet_of(model)
    finally:
        sys.setrecursionlimit(limit)
    after = greenlet_of(model)
    assert during is again
    assert len({before, during, after}) == 3


def test_a_model_may_recurse_as_deep_as_the_limit_allows_now(model: Model) -> None:
    def deep(left: int) -> int:
        return 0 if left == 0 else 1 + deep(left - 1)

    limit = sys.getrecursionlimit()
    reached: list[int] = []
    handle = model.module.blocks[0].register_forward_hook(
        lambda *_: reached.append(deep(limit + 200))
    )
    try:
        with pytest.raises(RecursionError), model.trace(x()):
            pass
        sys.setrecursionlimit(limit + 1000)
        with model.trace(x()):
            pass
    finally:
        sys.setrecursionlimit(limit)
        handle.remove()
    assert reached == [limit + 200]


@pytest.mark.parametrize("watch", [sys.settrace, sys.setprofile], ids=["debugger", "profiler"])
def test_a_debugger_that_is_on_begins_with_a_greenlet_of_its_own(
    model: Model, watch: Callable[[Any], None]
) -> None:
    before, called = greenlet_of(model), set()

    def note(frame: Any, *_: Any) -> None:
        called.add(frame.f_code)

    restored = (sys.gettrace if watch is sys.settrace else sys.getprofile)()
    watch(note)
    try:
        during = greenlet_of(model)
    finally:
        watch(restored)
    after = greenlet_of(model)
    assert during is not before
    assert after is not during, "it would go on telling a debugger that is off"
    assert type(model.module).forward.__code__ in called


# ---- traces that are dropped, and transforms -----------------------------------------------------


def test_the_values_of_a_trace_dropped_in_another_thread_go_with_the_next_trace(
    model: Model,
) -> None:
    outputs: list[weakref.ref[Tensor]] = []
    handle = model.module.blocks[0].register_forward_hook(
        lambda _, __, output: outputs.append(weakref.ref(output))
    )
    held = [model.trace(x()).__enter__()]
    held[0].blocks[0].output.save()
    handle.remove()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.clear).result(10)
    with model.trace(x()):
        gc.collect()
        assert outputs[0]() is None


FUNCTIONS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda function, given: torch.func.grad(function)(given),
    "vmap": lambda function, given: torch.func.vmap(function)(given),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_asked_for_inside_a_transform_is_refused_and_the_trace_goes_on(
    model: Model, name: str
) -> None:
    expected: list[Tensor] = []
    with hooked(model.module, {"blocks.0": expected.append}):
        expected.append(model.module(x()))
    given = torch.ones(5, 4, dtype=torch.float64)
    with model.trace(x()) as run:
        with pytest.raises(TraceError, match=r"inside a torch\.func transform"):
            FUNCTIONS[name](lambda one: (one * run.blocks[0].output).sum(), given)
        hidden = run.blocks[0].output
        # the value is there now, so nobody changes sides
        weighted = torch.func.grad(lambda one: (one * run.blocks[0].output).sum())(given)
        out = run.output
    close(hidden, expected[0])
    close(weighted, expected[0])
    close(out, expected[1])


def test_a_trace_left_inside_a_transform_it_was_not_opened_in_is_refused(model: Model) -> None:
    def leave(given: Tensor) -> Tensor:
        run.__exit__(None, None, None)
        return given.sum()

    run = model.trace(x()).__enter__()
    run.blocks[0].output.save()
    with pytest.raises(TraceError, match=r"torch\.func"):
        torch.func.grad(leave)(x())
    with model.trace(x()) as again:
        close(again.output, model.module(x()))


def test_a_whole_trace_inside_a_transform_gives_the_gradient(model: Model) -> None:
    def loss(given: Tensor) -> Tensor:
        with model.trace(given, requires_grad=False) as run:
            run.blocks[1].output = run.blocks[1].output * 2
            return run.output.square().sum()

    def plain(given: Tensor) -> Tensor:
        with hooked(model.module, {"blocks.1": lambda output: output * 2}):
            return model.module(given).square().sum()

    expected = torch.func.grad(plain)(x())
    assert expected.abs().max() > 0.01
    close(torch.func.grad(loss)(x()), expected)


def test_a_profiler_of_the_caller_sees_what_the_model_does(model: Model) -> None:
    def linears(run: Callable[[], Any]) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            run()
        return sum(one.name == "aten::linear" for one in profiler.events())

    def traced() -> None:
        with model.trace(x()) as run:
            run.blocks[0].output.save()

    expected = linears(lambda: model.module(x()))
    assert expected > 1
    assert linears(traced) == expected


# ---- who uses a run ------------------------------------------------------------------------------


def test_a_run_used_by_a_hook_of_its_own_model_is_refused(model: Model) -> None:
    told: list[str] = []

    def hook(*_: Any) -> None:
        for number in (0, 2):
            with pytest.raises(TraceError) as raised:
                run.blocks[number].output.save()
            told.append(str(raised.value))

    handle = model.module.blocks[1].register_forward_hook(hook)
    with model.trace(x()) as run:
        run.blocks[0].output.save()
        last = run.blocks[2].output
        out = run.output
    handle.remove()
    assert len(told) == 2
    assert all("used by code that its own model calls" in one for one in told)
    expected: list[Tensor] = []
    with hooked(model.module, {"blocks.2": expected.append}):
        close(out, model.module(x()))
    close(last, expected[0])


@pytest.mark.parametrize("worker", ["greenlet", "thread"])
def test_both_workers_give_what_plain_hooks_give(model: Model, worker: str) -> None:
    with model.trace(x(), worker=worker) as run:
        stream = run.embed.output
        branch = run.blocks[0].branch.output.clone()
        run.blocks[1].output[:, 1] *= 2
        joined = run.blocks[2].output
        out = run.output
        with out.square().sum().backward():
            joined.grad[0] *= 3
            gradient = stream.grad.clone()
    accumulated = model.module.embed.weight.grad.clone()
    model.module.zero_grad()

    scale = torch.ones(5, 4, dtype=torch.float64)
    scale[0] = 3
    double = torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    kept: dict[str, Tensor] = {}

    def tripled(output: Tensor) -> None:
        output.register_hook(lambda arriving: arriving * scale)

    watch = {
        "embed": functools.partial(kept.__setitem__, "embed"),
        "blocks.0.branch": functools.partial(kept.__setitem__, "branch"),
        "blocks.1": lambda output: output * double,
        "blocks.2": tripled,
    }
    with hooked(model.module, watch):
        kept["out"] = model.module(x())
    kept["embed"].retain_grad()
    kept["out"].square().sum().backward()
    close(branch, kept["branch"])
    close(out, kept["out"])
    close(gradient, kept["embed"].grad)
    close(accumulated, model.module.embed.weight.grad)


class Shaped(nn.Module):
    """A model that checks shapes, before and after calling something that may be read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)
        self.seen: list[bool] = []

    @jaxtyped(typechecker=beartype)
    def forward(self, given: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        stream = self.first(given)
        self.seen.append(isinstance(stream, Float[Tensor, "b d"]))
        stream = self.second(stream)
        self.seen.append(isinstance(stream, Float[Tensor, "b d"]))
        self.seen.append(isinstance(stream[1:], Float[Tensor, "b d"]))
        return stream


def test_shapes_that_the_body_and_the_model_check_are_kept_apart() -> None:
    model = hw.wrap(Shaped())
    given = torch.ones(5, 4, dtype=torch.float64)

    @jaxtyped(typechecker=beartype)
    def body(other: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        with model.trace(given) as run:
            first = run.first.output
            here = [isinstance(one, Float[Tensor, "b d"]) for one in (other, first, other)]
            second = run.second.output
            here += [isinstance(one, Float[Tensor, "b d"]) for one in (other, second, other)]
        assert here == [True, False, True] * 2
        assert isinstance(other, Float[Tensor, "b d"])
        return other

    body(torch.ones(7, 9))
    # the last is of another size than the model was given
    assert model.module.seen == [True, True, False]
    assert_nothing_left(model.module)


@pytest.mark.parametrize("begun", [True, False], ids=["inside the other's pass", "before it"])
def test_two_backward_blocks_that_take_turns(model: Model, begun: bool) -> None:
    def gradients(scale: float) -> Iterator[Tensor]:
        with model.trace(scale * x()) as run:
            streams = [block.output for block in run.blocks]
            with run.output.square().sum().backward():
                if not begun:  # both blocks are entered before either pass begins
                    yield run.output
                for stream in reversed(streams):
                    yield stream.grad.clone()

    def plain(scale: float) -> list[Tensor]:
        kept: list[Tensor] = []
        with hooked(model.module, {f"blocks.{number}": kept.append for number in range(3)}):
            loss = model.module(scale * x()).square().sum()
        return list(reversed(torch.autograd.grad(loss, kept)))

    found = list(zip(gradients(1), gradients(2), strict=True))
    found = found if begun else found[1:]
    for one, two, first, second in zip(*zip(*found, strict=True), plain(1), plain(2), strict=True):
        close(one, first)
        close(two, second)


def test_a_backward_block_leaves_no_hook_to_the_threads_of_devices(model: Model) -> None:
    seen: list[bool] = []
    with model.trace(x()) as run:
        hidden, later = run.blocks[0].output, run.blocks[1].output
        hidden.register_hook(lambda _: seen.append(torch._C._is_multithreading_enabled()))
        with run.output.sum().backward():
            later.grad.save()
    assert seen == [False]
    assert torch._C._is_multithreading_enabled()
