"""What the lens's page shows, as plain dicts.

A lens reads each layer's residual as a prediction of the next token. Rows are the places it is
read at, from the input to the final layer. Tokens are numbers into one vocabulary, never texts:
two different tokens may have the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

from headwater.page.tables import TableData

Grid = Sequence[Sequence[float | None]]
"""One number a row and position."""


class RowData(TypedDict):
    """A place where the lens reads; rows go from the input to the final layer."""

    name: str
    kind: Literal["input", "residual", "mid", "write"]
    """A `write` is what one sublayer adds; the others are the residual stream itself."""
    title: str


class StatisticData(TypedDict):
    """A number that every cell has; the first statistic is shown first."""

    key: str
    name: str
    unit: str
    explain: str
    scale: Literal["linear", "log", "diverging"]
    group: Literal["KL", "rank", "distance", "own"]


class PromptData(TypedDict):
    """One prompt, read at every row and position."""

    tokens: Sequence[int]
    """What is read at each position."""
    next: Sequence[int | None]
    """The token that follows; None after the last."""
    final: Sequence[int]
    """The final layer's most probable next token."""
    values: Mapping[str, Grid]
    """By statistic."""
    top: Sequence[Sequence[Sequence[int]]]
    """The most probable tokens of each row and position, the first of them most so."""
    logprob: Sequence[Sequence[Sequence[float]]]
    """Their natural-log probabilities."""
    followed: Sequence[Sequence[int]]
    """The tokens to follow through the rows, by position."""
    followed_logprob: Sequence[Sequence[Sequence[float]]]
    """Their log probabilities by row and position."""


class PointData(TypedDict):
    """A statistic at one row over all positions of all prompts."""

    row: str
    mean: float
    low: float
    high: float
    """Ends of the mean's 95 % interval."""
    median: float
    q25: float
    q75: float
    count: int


class CurveData(TypedDict):
    """A statistic over the rows."""

    key: str
    rows: Sequence[PointData]


class BinData(TypedDict):
    """Tokens of about one frequency: how long the layers keep the token they read."""

    label: str
    types: int
    own: Sequence[float | None]
    """Median rank by row of the token that was read."""
    control: Sequence[float | None]
    """The same tokens' ranks where they were not read."""
    excess: Sequence[float | None]
    """Mean log ratio of the two."""
    low: Sequence[float | None]
    high: Sequence[float | None]


class RarityData(TypedDict):
    """Whether rare tokens are kept longer than common ones; bins go from common to rare."""

    bins: Sequence[BinData]
    rows: Sequence[str]
    caption: NotRequired[str]


class LensData(TypedDict):
    """Everything the page shows."""

    title: str
    heading: str
    sentences: Sequence[str]
    """What to read first."""
    notes: Sequence[str]
    facts: Mapping[str, str]
    provenance: Mapping[str, str]
    rows: Sequence[RowData]
    vocabulary: Sequence[str]
    statistics: Sequence[StatisticData]
    prompts: Sequence[PromptData]
    """Empty where only means over prompts were kept."""
    shown: Mapping[str, int]
    """`prompts` of `of`, `positions` of `of_positions`: what the page holds of what was read."""
    curves: Sequence[CurveData]
    tables: Sequence[TableData]
    rarity: RarityData | None
