"""Random programs in a trace, against the same programs in plain hooks.

Whatever a program does while the model waits at a place, its twin does in a forward hook at that
place, with hooks on tensors for what it does to gradients. Which reads and writes come too late is
foretold from the order in which the plain module computes its values.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor, nn

import headwater as hw
from headwater.errors import GradientError, LateWriteError, NeverRanError, OutOfOrderError
from headwater.models import Model
from trace_models import assert_nothing_left

WIDTH = 4


class Attention(nn.Module):
    """Mixes positions; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        weights = (self.scores(stream) @ stream.mT).softmax(-1)
        return self.out(weights @ stream), weights


class Block(nn.Module):
    """Attention and an MLP on a residual stream; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor) -> tuple[Tensor, None]:
        stream = stream + self.attn(self.norm(stream))[0]
        return stream + self.down(self.up(stream).tanh()), None


class Again(nn.Module):
    """Calls one module twice, as layers with shared weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.shared(stream)
        return stream + self.shared(stream.sin())


class Parallel(nn.Module):
    """Two branches from the same input; autograd gives both one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.left(stream) + self.right(stream)


class Whole(nn.Module):
    """All of them; `tail` is called twice with what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.first = Block()
        self.again = Again()
        self.tail = Parallel()
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, given: Tensor) -> Tensor:
        stream = self.embed(given)
        stream = self.first(stream)[0]
        stream = self.tail(stream)
        stream = self.again(stream)
        stream = self.tail(stream.cos())
        return self.head(stream)


Event = tuple[str, str, int]
"""Path of a module, `input` or `output`, number of the call from 1."""


@cache
def model() -> Model:
    """The model under test, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hw.wrap(Whole().double())


def given() -> Tensor:
    """The input: two prompts of three positions."""
    return torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(2, 3, 3)


Change = Callable[[Event, Any], Any]


@contextlib.contextmanager
def hooked(module: nn.Module, change: Change) -> Iterator[None]:
    """Show every input and output of every module to `change`, which returns what goes on."""
    calls: dict[str, int] = {}
    under_way: dict[str, int] = {}
    handles = []

    def hooks(path: str) -> tuple[Any, Any]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> Any:
            calls[path] = under_way[path] = calls.get(path, 0) + 1
            return (change((path, "input", calls[path]), args[0]), *args[1:])

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            return change((path, "output", under_way[path]), output)

        return before, after

    for path, one in module.named_modules():
        before, after = hooks(path)
        handles += [one.register_forward_pre_hook(before), one.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
def events() -> tuple[Event, ...]:
    """The values of a run in the order in which they exist."""
    found: list[Event] = []

    def note(event: Event, value: Any) -> Any:
        found.append(event)
        return value

    with torch.no_grad(), hooked(model().module, note):
        model().module(given())
    return tuple(found)


def tensor_of(value: Any) -> Tensor:
    """The tensor of a module's output."""
    return value[0] if isinstance(value, tuple) else value


def with_tensor(value: Any, new: Tensor) -> Any:
    """The output with another tensor."""
    return (new, *value[1:]) if isinstance(value, tuple) else new


def weights(like: Tensor) -> Tensor:
    """Numbers that differ from entry to entry."""
    return torch.linspace(-2, 3, like.numel(), dtype=like.dtype).reshape(like.shape).sin()


# An edit in place must not touch what autograd has saved: these are saved by nobody when they are
# handed out.
EDITABLE = {
    ("embed", "output"),
    ("first", "input"),
    ("first.attn.out", "output"),
    ("first.attn", "output"),
    ("first.down", "output"),
    ("first", "output"),
    ("tail", "input"),
    ("tail.left", "output"),
    ("tail.right", "output"),
    ("tail", "output"),
    ("again", "input"),
    ("again.shared", "output"),
    ("head", "output"),
    ("", "output"),
}
LEAVES = ["embed", "first.down", "first.attn.out", "again.shared", "tail.left", "tail.right"]


