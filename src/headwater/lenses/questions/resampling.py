"""Intervals over token types: each type is drawn anew, with all its positions.

Positions of one type are not independent (a name is kept or not at all of them), so types are what
is resampled, each counting once however often it occurs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from headwater.lenses.questions.figures import Figure
from headwater.lenses.tally.replicates import CONFIDENCE

RESAMPLES, FEWER, MANY = 400, 200, 10_000
"""How many, and how many of more than so many types: they take long, and move little."""
_NUMBERS = 2**21
"""Most weights at once."""

_TAIL = (1 - CONFIDENCE) / 2

Types = Float[np.ndarray, " type"]
Weights = Float[np.ndarray, "resample type"]
Key = TypeVar("Key", bound=Hashable)


def geometric(logs: Types) -> Figure:
    """Return the geometric mean of numbers given by their logarithms, without an interval."""
    return Figure(float(np.exp(logs.mean())) if len(logs) else np.nan, np.nan, np.nan)


def mean(values: Types, seed: int) -> Figure:
    """Return the mean over types with its interval."""
    if not len(values):
        return Figure(np.nan, np.nan, np.nan)
    if len(values) < 2 or not np.isfinite(values).all():
        return Figure(float(values.mean()), np.nan, np.nan)
    found = np.concatenate([weights @ values for weights in _drawn(len(values), seed)])
    return _figure(float(values.mean()), found / len(values))


def spearman(
    x: Types, values: Mapping[Key, Types], seed: int, *, intervals: bool = True
) -> dict[Key, Figure]:
    """Return each value's rank correlation with `x`; ties have the mean of their ranks.

    Args:
        x: A number of each type.
        values: Others, by any name; all are resampled together.
        seed: Of the resamples.
        intervals: Whether to resample at all.
    """
    if len(x) < 3:
        return {key: Figure(np.nan, np.nan, np.nan) for key in values}
    ranked = {key: _Ranked(y) for key, y in values.items()}
    first, once = _Ranked(x), np.ones((1, len(x)))
    own = _correlations(once, first, ranked)
    drawn = [_correlations(one, first, ranked) for one in _drawn(len(x), seed) if intervals]
    return {
        key: _figure(float(own[key][0]), np.concatenate([one[key] for one in drawn] or [[]]))
        for key in values
    }


class _Ranked:
    """Values sorted once, to be ranked in many resamples."""

    def __init__(self, values: Types) -> None:
        _, self.group = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.group, kind="stable")
        ordered = self.group[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def ranks(self, weights: Weights) -> Weights:
        """Return each type's mid-rank among the types drawn."""
        sizes = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return (sizes.cumsum(1) - sizes / 2)[:, self.group]


def _correlations(
    weights: Weights, first: _Ranked, others: Mapping[Key, _Ranked]
) -> dict[Key, Float[np.ndarray, " resample"]]:
    x, spread = _centred(weights, first)
    found = {}
    for key, other in others.items():
        y, wide = _centred(weights, other)
        with np.errstate(invalid="ignore", divide="ignore"):  # all values equal: no correlation
            found[key] = (weights * x * y).sum(1) / (spread * wide)
    return found


def _centred(weights: Weights, values: _Ranked) -> tuple[Weights, Float[np.ndarray, " resample"]]:
    """Return ranks about their mean, and their length."""
    ranks = values.ranks(weights)
    ranks -= (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    return ranks, np.sqrt((weights * ranks * ranks).sum(1))


def _drawn(types: int, seed: int) -> Iterator[Weights]:
    """Yield how often each type is drawn, some resamples at a time."""
    generator = np.random.Generator(np.random.PCG64([seed, types]))
    together = max(1, _NUMBERS // types)
    shares = np.full(types, 1 / types)
    resamples = FEWER if types > MANY else RESAMPLES
    for first in range(0, resamples, together):
        count = min(together, resamples - first)
        yield generator.multinomial(types, shares, size=count).astype(np.float64)


def _figure(value: float, drawn: Float[np.ndarray, " resample"]) -> Figure:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Figure(value, np.nan, np.nan)
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Figure(value, float(low), float(high))
