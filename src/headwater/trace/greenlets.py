"""A coroutine in the calling thread, on a greenlet: a turn costs a switch of stacks.

Everything that belongs to the thread is then the same for the model as for its caller: profilers,
`torch.func` transforms and locks that the body holds reach it. What torch keeps for a thread is
kept apart (`sides.py`).
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import call
from threading import get_ident
from typing import Any

from greenlet import GreenletExit, error, getcurrent, greenlet

from headwater.trace.abandoned import Abandoned
from headwater.trace.sides import Sides, surface

FRAMES = 96
"""Native frames between the bottom of a greenlet's stack and the function it runs.

A greenlet's stack lies below that of whoever resumes it, which need not be who started it: a walk
over return addresses that comes to the bottom goes on into frames that were never there, and may
crash the process. torch walks 64 frames and a few whenever it raises an error in C++, so those
must be there. NNsight, with the same difficulty, replaces libc's `backtrace` by one that does
nothing.
"""


try:  # axis sizes that jaxtyping knows for the functions a thread is in
    from jaxtyping._storage import _shape_storage as _shapes
except ImportError:
    _shapes: Any = threading.local()


class GreenletCoroutine:
    """A function on a stack of its own; it and its caller take turns in one thread.

    Args:
        function: What to run; gets nothing, its result is dropped.
    """

    started = False
    paused = False
    finished = False
    abandoned = False
    error: BaseException | None = None
    """What the function raised."""
    _greenlet: Any = None
    _outside: list[Any] | None = None
    """While the function has the turn: a glance at what its caller has."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._ident = get_ident()
        self._surface = surface()
        self._sides = Sides(list(map(call, self._surface)))
        self._shapes: list[Any] = []

    def resume(self) -> None:
        """Give the turn to the function; return when it pauses or ends.

        Raises:
            TraceError: If the caller has entered or left a `torch.func` transform since the
                last turn.
        """
        here, sides = self._greenlet, self._sides
        if here is None:
            if self._function is None:
                return
            # made only now: this and the greenlet refer to each other
            here = self._greenlet = Deep(self._run)
            here.gr_context, self._context = self._context, None
            self.started = True
        here.parent = getcurrent()
        outside = list(map(call, self._surface))
        if outside != sides.usual or not sides.alike:
            sides.enter(outside, refuse=not self.abandoned)
        shapes = getattr(_shapes, "memo_stack", None)
        self._outside = outside
        try:
            _shapes.memo_stack = self._shapes
            here.switch()
        finally:
            _shapes.memo_stack = [] if shapes is None else shapes
            self._back()

    def _back(self) -> None:
        """The caller has the turn again, and what it had."""
        outside, sides = self._outside, self._sides
        inside = list(map(call, self._surface))
        if outside is not None and not (inside == outside == sides.usual and sides.alike):
            sides.leave(inside, outside)
        self._outside = None

    def pause(self) -> None:
        """Give the turn back, from inside; return when resumed.

        Raises:
            Abandoned: If the coroutine was closed.
        """
        if self.abandoned:
            raise Abandoned
        self.paused = True
        self._greenlet.parent.switch()
        self.paused = False
        if self.abandoned:
            raise Abandoned

    receive = pause

    def is_current(self) -> bool:
        """Whether the calling code runs inside."""
        return getcurrent() is self._greenlet

    def close(self) -> None:
        """End the function at its pause; in another thread: when its own opens a trace again."""
        self.abandoned = True
        if not self.started:
            self._function = None
        elif self._ident != get_ident():
            _orphans.setdefault(self._ident, []).append(self)
        else:
            self._back()  # the caller may have been interrupted before
            while not self.finished:
                self.resume()
            self._sides.end()
            self._greenlet = None

    def _run(self) -> None:
        try:
            if self._function is not None:
                self._function()
        except (Abandoned, GreenletExit):
            pass
        except BaseException as raised:  # raised again where the body waits
            self.error = raised
        finally:
            self._function = None
            self.finished = True


_orphans: dict[int, list[GreenletCoroutine]] = {}
"""Coroutines that were closed in other threads than their own, by the number of their own."""


def end_orphans() -> None:
    """End coroutines of this thread that were closed in others, which cannot run them."""
    for orphan in _orphans.pop(get_ident(), ()) if _orphans else ():
        with suppress(error):  # the thread was another one that had the same number
            orphan.close()


class Deep(greenlet):
    """A greenlet that calls its function with `FRAMES` native frames below it."""

    notes: Any = None
    """What others note about the code inside."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(_descend)  # a method would have the greenlet hold itself
        self.function: Callable[[], Any] | None = function


def _descend() -> None:
    next(_CHAIN, None)


class _Bottom:
    """The innermost iterator of a chain: calls the function of the greenlet it is asked in."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        here: Any = getcurrent()
        function, here.function = here.function, None
        del here  # or a greenlet that nobody wants any more would hold itself
        function()
        raise StopIteration


def _chain() -> Iterator[Any]:
    """An iterator whose `next` descends through `FRAMES` C functions, one each."""
    chain: Iterator[Any] = _Bottom()
    for _ in range(FRAMES):
        chain = enumerate(chain)
    return chain


_CHAIN = _chain()