def change_in_place(tensor: Tensor, how: int) -> None:
    """One of a few edits in place."""
    if how == 0:
        tensor[:, 1] = 0
    elif how == 1:
        tensor *= -1.5
    else:
        tensor += weights(tensor)


def changed(tensor: Tensor, how: int) -> Tensor:
    """One of a few replacements."""
    if how == 0:
        return torch.zeros_like(tensor)
    if how == 1:
        return tensor * 0.5
    return tensor + weights(tensor)


def skipped_value(like: tuple[int, ...], tensors: list[Tensor], how: int) -> Tensor:
    """What a skipped module returns: constant, or computed from what was read last."""
    fit = [one for one in tensors if tuple(one.shape) == like]
    value = torch.ones(like, dtype=torch.float64)
    return fit[-1] * 2 if fit and how else value


def loss_of(tensors: list[Tensor]) -> Tensor:
    """A number that depends on all of them."""
    return sum(((one * weights(one)).sum() + one.sin().sum() for one in tensors), torch.zeros(()))


@dataclass
class GradientStep:
    """One thing done in a backward block: what, to which tensor, and what came of it."""

    number: int
    what: str
    outcome: str = ""
    seen: Tensor | None = None


def change_gradient(gradient: Tensor, what: str) -> Tensor | None:
    """What a step makes of a gradient; None if it only reads."""
    return {
        "read": lambda: None,
        "zero": lambda: torch.zeros_like(gradient),
        "scale": lambda: gradient * -2,
        "row": lambda: torch.cat([gradient[:1] * 3, gradient[1:]]),
        "assign": lambda: weights(gradient),
    }[what]()


@dataclass
class Program:
    """What was done, by the place where the model waited."""

    at: dict[Event, list[Callable[[Twin], None]]] = field(default_factory=dict)
    skips: dict[tuple[str, int], int] = field(default_factory=dict)


class Twin:
    """The program in plain PyTorch."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors: list[Tensor] = []
        self.value: Any = None

    def run(self) -> None:
        """Run the module with everything the program does in hooks."""
        module = model().module
        with contextlib.ExitStack() as stack:
            for path in {path for path, _ in self.program.skips}:
                stack.enter_context(self._skipping(path))
            stack.enter_context(hooked(module, self._change))
            module(given())

    def _change(self, event: Event, value: Any) -> Any:
        self.value = value
        for action in self.program.at.get(event, ()):
            action(self)
        return self.value

    @contextlib.contextmanager
    def _skipping(self, path: str) -> Iterator[None]:
        module: Any = model().module.get_submodule(path)
        original, count = module.forward, [0]

        def forward(value: Tensor) -> Tensor:
            count[0] += 1
            key = (path, count[0])
            if key not in self.program.skips:
                return original(value)
            return self.skips[key]

        module.forward = forward
        try:
            yield
        finally:
            del module.forward

    skips: dict[tuple[str, int], Tensor]

    def backward(self, losses: list[int], steps: list[GradientStep], arrivals: list[int]) -> None:
        """A backward pass with hooks that read and edit; outcomes must be those of the steps."""
        loss = loss_of([self.tensors[number] for number in losses])
        order = [id(self.tensors[number]) for number in arrivals]
        assert set(order) == {id(self.tensors[number]) for number in arrived(loss, self.tensors)}
        edits: dict[int, Tensor | None] = {}
        at = -1
        for step in steps:
            tensor = self.tensors[step.number]
            key = id(tensor)
            if key not in order:
                at = len(order)
                assert step.outcome == "none", (step, "no gradient flows there")
                continue
            place = order.index(key)
            arrives, at = place > at, max(at, place)
            current = at == place and (arrives or key in edits)
            if step.what != "read" and not current:
                assert step.outcome == "late", step
                continue
            assert step.outcome == "ok", step
            if arrives:
                edits[key] = None
            before = edits.get(key)
            if before is None:  # edits made so far have changed what arrives here
                before = self._gradients(loss, edits)[key]
            after = change_gradient(before, step.what)
            if after is not None:
                edits[key] = after
            assert step.seen is not None
            close(step.seen, before if after is None else after)
        self._gradients(loss, edits, accumulate=True)

    def _gradients(
        self, loss: Tensor, edits: dict[int, Tensor | None] | None = None, accumulate: bool = False
    ) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def hook(key: int, gradient: Tensor) -> Tensor | None:
            found[key] = gradient.clone()
            return None if edits is None else edits.get(key)

        handles = [
            one.register_hook(functools.partial(hook, id(one)))
            for one in hooked_tensors(self.tensors).values()
        ]
        backward_pass(loss, accumulate=accumulate)
        for handle in handles:
            handle.remove()
        return found


def backward_pass(loss: Tensor, *, accumulate: bool) -> None:
    """A plain backward pass; the parameters keep the gradients they had unless it accumulates."""
    kept = {name: one.grad for name, one in model().module.named_parameters()}
    if not accumulate:
        model().module.zero_grad(set_to_none=True)
    torch.autograd.backward(loss, retain_graph=True)
    if not accumulate:
        for name, one in model().module.named_parameters():
            one.grad = kept[name]


def hooked_tensors(tensors: list[Tensor]) -> dict[int, Tensor]:
    """Those that have a gradient, each once, by the first place where it stands."""
    found = {id(one): number for number, one in reversed(list(enumerate(tensors)))}
    for one in tensors:
        one.grad_fn  # noqa: B018 - or torch crashes on a hook for a view that was edited since
    return {number: tensors[number] for number in found.values() if tensors[number].requires_grad}


def arrived(loss: Tensor, tensors: list[Tensor]) -> list[int]:
    """The order in which gradients arrive.

    Autograd orders independent branches by when, and in which thread, they were computed, so the
    order of a trace is asked of its own graph.
    """
    order: list[int] = []
    handles = [
        one.register_hook(functools.partial(_note_arrival, order, number))
        for number, one in hooked_tensors(tensors).items()
    ]
    backward_pass(loss, accumulate=False)
    for handle in handles:
        handle.remove()
    return order


def _note_arrival(order: list[int], number: int, _: Tensor) -> None:
    order.append(number)


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the order of additions."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def parameter_gradients() -> dict[str, Tensor | None]:
    """A copy of each parameter's accumulated gradient."""
    named = model().module.named_parameters()
    return {name: None if one.grad is None else one.grad.clone() for name, one in named}


