"""Numbers that audits, bounds and intervals refuse, in the same words everywhere."""

from __future__ import annotations

from headwater.errors import ResultError
from headwater.estimators.choices import is_number


def refuse_no_number(name: str, value: object, example: float) -> None:
    """Refuse what is no number by type.

    Args:
        name: The argument.
        value: What was given for it.
        example: The number to type instead.

    Raises:
        ResultError: Saying what to type.
    """
    if not is_number(value):
        raise ResultError(f"{name}={value!r} is not a number.\nType {name}={example}.")


def refuse_no_share(name: str, value: float, example: float) -> None:
    """Refuse a confidence, or another share, that is not between 0 and 1.

    Args:
        name: The argument.
        value: What was given for it.
        example: The number to type instead.

    Raises:
        ResultError: Saying what to type.
    """
    refuse_no_number(name, value, example)
    if not 0 < value < 1:
        raise ResultError(f"{name}={value} is not between 0 and 1.\nType {name}={example}.")
