"""Spend exact runs until every error bar is short enough, or the budget ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from headwater.audits.conformal import fewest
from headwater.audits.error_bars import ErrorBars
from headwater.audits.interventions import interventions
from headwater.audits.report import Audit
from headwater.audits.run import audit
from headwater.errors import ResultError
from headwater.gates import GatedFunction
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

TOP = 10
"""Strongest estimates, all checked."""

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
    a point and leaves the others as they are. So nothing stops because the intervals happened to be
    short, which would make them hold less often than they say.

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
        The intervals; `scores.checked.intervals(confidence)` returns them again.

    Raises:
        ResultError: If tolerance, confidence or budget are out of range.
    """
    refuse_aim(tolerance, confidence, budget)
    if scores.is_exact:
        raise ResultError(
            "tolerance= is for estimates: exact effects have no error bars.\n"
            "Leave tolerance= out, or estimate: estimator=hw.Gradient()."
        )
    count = len(scores.names)
    most = count if budget is None else min(budget, count)
    wanted = max(TOP + 2 * (fewest(confidence) + 2), math.ceil(SAMPLED * count))
    sample = min(count, most, wanted if budget is None else max(wanted, most // 2))
    checked = audit(scores, model=model, sample=sample, top=TOP, seed=seed, progress=progress)
    bars = checked.intervals(confidence)
    wide = sorted(
        (bar for bar in bars.rows if bar.half_width > tolerance), key=lambda bar: -bar.half_width
    )
    asked = [bar.name for bar in wide[: most - sample]]
    if asked:
        checked = _checked_too(scores, checked, asked, model, progress)
        bars = checked.intervals(confidence)
    aim = _aim(bars, tolerance, sample + len(asked), budget)
    checked = replace(checked, aim=aim, bars_at=confidence)
    scores.checked = checked.of(scores)
    return bars


def refuse_aim(tolerance: float, confidence: float, budget: int | None) -> None:
    """Refuse a tolerance, confidence or budget that has no meaning.

    Raises:
        ResultError: Saying what to type.
    """
    if not tolerance > 0:
        raise ResultError(
            f"tolerance={tolerance} is not above 0: only an exact effect has no error bar.\n"
            "Type the half width you accept, in units of the metric: tolerance=0.1. To check "
            "everything: estimator=hw.Exact()."
        )
    if not 0 < confidence < 1:
        raise ResultError(f"confidence={confidence} is not between 0 and 1.\nType confidence=0.9.")
    if budget is not None and budget < 1:
        raise ResultError(
            f"budget={budget}: error bars take at least one exact run.\nType budget=100, or leave "
            "it out to spend what it takes."
        )


def _checked_too(
    scores: Attribution,
    checked: Audit,
    names: list[str],
    model: Model | GatedFunction | None,
    progress: bool | None,
) -> Audit:
    """Find the exact effects of more components; return the audit with what that cost."""
    column_of = {name: column for column, name in enumerate(scores.names)}
    sets = [(column_of[name],) for name in names]
    with interventions(scores, model, progress=progress, hold=False) as exact:
        exact.runs(sets, f"{len(sets):,} wide error bars")
    return replace(checked, cost="; ".join(filter(None, [checked.cost, str(exact.cost)])))


def _aim(bars: ErrorBars, tolerance: float, runs: int, budget: int | None) -> str:
    """Return whether the tolerance is met, in words."""
    wide = [bar for bar in bars.rows if bar.half_width > tolerance]
    sure = f"{100 * bars.confidence:g} %"
    if not wide:
        return (
            f"error bars: every half width is at most {tolerance:g} at {sure}, after {runs:,} "
            "exact runs."
        )
    worst = max(wide, key=lambda bar: bar.half_width)
    width = "unknown" if math.isinf(worst.half_width) else f"{worst.half_width:.3g}"
    return (
        f"error bars: the budget of {budget:,} exact runs ended with {len(wide):,} of "
        f"{len(bars.rows):,} half widths above {tolerance:g} at {sure}; the widest is {width} "
        f"({worst.name})."
    )
