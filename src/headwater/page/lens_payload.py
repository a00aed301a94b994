"""A lens's prompts as the page carries them: few digits, and only the tokens that are used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headwater.page.lens_schema import LensData, PromptData
from headwater.page.tokens import visible


def carried(data: LensData) -> dict[str, Any]:
    """Return what the page's script draws, as plain data without NaN and infinity.

    Log probabilities go out as thousandths without their sign, other numbers with four digits.
    Tokens are numbered anew, the most used first, which keeps the numbers short.
    """
    place = {token: count for count, token in enumerate(_used(data["prompts"]))}
    return {
        "rows": [dict(row) for row in data["rows"]],
        "statistics": [dict(one) for one in data["statistics"]],
        "vocabulary": [visible(data["vocabulary"][token]) for token in place],
        "prompts": [_prompt(prompt, place) for prompt in data["prompts"]],
    }


def _used(prompts: Sequence[PromptData]) -> list[int]:
    """Return every token that a prompt names, the most used first."""
    count = Counter(token for prompt in prompts for token in _tokens(prompt))
    return [token for token, _ in count.most_common()]


def _tokens(prompt: PromptData) -> Iterator[int]:
    yield from prompt["tokens"]
    yield from prompt["final"]
    yield from (token for token in prompt["next"] if token is not None)
    for tokens in prompt["followed"]:
        yield from tokens
    for row in prompt["top"]:
        for tokens in row:
            yield from tokens


def _prompt(prompt: PromptData, place: Mapping[int, int]) -> dict[str, Any]:
    def renumbered(tokens: Sequence[int | None]) -> list[int | None]:
        return [None if token is None else place[token] for token in tokens]

    return {
        "tokens": renumbered(prompt["tokens"]),
        "next": renumbered(prompt["next"]),
        "final": renumbered(prompt["final"]),
        "values": {
            key: [[short(value) for value in row] for row in grid]
            for key, grid in prompt["values"].items()
        },
        "top": [[renumbered(tokens) for tokens in row] for row in prompt["top"]],
        "cost": [[list(map(cost, cell)) for cell in row] for row in prompt["logprob"]],
        "followed": [renumbered(tokens) for tokens in prompt["followed"]],
        "followed_cost": [
            [list(map(cost, cell)) for cell in row] for row in prompt["followed_logprob"]
        ],
    }


def short(value: float | None) -> float | int | None:
    """Return a number to four digits, a whole number as it is, None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    if float(value).is_integer() and abs(value) < 1e15:
        return int(value)
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def cost(logprob: float | None) -> int | None:
    """Return minus a log probability in thousandths, None if it is not finite."""
    if logprob is None or not math.isfinite(logprob):
        return None
    return max(0, round(-1000 * logprob))
