"""All ground-truth models on one screen: the worst ratio of score to effect of each estimator."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from headwater.estimators import (
    AtPStar,
    Estimator,
    Gradient,
    IntegratedGradients,
    SecondOrder,
    Shapley,
    Trapezoid,
)
from headwater.zoo.truths.comparison import Comparison, Result, compare
from headwater.zoo.truths.rendering import number
from headwater.zoo.truths.truth import Truth

COLUMNS: dict[str, Estimator] = {
    "gradient": Gradient(),
    "second order": SecondOrder("exact"),
    "atp-star fixes": AtPStar(grad_drop=False),
    "atp-star": AtPStar(),
    "ig component": IntegratedGradients("component"),
    "ig family*": IntegratedGradients(),
    "trapezoid*": Trapezoid(),
    "shapley*": Shapley(),
}
"""What the overview shows; one of each clean-end estimator whose scores are effects."""

LEGEND = (
    "Each estimator's worst score on a model over the exact effect there: 1 would be right, 2 is "
    "twice too large, -1 the wrong sign. right: all within 1 %. phantom: a score where the effect "
    "is 0. -: refused. *: not meant as effects of single components, but as shares of closing many."
)


def comparisons(truths: Sequence[Truth]) -> list[Comparison]:
    """Run on each model what has a closed form there, and what the overview shows."""
    return [
        compare(one, list(dict.fromkeys([*one.expected, *one.refused, *COLUMNS.values()])))
        for one in truths
    ]


def overview(found: Sequence[Comparison]) -> RenderableType:
    """Return the models with what they show, and the table of worst ratios."""
    listed = Table(box=None, pad_edge=False, header_style="bold")
    listed.add_column("model", no_wrap=True)
    listed.add_column("what it shows")
    ratios = Table(box=None, pad_edge=False, header_style="bold")
    ratios.add_column("worst ratio", no_wrap=True)
    for heading in COLUMNS:
        ratios.add_column(heading, justify="right", min_width=7)
    for comparison in found:
        truth = comparison.truth
        listed.add_row(truth.name, escape(truth.shows))
        by_estimator = {result.estimator: result for result in comparison.results}
        ratios.add_row(truth.name, *(worst_ratio(by_estimator[e]) for e in COLUMNS.values()))
    wrong = [comparison.truth.name for comparison in found if not comparison.agrees]
    last = (
        f"[bold red]not every number is its closed form: {', '.join(wrong)}[/]"
        if wrong
        else "Every number with a closed form is its closed form."
    )
    return Group(
        listed, "", ratios, "", LEGEND, last, "One in full: headwater zoo saturated-softmax"
    )


def worst_ratio(result: Result) -> str:
    """Return the ratio of the worst score to the exact effect, or a word."""
    if result.refusal:
        return "-"
    if result.worst is None:
        return "right"
    if result.worst.verdict == "should be 0":
        return "phantom"
    assert result.worst.exact is not None
    ratio = result.worst.score / result.worst.exact
    return "0" if abs(ratio) < 1e-6 else number(float(f"{ratio:.3g}"))
