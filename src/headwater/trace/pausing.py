"""What the two kinds of coroutines share: they pause, are resumed, and may be abandoned."""

from __future__ import annotations


class Abandoned(BaseException):
    """Raised inside a coroutine that is to end; passes every `except Exception`."""


class Pausing:
    """A function that gives the turn back to its caller where it pauses."""

    __slots__ = ("abandoned", "error", "finished", "paused")

    def __init__(self) -> None:
        self.paused = False
        self.finished = False
        self.abandoned = False
        self.error: BaseException | None = None
        """What the function raised."""

    def pause(self) -> None:
        """Give the turn back, from inside; return when resumed.

        Raises:
            Abandoned: If the coroutine was closed.
        """
        if self.abandoned:
            raise Abandoned
        self.paused = True
        self._give_back()
        self.paused = False
        if self.abandoned:
            raise Abandoned

    receive = pause

    def _give_back(self) -> None:
        """Have the caller go on; return when resumed."""
        raise NotImplementedError
