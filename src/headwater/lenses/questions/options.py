"""Options of questions: one word, or None for all of them."""

from __future__ import annotations

from typing import Any

from headwater.errors import UnknownOptionError, did_you_mean


def one_of(option: str, word: Any, known: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the words that are asked for: all, or the one that is given.

    Raises:
        UnknownOptionError: If there is no such word.
    """
    if word is None:
        return known
    if word not in known:
        raise UnknownOptionError(
            f"{option}={word!r} is unknown.{did_you_mean(str(word), known)}\n"
            f"Write one of {', '.join(map(repr, known))}, or None for all."
        )
    return (word,)
