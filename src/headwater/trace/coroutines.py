"""Two lines of code that take turns: the user's, and one that pauses where it is told to.

A coroutine here is an ordinary function on a stack of its own, so the model needs no `await`.
"""

from __future__ import annotations

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.trace.greenlets import GreenletCoroutine
from headwater.trace.threads import ThreadCoroutine

Coroutine = ThreadCoroutine | GreenletCoroutine

WORKERS: dict[str, type[ThreadCoroutine] | type[GreenletCoroutine]] = {
    "greenlet": GreenletCoroutine,
    "thread": ThreadCoroutine,
}
"""What a trace's `worker=` can be; the first is the usual one."""


def worker(name: str) -> type[ThreadCoroutine] | type[GreenletCoroutine]:
    """Return the kind of coroutine called `name`.

    Args:
        name: `"greenlet"` or `"thread"`.

    Returns:
        Its class.

    Raises:
        UnknownOptionError: If there is no such kind.
    """
    if name not in WORKERS:
        raise UnknownOptionError(
            f"no worker {name!r}.{did_you_mean(str(name), WORKERS)}\n"
            "Use worker='greenlet' (default) or worker='thread'."
        )
    return WORKERS[name]
