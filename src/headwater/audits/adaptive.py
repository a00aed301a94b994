"""Spend exact runs until every error bar is short enough, or the budget ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from headwater.audits.checks import refuse_no_number, refuse_no_share
from headwater.audits.conformal import Population, Promise, half_widths
from headwater.audits.error_bars import Aim, ErrorBars
from headwater.audits.interventions import interventions
from headwater.audits.population import population_of
from headwater.audits.run import audit
from headwater.errors import ResultError
from headwater.gates import GatedFunction
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

TOP = 10
"""Strongest estimates, all checked."""

SURE = 0.9
"""Share of samples in which error bars hold at their confidence, where runs are spent on them."""

MOST_CHECKED = 0.5
"""A group of which more than this share has too wide intervals is checked as a whole."""

SAMPLED = 0.1
"""Share of many components that is drawn: more checks in a group make its quantile less noisy."""


def tighten(
    scores: Attribution,
    *,
    tolerance: float,
    confidence: float = 0.9,
    budget: int | None = None,
    model: Model | GatedFunction | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ErrorBars:
    """Audit a result, then check every component whose error bar is too wide, the widest first.

    The audit's sample decides how wide the intervals are, once; checking a component makes its own
    a point and leaves the others as they are. What is left unchecked is what the sample happened to
    give short intervals, so these are made to hold in nine of ten samples, not on average; and of a
    group that would be checked for the most part all is checked.

    Args:
        scores: The result of `hw.attribute`; its `checked` becomes the audit, its ledger holds the
            other runs too.
        tolerance: Largest half width of an interval that is accepted, in units of the metric.
        confidence: Of the intervals.
        budget: Most exact runs, the audit's sample among them; None: as many as it takes.
        model: Needed when the result no longer has its model.
        seed: Of the sample.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        The intervals; `scores.error_bars()` returns them again.

    Raises:
        ResultError: If tolerance, confidence or budget are out of range.
    """
    refuse_aim(tolerance, confidence, budget)
    count = len(scores.names)
    most = count if budget is None else min(budget, count)
    promise = Promise(confidence, SURE)
    wanted = max(TOP + 2 * (promise.fewest + 2), math.ceil(SAMPLED * count))
    if most <= wanted:  # all goes into the sample, so that nothing is picked by what it showed
        promise = Promise(confidence)
    sample = min(count, most, wanted if budget is None else max(wanted, most // 2))
    checked = audit(scores, model=model, sample=sample, top=TOP, seed=seed, progress=progress)
    asked = _too_wide(population_of(scores, checked), promise, tolerance)[: most - sample]
    if asked:
        with interventions(scores, model, progress=progress, hold=False) as exact:
            exact.runs([(column,) for column in asked], f"{len(asked):,} wide error bars")
        cost = filter(None, [checked.cost, str(exact.cost)])
        checked = replace(checked, cost="; ".join(cost))
    checked = replace(checked, asked=Aim(tolerance, confidence, budget, promise.sure))
    scores.checked = checked.of(scores)
    return scores.checked.bars()


def _too_wide(population: Population, promise: Promise, tolerance: float) -> list[int]:
    """Return the unchecked components to check, those with the widest intervals first."""
    width: dict[int, float] = {}
    for group in half_widths(population, promise):
        open_ones = {c: half for c, half in group.items() if c not in population.known}
        wide = {c: half for c, half in open_ones.items() if half > tolerance}
        # the narrow rest of a group is unlike the whole of it: no small rest is left
        width |= open_ones if len(wide) > MOST_CHECKED * len(open_ones) else wide
    return sorted(width, key=lambda column: -width[column])


def refuse_aim(tolerance: float, confidence: float, budget: int | None) -> None:
    """Refuse a tolerance, confidence or budget that has no meaning.

    Raises:
        ResultError: Saying what to type.
    """
    refuse_no_number("tolerance", tolerance, 0.1)
    if not tolerance > 0:
        raise ResultError(
            f"tolerance={tolerance} is not above 0: only an exact effect has no error bar.\n"
            "Type the half width you accept, in units of the metric: tolerance=0.1. To check "
            "everything: estimator=hw.Exact()."
        )
    refuse_no_share("confidence", confidence, 0.9)
    if budget is not None and budget < 1:
        raise ResultError(
            f"budget={budget}: error bars take at least one exact run.\nType budget=100, or leave "
            "it out to spend what it takes."
        )
