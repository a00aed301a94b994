"""Figures over cases, with intervals: the groups that cases belong to are drawn anew, whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.lenses.intervals import FEWEST, Figure, weights


def resampled(
    figure: Callable[[Float[Tensor, "resample case"]], Float[Tensor, " resample"]],
    groups: Sequence[Hashable],
    seed: int,
    *,
    fewest: int = 2,
    least: float = -math.inf,
    most: float = math.inf,
) -> Figure:
    """Return a figure with its interval.

    Args:
        figure: The figure for so many weights of every case, one set of weights a resample.
        groups: Which group each case belongs to; groups are drawn whole.
        seed: Of the draws.
        fewest: Groups that there must be.
        least: The figure is never below this ...
        most: ... nor above this.

    Returns:
        The figure of all cases; without an interval if they are of fewer groups.
    """
    if not groups:
        return Figure(math.nan)
    value = float(figure(torch.ones(1, len(groups), dtype=torch.float64))[0])
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    count = len(numbers)
    if count < fewest or math.isnan(value):
        return Figure(value)
    belong = [numbers[group] for group in groups]
    drawn = [figure(torch.from_numpy(times[:, belong])) for times in weights(count, seed)]
    return Figure.of(value, torch.cat(drawn), count, least=least, most=most)


def mean(values: Float[Tensor, " case"], groups: Sequence[Hashable], seed: int) -> Figure:
    """Return the mean of the cases that have a number; other arguments as for `resampled`."""
    known = values.isfinite()
    belong = [one for one, is_known in zip(groups, known.tolist(), strict=True) if is_known]
    return ratio(values[known], torch.ones_like(values[known]), belong, seed)


def ratio(
    top: Float[Tensor, " case"],
    bottom: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Figure:
    """Return the ratio of two sums over cases; other arguments as for `resampled`."""
    return resampled(lambda weights: (weights @ top) / (weights @ bottom), groups, seed)


def slope(
    given: Float[Tensor, " case"],
    found: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Figure:
    """Return the slope of the line through 0 from `given` to `found`; others as for `resampled`."""
    return ratio(given * found, given.square(), groups, seed)


def correlation(
    one: Float[Tensor, " case"],
    other: Float[Tensor, " case"],
    groups: Sequence[Hashable],
    seed: int,
) -> Figure:
    """Return Pearson's correlation; NaN where one of the two does not vary, others as above."""

    def figure(weights: Float[Tensor, "resample case"]) -> Float[Tensor, " resample"]:
        shares = weights / weights.sum(-1, keepdim=True)
        a = one - (shares @ one)[:, None]
        b = other - (shares @ other)[:, None]
        spread = ((shares * a.square()).sum(-1) * (shares * b.square()).sum(-1)).sqrt()
        # rounding takes a perfect one beyond 1
        found = ((shares * a * b).sum(-1) / spread).clamp(-1, 1)
        return torch.where(spread > 0, found, torch.nan)

    return resampled(figure, groups, seed, fewest=FEWEST, least=-1.0, most=1.0)


def ranked(values: Float[Tensor, " case"]) -> Float[Tensor, " case"]:
    """Return ranks from 1; equal values share the mean of the ranks they take up."""
    below = (values[None] < values[:, None]).sum(-1, dtype=torch.float64)
    level = (values[None] == values[:, None]).sum(-1, dtype=torch.float64)
    return below + (level + 1) / 2


def column(cases: Iterable[object], name: str) -> Float[Tensor, "case *change"]:
    """Return one field of every case."""
    return torch.tensor([getattr(one, name) for one in cases], dtype=torch.float64)
