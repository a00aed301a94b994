"""What an audit says where scores estimate something else than closing each component alone."""

from __future__ import annotations

from dataclasses import replace

from headwater.audits.report import Audit
from headwater.audits.words import checked_words
from headwater.estimators import Estimator

SIZED = ("slope", "relative error")
"""Figures that compare sizes."""
NO_SIZE = "undefined: the scores are no effects in units of the metric"


def about_estimand(checked: Audit, estimator: Estimator) -> Audit:
    """Return the audit with its words changed where the estimand is not leave-one-out."""
    if not estimator.are_effects:
        return _ranking_only(checked, estimator)
    if estimator.leaves_one_out:
        return checked
    return replace(
        checked,
        agreement=f"{checked.agreement} The estimand of these scores is another "
        f"({estimator.estimand}); they are compared here with closing each component alone.",
    )


def _ranking_only(checked: Audit, estimator: Estimator) -> Audit:
    """Keep of an audit what does not depend on size."""
    figures = tuple(
        replace(figure, value=None, low=None, high=None, words=NO_SIZE)
        if figure.name in SIZED
        else figure
        for figure in checked.figures
    )
    shown = [checked.statistic("rho").brief, checked.recall.brief]
    return replace(
        checked,
        agreement=f"{checked_words(checked.counts)}: {', '.join(shown)}. The estimand of these "
        f"scores is another ({estimator.estimand}); they are ranked here against closing each "
        "component alone, and have no size to compare.",
        verdict="These scores say what to keep together, not how large effects are: judge the kept "
        "set by its faithfulness, scores.trained_circuit.",
        figures=figures,
        rows=tuple(
            replace(row, flags=tuple(flag for flag in row.flags if "off by" not in flag))
            for row in checked.rows
        ),
    )
