"""How far a figure would move with other prompts: whole prompts are drawn with replacement.

Positions of one prompt are not independent, so they are drawn together. Resamples of few prompts
spread too little: their spread is stretched to that of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits.intervals import student_quantile

RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST = 8
"""Groups from which on a correlation has an interval: three points are in line by chance."""


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def is_above(self) -> bool:
        """Whether it lies above 0."""
        return self.low > 0

    @property
    def is_below(self) -> bool:
        """Whether it lies below 0."""
        return self.high < 0


def resampled(
    figure: Callable[[Float[Tensor, "resample case"]], Float[Tensor, " resample"]],
    groups: Sequence[Hashable],
    seed: int,
    *,
    fewest: int = 2,
) -> Interval:
    """Return a figure with its interval.

    Args:
        figure: The figure for so many weights of every case, one set of weights a resample.
        groups: Which group each case belongs to; groups are drawn whole.
        seed: Of the draws.
        fewest: Groups that there must be.

    Returns:
        The figure of all cases; without an interval if they are of fewer groups.
    """
    if not groups:
        return Interval(math.nan, math.nan, math.nan)
    value = float(figure(torch.ones(1, len(groups), dtype=torch.float64))[0])
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    count = len(numbers)
    if count < fewest or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    times = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    found = figure(times[:, [numbers[group] for group in groups]])
    found = found[found.isfinite()]
    if len(found) < RESAMPLES / 2:
        return Interval(value, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    ends = found.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    normal = math.sqrt(2) * float(torch.erfinv(torch.tensor(CONFIDENCE, dtype=torch.float64)))
    few = student_quantile(1 - tail, count - 1) / normal * math.sqrt(count / (count - 1))
    low, high = (value + few * (float(end) - value) for end in ends)
    return Interval(value, low, high)


def mean(values: Float[Tensor, " case"], groups: Sequence[Hashable], seed: int) -> Interval:
    """Return the mean of cases with its interval; arguments as for `resampled`."""
    return ratio(values, torch.ones_like(values), groups, seed)


def ratio(
    top: Float[Tensor, " case"],
    bottom: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Interval:
    """Return the ratio of two sums over cases; other arguments as for `resampled`."""
    return resampled(lambda weights: (weights @ top) / (weights @ bottom), groups, seed)


def slope(
    given: Float[Tensor, " case"],
    found: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Interval:
    """Return the slope of the line through 0 from `given` to `found`; others as for `resampled`."""
    return ratio(given * found, given.square(), groups, seed)


def correlation(
    one: Float[Tensor, " case"],
    other: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Interval:
    """Return Pearson's correlation; NaN where one of the two does not vary, others as above."""

    def figure(weights: Float[Tensor, "resample case"]) -> Float[Tensor, " resample"]:
        shares = weights / weights.sum(-1, keepdim=True)
        a = one - (shares @ one)[:, None]
        b = other - (shares @ other)[:, None]
        spread = ((shares * a.square()).sum(-1) * (shares * b.square()).sum(-1)).sqrt()
        found = (shares * a * b).sum(-1) / spread
        return torch.where(spread > 0, found, torch.nan)

    found = resampled(figure, groups, seed, fewest=FEWEST)
    return Interval(found.value, max(found.low, -1.0), min(found.high, 1.0))


def ranked(values: Float[Tensor, " case"]) -> Float[Tensor, " case"]:
    """Return ranks from 1; equal values share the mean of the ranks they take up."""
    below = (values[None] < values[:, None]).sum(-1, dtype=torch.float64)
    level = (values[None] == values[:, None]).sum(-1, dtype=torch.float64)
    return below + (level + 1) / 2
