"""How far scores, ranks and the top would move with other prompts; no model runs.

A score is a mean over pairs, so its standard error and its interval are Student's, in closed form.
Ranks and top have none: pairs are drawn with replacement, as many as there are, and every component
is scored again from its per-pair scores (Efron, 1979). Resamples of few pairs spread too little:
each is stretched around the score by `sqrt(n / chi2)`, `chi2` drawn with n - 1 degrees of freedom,
so that a mean spreads as Student's t does. Stability is the Jaccard overlap of a resample's top
with the top of all pairs; arXiv 2510.00845 measures it for circuits and asks for at least 0.8 over
at least 100 resamples.

A rank interval is for one component, looked at whatever its rank. Of components looked at because
they came out strongest, it holds as often only where the top is stable: among 100 that are all
equal, those of the strongest ten hold the true rank in about half of all cases (tested), and the
sentence says that the top is not stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from headwater.attribution.resamples import CHUNK, Places, Resampled, chunks, ranked
from headwater.audits.checks import refuse_no_share
from headwater.audits.intervals import student_quantile
from headwater.audits.words import figure
from headwater.errors import ResultError

RESAMPLES = 1000
STABLE = 0.8
"""Mean Jaccard overlap from which a top is called stable ..."""
FEWEST_RESAMPLES = 100
"""... over at least this many resamples (arXiv 2510.00845)."""
FEWEST_PAIRS = 8
"""Of fewer pairs the sentence says that they are few: even Student's intervals rest on pairs that
are like each other, which so few cannot show."""
ALIKE = 1e-5
"""Pairs whose scores differ by no more than this share of the largest may be the same prompts."""
MOST_REPEATED = 0.8
"""Share of pairs that must differ; below it repeated prompts make errors a tenth too small."""
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
    """Standard error of the score, of magnitudes of their mean: standard deviation over pairs
    (with n - 1) by sqrt(n)."""
    low: Float[np.ndarray, " component"]
    high: Float[np.ndarray, " component"]
    """Ends of Student's interval of the score. Magnitudes keep their sign: 0 is the end there."""
    sign: Float[np.ndarray, " component"]
    """Share of resamples in which the mean score has the sign of the score."""
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
    different: int
    """Pairs that differ in their scores. The others are repeated prompts, which add nothing, or
    the metric takes few values."""
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
            said = (
                f"all {len(self.names):,} components are the top {self.top}: the ranks say how "
                "stable their order is"
            )
        else:
            said = str(self.stability)
            if self.stability.jaccard < STABLE:
                said += (
                    f"; not stable: below {STABLE} (arXiv 2510.00845), and ranks of the strongest "
                    "may lie outside their intervals"
                )
        if self.resamples < FEWEST_RESAMPLES:
            said += f"; {self.resamples} resamples are too few to tell"
        if self.different < MOST_REPEATED * self.pairs:
            said += (
                f"; only {self.different:,} of {self.pairs:,} pairs differ in their scores: where "
                "the others repeat prompts, errors are too small"
            )
        if self.pairs < FEWEST_PAIRS:
            said += f"; {self.pairs} pairs say little about other pairs"
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        stable = self.stability
        rows = zip(*(getattr(self, name).tolist() for name in _COLUMNS), strict=True)
        return {
            "pairs": self.pairs,
            "different": self.different,
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
            f"{'component':<16}{'score':>10}{'se':>9}{'interval':>22}{'sign':>7}{'ranks':>12}"
            f"{f'in top {self.top}':>12}",
        ]
        for column in np.argsort(-np.abs(self.scores), kind="stable")[:SHOWN].tolist():
            interval = f"[{self.low[column]:+.3g}, {self.high[column]:+.3g}]"
            lines.append(
                f"{self.names[column]:<16}{self.scores[column]:>+10.4g}{self.se[column]:>9.2g}"
                f"{interval:>22}{self.sign[column]:>7.0%}{self.ranks(column):>12}"
                f"{self.in_top[column]:>12.0%}"
            )
        return "\n".join([*lines, self.sentence])


_COLUMNS = ("scores", "se", "low", "high", "sign", "rank_low", "rank_high", "in_top")


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
    signed = values.detach().cpu().numpy()
    sizes = np.abs(signed) if magnitudes else signed
    generator = np.random.Generator(np.random.PCG64([seed, 2]))
    drawn = generator.multinomial(pairs, np.full(pairs, 1 / pairs), size=resamples)
    drawn = drawn.astype(signed.dtype)
    stretch = np.sqrt(pairs / generator.chisquare(pairs - 1, size=(resamples, 1)))
    stretch = stretch.astype(signed.dtype)
    sample = Resampled.of(sizes, drawn, stretch)
    mean = Resampled.of(signed, drawn, stretch) if magnitudes else sample
    alive = int((signed != 0).any(0).sum())
    found = ranked(sample, mean, min(top, alive))
    place = Places(resamples, confidence)
    rank_low, rank_high = found.intervals(place)
    stability = None
    if alive and top < count:
        low, high = place.interval(found.jaccard[:, None])
        stability = Stability(top, float(found.jaccard.mean()), float(low[0]), float(high[0]))
    se = _standard_errors(sizes)
    reach = student_quantile((1 + confidence) / 2, pairs - 1) * se
    negative = magnitudes & (mean.score < 0)
    ends = sample.score - reach, sample.score + reach
    lower = ends[0].clip(0) if magnitudes else ends[0]
    return Bootstrap(
        names=tuple(names),
        scores=np.where(negative, -sample.score, sample.score),
        se=se,
        low=np.where(negative, -ends[1], lower),
        high=np.where(negative, -lower, ends[1]),
        sign=found.sign,
        rank_low=rank_low,
        rank_high=rank_high,
        in_top=found.in_top,
        stability=stability,
        top=top,
        pairs=pairs,
        different=_different(signed),
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def table_resamples(components: int) -> int:
    """Return on how many resamples the tables of a result rest."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, TABLE_WORK // max(components, 1)))


def _standard_errors(values: Float[np.ndarray, "pair component"]) -> np.ndarray:
    # from the first pair on, so that equal numbers have no spread at all
    result = np.empty(values.shape[1])
    for columns in chunks(values.shape[1], max(1, CHUNK // len(values))):
        apart = values[:, columns] - values[0, columns]
        result[columns] = apart.std(0, ddof=1, dtype=np.float64) / math.sqrt(len(values))
    return result


def _different(values: Float[np.ndarray, "pair component"]) -> int:
    """Return how many pairs differ in their scores: in order of their sum, from the one before."""
    order = np.argsort(values.sum(1, dtype=np.float64), kind="stable")
    apart, largest = np.zeros(len(values) - 1), 0.0
    for columns in chunks(values.shape[1], max(1, CHUNK // len(values))):
        part = values[order, columns]
        apart = np.maximum(apart, np.abs(np.diff(part, axis=0)).max(1))
        largest = max(largest, float(np.abs(part).max()))
    return 1 + int((apart > ALIKE * largest).sum())


def _refuse(pairs: int, resamples: int, confidence: float, top: int) -> None:
    if pairs < 2:
        raise ResultError(
            f"a bootstrap over {pairs} pair: there is nothing to draw from, so no standard error "
            "and no ranks.\nAttribute more pairs."
        )
    if resamples < 2:
        raise ResultError(f"resamples={resamples} gives no spread.\nType resamples=1000.")
    refuse_no_share("confidence", confidence, 0.95)
    if top < 1:
        raise ResultError(f"top={top} is no top.\nType top=10.")
