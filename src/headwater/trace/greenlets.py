"""A coroutine in the calling thread, on a greenlet: a turn costs a switch of stacks.

Everything that belongs to the thread is then the same for the model as for its caller: profilers,
`torch.func` transforms and locks that the body holds reach it. What torch keeps for a thread is
kept apart (`sides.py`).
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import call
from threading import get_ident
from typing import Any, no_type_check

from greenlet import GreenletExit, error, getcurrent, greenlet

from headwater.trace.pausing import Abandoned, Pausing
from headwater.trace.sides import Sides, begin, is_special

FRAMES = 80
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


class GreenletCoroutine(Pausing):
    """A function on a stack of its own; it and its caller take turns in one thread.

    Args:
        function: What to run; gets nothing, its result is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_dtypes",
        "_function",
        "_greenlet",
        "_ident",
        "_outside",
        "_sides",
        "_surface",
        "_usual",
        "started",
    )

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.started = False
        self._greenlet: Any = None
        self._outside: tuple[list[Any], list[Any]] | None = None
        """While the function has the turn: what its caller has, and jaxtyping's stack."""
        self._function: Callable[[], Any] | None = function
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._ident = get_ident()
        self._surface, self._usual, self._dtypes = begin()
        # as long as there are none, both sides have the usual, which is nothing special
        self._sides = Sides(self._usual, self._dtypes) if is_special(self._usual) else None

    # Not type-checked while our tests run, as what follows with this mark: jaxtyping keeps a stack
    # of calls for a thread, which is one of the things that are exchanged here.
    @no_type_check
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
            # found only now: this and the greenlet refer to each other while it runs
            here = self._greenlet = _idle_or_new()
            here.function, here.gr_context = self._run, self._context
            self._context = None
            self.started = True
        here.parent = getcurrent()
        outside = list(map(call, self._surface))
        if sides is None and outside != self._usual:
            sides = self._sides = Sides(self._usual, self._dtypes)
        if sides is not None and not self.abandoned:
            sides.refuse_transform(outside)
        # from here on there is something to put back
        self._outside = outside, getattr(_shapes, "memo_stack", [])
        try:
            if sides is not None:
                sides.enter(outside)
            _shapes.memo_stack = here.shapes
            here.switch()
        finally:
            self._back()
        if here.dead:  # interrupted before the function began, or after it ended
            self.finished = True
        if self.finished:
            self._greenlet = None
            _retire(here)

    @no_type_check
    def _back(self) -> None:
        """The caller has the turn again, and what it had."""
        if self._outside is None:
            return
        outside, _shapes.memo_stack = self._outside
        inside = list(map(call, self._surface))
        if self._sides is None and inside != outside:
            self._sides = Sides(outside, self._dtypes)
        if self._sides is not None:
            self._sides.leave(inside, outside)
        self._outside = None

    def _give_back(self) -> None:
        self._greenlet.parent.switch()

    def is_current(self) -> bool:
        """Whether the calling code runs inside."""
        return getcurrent() is self._greenlet

    @no_type_check
    def close(self) -> None:
        """End the function at its pause; in another thread: when its own opens a trace again."""
        self.abandoned = True
        if not self.started:
            self._function = None
        elif self._ident != get_ident():
            alive = {thread.ident for thread in threading.enumerate()}
            for ident in _orphans.keys() - alive:
                _orphans.pop(ident, None)  # nobody can run these any more
            _orphans.setdefault(self._ident, []).append(self)
        else:
            self._back()  # the caller may have been interrupted before
            while not self.finished:
                self.resume()
            if self._sides is not None:
                self._sides.end()

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
    """A greenlet that runs one function after another with `FRAMES` native frames below them."""

    function: Callable[[], Any] | None = None
    """What it is to run next; it ends if there is nothing."""
    notes: Any = None
    """What others note about the code inside."""

    def __init__(self) -> None:
        super().__init__(_descend)
        self.shapes: list[Any] = []
        """What jaxtyping knows of the functions inside."""


class _Idle(threading.local):
    """The greenlets of this thread that wait for work: starting one takes as long as ten turns."""

    def __init__(self) -> None:
        self.greenlets: list[Deep] = []
        self.limit = 0
        """What the recursion limit was when they were started; greenlets count for themselves."""


_idle = _Idle()
_SEVERAL = 3  # a trace, a backward block in it, and one more


def _idle_or_new() -> Deep:
    idle, limit = _idle.greenlets, sys.getrecursionlimit()
    if limit != _idle.limit or _is_watched():
        idle.clear()
        _idle.limit = limit
    return idle.pop() if idle else Deep()


def _retire(here: Deep) -> None:
    """Let a greenlet that is through wait for work; one more than can wait ends when dropped."""
    here.gr_context = here.notes = None
    parent: Any = here.parent
    waits = not here.dead and parent.parent is None and not _is_watched()
    if waits and len(_idle.greenlets) < _SEVERAL:
        _idle.greenlets.append(here)


def _is_watched() -> bool:
    """Whether a debugger or profiler is on: greenlets remember whether it was when they began."""
    return sys.gettrace() is not None or sys.getprofile() is not None


@no_type_check
def _descend() -> None:
    next(_CHAIN, None)


class _Bottom:
    """The innermost iterator of a chain: runs what the greenlet it is asked in is to run."""

    def __iter__(self) -> Iterator[Any]:
        return self

    @no_type_check
    def __next__(self) -> Any:
        while True:
            here: Any = getcurrent()
            function, here.function = here.function, None
            if function is None:
                raise StopIteration
            del here  # or a greenlet that nobody wants any more would hold itself
            function()
            del function
            getcurrent().parent.switch()


def _chain() -> Iterator[Any]:
    """An iterator whose `next` descends through `FRAMES` C functions, one each."""
    chain: Iterator[Any] = _Bottom()
    for _ in range(FRAMES):
        chain = enumerate(chain)
    return chain


_CHAIN = _chain()
