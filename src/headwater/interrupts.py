"""Hold Ctrl-C back while a model is being changed or put back, and deliver it afterwards.

Python may raise KeyboardInterrupt between any two instructions, also in the middle of installing
or removing a hook; no order of `try` and `finally` closes every such gap. Here the signal is only
noted meanwhile.
"""

from __future__ import annotations

# what `signal` wraps; its enums would cost 50 microseconds a block
import _signal  # pyright: ignore[reportMissingImports]
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Held:
    """A block in which SIGINT waits, except where `delivered` lets it through.

    Only the main thread gets signals, so in any other the block does nothing; so it does where
    SIGINT is ignored or ends the process at once.
    """

    _previous: Callable[[int, FrameType | None], Any] | None = None
    _waiting: tuple[int, FrameType | None] | None = None
    _holding = True

    def __enter__(self) -> Held:
        previous = _signal.getsignal(_signal.SIGINT)
        if callable(previous):
            self._previous = previous
            try:
                _signal.signal(_signal.SIGINT, self._receive)
            except ValueError:  # another thread than the main one
                self._previous = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # a handler that was set inside the block stays
        if self._previous is not None and _signal.getsignal(_signal.SIGINT) == self._receive:
            _signal.signal(_signal.SIGINT, self._previous)
        if self._waiting is not None:
            self._deliver()

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Let SIGINT through inside this block; one that came before is delivered at once."""
        try:
            self._holding = False
            self._deliver()
            yield
        finally:
            self._holding = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._holding or self._previous is None:
            self._waiting = (number, frame)
            return
        # what the handler raises travels out through code that must not be interrupted again
        self._holding = True
        self._previous(number, frame)
        self._holding = False

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._previous is not None:
            self._previous(*waiting)
