"""A coroutine in a thread of its own: for tools and bodies that one thread cannot serve.

A turn costs two lock hand-overs, 5 microseconds if both threads happen to share a core, and up to
200 where another core must be woken and finds its caches cold.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from headwater.errors import TraceError
from headwater.trace.context import condition
from headwater.trace.pausing import Abandoned, Pausing

NAME = "headwater-trace"
"""What worker threads are called."""

LINGER = 0.1
"""Seconds that a worker thread waits for its next coroutine, to save starting another."""


_PATIENCE = 15  # looks, each of 0.02 seconds, at a function that is to end


class ThreadCoroutine(Pausing):
    """A function in a worker thread; it and its caller never run at the same time.

    The thread waits a moment for the next coroutine when the function is through.

    Args:
        function: What to run; gets nothing, its result is dropped. It leaves torch's state of the
            thread as it was, or the thread is not used again.
    """

    # Only the coroutine's own thread writes `paused` and `finished`, so that a caller interrupted
    # at any instruction can still tell who has the turn.

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self._function: Callable[[], Any] | None = function
        self._go = allocate_lock()
        self._back = allocate_lock()
        self._go.acquire()
        self._back.acquire()
        # The first to append decides: a thread (what it appends), or `close` (None), for nothing
        # to begin. One append cannot be interrupted halfway.
        self._claims: list[Any] = []
        self._ident: int | None = None
        self._pid = os.getpid()

    @property
    def started(self) -> bool:
        """Whether the function has begun."""
        return bool(self._claims) and self._claims[0] is not None

    def resume(self) -> None:
        """Give the turn to the function; return when it pauses or ends.

        Raises:
            TraceError: In a child process: the thread stayed in the parent.
        """
        if self._pid != os.getpid():
            raise TraceError(
                "this process was forked inside the trace: the thread that runs its model, or its "
                "backward pass, stayed in the parent.\nOpen the trace in the child, or before the "
                'fork without worker="thread".'
            )
        if not self._claims:
            _hand_over(self)
        elif self._claims[0] is None:
            return
        else:
            self._go.release()
        self._back.acquire()

    def _give_back(self) -> None:
        self._back.release()
        self._go.acquire()

    def is_current(self) -> bool:
        """Whether the calling code runs inside."""
        return self._ident == threading.get_ident()

    def close(self) -> None:
        """End the function at its pause, or at its next one, and wait until it has ended."""
        self.abandoned = True
        self._claims.append(None)
        if self._claims[0] is None:
            self._function = None
            return
        if self._pid != os.getpid():  # its thread is in the parent process
            return
        waited = 0
        while not self.finished:
            waited += 1
            if waited == _PATIENCE and self._ident is not None and not self.paused:
                # it calls no module that is watched: have Python stop it at its next line
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._ident), ctypes.py_object(Abandoned)
                )
            # the caller may have been interrupted on either side of taking `_back`
            self._back.acquire(blocking=False)
            if self.paused:
                with suppress(RuntimeError):  # already released: it is on its way
                    self._go.release()
            self._back.acquire(timeout=0.02)

    def _begin(self) -> bool:
        """Claim the coroutine for the calling thread; false if it is to begin no more."""
        claim = object()
        self._claims.append(claim)
        return self._claims[0] is claim

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            assert self._function is not None
            self._function()
        except Abandoned:
            pass
        except BaseException as error:  # raised again where the body waits
            self.error = error
        finally:
            self._ident = None
            self._function = None


_idle: list[tuple[threading.Thread, Any, list[ThreadCoroutine | None]]] = []
"""Threads that wait for work: what wakes each, and who claims it, of whom the first one has it."""


def idle_workers() -> int:
    """How many threads wait for their next coroutine; each for `LINGER` seconds at most."""
    return len(_idle)


def _hand_over(coroutine: ThreadCoroutine) -> None:
    """Have an idle thread, or a new one, run a coroutine."""
    while _idle:
        try:
            _, wake, claims = _idle.pop()
        except IndexError:  # another thread was faster
            break
        claims.append(coroutine)
        if claims[0] is coroutine:  # else that thread has just given up waiting
            wake.release()
            return
    threading.Thread(target=_work, args=([coroutine],), name=NAME, daemon=True).start()


def _work(first: list[ThreadCoroutine]) -> None:
    """Run coroutines until none has come for a while; between them refer to nothing of them."""
    thread, clean = threading.current_thread(), condition()
    coroutine: ThreadCoroutine | None = first.pop()
    while coroutine is not None:
        begun = coroutine._begin()
        if begun:
            with suppress(Abandoned):  # one that comes as the function ends
                coroutine._run()
        wake = allocate_lock()
        wake.acquire()
        claims: list[ThreadCoroutine | None] = []
        entry = (thread, wake, claims)
        # what a model changed for good must not be there for the next one
        fit = condition() == clean
        if fit:
            _idle.append(entry)  # now, for a caller that goes on at once
        if begun:
            back = coroutine._back
            coroutine.finished = True
            coroutine = None
            with suppress(RuntimeError):  # closing callers poll and may not have taken it
                back.release()
        coroutine = None
        if not fit:
            return
        if not wake.acquire(timeout=LINGER):
            claims.append(None)
            with suppress(ValueError):
                _idle.remove(entry)
        # a caller that was interrupted before it woke this thread has claimed it all the same
        coroutine = claims[0]


def _dismiss() -> None:
    """End the idle threads before the interpreter ends: torch must still be there when they do."""
    while _idle:
        thread, wake, claims = _idle.pop()
        claims.append(None)
        if claims[0] is None:
            wake.release()
            thread.join(1)


atexit.register(_dismiss)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)
