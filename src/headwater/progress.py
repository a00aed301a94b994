"""Progress of long work: a bar on a terminal, a log line now and then elsewhere.

The unit is one forward over one prompt, as counted by `Cost`, so that the bar moves evenly.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Advance(Protocol):
    """What is called with the work just done, and how it goes in a few words."""

    def __call__(self, work: float, note: str = "") -> None:
        """Move on."""
        ...


def silent(work: float, note: str = "") -> None:
    """Say nothing of the work just done."""


LOG_EVERY = 30.0
"""Seconds between log lines when there is no terminal to draw a bar on."""

log = logging.getLogger("headwater")


@contextmanager
def progress_bar(title: str, total: float, *, show: bool | None = None) -> Iterator[Advance]:
    """Show progress while the block runs; yields a function to call with the work just done.

    Args:
        title: What is being done, in words.
        total: Forwards expected.
        show: True draws a bar or logs lines, False is silent, None decides: a bar if standard
            error is a terminal, else one log line at most every 30 seconds.
    """
    if show is False:
        yield silent
    elif sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _logger(title, total)


@contextmanager
def _bar(title: str, total: float) -> Iterator[Advance]:
    # rich takes a while to import: only programs that draw a bar pay for it
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    done = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total if math.isfinite(total) else None, speed="")

        def advance(work: float, note: str = "") -> None:
            nonlocal done
            done += work
            rate = done / max(time.perf_counter() - started, 1e-9)
            said = f"{note}  " if note else ""
            speed = f"{said}{rate:,.0f} prompts/s"
            progress.update(task, completed=min(done, total), speed=speed)

        yield advance


def _logger(title: str, total: float) -> Advance:
    known = math.isfinite(total)
    log.info("%s: %s forwards to run", title, f"{total:,.0f}" if known else "nobody knows how many")
    started = last = time.perf_counter()
    done = 0.0

    def advance(work: float, note: str = "") -> None:
        nonlocal done, last
        done += work
        now = time.perf_counter()
        if now - last >= LOG_EVERY:
            last = now
            left = (now - started) * max(total - done, 0.0) / max(done, 1e-9)
            share = min(100.0, 100 * done / max(total, 1e-9))
            said = f" ({note})" if note else ""
            if not known:
                log.info("%s: %.0f done%s", title, done, said)
                return
            log.info("%s: %.0f %% done, about %.0f s left%s", title, share, left, said)

    return advance
