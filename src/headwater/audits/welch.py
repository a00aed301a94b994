"""Welch's test on random subsets: how large may the effect of an unchecked component still be?

Kramár et al., "AtP*" (arXiv 2403.00745), section on diagnostics: the runs that closed a component
are compared with the runs that did not. Two things are added. What is known or estimated of the
*other* components is subtracted first, so that only the errors of the estimate are noise. And the
standard error is never taken below the pooled one: if effects add up, both groups have the same
spread, and the few runs that closed a component can miss the rare large error that shows it.

Runs are [run, pair]; with one column, the mean over pairs, this bounds |mean effect|. With all
pairs it bounds mean |effect|: for the true signs `s(x)` of a component's effects,
`mean |effect| = mean s effect`, whose estimate is at most `mean |difference|` and whose standard
error is at most the mean of the standard errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from headwater.audits.intervals import student_inside, student_quantile

FEWEST_RUNS = 3
"""Runs that must have closed a component before anything is said of it."""

CHANCE_SHIFTED = 0.1
"""Probability that one of the components checked for interactions seems to have one by chance."""

MOST_FREEDOM = 200
"""Degrees of freedom beyond which Student's t is the same to two digits."""


@dataclass(frozen=True)
class Contrasts:
    """For each component, the difference between runs that closed it and runs that did not."""

    size: Float[np.ndarray, " component"]
    """|mean difference| or mean |difference|: the estimated size of the effect."""
    error: Float[np.ndarray, " component"]
    """Its standard error; infinite where too few runs closed the component."""
    freedom: Int[np.ndarray, " component"]
    """Degrees of freedom, at least 1."""
    shift: Float[np.ndarray, " component"]
    """How far the difference is from the control, in the same size; where the control is the exact
    effect, the effect that interactions have, up to `error`."""

    def upper(self, error_rate: float) -> Float[np.ndarray, " component"]:
        """Return what each effect is below, wrong with probability `error_rate` for each."""
        kinds, place = np.unique(self.freedom, return_inverse=True)
        quantiles = np.array([_quantile(1 - error_rate, int(kind)) for kind in kinds])
        return self.size + quantiles[place] * self.error

    def surely_shifted(self, columns: Sequence[int]) -> float:
        """Return the largest interaction of these components that sampling does not explain.

        Args:
            columns: Components whose control is their exact effect, of finite error.
        """
        if not columns:
            return 0.0
        sure = 1 - CHANCE_SHIFTED / len(columns)
        quantiles = np.array([_quantile(sure, int(self.freedom[column])) for column in columns])
        beyond = self.shift[list(columns)] - quantiles * self.error[list(columns)]
        return max(0.0, float(beyond.max()))

    def p_values(self, theta: float) -> Float[np.ndarray, " component"]:
        """Return the one-sided p-value of each hypothesis that an effect is at least `theta`."""
        room = theta - self.size
        known = np.isfinite(self.error)
        spread = np.where(known & (self.error > 0), self.error, 1.0)
        certain = np.where(room > 0, np.inf, -np.inf)
        t = np.where(self.error > 0, room / spread, certain)
        pairs = zip(t.tolist(), self.freedom.tolist(), strict=True)
        return np.where(known, [_beyond(value, nu) for value, nu in pairs], 1.0)


def contrasts(
    closed: Bool[np.ndarray, "run component"],
    dealt: Bool[np.ndarray, "run component"],
    values: Float[np.ndarray, "run pair"],
    control: Float[np.ndarray, "component pair"],
) -> Contrasts:
    """Compare the runs that closed each component with the others of the rounds it was dealt in.

    Args:
        closed: Which components each run closed.
        dealt: Which components were dealt in that run's round.
        values: What the metric lost in each run, by pair or as the mean over pairs.
        control: What is known or estimated of each component's effect, on the same pairs.

    Returns:
        One contrast a component.
    """
    within, without = closed.astype(float), (dealt & ~closed).astype(float)
    residual = values - within @ control
    residual = residual - residual.mean(0)
    count_in, count_out = within.sum(0), without.sum(0)
    mean_in, spread_in = _moments(within, residual, count_in)
    mean_out, spread_out = _moments(without, residual, count_out)
    difference = control + mean_in - mean_out
    enough = (count_in >= FEWEST_RUNS) & (count_out >= FEWEST_RUNS)
    n_in, n_out = np.maximum(count_in, 2)[:, None], np.maximum(count_out, 2)[:, None]
    welch = spread_in / n_in + spread_out / n_out
    pooled = ((n_in - 1) * spread_in + (n_out - 1) * spread_out) / (n_in + n_out - 2)
    variance = np.maximum(welch, pooled * (1 / n_in + 1 / n_out))
    if values.shape[1] == 1:
        freedom = _welch_freedom(spread_in / n_in, spread_out / n_out, n_in, n_out)[:, 0]
    else:
        freedom = np.minimum(n_in, n_out)[:, 0] - 1
    error = np.sqrt(variance).mean(1)
    return Contrasts(
        size=np.abs(difference).mean(1),
        shift=np.abs(mean_in - mean_out).mean(1),
        error=np.where(enough, error, np.inf),
        freedom=np.clip(np.floor(freedom), 1, MOST_FREEDOM).astype(int),
    )


def _moments(
    weight: np.ndarray, residual: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and sample variance over the chosen runs, [component, pair]."""
    counted = np.maximum(count, 1)[:, None]
    mean = weight.T @ residual / counted
    square = weight.T @ (residual * residual) / counted
    spread = np.maximum(square - mean * mean, 0.0)
    return mean, spread * counted / np.maximum(counted - 1, 1)


def _welch_freedom(
    share_in: np.ndarray, share_out: np.ndarray, n_in: np.ndarray, n_out: np.ndarray
) -> np.ndarray:
    """Return Welch and Satterthwaite's degrees of freedom; the smaller group's where there is no
    spread."""
    below = share_in**2 / (n_in - 1) + share_out**2 / (n_out - 1)
    least = np.minimum(n_in, n_out) - 1
    return np.where(below > 0, (share_in + share_out) ** 2 / np.where(below > 0, below, 1), least)


@lru_cache(maxsize=4096)
def _quantile(probability: float, freedom: int) -> float:
    return student_quantile(probability, freedom)


@lru_cache(maxsize=4096)
def _inside(t: float, freedom: int) -> float:
    return student_inside(t, freedom)


def _beyond(t: float, freedom: int) -> float:
    """Return the probability that Student's t exceeds `t`."""
    if np.isinf(t):
        return 0.0 if t > 0 else 1.0
    tail = (1 - _inside(abs(t), freedom)) / 2
    return tail if t > 0 else 1 - tail
