"""The checker of shape annotations while tests run: beartype, on everything but closures.

A closure is decorated again each time it is made, which takes longer than most of them run; what it
is given comes from a function that is checked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jaxtyping
from beartype import BeartypeConf, beartype

Checked = TypeVar("Checked", bound=Callable)

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Checked) -> Checked:
    """Check arguments and result of `function` at every call; an int may stand for a float.

    Commands are left alone: Typer checks what is typed, and hands over a context of its own class.
    """
    is_closure = "<locals>" in function.__qualname__
    is_command = function.__module__.startswith("headwater.cli.")
    return function if is_closure or is_command else _check(function)


@contextmanager
def unchecked() -> Iterator[None]:
    """Run without these checks, as users do: for what is refused with a message of its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
