"""Error bars on the scores that were not checked: split-conformal intervals.

Inside a stratum the audit draws its components at random, so the checked and the unchecked ones of
any part of a stratum that was fixed beforehand are exchangeable. Such a part is a *group*. With n
checked ones in a group, the error of one more is among the `ceil((n + 1) confidence)` smallest with
at least that probability (Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al.,
"Distribution-Free Predictive Inference for Regression", 2018). Nothing is assumed of the effects.

- A group is a kind of component and half of the layers inside a stratum, where enough checks are
  expected there; else a kind, else the stratum. The expected number decides, never the drawn one.
- The error is `|exact - b estimate| / (|estimate| + scale)`: b is the least-absolute-deviations
  slope of exact on estimate over the checked components of the *other* groups (the split), `scale`
  the median |estimate| of the group. An intercept made intervals wider on every model tried.

The promise is about the unchecked components of a group together, over draws of the sample. It is
not one about the strongest of them, and a component unlike all that were drawn is not covered.

It holds on average over draws: of samples that happen to give short intervals, less of what is left
lies inside. Whoever spends runs until intervals are short picks such samples. For that there is
`sure`: the rank is then the smallest for which, with this probability over the draw, the share of
the group that lies inside is at least the confidence (Wilks, 1941; Vovk, "Conditional validity of
inductive conformal predictors", 2012).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from headwater.audits.checks import refuse_no_share
from headwater.audits.error_bars import CHECKED, CONFORMAL, UNKNOWN, ErrorBar, ErrorBars

EXPECTED_TIMES = 2.0
"""A group of its own must expect this many times the checks that it needs at least."""

DOMINANT = 5.0
"""An error this many times the next largest stands alone."""

STRETCH = 3.0
"""An unchecked estimate this many times the strongest checked one of its group is far from it."""


@dataclass(frozen=True)
class Population:
    """What an audit was drawn from: every component in a stratum of the sample."""

    names: Sequence[str]
    kinds: Sequence[str]
    layers: Sequence[int | None]
    estimate: Float[np.ndarray, " component"]
    strata: Sequence[Sequence[int]]
    """Columns of each stratum."""
    drawn: Mapping[int, float]
    """Exact effects of the sample, by column."""
    known: Mapping[int, float]
    """Exact effects of all that was checked, the sample among them."""
    magnitudes: bool = False
    """Whether effects are means of |effect|, and so not negative."""


@dataclass(frozen=True)
class Promise:
    """What intervals are to hold: this share of a group, on average or in most draws."""

    confidence: float
    sure: float | None = None
    """Probability over the draw of the sample; None: on average over draws."""

    @property
    def fewest(self) -> int:
        """How many checks a group needs before it can have a finite interval."""
        if self.sure is None:
            return math.ceil(self.confidence / (1 - self.confidence) - 1e-9)
        return math.ceil(math.log(1 - self.sure) / math.log(self.confidence) - 1e-9)

    def rank(self, count: int) -> int:
        """Return which of `count` errors, the smallest first, is the half width's."""
        if self.sure is None:
            return math.ceil((count + 1) * self.confidence - 1e-9)
        # The share below the r-th of n errors has a Beta(r, n + 1 - r) distribution, which is below
        # the confidence as often as a Binomial(n, confidence) is at least r.
        beyond, rank = 0.0, count
        while rank > 0:
            beyond += _binomial(count, rank, self.confidence)
            if beyond > 1 - self.sure:
                break
            rank -= 1
        return rank + 1


