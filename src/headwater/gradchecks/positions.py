"""From a position of the prompt to columns of a run, and back to words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from headwater.errors import GradcheckError, NoPathError
from headwater.gradchecks.asked import Asked
from headwater.metrics import cross_entropy
from headwater.sites import Site

Position = int | Literal["all"]
AT_THE_END = ("final_norm", "logits")
"""Sites behind the layers, where a position is seen only by its own prediction."""


def columns_of(asked: Asked, site: Site, position: Position) -> int | range:
    """Return the columns of the run that a position means at a site, or refuse.

    Raises:
        GradcheckError: If the prompt has no such position.
        NoPathError: If the metric reads nothing that depends on it.
    """
    length, read = asked.length, asked.batch.read_columns()
    if position == "all":
        if site.name == "logits":
            return range(len(read))
        return range(length)
    if not isinstance(position, int):
        raise GradcheckError(f'position={position!r}: write a number such as -1, or "all".')
    if not -length <= position < length:
        raise GradcheckError(
            f"position {position} does not exist: the prompt has {length} tokens, positions 0 to "
            f"{length - 1}."
        )
    column = position % length
    ends = site.name in AT_THE_END
    # the last token of a prompt predicts none of its own
    last = max(read) - isinstance(asked.metric, cross_entropy)
    if column > last or (ends and column not in read):
        reads = ", ".join(map(str, [one for one in read if one <= last]))
        raise NoPathError(
            f"no path from '{site}' at position {column} ({asked.tokens[column]!r}) to "
            f"{asked.title}, which reads the logits at position {reads}: "
            + (
                "no other position's are read.\n"
                if ends
                else "a causal model shows nothing of a token to those before it.\n"
            )
            + "The logits at position i predict token i + 1. Choose a position of the site at or "
            "before the one that is read."
        )
    return read.index(column) if site.name == "logits" else column


def positions_of(asked: Asked, site: Site, columns: range) -> list[int]:
    """Return which positions of the run the columns of a site's value are."""
    if site.name != "logits":
        return list(columns)
    read = asked.batch.read_columns()
    return [read[column] for column in columns]


def where(asked: Asked, positions: Sequence[int]) -> str:
    """Say which positions these are, with the token of a single one."""
    if list(positions) == list(range(asked.length)) and asked.length > 1:
        return f"all {asked.length} positions"
    if len(positions) > 1:
        return f"positions {', '.join(map(str, positions))}"
    (position,) = positions
    # tokens of the answer stand behind the prompt's
    token = repr(asked.tokens[position]) if position < asked.length else "of the answer"
    return f"position {position} ({token})"