class Failure(Exception):  # noqa: N818
    """An error of the program's own."""


class TraceMachine(RuleBasedStateMachine):
    """A program that grows a statement at a time, in an open trace."""

    # ---- the trace ------------------------------------------------------------------------------

    @initialize(fails=st.booleans())
    def enter(self, fails: bool) -> None:
        """Open the trace; some programs leave it by an error."""
        self.fails = fails
        model().module.zero_grad(set_to_none=True)
        self.program = Program()
        self.run = model().trace(given())
        self.run.__enter__()
        self.at = -1
        """The place in `events` where the model waits."""
        self.read: dict[Event, Any] = {}
        self.tensors: list[Tensor] = []
        self.numbers: dict[Event, int] = {}
        self.gone: set[Event] = set()
        self.skips: dict[tuple[str, int], Tensor] = {}

    def teardown(self) -> None:
        """Leave the trace and compare with the twin."""
        if not hasattr(self, "run"):
            return
        error = Failure() if self.fails else None
        self.run.__exit__(Failure if self.fails else None, error, None)
        assert_nothing_left(model().module)
        gradients = parameter_gradients()
        model().module.zero_grad(set_to_none=True)
        twin = Twin(self.program)
        twin.skips = {}
        twin.run()
        assert len(twin.tensors) == len(self.tensors)
        for one, other in zip(self.tensors, twin.tensors, strict=True):
            close(one, other)
        expected = parameter_gradients()
        for name, gradient in gradients.items():
            other = expected[name]
            assert (gradient is None) == (other is None), name
            if gradient is not None and other is not None:
                close(gradient, other)

    def _proxy(self, event: Event) -> Any:
        path, _, number = event
        if number == 1:
            return self.run[path] if path else self.run
        return self.run.calls(path)[number - 1]

    def _get(self, event: Event) -> Any:
        return getattr(self._proxy(event), event[1])

    def _later(self, step: int) -> Event | None:
        rest = [one for one in events()[self.at + 1 :] if one not in self.gone]
        return rest[min(step, len(rest) - 1)] if rest else None

    def _note(self, action: Callable[[Twin], None]) -> None:
        self.program.at.setdefault(events()[self.at], []).append(action)

    def _take(self, event: Event, value: Any) -> None:
        """Note a value that the model has just handed over."""
        self.read[event] = value
        self.numbers[event] = len(self.tensors)
        self.tensors.append(tensor_of(value))
        self._note(lambda twin: twin.tensors.append(tensor_of(twin.value)))

    def _is_live(self, event: Event) -> bool:
        """Whether a call whose input was passed is still under way."""
        path, side, number = event
        return side == "input" and events().index((path, "output", number)) > self.at

    def _may_be_unseen(self, event: Event) -> bool:
        """Whether calls of the module may have gone by before it was asked for."""
        path = event[0]
        parents = [path[:place] for place, letter in enumerate(path) if letter == "."]
        begun = {one[0] for one in events()[: self.at + 1]}
        return any(parent in begun for parent in parents) and not any(
            one[0] == path for one in self.read
        )

    # ---- statements -----------------------------------------------------------------------------

    @rule(step=st.integers(0, 6))
    def read_on(self, step: int) -> None:
        """Read a value that comes later."""
        event = self._later(step)
        if event is None:
            return
        try:
            value = self._get(event)
        except OutOfOrderError:
            assert self._may_be_unseen(event), event
            return
        self.at = events().index(event)
        self._take(event, value)

    @rule(place=st.integers(0, 200))
    def read_back(self, place: int) -> None:
        """Read a value that the model has passed."""
        if self.at < 0:
            return
        event = events()[place % (self.at + 1)]
        if event in self.read:
            assert tensor_of(self._get(event)) is tensor_of(self.read[event])
        elif event in self.gone:
            with pytest.raises((OutOfOrderError, NeverRanError)):
                self._get(event)
        elif self._is_live(event):
            try:
                value = self._get(event)
            except OutOfOrderError:
                assert self._may_be_unseen(event), event
                return
            assert isinstance(value, Tensor)
            self.read[event] = value
        else:
            with pytest.raises(OutOfOrderError):
                self._get(event)

    @rule(how=st.integers(0, 2))
    def edit_in_place(self, how: int) -> None:
        """Edit the value at which the model waits."""
        event = events()[self.at]
        if self.at < 0 or event not in self.read or event[:2] not in EDITABLE:
            return
        change_in_place(tensor_of(self.read[event]), how)
        self._note(lambda twin: change_in_place(tensor_of(twin.value), how))

    @rule(how=st.integers(0, 2))
    def assign(self, how: int) -> None:
        """Replace the value at which the model waits."""
        event = events()[self.at]
        if self.at < 0 or event not in self.read or event == ("", "input", 1):
            return
        value = with_tensor(self.read[event], changed(tensor_of(self.read[event]), how))
        setattr(self._proxy(event), event[1], value)
        self.read[event] = value
        self.tensors.append(tensor_of(value))

        def replay(twin: Twin) -> None:
            twin.value = with_tensor(twin.value, changed(tensor_of(twin.value), how))
            twin.tensors.append(tensor_of(twin.value))

        self._note(replay)

    @rule(place=st.integers(0, 200))
    def assign_late(self, place: int) -> None:
        """Replace a value that the model has passed: refused, whether it was read or not."""
        if self.at < 1:
            return
        event = events()[place % self.at]
        like = torch.zeros(2, 3, WIDTH, dtype=torch.float64)
        with pytest.raises((LateWriteError, OutOfOrderError, NeverRanError)) as caught:
            setattr(self._proxy(event), event[1], like)
        if event in self.read:
            assert caught.type is LateWriteError

    @rule(which=st.integers(0, 20), how=st.integers(0, 1))
    def skip(self, which: int, how: int) -> None:
        """Leave out a module that the model has not reached."""
        path = LEAVES[which % len(LEAVES)]
        future = [
            one
            for one in events()[self.at + 1 :]
            if one[0] == path and one[1] == "input" and one[:1] + one[2:] not in self.skips
        ]
        if not future or (future[0][2] > 1 and self._may_be_unseen(future[0])):
            return
        number = future[0][2]
        shape = (2, 3, WIDTH)
        value = skipped_value(shape, self.tensors, how)
        count = len(self.tensors)
        key = (path, number)
        try:
            self._proxy((path, "output", number)).skip(value)
        except OutOfOrderError:
            assert self._may_be_unseen(future[0])
            return
        self.skips[key] = value
        self.program.skips[key] = how

        def replay(twin: Twin) -> None:
            twin.skips[key] = skipped_value(shape, twin.tensors[:count], how)

        if self.at >= 0:
            self._note(replay)
        else:
            self.program.at.setdefault(events()[0], []).insert(0, replay)

    def _differentiable(self) -> list[int]:
        return [number for number, one in enumerate(self.tensors) if one.requires_grad]

    steps = st.lists(
        st.tuples(
            st.integers(0, 30), st.sampled_from(["read", "zero", "scale", "row", "assign", "read"])
        ),
        max_size=6,
    )

    @precondition(lambda self: bool(self._differentiable()))
    @rule(
        losses=st.lists(st.integers(0, 30), min_size=1, max_size=2), steps=steps, last=st.booleans()
    )
    def backward(self, losses: list[int], steps: list[tuple[int, str]], last: bool) -> None:
        """A backward pass of what was read, its gradients read and edited in any order."""
        choices = self._differentiable()
        chosen = [choices[number % len(choices)] for number in losses]
        if last:
            chosen[0] = choices[-1]
        done = [GradientStep(choices[number % len(choices)], what) for number, what in steps]
        loss = loss_of([self.tensors[number] for number in chosen])
        order = arrived(loss, self.tensors)
        with loss.backward():
            for step in done:
                self._gradient(step)
        self._note(lambda twin: twin.backward(chosen, done, order))

    def _gradient(self, step: GradientStep) -> None:
        tensor = self.tensors[step.number]
        try:
            gradient = tensor.grad
        except GradientError:
            step.outcome = "none"
            return
        before = gradient.clone()
        new = change_gradient(before, step.what)
        try:
            if step.what == "assign":
                tensor.grad = new
            elif new is not None:
                gradient[:] = new
                tensor.grad  # noqa: B018 - where a late edit is noticed
        except LateWriteError:
            step.outcome = "late"
            gradient.copy_(before)
            with contextlib.suppress(LateWriteError):
                tensor.grad  # noqa: B018 - as is the edit that undoes it
            return
        step.outcome = "ok"
        step.seen = tensor.grad.clone()

    @precondition(lambda self: bool(self._differentiable()))
    @rule(number=st.integers(0, 30))
    def fail_in_a_block(self, number: int) -> None:
        """An error in a backward block that the program handles; the pass is given up."""
        choices = self._differentiable()
        tensor = self.tensors[choices[number % len(choices)]]
        kept = {name: one.grad for name, one in model().module.named_parameters()}
        kept = {name: None if one is None else one.clone() for name, one in kept.items()}
        with contextlib.suppress(Failure):
            with loss_of([self.tensors[choices[-1]], tensor]).backward():
                tensor.grad[:] = 0
                raise Failure
            pytest.fail("the error was lost")
        for name, one in model().module.named_parameters():
            one.grad = kept[name]

    @rule()
    def bare_backward(self) -> None:
        """A backward pass without a block accumulates into the parameters as always."""
        choices = self._differentiable()
        if not choices:
            return
        loss_of([self.tensors[choices[-1]]]).backward(retain_graph=True)
        number = choices[-1]

        def replay(twin: Twin) -> None:
            loss_of([twin.tensors[number]]).backward(retain_graph=True)

        self._note(replay)


TraceMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
test_random_programs = TraceMachine.TestCase
