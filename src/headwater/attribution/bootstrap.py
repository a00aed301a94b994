"""The bootstrap over pairs: how far scores, ranks and the top would move with other prompts.

Pairs are drawn with replacement, as many as there are, and every component is scored again from its
per-pair scores (Efron, 1979); no model runs. Scores, ranks and top are all taken from the same
resamples. Stability is the Jaccard overlap of a resample's top with the top of all pairs; arXiv
2510.00845 measures it for circuits and asks for at least 0.8 over at least 100 resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real
from torch import Tensor

from headwater.audits.words import figure
from headwater.errors import ResultError

RESAMPLES = 1000
STABLE = 0.8
"""Mean Jaccard overlap from which a top is called stable ..."""
FEWEST_RESAMPLES = 100
"""... over at least this many resamples (arXiv 2510.00845)."""
CHUNK = 4_000_000
"""Numbers held at once."""
TABLE_WORK = 10_000_000
"""Scores resampled for a table, to be quick: of over 10,000 components on fewer resamples."""
SHOWN = 10
"""Components of a printed bootstrap."""


@dataclass(frozen=True)
class Stability:
    """The Jaccard overlap between the top of a resample and the top of all pairs."""

    top: int
    """How many of the strongest; components that tie with the last of them are in."""
    jaccard: float
    """Mean over resamples: shared components over components in either."""
    low: float
    high: float
    """Ends of the interval over resamples."""

    def __str__(self) -> str:
        return (
            f"top {self.top} over resampled pairs: Jaccard {figure(self.jaccard)} "
            f"[{figure(self.low)}, {figure(self.high)}]"
        )


@dataclass(frozen=True, repr=False, eq=False)
class Bootstrap:
    """What resampling the pairs says of every component, and of the strongest together."""

    names: tuple[str, ...]
    scores: Float[np.ndarray, " component"]
    """Over all pairs: the mean; of magnitudes their mean with the sign of the mean score."""
    se: Float[np.ndarray, " component"]
    """Standard error of the score: its standard deviation over resamples."""
    low: Float[np.ndarray, " component"]
    high: Float[np.ndarray, " component"]
    """Ends of the percentile interval of the score."""
    rank_low: Int[np.ndarray, " component"]
    rank_high: Int[np.ndarray, " component"]
    """Ends of the interval of the rank by |score|; 1 is the strongest. Components that tie share
    all the ranks they take up."""
    in_top: Float[np.ndarray, " component"]
    """Share of resamples in which the component is among the strongest `top`."""
    stability: Stability | None
    """None where every component is among the strongest, or no score is other than 0."""
    top: int
    pairs: int
    resamples: int
    seed: int
    confidence: float

    def ranks(self, column: int) -> str:
        """Return a component's rank interval as it stands in tables: `1-3`, or `2`."""
        low, high = int(self.rank_low[column]), int(self.rank_high[column])
        return f"{low}" if low == high else f"{low}-{high}"

    @property
    def sentence(self) -> str:
        """How stable the top is, in words."""
        if not (self.scores.any() or self.se.any()):
            return "no component has a score other than 0: there is no top whose stability to tell"
        if not self.se.any():
            return (
                "no resample changes any score: pairs that agree say nothing of how stable the "
                f"top {self.top} is"
            )
        if self.stability is None:
            return (
                f"all {len(self.names):,} components are the top {self.top}: the ranks say how "
                "stable their order is"
            )
        said = str(self.stability)
        if self.stability.jaccard < STABLE:
            said += f"; not stable: below {STABLE} (arXiv 2510.00845)"
        if self.resamples < FEWEST_RESAMPLES:
            said += f"; {self.resamples} resamples are too few to tell"
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        stable = self.stability
        rows = zip(*(getattr(self, name).tolist() for name in _COLUMNS), strict=True)
        return {
            "pairs": self.pairs,
            "resamples": self.resamples,
            "seed": self.seed,
            "confidence": self.confidence,
            "top": self.top,
            "stability": None if stable is None else vars(stable).copy(),
            "sentence": self.sentence,
            "components": [
                {"name": name, **dict(zip(_COLUMNS, row, strict=True))}
                for name, row in zip(self.names, rows, strict=True)
            ],
        }

    def __repr__(self) -> str:
        percent = f"{100 * self.confidence:g} %"
        lines = [
            f"Bootstrap of {len(self.names):,} components over {self.pairs:,} pairs: "
            f"{self.resamples:,} resamples, {percent} intervals",
            f"{'component':<16}{'score':>10}{'se':>9}{'interval':>22}{'ranks':>12}"
            f"{f'in top {self.top}':>12}",
        ]
        for column in np.argsort(-np.abs(self.scores), kind="stable")[:SHOWN].tolist():
            interval = f"[{self.low[column]:+.3g}, {self.high[column]:+.3g}]"
            lines.append(
                f"{self.names[column]:<16}{self.scores[column]:>+10.4g}{self.se[column]:>9.2g}"
                f"{interval:>22}{self.ranks(column):>12}{self.in_top[column]:>12.0%}"
            )
        return "\n".join([*lines, self.sentence])


_COLUMNS = ("scores", "se", "low", "high", "rank_low", "rank_high", "in_top")


