"""At how many positions a row is KL-close to the first row, to the final row, or to both.

KL satisfies no triangle inequality, so being close to both does not follow from, and does not
imply, that first and final are close to each other. Both are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Measure = Literal["ref||layer", "layer||ref", "both directions", "js"]
Case = Literal["both", "first only", "final only", "ends", "both, ends apart"]

MEASURES: tuple[Measure, ...] = ("ref||layer", "layer||ref", "both directions", "js")
CASES: tuple[Case, ...] = ("both", "first only", "final only", "ends", "both, ends apart")
THRESHOLDS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Nats."""
JS_THRESHOLDS = (0.01, 0.025, 0.05, 0.1, 0.25)
"""Nats: a Jensen-Shannon divergence is at most ln 2, so that 1 nat would be no bound."""


@dataclass(frozen=True)
class Column:
    """What is counted: positions where, by a measure and a threshold, a case holds."""

    measure: Measure
    threshold: float
    case: Case


def columns(mixtures: bool) -> tuple[Column, ...]:
    """Return everything that is counted.

    Args:
        mixtures: Whether Jensen-Shannon divergences were computed.
    """
    return tuple(
        Column(measure, threshold, case)
        for measure in MEASURES
        if mixtures or measure != "js"
        for threshold, case in product(thresholds(measure), CASES)
    )


def thresholds(measure: Measure) -> tuple[float, ...]:
    """Return the thresholds of a measure, in nats."""
    return JS_THRESHOLDS if measure == "js" else THRESHOLDS


def closeness(
    values: Mapping[str, Float[Tensor, "position row"]],
) -> Float[Tensor, "column position row"]:
    """Return 1 where a case holds and 0 elsewhere, in the order of `columns`.

    Args:
        values: The statistics by key.
    """
    found = []
    for measure in MEASURES:
        if measure == "js" and "js(final)" not in values:
            continue
        final, first, ends = _distances(values, measure)
        for threshold in thresholds(measure):
            found += _cases(final <= threshold, first <= threshold, ends <= threshold)
    return torch.stack(found).to(torch.float64)


def _distances(values: Mapping[str, Tensor], measure: Measure) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far each row is from final and first, and these from each other."""
    if measure == "js":
        final, first = values["js(final)"], values["js(first)"]
        return final, first, final[:, :1]
    forward = values["kl(final||layer)"], values["kl(first||layer)"]
    backward = values["kl(layer||final)"], values["kl(layer||first)"]
    one_way, other_way = forward[0][:, :1], backward[0][:, :1]
    if measure == "both directions":
        final, first = (torch.maximum(*pair) for pair in zip(forward, backward, strict=True))
        return final, first, torch.maximum(one_way, other_way)
    final, first = forward if measure == "ref||layer" else backward
    # each end is a layer to the other: close one way is enough to make closeness to both trivial
    return final, first, torch.minimum(one_way, other_way)


def _cases(final: Tensor, first: Tensor, ends: Tensor) -> Sequence[Tensor]:
    both = final & first
    return both, first & ~final, final & ~first, ends.expand_as(both), both & ~ends
