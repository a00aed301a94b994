"""Two lines of code that take turns: the user's, and one that pauses where it is told to.

A coroutine here is an ordinary function on a stack of its own, so the model needs no `await`. The
thread one costs two lock hand-overs a turn (about 5 microseconds) and needs nothing installed.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from headwater.errors import MissingExtraError, UnknownOptionError, did_you_mean

NAME = "headwater-trace"
"""What worker threads are called."""


class Abandoned(BaseException):
    """Raised inside a coroutine that is not wanted any more; passes every `except Exception`."""


class ThreadCoroutine:
    """A function in a thread of its own; it and its caller never run at the same time.

    Args:
        function: What to run; gets nothing, its result is dropped.
    """

    # Only the coroutine's own thread writes `paused` and `finished`, so that a caller interrupted
    # at any instruction can still tell who has the turn.

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self._go = allocate_lock()
        self._back = allocate_lock()
        self._go.acquire()
        self._back.acquire()
        self._thread: threading.Thread | None = None
        self.paused = False
        self.finished = False
        self.abandoned = False
        self.error: BaseException | None = None
        """What the function raised."""

    @property
    def started(self) -> bool:
        """Whether the function has begun."""
        return self._thread is not None

    def resume(self) -> None:
        """Give the turn to the function; return when it pauses or ends."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self.finished:
            self._thread.join()

    def pause(self) -> None:
        """Give the turn back, from inside; return when resumed.

        Raises:
            Abandoned: If the coroutine was closed.
        """
        if self.abandoned:
            raise Abandoned
        self.paused = True
        self._back.release()
        self._go.acquire()
        self.paused = False
        if self.abandoned:
            raise Abandoned

    def close(self) -> None:
        """End the function at its pause, or at its next one, and wait until its thread is gone."""
        self.abandoned = True
        if self._thread is None or self._thread.ident is None:
            self._function = None
            return
        while not self.finished:
            # the caller may have been interrupted on either side of taking `_back`
            self._back.acquire(blocking=False)
            if self.paused:
                with suppress(RuntimeError):  # already released: it is on its way
                    self._go.release()
            self._back.acquire(timeout=0.02)
        self._thread.join()

    def _run(self) -> None:
        try:
            assert self._function is not None
            self._function()
        except Abandoned:
            pass
        except BaseException as error:  # raised again where the body waits
            self.error = error
        finally:
            self._function = None
            self.finished = True
            with suppress(RuntimeError):  # closing callers poll and may not have taken it
                self._back.release()


class GreenletCoroutine:
    """The same on a greenlet: one thread, so torch.profiler and torch.func see the model's run.

    Gradient mode and autocast belong to the thread, so they are swapped at each turn.

    Args:
        function: What to run.

    Raises:
        MissingExtraError: If greenlet is not installed.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        try:
            import greenlet  # pyright: ignore[reportMissingModuleSource]
        except ImportError as error:
            raise MissingExtraError(
                'worker="greenlet" needs the package greenlet: pip install "headwater[greenlet]".'
            ) from error
        import contextvars

        self._current = greenlet.getcurrent
        self._greenlet: Any = greenlet.greenlet(self._run)
        self._greenlet.gr_context = contextvars.copy_context()
        self._function: Callable[[], Any] | None = function
        self._state = _state()
        self.started = False
        self.paused = False
        self.finished = False
        self.abandoned = False
        self.error: BaseException | None = None

    def resume(self) -> None:
        """Give the turn to the function; return when it pauses or ends."""
        self.started = True
        outside = _state()
        self._greenlet.parent = self._current()
        _enter(self._state)
        try:
            self._greenlet.switch()
        finally:
            self._state = _state()
            _enter(outside)

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

    def close(self) -> None:
        """End the function at its pause."""
        self.abandoned = True
        while self.started and not self.finished:
            self.resume()
        self._function = None

    def _run(self) -> None:
        try:
            assert self._function is not None
            self._function()
        except Abandoned:
            pass
        except BaseException as error:  # raised again where the body waits
            self.error = error
        finally:
            self._function = None
            self.finished = True


Coroutine = ThreadCoroutine | GreenletCoroutine

WORKERS: dict[str, type[ThreadCoroutine] | type[GreenletCoroutine]] = {
    "thread": ThreadCoroutine,
    "greenlet": GreenletCoroutine,
}
"""What a trace's `worker=` can be."""


def worker(name: str) -> type[ThreadCoroutine] | type[GreenletCoroutine]:
    """Return the kind of coroutine called `name`.

    Args:
        name: `"thread"` or `"greenlet"`.

    Returns:
        Its class.

    Raises:
        UnknownOptionError: If there is no such kind.
    """
    if name not in WORKERS:
        raise UnknownOptionError(
            f"no worker {name!r}.{did_you_mean(str(name), WORKERS)}\n"
            "Use worker='thread' (default) or worker='greenlet'."
        )
    return WORKERS[name]


def _state() -> tuple[bool, tuple[tuple[str, bool, torch.dtype], ...]]:
    devices = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
    casts = tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in devices
    )
    return torch.is_grad_enabled(), casts


def _enter(state: tuple[bool, tuple[tuple[str, bool, torch.dtype], ...]]) -> None:
    grad, casts = state
    torch._C._set_grad_enabled(grad)
    for device, on, dtype in casts:
        torch.set_autocast_enabled(device, on)
        torch.set_autocast_dtype(device, dtype)