def bootstrap(
    values: Float[Tensor, "pair component"],
    names: Sequence[str],
    *,
    magnitudes: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
    top: int = 10,
) -> Bootstrap:
    """Resample the pairs of per-pair scores.

    Args:
        values: One score a pair and component.
        names: Of the components.
        magnitudes: Whether scores are sizes of effects with a sign attached; then a component's
            score is the mean size, with the sign of the mean.
        resamples: How many; 100 at least for a statement on stability.
        seed: The same seed draws the same resamples.
        confidence: Of the intervals.
        top: How many of the strongest are the top; components that are 0 on every pair never are.

    Raises:
        ResultError: If there is one pair only, or an option is out of range.
    """
    pairs, count = values.shape
    _refuse(pairs, resamples, confidence, top)
    scores = values.detach().cpu().numpy()
    generator = np.random.Generator(np.random.PCG64([seed, 2]))
    drawn = generator.multinomial(pairs, np.full(pairs, 1 / pairs), size=resamples)
    sample = _Resampled(scores, drawn.astype(scores.dtype), magnitudes)
    place = _Places(resamples, confidence)
    result: dict[str, np.ndarray] = {
        "scores": sample.scores(np.ones((1, pairs), scores.dtype), slice(None))[0],
        **{name: np.empty(count) for name in ("se", "low", "high")},
    }
    for columns in _chunks(count, max(1, CHUNK // max(resamples, pairs))):
        again = sample.scores(sample.drawn, columns)
        # from the first on, so that equal numbers have no spread at all
        result["se"][columns] = (again - again[0]).std(0, ddof=1, dtype=np.float64)
        result["low"][columns], result["high"][columns] = place.interval(again)
    alive = int((scores != 0).any(0).sum())
    strongest = min(top, alive)
    ranks, in_top, jaccard = _ranked(sample, np.abs(result["scores"]), strongest)
    for end, (name, ranked) in enumerate(zip(("rank_low", "rank_high"), ranks, strict=True)):
        result[name] = np.empty(count, dtype=np.int64)
        for columns in _chunks(count, max(1, CHUNK // resamples)):
            result[name][columns] = place.interval(ranked[:, columns])[end]
    stability = None
    if alive and top < count:
        low, high = place.interval(jaccard[:, None])
        stability = Stability(top, float(jaccard.mean()), float(low[0]), float(high[0]))
    return Bootstrap(
        names=tuple(names),
        **{name: result[name] for name in _COLUMNS[:-1]},
        in_top=in_top,
        stability=stability,
        top=top,
        pairs=pairs,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def table_resamples(components: int) -> int:
    """Return on how many resamples the tables of a result rest."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, TABLE_WORK // max(components, 1)))


@dataclass(frozen=True)
class _Resampled:
    """Scores of components over drawn pairs."""

    values: Float[np.ndarray, "pair component"]
    drawn: Float[np.ndarray, "resample pair"]
    """How often each pair was drawn."""
    magnitudes: bool

    def scores(
        self, drawn: Float[np.ndarray, "resample pair"], columns: slice
    ) -> Float[np.ndarray, "resample component"]:
        """Return the score of each component over each draw of pairs."""
        values = self.values[:, columns]
        if not self.magnitudes:
            return _means(drawn, values)
        size = _means(drawn, np.abs(values))
        return np.where(_means(drawn, values) < 0, -size, size)


def _means(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    # from the first pair on, so that equal scores have equal means and a standard error of 0
    first = values[0]
    return first + (drawn @ (values - first)) / len(values)


class _Places:
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


def _ranked(
    sample: _Resampled, strength: Float[np.ndarray, " component"], top: int
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Return lowest and highest ranks [resample, component], shares in the top, and overlaps.

    Args:
        sample: The resamples.
        strength: |score| over all pairs.
        top: How many of the strongest are the top.
    """
    resamples, count = len(sample.drawn), len(strength)
    kind = np.uint16 if count < 2**16 else np.uint32
    lowest, highest = (np.empty((resamples, count), dtype=kind) for _ in range(2))
    chosen = _ranks(strength[None])[0][0] <= top
    members = np.zeros(count)
    jaccard = np.empty(resamples)
    for rows in _chunks(resamples, max(1, CHUNK // count)):
        again = np.abs(sample.scores(sample.drawn[rows], slice(None)))
        lowest[rows], highest[rows] = _ranks(again)
        found = lowest[rows] <= top
        members += found.sum(0)
        shared, either = (found & chosen).sum(1), (found | chosen).sum(1)
        jaccard[rows] = shared / np.maximum(either, 1)
    return (lowest, highest), members / resamples, jaccard


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


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _refuse(pairs: int, resamples: int, confidence: float, top: int) -> None:
    if pairs < 2:
        raise ResultError(
            f"a bootstrap over {pairs} pair: there is nothing to draw from, so no standard error "
            "and no ranks.\nAttribute more pairs."
        )
    if resamples < 2:
        raise ResultError(f"resamples={resamples} gives no spread.\nType resamples=1000.")
    if not 0 < confidence < 1:
        raise ResultError(f"confidence={confidence} is not between 0 and 1.\nType confidence=0.95.")
    if top < 1:
        raise ResultError(f"top={top} is no top.\nType top=10.")
