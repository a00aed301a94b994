"""Options of estimators: one of a few words, a whole number from somewhere on, or a switch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import get_args

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.gates import End

ENDS: dict[str, tuple[str, ...]] = {"at": get_args(End)}
"""For `refuse_unknown`: the ends that an estimator can be taken at."""


def refuse_unknown(chosen: object, known: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a word that an option does not know; the closest one is named.

    Args:
        chosen: What has the options as its attributes.
        known: The words of each option.

    Raises:
        UnknownOptionError: Naming the option, what was given, and the words it knows.
    """
    for option, words in known.items():
        given = getattr(chosen, option)
        if given not in words:
            raise UnknownOptionError(
                f"{option}={given!r} is unknown.{did_you_mean(str(given), words)}\n"
                f"Write one of {', '.join(map(repr, words))}."
            )


def refuse_below(chosen: object, option: str, least: int, example: int, why: str = "") -> None:
    """Refuse an option that is no whole number, or a smaller one than makes sense.

    Judged by type: 4.0, "4" and True would fail far from here, or run and mean something else.

    Args:
        chosen: What has the option as its attribute.
        option: The attribute's name.
        least: The smallest number that makes sense.
        example: The number to type instead.
        why: What a smaller number could not do, to go behind a colon; empty where it is plain.

    Raises:
        UnknownOptionError: Naming the option, what was given, and what to type.
    """
    given = getattr(chosen, option)
    if type(given) is not int or given < least:
        reason = f": {why}" if why else ""
        raise UnknownOptionError(
            f"{option}={given!r} is no whole number from {least} on{reason}.\n"
            f"Type {option}={example}."
        )


def is_number(given: object) -> bool:
    """Return whether this is a number by type, whole or not, numpy's too; True is none."""
    return isinstance(given, Real) and type(given) is not bool


def refuse_unswitched(chosen: object, *options: str) -> None:
    """Refuse an option that is neither True nor False: `"no"` would count as True.

    Args:
        chosen: What has the options as its attributes.
        options: The attributes' names.

    Raises:
        UnknownOptionError: Naming the option and what was given.
    """
    for option in options:
        given = getattr(chosen, option)
        if type(given) is not bool:
            raise UnknownOptionError(
                f"{option}={given!r} is neither True nor False.\n"
                f"Type {option}=True or {option}=False."
            )
