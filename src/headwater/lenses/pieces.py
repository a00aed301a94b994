"""Prompts of a corpus as long as a model takes them: longer ones are cut into pieces."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from headwater.errors import UnknownOptionError
from headwater.limits import position_limit, trained_positions
from headwater.models import Model
from headwater.prompts.batches import Row

MAX_TOKENS = 512
"""Tokens of a piece, unless it is said otherwise."""


def longest(model: Model, max_tokens: int | None) -> int | None:
    """Return how many tokens a piece has at most; None if any number.

    Args:
        model: With the positions it has learned.
        max_tokens: How many are wished for at most.

    Raises:
        UnknownOptionError: If a piece could hold no pair of tokens.
    """
    if max_tokens is not None and max_tokens < 2:
        raise UnknownOptionError(
            f"max_tokens={max_tokens}: a piece has two tokens at least, one to read and the next.\n"
            f"Write max_tokens={MAX_TOKENS}."
        )
    known = (max_tokens, position_limit(model.module), trained_positions(model.module))
    limits = [one for one in known if one is not None]
    return min(limits, default=None)


def pieces(rows: Sequence[Row], length: int | None, special: Collection[int] = ()) -> Iterator[Row]:
    """Yield prompts as they are, those that are too long in pieces with the prompt's number.

    Args:
        rows: Encoded prompts.
        length: Most tokens of a piece.
        special: Ids of special tokens: those that open a prompt open each of its pieces.
    """
    for row in rows:
        ids = row.clean
        if length is None or len(ids) <= length:
            yield row
            continue
        opening = tuple(takewhile(lambda one: one in special, ids))[: length - 1]
        body, step = ids[len(opening) :], length - len(opening)
        for first in range(0, len(body), step):
            yield replace(row, clean=opening + body[first : first + step])
