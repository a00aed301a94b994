"""Agreement of estimates with exact effects, each component weighted by how many it stands for.

All functions take `weight`, `estimate` and `exact` with components on the last axis; the axes
before it are broadcast, so that a thousand bootstrap replicates are one call. Where a figure has
no meaning (no spread, no effect) they return NaN, which the audit turns into words.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

Values = Float[np.ndarray, "*#batch component"]
Figure = Float[np.ndarray, "*batch"] | float


def pearson(weight: Values, estimate: Values, exact: Values) -> Figure:
    """Return the correlation of estimate and exact effect."""
    share = weight / weight.sum(-1, keepdims=True)
    x = estimate - (share * estimate).sum(-1, keepdims=True)
    y = exact - (share * exact).sum(-1, keepdims=True)
    spread = np.sqrt((share * x * x).sum(-1) * (share * y * y).sum(-1))
    return np.clip(_ratio((share * x * y).sum(-1), spread), -1.0, 1.0)


def spearman(weight: Values, estimate: Values, exact: Values) -> Figure:
    """Return the correlation of the ranks, ranks counted over all that the components stand for."""
    return pearson(weight, ranks(weight, estimate), ranks(weight, exact))


def ranks(weight: Values, value: Values) -> Float[np.ndarray, "*batch component"]:
    """Return the weighted rank of each value: the weight below it plus half of the weight at it."""
    weight, value = np.broadcast_arrays(weight, value)
    order = np.argsort(value, axis=-1, kind="stable")
    ordered = np.take_along_axis(value, order, -1)
    weights = np.take_along_axis(weight, order, -1)
    upto = np.cumsum(weights, -1)
    edge = np.ones((*ordered.shape[:-1], 1), dtype=bool)
    differs = ordered[..., 1:] != ordered[..., :-1]
    first = np.concatenate([edge, differs], -1)
    last = np.concatenate([differs, edge], -1)
    # Equal values share one rank: from where their run starts to where it ends.
    start = np.maximum.accumulate(np.where(first, upto - weights, -np.inf), -1)
    end = np.minimum.accumulate(np.where(last, upto, np.inf)[..., ::-1], -1)[..., ::-1]
    result = np.empty(ordered.shape)
    np.put_along_axis(result, order, (start + end) / 2, -1)
    return result


def slope(weight: Values, estimate: Values, exact: Values) -> Figure:
    """Return `sum(estimate * exact) / sum(exact^2)`: 1 is the right size, 0.5 half of it."""
    return _ratio((weight * estimate * exact).sum(-1), (weight * exact * exact).sum(-1))


def relative_error(weight: Values, estimate: Values, exact: Values) -> Figure:
    """Return `||estimate - exact|| / ||exact||`."""
    error = estimate - exact
    return np.sqrt(_ratio((weight * error * error).sum(-1), (weight * exact * exact).sum(-1)))


def sign_agreement(weight: Values, estimate: Values, exact: Values, floor: float = 0.0) -> Figure:
    """Return the share of components with the right sign, among those with |exact| > `floor`."""
    counted = weight * (np.abs(exact) > floor)
    return _ratio((counted * (np.sign(estimate) == np.sign(exact))).sum(-1), counted.sum(-1))


def recall(
    weight: Values, exact: Values, chosen: Bool[np.ndarray, " component"], most: int
) -> Figure:
    """Return the share of the truly strongest `most` components that are among the chosen.

    With the chosen ones ordered by |exact|, the j-th is truly among the strongest `most` if `j`
    and the number of stronger ones that were not chosen make at most `most`. Ties favor the chosen.

    Args:
        weight: How many components each stands for.
        exact: Exact effects.
        chosen: Which are among the estimated strongest: `most` of them, each of weight 1.
        most: How many count as strongest.

    Returns:
        Between 0 and 1, over the leading axes.
    """
    weight, strength = np.broadcast_arrays(weight, np.abs(exact))
    inside = -np.sort(-strength[..., chosen], axis=-1)
    found = np.zeros(strength.shape[:-1])
    outside, counts = strength[..., ~chosen], weight[..., ~chosen]
    for place in range(most):
        missed = (counts * (outside > inside[..., place, None])).sum(-1)
        found = found + (place + 1 + missed <= most + 1e-9)
    return found / most


def _ratio(above: Figure, below: Figure) -> Figure:
    """Divide, with NaN where the divisor is zero."""
    defined = np.asarray(below) > 0
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)
