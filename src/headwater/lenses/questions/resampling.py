"""Figures over token types: each type is drawn anew, with all its positions.

Positions of one type are not independent (a name is kept or not at all of them), so types are what
is resampled, each counting once however often it occurs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float

from headwater.lenses.intervals import FEWEST, Figure, weights

Types = Float[np.ndarray, " type"]
Weights = Float[np.ndarray, "resample type"]
Key = TypeVar("Key", bound=Hashable)


def geometric(logs: Types) -> Figure:
    """Return the geometric mean of numbers given by their logarithms, without an interval."""
    return Figure(float(np.exp(logs.mean())) if len(logs) else math.nan)


def means(
    values: Float[np.ndarray, "type column"],
    seed: int,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> list[Figure]:
    """Return the mean over types of each column with its interval.

    Args:
        values: Columns of numbers of each type.
        seed: Of the resamples, which are the same for all columns.
        least: No mean is below this ...
        most: ... nor above this.
    """
    types, columns = values.shape
    if not types:
        return [Figure(math.nan)] * columns
    found = values.mean(0)
    if types < 2:
        return [Figure(float(one)) for one in found]
    drawn = np.concatenate([one @ values / types for one in weights(types, seed)])
    return [
        Figure.of(float(one), torch.from_numpy(drawn[:, place]), types, least=least, most=most)
        for place, one in enumerate(found)
    ]


def spearman(
    x: Types, values: Mapping[Key, Types], seed: int, *, intervals: bool = True
) -> dict[Key, Figure]:
    """Return each value's rank correlation with `x`; ties have the mean of their ranks.

    Args:
        x: A number of each type.
        values: Others, by any name; all are resampled together.
        seed: Of the resamples.
        intervals: Whether to resample at all; so few types that any three are in line have no
            interval.
    """
    if len(x) < 3:
        return {key: Figure(math.nan) for key in values}
    ranked = {key: _Ranked(y) for key, y in values.items()}
    first, once = _Ranked(x), np.ones((1, len(x)))
    own = {key: float(one[0]) for key, one in _correlations(once, first, ranked).items()}
    if not intervals or len(x) < FEWEST:
        return {key: Figure(one) for key, one in own.items()}
    drawn = [_correlations(one, first, ranked) for one in weights(len(x), seed)]
    together = {key: np.concatenate([one[key] for one in drawn]) for key in values}
    return {
        key: Figure.of(one, torch.from_numpy(together[key]), len(x), least=-1.0, most=1.0)
        for key, one in own.items()
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
    x, spread = _centered(weights, first)
    found = {}
    for key, other in others.items():
        y, wide = _centered(weights, other)
        with np.errstate(invalid="ignore", divide="ignore"):  # all values equal: no correlation
            # rounding takes a perfect one beyond 1
            found[key] = ((weights * x * y).sum(1) / (spread * wide)).clip(-1, 1)
    return found


def _centered(weights: Weights, values: _Ranked) -> tuple[Weights, Float[np.ndarray, " resample"]]:
    """Return ranks about their mean, and their length."""
    ranks = values.ranks(weights)
    ranks -= (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    return ranks, np.sqrt((weights * ranks * ranks).sum(1))