def _binomial(count: int, successes: int, probability: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    failures = count - successes
    return math.exp(ways + successes * math.log(probability) + failures * math.log1p(-probability))


def error_bars(population: Population, confidence: float, sure: float | None = None) -> ErrorBars:
    """Return an interval for every component: a point if checked, split-conformal if not.

    Args:
        population: What the audit was drawn from.
        confidence: The share of a group that is to lie inside.
        sure: With which probability over the draw; None: on average over draws.

    Raises:
        ResultError: If confidence or `sure` is not between 0 and 1.
    """
    refuse_no_share("confidence", confidence, 0.9)
    if sure is not None:
        refuse_no_share("sure", sure, 0.9)
    promise = Promise(confidence, sure)
    bars: dict[int, ErrorBar] = {}
    notes: list[str] = []
    doubts: list[str] = []
    for stratum in population.strata:
        for name, members in _groups(population, stratum, promise):
            unchecked = [column for column in members if column not in population.known]
            group = _Group(population, name, members)
            half = group.half_widths(unchecked, promise)
            for column, width in zip(unchecked, half, strict=True):
                bars[column] = group.bar(column, width)
            if unchecked and len(group.errors) < promise.fewest:
                notes.append(group.too_few(unchecked, promise))
            elif unchecked:
                doubts += group.doubts(unchecked)
    for column, effect in population.known.items():
        bars[column] = ErrorBar(
            population.names[column],
            float(population.estimate[column]),
            effect,
            effect,
            CHECKED,
            "",
        )
    ordered = [bars[column] for column in np.argsort(-np.abs(population.estimate), kind="stable")]
    return ErrorBars(
        confidence, tuple(ordered), tuple(notes), population.magnitudes, tuple(doubts), sure
    )


def half_widths(population: Population, promise: Promise) -> list[dict[int, float]]:
    """Return for each group half the width of the interval of every member, by column.

    Of the checked ones too: what theirs would be. Infinite where too few were checked.
    """
    return [
        dict(
            zip(
                members,
                _Group(population, name, members).half_widths(members, promise),
                strict=True,
            )
        )
        for stratum in population.strata
        for name, members in _groups(population, stratum, promise)
    ]


class _Group:
    """Components among which the checked ones were drawn at random."""

    def __init__(self, population: Population, name: str, members: Sequence[int]) -> None:
        self.population, self.name = population, name
        self.checked = [column for column in members if column in population.drawn]
        estimate = np.abs(population.estimate)
        sizes = estimate[list(members)]
        self.scale = float(np.median(sizes)) or float(sizes.mean()) or 1.0
        inside = set(members)
        elsewhere = [column for column in population.drawn if column not in inside]
        self.slope = _slope(
            population.estimate[elsewhere],
            np.array([population.drawn[column] for column in elsewhere]),
            self.scale,
        )
        exact = np.array([population.drawn[column] for column in self.checked])
        miss = np.abs(exact - self.slope * population.estimate[self.checked])
        order = np.argsort(-miss / self._weight(self.checked), kind="stable")
        self.errors = (miss / self._weight(self.checked))[order]
        """Of the checked ones, the largest first."""
        self.worst = [self.checked[place] for place in order]

    def _weight(self, columns: Sequence[int]) -> np.ndarray:
        return np.abs(self.population.estimate[list(columns)]) + self.scale

    def half_widths(self, columns: Sequence[int], promise: Promise) -> list[float]:
        """Return half the width of each interval; infinite if too few were checked."""
        count = len(self.errors)
        if count < promise.fewest:
            return [math.inf] * len(columns)
        return (self.errors[count - promise.rank(count)] * self._weight(columns)).tolist()

    def bar(self, column: int, half: float) -> ErrorBar:
        """Return the interval of an unchecked component."""
        score = float(self.population.estimate[column])
        name = self.population.names[column]
        if math.isinf(half):
            return ErrorBar(name, score, None, None, UNKNOWN, self.name)
        middle = self.slope * score
        low, high = middle - half, middle + half
        if self.population.magnitudes:
            low, high = max(low, 0.0), max(high, 0.0)
        return ErrorBar(name, score, low, high, CONFORMAL, self.name)

    def too_few(self, unchecked: Sequence[int], promise: Promise) -> str:
        """Say how many checks are missing."""
        count = len(self.errors)
        return (
            f"{self.name}: {count} of {count + len(unchecked)} checked; an interval at "
            f"{100 * promise.confidence:g} % needs {promise.fewest}. Raise sample=."
        )

    def doubts(self, unchecked: Sequence[int]) -> list[str]:
        """Return where exchangeability is doubtful, in sentences."""
        count, said = len(self.errors), []
        if count > 1 and self.errors[0] > DOMINANT * self.errors[1]:
            times = self.errors[0] / self.errors[1] if self.errors[1] > 0 else math.inf
            said.append(
                f"{self.name}: one component dominates. The error of "
                f"{self.population.names[self.worst[0]]} is {times:.3g} times the next largest of "
                f"{count} checked; exchangeability is doubtful, and another one like it among the "
                f"{len(unchecked)} unchecked would not be covered."
            )
        size = np.abs(self.population.estimate)
        reach = STRETCH * size[self.checked].max()
        far = [column for column in unchecked if size[column] > reach]
        if far:
            named = ", ".join(self.population.names[column] for column in far[:3])
            said.append(
                f"{self.name}: {len(far)} unchecked estimate{'s are' if len(far) > 1 else ' is'} "
                f"more than {STRETCH:g} times the strongest checked one ({named}): their intervals "
                "are stretched beyond what was seen. Raise sample=."
            )
        return said


def _slope(estimate: np.ndarray, exact: np.ndarray, scale: float) -> float:
    """Return the b that minimizes the sum of `|exact - b estimate| / (|estimate| + scale)`.

    That is the median of `exact / estimate`, weighted by `|estimate| / (|estimate| + scale)`.
    """
    moved = estimate != 0
    estimate, exact = estimate[moved], exact[moved]
    if len(estimate) == 0:
        return 1.0
    ratio, size = exact / estimate, np.abs(estimate)
    order = np.argsort(ratio, kind="stable")
    upto = np.cumsum((size / (size + scale))[order])
    return float(ratio[order][np.searchsorted(upto, upto[-1] / 2)])


def _groups(
    population: Population, stratum: Sequence[int], promise: Promise
) -> list[tuple[str, list[int]]]:
    """Split a stratum by kind and then by half of the layers, where enough checks are expected."""
    share = sum(column in population.drawn for column in stratum) / max(1, len(stratum))
    enough = EXPECTED_TIMES * promise.fewest
    place = _place(population, stratum)

    def expects(columns: Sequence[int]) -> bool:
        return share * len(columns) >= enough

    by_kind: dict[str, list[int]] = defaultdict(list)
    for column in stratum:
        by_kind[population.kinds[column]].append(column)
    kinds = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))
    alone = [kind for kind in kinds if expects(by_kind[kind])]
    rest = [column for kind in kinds if kind not in alone for column in by_kind[kind]]
    while alone and rest and not expects(rest):
        rest += by_kind[alone.pop()]
    groups = []
    for kind in alone:
        halves = _halves(population, by_kind[kind])
        split = len(halves) == 2 and all(map(expects, halves.values()))
        for layers, columns in halves.items() if split else [("", by_kind[kind])]:
            groups.append((f"{place} {kind}{layers}", columns))
    if rest:
        groups.append((place if not alone else f"{place} other kinds", rest))
    return groups


def _place(population: Population, stratum: Sequence[int]) -> str:
    """Return which part of the order of estimates a stratum is, in words."""
    sizes = np.abs(population.estimate[list(stratum)])
    return f"|estimate| {sizes.min():.2g} to {sizes.max():.2g}"


def _halves(population: Population, columns: Sequence[int]) -> dict[str, list[int]]:
    """Return the columns by half of the layers that the population spans."""
    known = sorted({layer for layer in population.layers if layer is not None})
    if len(known) < 2 or any(population.layers[column] is None for column in columns):
        return {"": list(columns)}
    middle = known[len(known) // 2]
    halves: dict[str, list[int]] = defaultdict(list)
    for column in columns:
        late = (population.layers[column] or 0) >= middle
        halves[f", layers from {middle} on" if late else f", layers before {middle}"].append(column)
    return halves
