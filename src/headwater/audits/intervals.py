"""Intervals for what a full exact run would have shown.

Two bootstraps, and the interval spans both, because each fails where the other holds:

- **Rescaled** (Rao and Wu): the checked components are redrawn within each stratum, their weights
  scaled for the share of it that was checked. Percentiles are pushed out to those of Student's t
  for the smallest stratum. It assumes nothing, and is too narrow when a few unchecked components
  matter and none of their kind was drawn.
- **Completed**: every unchecked component gets an effect: its own estimate, and the error of a
  checked one (in proportion to size). Errors are drawn within its stratum, with a little weight on
  those of other strata, on twice the largest error seen, on a wrong sign, and a few unchecked
  components may be as strong as the strongest: what a sample of ten cannot exclude. Checked
  components keep their effects.

On heavy-tailed populations the first alone covers the full run in 70-80 % of samples at a nominal
95 %, both together in 92-100 %, also on the embedded model (tested). Neither can foresee an effect
larger than all that were found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from headwater.audits.sampling import AuditSample

REPLICATES = 1000
"""Bootstrap replicates of each kind."""

FROM_OTHER_STRATA = 2.0
"""Weight, in checked components, on the errors of the other strata."""
TWICE_THE_LARGEST = 0.5
"""... on twice the largest error of either sign in the stratum."""
WRONG_SIGN = 0.5
"""... on a wrong sign at the usual size."""

HIDDEN, HIDDEN_PER = 4, 30
"""At most 4 unchecked components, one in 30, may be as strong as the strongest ..."""
CHANCE_HIDDEN = 0.3
"""... each with this probability: gradients do miss such ones, and a small sample does too."""

FINEST = 0.001
"""Ends are moved outward by this share of themselves: nothing finer is claimed."""

STAND_INS = 200
"""Unchecked components of a stratum that are completed; more are represented by this many."""

CHUNK = 2_000_000
"""Numbers held at once."""

FEWEST_DEFINED = 0.5
"""A figure that is undefined in more replicates than this leaves no interval."""

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray | float]
"""Weights, estimates and exact effects, components last, to a figure."""


def intervals(
    measures: dict[str, Measure],
    sample: AuditSample,
    estimate: Float[np.ndarray, " component"],
    exact: Float[np.ndarray, " index"],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[str, tuple[float, float] | None]:
    """Return an interval for each figure of the full population.

    Args:
        measures: The figures, by name.
        sample: What was checked.
        estimate: Of all components.
        exact: Of the checked ones, in the order of `sample.indices`.
        confidence: Of the intervals.
        seed: Of the bootstraps.
        replicates: Of each kind.

    Returns:
        Low and high by name; None where fewer than two components of a stratum were checked.
    """
    partial = [stratum for stratum in sample.strata if not stratum.complete]
    if not partial or not sample.covers or min(len(s.checked) for s in partial) < 2:
        return dict.fromkeys(measures)
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    checked = estimate[list(sample.indices)]
    redrawn = rescaled_weights(sample, replicates, generator)
    completed: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for weight, filled, effects in completions(sample, estimate, exact, replicates, generator):
        for name, measure in measures.items():
            completed[name].append(np.asarray(measure(weight, filled, effects)))
    freedom = min(len(stratum.checked) for stratum in partial) - 1
    wide = 2 * NormalDist().cdf(student_quantile((1 + confidence) / 2, freedom)) - 1
    result: dict[str, tuple[float, float] | None] = {}
    for name, measure in measures.items():
        spans = [
            percentiles(np.concatenate(completed[name]), confidence),
            percentiles(np.asarray(measure(redrawn, checked, exact)), wide),
        ]
        known = [span for span in spans if span is not None]
        result[name] = _outward(known) if known else None
    return result


def _outward(spans: list[tuple[float, float]]) -> tuple[float, float]:
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    return low - FINEST * abs(low), high + FINEST * abs(high)


def percentiles(
    figures: Float[np.ndarray, " replicate"], confidence: float
) -> tuple[float, float] | None:
    """Return the middle `confidence` of the figures; None if most of them are undefined."""
    defined = figures[np.isfinite(figures)]
    if len(defined) < FEWEST_DEFINED * len(figures):
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rescaled_weights(
    sample: AuditSample, replicates: int, generator: np.random.Generator
) -> Float[np.ndarray, "replicate index"]:
    """Return the weights of the checked components in each replicate of the rescaled bootstrap.

    In a stratum of N with n checked, n - 1 are redrawn with replacement, and a component drawn k
    times gets `N/n * (1 + sqrt(1 - n/N) * (n / (n-1) * k - 1))`: the mean is the sampling weight,
    the variance that of sampling without replacement. Never negative; constant if all are checked.
    """
    columns = []
    for stratum in sample.strata:
        n, members = len(stratum.checked), len(stratum.members)
        if stratum.complete:
            columns.append(np.ones((replicates, n)))
            continue
        drawn = generator.multinomial(n - 1, np.full(n, 1 / n), size=replicates)
        shrink = math.sqrt(1 - n / members)
        columns.append(members / n * (1 + shrink * (n / (n - 1) * drawn - 1)))
    return np.concatenate(columns, axis=1)


def completions(
    sample: AuditSample,
    estimate: Float[np.ndarray, " component"],
    exact: Float[np.ndarray, " index"],
    replicates: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield weights, estimates and completed effects of the whole population, in chunks.

    The checked components come first, in the order of `sample.indices`.
    """
    fills = _fills(sample, estimate, exact)
    checked = estimate[list(sample.indices)]
    weight = np.concatenate([np.ones(len(exact)), *(fill.weight for fill in fills)])
    filled = np.concatenate([checked, *(fill.estimate for fill in fills)])
    rows = max(1, CHUNK // len(weight))
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        seen = np.broadcast_to(exact, (count, len(exact)))
        yield weight, filled, np.concatenate([seen, *(f.draw(count, generator) for f in fills)], 1)


class _Fill:
    """The unchecked components of one stratum, and the errors they may have."""

    def __init__(
        self,
        unchecked: Float[np.ndarray, " component"],
        tendency: float,
        scale: float,
        own: Float[np.ndarray, " own"],
        others: Float[np.ndarray, " other"],
        strong: Float[np.ndarray, " strong"],
        hidden: int,
    ) -> None:
        ordered = np.sort(unchecked)
        if len(ordered) > STAND_INS:
            # The middle of each of STAND_INS equal groups stands for its group.
            places = (np.arange(STAND_INS) + 0.5) * len(ordered) / STAND_INS
            ordered = ordered[places.astype(int)]
        weight = np.full(len(ordered), len(unchecked) / len(ordered))
        # Each hidden one is taken out of a group, which then stands for one fewer.
        apart = ((np.arange(hidden) + 0.5) * len(ordered) / hidden).astype(int) if hidden else []
        weight[apart] -= 1
        ordered = np.concatenate([ordered, ordered[apart]])
        self.hidden = hidden
        self.strong = strong
        self.estimate = ordered
        self.weight = np.concatenate([weight, np.ones(hidden)])
        self.usual = tendency * ordered
        self.scale = np.where(ordered < 0, -1.0, 1.0) * (np.abs(ordered) + scale)
        self.errors = np.concatenate([own, others, [2 * own.max(), 2 * own.min()], [0.0]])
        # A Dirichlet of (n-1)/n each has the variance of a mean of n.
        self.trust = np.concatenate(
            [
                np.full(len(own), (len(own) - 1) / len(own)),
                np.full(len(others), FROM_OTHER_STRATA / max(1, len(others))),
                np.full(2, TWICE_THE_LARGEST / 2),
                [WRONG_SIGN],
            ]
        )

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return effects, [replicate, stand-in]."""
        share = generator.gamma(self.trust, size=(count, len(self.trust)))
        upto = np.cumsum(share, 1)
        upto /= upto[:, -1:]
        row = np.arange(count)[:, None]
        # One sorted list for all rows: row i holds the numbers from i to i + 1.
        where = np.searchsorted(
            (upto + row).ravel(), generator.random((count, len(self.usual))) + row
        )
        donor = np.clip(where - row * len(self.trust), 0, len(self.trust) - 1)
        effects = self.usual + self.scale * self.errors[donor]
        effects = np.where(donor == len(self.trust) - 1, -self.usual, effects)
        if self.hidden:
            shape = (count, self.hidden)
            strength = generator.choice(self.strong, shape) * generator.choice([-1.0, 1.0], shape)
            found = generator.random(shape) < CHANCE_HIDDEN
            effects[:, -self.hidden :] = np.where(found, strength, effects[:, -self.hidden :])
        return effects


def _fills(sample: AuditSample, estimate: np.ndarray, exact: np.ndarray) -> list[_Fill]:
    """Standardize the errors of each stratum: those of `exact = tendency * estimate`, by size."""
    tendencies, scales, errors, start = [], [], [], 0
    for stratum in sample.strata:
        x = estimate[list(stratum.checked)]
        y = exact[start : start + len(x)]
        start += len(x)
        size = np.abs(estimate[list(stratum.members)])
        square = float((x * x).sum())
        tendency = float((x * y).sum()) / square if square > 0 else 0.0
        # Below the stratum's usual size errors no longer shrink with the estimate.
        scale = float(np.median(size)) or float(size.mean()) or float(np.abs(y).mean()) or 1.0
        tendencies.append(tendency)
        scales.append(scale)
        errors.append(np.where(x < 0, -1.0, 1.0) * (y - tendency * x) / (np.abs(x) + scale))
    strong = exact[: len(sample.strata[0].checked)]
    fills: list[_Fill] = []
    for i, stratum in enumerate(sample.strata):
        if stratum.complete:
            continue
        checked = set(stratum.checked)
        unchecked = estimate[[column for column in stratum.members if column not in checked]]
        others = np.concatenate([e for j, e in enumerate(errors) if j != i])
        hidden = 0 if fills else min(HIDDEN, math.ceil(len(unchecked) / HIDDEN_PER))
        fills.append(_Fill(unchecked, tendencies[i], scales[i], errors[i], others, strong, hidden))
    return fills


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t, for a probability above one half.

    Bisection on the closed form of the distribution for a whole number of degrees of freedom
    (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1e7
    for _ in range(100):
        middle = (low + high) / 2
        if student_inside(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_inside(t: float, freedom: int) -> float:
    """Return the probability that |Student's t| is at most `t`."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside
