"""From formulas to the scores each estimator must give.

An integral along a path is a weighted sum of slopes, so a formula for the slope at every point of
the path gives the score of every rule and number of steps, however far that is from the integral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.estimators import (
    Estimator,
    Exact,
    Gradient,
    IntegratedGradients,
    SecondOrder,
    Shapley,
    Trapezoid,
)

Table = Sequence[Sequence[float]]
"""One row an example, one number a component."""
SlopeFormula = Callable[[float], Table]
"""`df/dm_i` where the gates that move stand at t: 1 is the clean end of the path."""


def closed_forms(
    *,
    exact: Table,
    gradient: Table,
    own: SlopeFormula,
    joint: SlopeFormula | None = None,
    family: SlopeFormula | None = None,
    restored: Table | None = None,
    restored_gradient: Table | None = None,
    curvature: Table | None = None,
    shapley: Table | None = None,
    steps: Sequence[int] = (5, 10, 20),
) -> dict[Estimator, Float[Tensor, "batch component"]]:
    """Return what each estimator must score, in float64.

    Args:
        exact: `f(1) - f(1 - e_i)`.
        gradient: `df/dm_i` with every gate at 1.
        own: `df/dm_i` with gate i at t and every other at 1.
        joint: The same with every gate at t; for one component that is `own`. None leaves the
            `joint` and `family` paths and the corrupted end out.
        family: The same with the gates of i's family at t; by default all are one family.
        restored: `f(e_i) - f(0)`; for one component that is `exact`.
        restored_gradient: `df/dm_i` with every gate at 0; by default `joint(0)`.
        curvature: `d2f/dm_i2` with every gate at 1.
        shapley: Shapley values, where any few orders and their reverses give them.
        steps: For which numbers of midpoints.
    """
    scores: dict[Estimator, Table] = {Exact(): exact, Gradient(): gradient}
    if curvature is not None:
        scores[SecondOrder("exact")] = combined(gradient, curvature, 1.0, -0.5)
    if joint is not None:
        closed = joint(0.0)
        scores[Exact(at="corrupted")] = exact if restored is None else restored
        scores[Gradient(at="corrupted")] = (
            closed if restored_gradient is None else restored_gradient
        )
        scores[Trapezoid()] = combined(gradient, closed, 0.5, 0.5)
        scores[IntegratedGradients()] = integral(family or joint, *gauss(8))
    if shapley is not None:
        scores[Shapley()] = shapley
    for count in steps:
        rule = midpoints(count)
        scores[IntegratedGradients("component", "midpoint", count)] = integral(own, *rule)
    if joint is not None:
        for count in steps:
            rule = midpoints(count)
            scores[IntegratedGradients("joint", "midpoint", count)] = integral(joint, *rule)
    return {estimator: table(rows) for estimator, rows in scores.items()}


def combined(first: Table, second: Table, weight: float, other: float) -> Table:
    """Return `weight * first + other * second`."""
    return [
        [weight * a + other * b for a, b in zip(one, two, strict=True)]
        for one, two in zip(first, second, strict=True)
    ]


def table(rows: Table) -> Float[Tensor, "batch component"]:
    """Return numbers worked out by hand as float64."""
    return torch.tensor([list(row) for row in rows], dtype=torch.float64)


def midpoints(steps: int) -> tuple[list[float], list[float]]:
    """Return the middles of `steps` equal cells of [0, 1], and their weights."""
    return [(k + 0.5) / steps for k in range(steps)], [1 / steps] * steps


def gauss(steps: int) -> tuple[list[float], list[float]]:
    """Return the Gauss-Legendre points of [0, 1], and their weights."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return [(1 + x) / 2 for x in points.tolist()], [w / 2 for w in weights.tolist()]


def integral(slope: SlopeFormula, points: Sequence[float], weights: Sequence[float]) -> Table:
    """Return the weighted sum of slopes at the points of a path."""
    slopes = [slope(point) for point in points]
    return [
        [
            sum(weight * at[row][column] for at, weight in zip(slopes, weights, strict=True))
            for column in range(len(slopes[0][row]))
        ]
        for row in range(len(slopes[0]))
    ]
