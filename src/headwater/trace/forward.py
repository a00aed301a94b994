"""One forward run of a model, seen from the model: what was asked for, and what has passed.

Only the modules asked for are watched, with their ancestors and those ancestors' children: so a
call that is under way is always seen, and a module that was passed or left out can be named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from headwater.errors import NeverRanError, OutOfOrderError, TraceError
from headwater.trace.dispatch import unwatch, watch
from headwater.trace.handed import Handed, Where
from headwater.trace.names import typed
from headwater.trace.pausing import Abandoned
from headwater.trace.places import Place

if TYPE_CHECKING:
    from headwater.models import Model


@runtime_checkable
class Body(Protocol):
    """User code that waits for a value."""

    def receive(self) -> None:
        """Give it the turn, from the model's side; return when it waits again or ends."""


class Window:
    """The part of a run since one call of a module began; in it, that call is the first."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.number = 0
        self.members = frozenset(module.modules())
        self.base: dict[nn.Module, int] = {}
        self.stamp = 0


class Forward:
    """What one run of a model has done so far.

    Args:
        model: The model.
        leaf: Whether the embedding's output becomes a leaf that requires grad.
        strict: Whether values must be read in the order in which the model computes them.
        generating: Whether the result is that of the model's `generate`.
    """

    # slots: these are read all the time
    __slots__ = (
        "_blind",
        "_expanded",
        "_leaf",
        "_several",
        "abandoned",
        "clock",
        "edited",
        "ended",
        "errands",
        "generating",
        "grad",
        "handed",
        "held",
        "keeping",
        "last_edit",
        "latest",
        "leafless",
        "leaves",
        "listening",
        "model",
        "places",
        "result",
        "separate",
        "skipped",
        "skips",
        "started",
        "stopped",
        "strict",
        "thread",
        "turn",
        "undoing",
        "values",
        "wanted",
    )

    def __init__(self, model: Model, *, leaf: bool, strict: bool, generating: bool = False) -> None:
        self.model = model
        self.grad = torch.is_grad_enabled()
        self.leafless = self.grad and not leaf
        self.strict = strict
        self.generating = generating
        self.thread: int | None = None
        self.turn: greenlet | None = None
        """Where the model runs, while it has the turn."""
        self.started = False
        self.ended = False
        self.abandoned = False
        self.stopped: str | None = None
        self.held: Where | None = None
        self.latest: Where | None = None
        """In strict order: what passed last."""
        self.result: Any = None
        self.last_edit: str | None = None
        self.clock = 0
        """How many values have arrived."""
        self.values: dict[Where, Any] = {}
        self.wanted: dict[Where, list[Body]] = {}
        self.handed = Handed(self.values)
        self.skips: dict[tuple[nn.Module, int], Any] = {}
        self.keeping: dict[tuple[nn.Module, str], str] = {}
        self.separate: frozenset[tuple[nn.Module, str]] = frozenset()
        self.edited: frozenset[nn.Module] = frozenset()
        self.skipped: frozenset[nn.Module] = frozenset()
        self.leaves: frozenset[nn.Module] = frozenset()
        """The modules at whose outputs gradients begin."""
        self.errands: list[Callable[[], Any]] = []
        self.listening: frozenset[nn.Module] = frozenset()
        self.undoing: list[Callable[[], Any]] = []
        """What puts the model's configuration back, the last one first."""
        self.places: dict[nn.Module, Place] = {}
        """The modules that are watched."""
        self._blind: dict[nn.Module, int] = {}
        """The moments until which modules may have been called unseen."""
        self._expanded: set[nn.Module] = set()
        """The modules whose children are watched, too."""
        self._leaf = leaf
        self._several = model._in_several_places()

    def begin(self) -> None:
        """The user's code has the turn, before the model starts."""
        self.handed.held = []
        if self._leaf:
            self.leaves = frozenset(self.model._embeddings())
            self._watch_all(self.leaves)

    # ---- the model's side -------------------------------------------------------------------

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
        """Run the model, in this thread.

        Args:
            function: The module, or what calls it.
            args: Positional arguments.
            kwargs: Keyword arguments.
        """
        self.thread, self.turn = get_ident(), getcurrent()
        self.started = True
        try:
            if self.errands:
                self._run_errands()
            self.result = function(*args, **kwargs)
        finally:
            self.end()

    def wants(self, where: Where) -> bool:
        """Whether somebody waits for this value, or it is to be kept."""
        return where in self.wanted or where[:2] in self.keeping

    def arrive(self, where: Where, value: Any) -> Any:
        """Hand a value to those who wait for it, from the model's side.

        Args:
            where: Where the value flows.
            value: The value.

        Returns:
            What flows on.

        Raises:
            Abandoned: If the run is to end.
        """
        separate = self.separate and where[:2] in self.separate
        if separate:
            value = _apart(value)  # the model writes into this tensor, or reads it elsewhere
        outer, turn = self.held, self.turn
        self.values[where] = value
        self.held = where
        self.clock += 1
        if self.strict:
            self.latest = where
        if self.keeping and where[:2] in self.keeping:
            self.handed.add(value, self.keeping[where[:2]], where)
        self.turn = None
        for body in self.wanted.pop(where, ()):
            body.receive()
        if self.abandoned:
            raise Abandoned
        self.turn = turn
        self.held = outer
        if self.edited and where[0] in self.edited and _checkpointed():
            raise TraceError(
                f"{typed(path_of(self.model.module, where[0]))} is edited inside an activation "
                "checkpoint: the backward pass would compute it again without the edit, and the "
                "gradients would be wrong.\nSwitch checkpointing off, for Hugging Face models "
                "with model.module.eval()."
            )
        if self.errands:
            self._run_errands()
        value = self.values.get(where, value)
        return _apart(value) if separate else value

    def _run_errands(self) -> None:
        while self.errands:
            self.errands.pop(0)()

    def inner(self, module: nn.Module, side: str, value: Any) -> Any:
        """Hand over a value from inside the call of `module` that is under way."""
        if self.turn is not getcurrent():
            self.refuse_to_go_on()
            return value
        where = (module, side, self.calls_begun(module))
        if self.wants(where):
            if isinstance(value, Tensor) and value._is_view():
                value = value.clone()  # torch edits none of the several views of a projection
            return self.arrive(where, value)
        return value

    def refuse_to_go_on(self) -> None:
        """End a model whose run is to end, where it calls a module.

        Raises:
            Abandoned: If this is that model.
        """
        if self.abandoned and not self.ended and self.thread == get_ident():
            raise Abandoned

    def end(self) -> None:
        """The model is through, or failed."""
        self.turn = None
        self.ended = True
        self.held = None

    # ---- the user's side --------------------------------------------------------------------

    def find(
        self, module: nn.Module, path: str, side: str, windows: Iterable[Window], call: int | None
    ) -> Where:
        """Which value is meant, watching the module from now on.

        Args:
            module: The module.
            path: Its path.
            side: Which of its values.
            windows: The loops over calls that are open, innermost last.
            call: The number of the call from 1, or None for the first one of the window.

        Returns:
            Where the value flows.

        Raises:
            OutOfOrderError: If earlier calls went by unseen.
        """
        self.look_at(module, path)
        blind = self._blind.get(module)
        if call is None:
            for window in reversed(list(windows)):
                if module in window.members:
                    if blind is not None and blind > window.stamp:
                        raise OutOfOrderError(self._passed(path, side))
                    return (module, side, window.base.get(module, 0) + 1)
        if blind is not None:
            if call is not None and windows:
                raise OutOfOrderError(
                    f"which call of {typed(path)} is number {call} is not known: it was not "
                    f"counted until now.\nWrite calls = run.calls({typed(path)}) before the loop, "
                    f"and calls[{call - 1}] in it."
                )
            raise OutOfOrderError(self._passed(path, side))
        if call is None:
            self._refuse_other_name(module, path, side)
        return (module, side, call or 1)

    def _refuse_other_name(self, module: nn.Module, path: str, side: str) -> None:
        """Refuse a second path of a module that stands in several places: which call is meant?"""
        names = self._several.get(module, ())
        if len(names) > 1 and path != names[0]:
            first = typed(names[0])
            raise TraceError(
                f"{typed(path)} and {first} are one module, so {typed(path)}.{side} does not say "
                f"which of its calls is meant.\nWrite run.calls({first})[1].{side} for its second "
                "call, or loop: for call in run.calls(...)."
            )

    def find_passed(self, where: Where, path: str, side: str) -> Any:
        """A value that was not asked for before the model was there, if it is at hand.

        Args:
            where: The value.
            path: The module's path.
            side: What the user asked for.

        Returns:
            An input of a call under way, or the model's result; None if the value may still come.

        Raises:
            OutOfOrderError: If the model has passed it.
            NeverRanError: If the module was not called in this run, or not that often.
        """
        module, which, number = where
        place = self.places[module]
        found = None
        if which == "input" and place.live is not None and not self.ended:
            found = place.live if place.begun == number else None
        elif module is self.model.module and which == "output" and not self.generating:
            found = self.result if place.done == number else None
        if found is None:
            self.refuse_passed(where, path, side)
        return found

    def refuse_passed(self, where: Where, path: str, side: str) -> None:
        """Refuse to wait for what will not come any more.

        Args:
            where: The value.
            path: The module's path.
            side: What the user asked for.

        Raises:
            OutOfOrderError: If the model has passed it.
            NeverRanError: If the module was not called in this run, or not that often.
        """
        module, _, number = where
        place = self.places[module]
        passed = place.begun if where[1] == "input" else place.done
        if passed >= number:
            raise OutOfOrderError(self._passed(path, side))
        if self.stopped is not None:
            raise OutOfOrderError(
                f"{typed(path)}.{side} was not computed: {self.stopped}.\n"
                "Read it before that, or open another trace."
            )
        if self.ended:
            raise NeverRanError(self.absent(where, path, side))

    def window(self, module: nn.Module, path: str) -> tuple[Window, int]:
        """Start a loop over the calls of a module that have not begun.

        Args:
            module: The module.
            path: Its path.

        Returns:
            The window, and the number of calls that have begun.
        """
        return Window(module), self.look_at(module, path).begun

    def advance(self, window: Window, module: nn.Module, number: int) -> None:
        """Move a window to the call of `module` that has just begun."""
        for where in [w for w in self.values if w[0] in window.members and w != self.held]:
            known = window.base.get(where[0])
            # what the last iteration was given is the user's now; what was kept stays
            if known is not None and where[2] > known and where[:2] not in self.keeping:
                del self.values[where]
        window.base = {one: self.calls_begun(one) for one in window.members}
        window.base[module] = number - 1
        window.number = number
        window.stamp = self.clock

    def is_over(self, where: Where) -> bool:
        """Whether a call has ended, or the model waits at its output."""
        return self.ended or where in self.values or self.places[where[0]].done >= where[2]

    def calls_begun(self, module: nn.Module) -> int:
        """How many calls of a module were seen to begin."""
        place = self.places.get(module)
        return 0 if place is None else place.begun

    def want(self, where: Where, body: Body) -> None:
        """Have `body` get the turn when the model is there."""
        self.places[where[0]].watch_for(where[1])
        self.wanted.setdefault(where, []).append(body)

    def keep(self, module: nn.Module, side: str, name: str) -> None:
        """Keep a value for as long as the run is alive.

        Args:
            module: The module, which is watched.
            side: Which of its values.
            name: What the user calls it.
        """
        self.places[module].watch_for(side)
        self.keeping[module, side] = name

    def note_edit(self, where: Where, what: str) -> None:
        """Remember the last edit, for the model's error messages."""
        self.edited |= {where[0]}
        self.last_edit = what

    def look_at(self, module: nn.Module, path: str) -> Place:
        """Watch a module, its ancestors and their children."""
        places, several = self.places, self._several
        place = places.get(module)
        if place is not None and place.clear:
            return place
        fresh: list[Place] = []
        above = self.model.module
        if above not in places:
            fresh.append(self._place_of_all(above))
        for name in path.split(".") if path else ():
            children: dict[str, Any] = above._modules
            if above not in self._expanded:
                self._expanded.add(above)
                stamp = self._unseen(places[above]) if self.started else None
                for child in children.values():
                    place = places.get(child)
                    if place is not None:
                        place.clear = child not in self._blind and child not in several
                    elif child is not None:
                        clear = stamp is None and child not in several
                        places[child] = place = Place(child, self, clear=clear)
                        fresh.append(place)
                        if stamp is not None:
                            self._blind[child] = stamp
            above = children[name]
        watch(fresh)
        return places[module]

    def _place_of_all(self, root: nn.Module) -> Place:
        place = self.places[root] = Place(root, self, clear=True)
        if self.started and self.generating:
            place.clear = False
            self._blind[root] = self.clock + 1
        elif self.started:  # nothing was read before the run was over
            place.begun = place.done = 1
            place.last = self.clock + 1
        return place

    def look_at_all(self) -> None:
        """Watch every module."""
        if self.started:
            raise TraceError(
                'run.keep("all") came after the first value was read: some modules have run '
                "already.\nWrite it as the first line of the trace."
            )
        self._watch_all([m for m in self.model.module.modules() if m not in self.places])

    def interrupt(self) -> None:
        """Have the model end at the next module it calls."""
        self.abandoned, self.turn = True, None
        with suppress(RuntimeError):  # a module list that is being changed
            self._watch_all([m for m in self.model.module.modules() if m not in self.places])

    def refuse_unused_skips(self) -> None:
        """Refuse to end as if a module had been skipped that was not reached.

        Raises:
            NeverRanError: Names it and says why.
        """
        for module, number in self.skips:
            path = path_of(self.model.module, module)
            raise NeverRanError(
                f"{typed(path)}.skip(...) changed nothing: "
                + self.absent((module, "input", number), path, "call to skip")
            )

    def close(self, coroutine: Any) -> None:
        """End the model, leave no trace in its modules, and forget every value.

        SIGINT is to be held meanwhile.

        Args:
            coroutine: What runs the model, or None.
        """
        try:
            if coroutine is not None and not coroutine.finished:
                self.abandoned = True
                if coroutine.started and not coroutine.paused:
                    self.interrupt()
                coroutine.close()
        finally:
            unwatch(self.places.values())
            self.end()
            while self.undoing:
                self.undoing.pop()()
            self.handed.clear()
            self.values.clear()
            self.wanted.clear()
            self.places.clear()  # they and the run refer to each other
            self.skips.clear()

    def absent(self, where: Where, path: str, side: str) -> str:
        """Say why a value never came."""
        module, _, number = where
        begun = self.calls_begun(module)
        if begun:
            times = "once" if begun == 1 else f"{begun} times"
            return (
                f"call {number} of {typed(path)} was asked for, but it ran {times} in this run.\n"
                "Loop over the calls that happen: for call in run.calls(...)."
            )
        lines = [f"{typed(path)} never ran in this run, so it has no {side}."]
        names = path.split(".")
        for depth, parent in reversed(list(enumerate(self._lineage(path)))):
            above = typed(".".join(names[:depth]))
            if parent in self.skipped:
                lines.append(f"{above} was skipped.")
                break
            if self.calls_begun(parent) or not depth:
                children = parent._modules.items()
                ran = [name for name, child in children if child and self.calls_begun(child)]
                what = f"called {', '.join(ran)}" if ran else "called none of its modules"
                lines.append(f"{above} ran and {what}.")
                break
        lines += [
            hint
            for kind, hint in _UNSEEN
            if isinstance(module, kind)
            or any(isinstance(parent, kind) for parent in self._lineage(path))
        ]
        lines.append(
            "A module runs only if it is called; its forward() called directly, or its weight "
            "used by a function, is not seen."
        )
        return "\n".join(lines)

    def _passed(self, path: str, side: str) -> str:
        name = f"{typed(path)}.{side}"
        now = f"\nThe model is at {self.position()}." if self.held else ""
        what = f"{name} is asked for too late: the model has passed it and it was not kept.{now}\n"
        if self.strict or side in ("input", "inputs"):
            return f"{what}Read {name} before what comes later in the model."
        return (
            f"{what}Read it before what comes later in the model, or keep it: "
            f"run.keep([{repr(path) if path else 'model'}]) as the first line of the trace."
        )

    def position(self) -> str:
        """Where the model waits, in words."""
        if self.held is None:
            return "its end" if self.ended else "its start"
        module, side, _ = self.held
        return f"{typed(path_of(self.model.module, module))}.{side}"

    def _unseen(self, parent: Place) -> int | None:
        """The moment until which children of `parent` may have been called unseen, or None."""
        begun, blind = parent.begun, self._blind.get(parent.module)
        if begun and self.held == (parent.module, "input", begun):
            return self.clock if begun > 1 or blind is not None else None
        if not begun:
            return blind
        # a call that has ended says when; one under way may have called them by now
        return self.clock + 1 if parent.live or parent.last is None else parent.last

    def _watch_all(self, modules: Iterable[nn.Module]) -> None:
        fresh = {module: Place(module, self) for module in modules}
        self.places.update(fresh)
        watch(fresh.values())

    def _lineage(self, path: str) -> list[nn.Module]:
        """The ancestors of a path, from the root down."""
        parent, found = self.model.module, []
        for name in path.split(".") if path else ():
            found.append(parent)
            child = parent._modules.get(name)
            parent = getattr(parent, name) if child is None else child
        return found


_UNSEEN = (
    (
        (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention),
        "In eval mode torch runs it as one fused kernel, which calls no modules: "
        "torch.backends.mha.set_fastpath_enabled(False).",
    ),
    (
        nn.DataParallel,
        "nn.DataParallel runs copies in threads of its own: trace the module it holds, "
        "hw.wrap(parallel.module).",
    ),
)
"""Kinds of modules whose parts run unseen, and what to do about it."""


def path_of(root: nn.Module, module: nn.Module) -> str:
    """The path of a module in `root`."""
    return next((name for name, one in root.named_modules() if one is module), "?")


def _checkpointed() -> bool:
    """Whether the model is inside torch's activation checkpoint now."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return True
        frame = frame.f_back
    return False


def _apart(value: Any) -> Any:
    """Return a value with a tensor of its own: an output, or the first of a module's inputs."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        args, kwargs = value
        if args and isinstance(args[0], Tensor):
            return (args[0].clone(), *args[1:]), kwargs
    return value
