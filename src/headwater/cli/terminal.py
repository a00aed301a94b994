"""The console that results are printed on; imported inside commands, since rich takes a while."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """Rich's console, which leaves it to the caller what a closed pipe means.

    Args:
        wraps: Whether long lines are wrapped at the terminal's width.
        highlight: Whether numbers and the like get colors.
    """

    def __init__(self, *, wraps: bool = False, highlight: bool = True) -> None:
        super().__init__(soft_wrap=not wraps, highlight=highlight)

    def on_broken_pipe(self) -> None:
        """Raise what rich would turn into exit code 1: a reader such as `head` has seen enough.

        Raises:
            BrokenPipeError: Always.
        """
        raise BrokenPipeError
