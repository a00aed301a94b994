"""Resamples of pairs: the mean, the rank and the place in the top that each gives to components.

Holds ranks for every resample and component, in whole numbers of 16 bits where these suffice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real, UInt

CHUNK = 4_000_000
"""Numbers held at once."""


@dataclass(frozen=True)
class Resampled:
    """Means of components over drawn pairs, stretched around the mean over all."""

    values: Float[np.ndarray, "pair component"]
    score: Float[np.ndarray, " component"]
    """Mean over all pairs."""
    drawn: Float[np.ndarray, "resample pair"]
    """How often each pair was drawn."""
    stretch: Float[np.ndarray, "resample 1"]
    """By how much the mean over drawn pairs is moved away from the mean over all."""

    @classmethod
    def of(cls, values: np.ndarray, drawn: np.ndarray, stretch: np.ndarray) -> Resampled:
        """Return the resamples of these values."""
        score = _means(np.ones((1, len(values)), values.dtype), values)[0]
        return cls(values, score, drawn, stretch)

    def means(self, rows: slice) -> Float[np.ndarray, "resample component"]:
        """Return the mean of each component in some resamples."""
        moved = _means(self.drawn[rows], self.values) - self.score
        return self.score + self.stretch[rows] * moved


def _means(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    # from the first pair on, so that equal scores have equal means and a standard error of 0
    first = values[0]
    return first + (drawn @ (values - first)) / len(values)


class Places:
    """Where an interval ends among sorted resamples: outward to whole ones, so ranks stay whole."""

    def __init__(self, resamples: int, confidence: float) -> None:
        # the tiny addition: (1 - 0.9) / 2 * 40 is 1.9999999999999996
        self.low = int((1 - confidence) / 2 * resamples + 1e-9)
        self.high = resamples - 1 - self.low

    def interval(
        self, values: np.ndarray
    ) -> tuple[Real[np.ndarray, " component"], Real[np.ndarray, " component"]]:
        """Return the ends of the middle part of each column of [resample, component]."""
        ordered = np.sort(np.ascontiguousarray(values.T), axis=1)
        return ordered[:, self.low], ordered[:, self.high]


@dataclass(frozen=True)
class Ranked:
    """What the resamples say of ranks, top and sign."""

    lowest: UInt[np.ndarray, "resample component"]
    highest: UInt[np.ndarray, "resample component"]
    in_top: Float[np.ndarray, " component"]
    sign: Float[np.ndarray, " component"]
    jaccard: Float[np.ndarray, " resample"]

    def intervals(
        self, place: Places
    ) -> tuple[Int[np.ndarray, " component"], Int[np.ndarray, " component"]]:
        """Return the ends of each component's rank interval."""
        resamples, count = self.lowest.shape
        ends = np.empty((2, count), dtype=np.int64)
        for end, ranks in enumerate((self.lowest, self.highest)):
            for columns in chunks(count, max(1, CHUNK // resamples)):
                ends[end, columns] = place.interval(ranks[:, columns])[end]
        return ends[0], ends[1]


def ranked(sample: Resampled, mean: Resampled, top: int) -> Ranked:
    """Rank the components in every resample.

    Args:
        sample: What is ranked by its size.
        mean: Resamples of the signed scores; `sample` itself unless that holds magnitudes.
        top: How many of the strongest are the top.
    """
    resamples, count = len(sample.drawn), len(sample.score)
    kind = np.uint16 if count < 2**16 else np.uint32
    lowest, highest = (np.empty((resamples, count), dtype=kind) for _ in range(2))
    chosen = _ranks(np.abs(sample.score)[None])[0][0] <= top
    members, agreeing = np.zeros((2, count))
    jaccard = np.empty(resamples)
    for rows in chunks(resamples, max(1, CHUNK // count)):
        again = sample.means(rows)
        signed = again if mean is sample else mean.means(rows)
        agreeing += (np.sign(signed) == np.sign(mean.score)).sum(0)
        # a mean size stretched below 0 is none
        lowest[rows], highest[rows] = _ranks(np.abs(again) if mean is sample else again.clip(0))
        found = lowest[rows] <= top
        members += found.sum(0)
        shared, either = (found & chosen).sum(1), (found | chosen).sum(1)
        jaccard[rows] = shared / np.maximum(either, 1)
    return Ranked(lowest, highest, members / resamples, agreeing / resamples, jaccard)


def _ranks(strength: Float[np.ndarray, "resample component"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest rank of each component; the strongest has rank 1.

    Components of equal strength share the ranks they take up together.
    """
    order = np.argsort(-strength, axis=1)
    ordered = np.take_along_axis(strength, order, 1)
    position = np.broadcast_to(np.arange(1, strength.shape[1] + 1), strength.shape)
    equal = ordered[:, 1:] == ordered[:, :-1]
    if not equal.any():
        ranks = _put(order, position)
        return ranks, ranks
    edge = np.zeros((len(strength), 1), dtype=bool)
    starts = ~np.concatenate([edge, equal], 1)
    ends = ~np.concatenate([equal, edge], 1)
    lowest = np.maximum.accumulate(np.where(starts, position, 0), 1)
    backward = np.where(ends, position, strength.shape[1])[:, ::-1]
    highest = np.minimum.accumulate(backward, 1)[:, ::-1]
    return _put(order, lowest), _put(order, highest)


def _put(order: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    result = np.empty_like(order)
    np.put_along_axis(result, order, ranks, 1)
    return result


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield stretches of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
