"""The checker of shape annotations while tests run: beartype, on everything but closures.

A closure is decorated again each time it is made, which takes longer than most of them run; what it
is given comes from a function that is checked.
"""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype

Checked = TypeVar("Checked", bound=Callable)

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Checked) -> Checked:
    """Check arguments and result of `function` at every call; an int may stand for a float."""
    return function if "<locals>" in function.__qualname__ else _check(function)
