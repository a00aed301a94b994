"""What is found of rarity: bins of token types, rank correlations, and how long tokens are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater.lenses.intervals import Figure, number
from headwater.lenses.questions.rarity_words import sentences, table
from headwater.lenses.tally.tally import Bounds

Group = Literal["all", "recurs", "once"]
"""All positions, those whose token occurs again later in the prompt, those whose token does not."""

GROUPS: tuple[Group, ...] = ("all", "recurs", "once")


@dataclass(frozen=True)
class Bin:
    """The types of one quantile of frequency, at one row, positions of one group."""

    group: Group
    number: int
    """From 1, the commonest types."""
    row: str
    types: int
    positions: int
    lowest: float
    """Frequencies of the types, from this."""
    highest: float
    span: str
    """The same in words."""
    own: Figure
    """Geometric mean over types of the rank where the token was read."""
    control: Figure
    """The same at other positions."""
    own_median: float
    """Median over types of their geometric mean ranks."""
    control_median: float
    excess: Figure
    """Mean over types of log C - log R: above 0, the token is kept."""
    kl_ref: float
    """Mean over types of KL(first || layer)."""
    kl_layer: float
    """Mean over types of KL(layer || first)."""
    kept: float
    """Share of positions at which the token's rank stayed within the bound up to this row."""
    control_kept: float
    kept_ref: float
    """Share of positions at which KL(first || layer) did."""
    kept_layer: float
    """Share of positions at which KL(layer || first) did."""

    @property
    def ratio(self) -> Figure:
        """How many times higher the token ranks where it was read."""
        return Figure(*(float(np.exp(one)) for one in _ends(self.excess)))


@dataclass(frozen=True)
class Correlation:
    """Rank correlations over types with frequency, at one row: negative, rarer tokens have more."""

    group: Group
    row: str
    types: int
    excess: Figure
    """Of the excess: what the question is about."""
    own: Figure
    """Of the rank where the token was read, log R: naive, confounded with the base rate."""
    control: Figure
    """Of the rank elsewhere, log C: the base rate."""
    kl_ref: Figure
    """Of KL(first || layer), which has no control."""
    kl_layer: Figure
    """Of KL(layer || first), which has no control."""


@dataclass(frozen=True)
class Depth:
    """For how many rows tokens of one bin are kept, mean over types; censored behind the last."""

    group: Group
    number: int
    own: Figure
    control: Figure
    censored: float
    """Share of positions, mean over types, at which the token is kept at every row."""
    ref: Figure
    """By KL(first || layer)."""
    layer: Figure
    """By KL(layer || first)."""


@dataclass(frozen=True)
class Rarity:
    """Ranks of input tokens by how rare they are, against those of the same tokens elsewhere."""

    bins: tuple[Bin, ...]
    correlations: tuple[Correlation, ...]
    depths: tuple[Depth, ...]
    names: tuple[str, ...]
    """The residual rows, input first."""
    bounds: Bounds
    """Until when a token counts as kept."""
    source: str
    """Where frequencies come from."""
    note: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a group, bin and row."""
        for one in self.bins:
            plain = {key: value for key, value in vars(one).items() if key not in _FIGURES}
            figures = {
                "own_rank": one.own.value,
                "control_rank": one.control.value,
                "ratio": one.ratio.value,
                "excess": one.excess.value,
                "excess_low": one.excess.low,
                "excess_high": one.excess.high,
            }
            yield plain | figures

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "bins": [_plain(one) for one in self.bins],
            "correlations": [_plain(one) for one in self.correlations],
            "depths": [_plain(one) for one in self.depths],
            "rows": list(self.names),
            "bounds": {"rank": self.bounds.rank, "kl": self.bounds.kl},
            "source": self.source,
            "note": self.note,
            "sentences": self.sentences(),
        }

    def of(self, group: Group = "all", row: str | None = None) -> list[Bin]:
        """Return the bins of one group at one row, the final one by default; commonest first."""
        row = self.names[-1] if row is None else row
        return [one for one in self.bins if one.group == group and one.row == row]

    def sentences(self) -> list[str]:
        """Return whether rarer tokens are preserved more, or why that cannot be told."""
        return sentences(self)

    def __repr__(self) -> str:
        return "\n".join([*table(self), *self.sentences()])


_FIGURES = ("own", "control", "excess")


def _ends(figure: Figure) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high


def _plain(one: Bin | Correlation | Depth) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in vars(one).items():
        if isinstance(value, Figure):
            value = value.to_dict()
        plain[key] = number(value) if isinstance(value, float) else value
    return plain
