"""What a page shows, as plain dicts, and the one check that the dict is such a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from headwater.errors import ResultError, UnknownOptionError, did_you_mean


class ComponentRow(TypedDict, total=False):
    """One scored component; all but `name`, `kind` and `score` may be None or left out."""

    name: str
    kind: str
    """`token` `head` `query` `key` `value` `attention` `mixer` `channel` `ssm_head` `ssm` `conv`
    `mlp` `neuron` `residual` `feature` `error`."""
    layer: int | None
    index: int | None
    """Which one within its layer: the column of the heat map."""
    position: int | None
    """Counted from the first real token."""
    score: float
    """The estimate, averaged over prompt pairs."""
    spread: float | None
    """Standard deviation of the score over prompt pairs."""
    se: float | None
    """Standard error of the score over resampled prompt pairs."""
    ranks: str | None
    """Interval of the rank by |score| over resampled prompt pairs: `1-3`."""
    size: float | None
    """How far the gate moves the activation, relative to the residual."""
    exact: float | None
    """The exact effect; None where the audit did not look."""
    low: float | None
    """Lower end of its error bar, where it was not checked."""
    high: float | None
    stratum: str | None
    """`top` `middle` `tail`: where the audit's sample drew it from; `asked`: checked beyond it."""
    flags: list[str]


class StatisticRow(TypedDict, total=False):
    """One line of the audit's table; `value` None reads `unknown`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    words: str


class PairRow(TypedDict, total=False):
    """One prompt pair as tokens; `corrupted` None for a task without corrupted prompts."""

    clean: list[str]
    corrupted: list[str] | None
    answer: list[str]
    wrong: list[str]
    label: str
    clean_value: float | None
    corrupted_value: float | None


class CurveData(TypedDict, total=False):
    """A response curve: the metric while one gate goes from closed (0) to open (1)."""

    name: str
    metric: str
    rest: float
    """Where the gate rests: 1 at the clean end, 0 at the corrupted one."""
    pairs: int
    gates: list[float]
    values: list[float]
    """Mean over pairs at each gate value."""
    low: list[float]
    high: list[float]
    """The band in which the middle 80 % of the pairs lie."""
    tangent: float
    chord: float
    integral: float
    """Sum of weights times slopes."""
    nodes: list[float]
    weights: list[float]
    slopes: list[float]


class PageData(TypedDict, total=False):
    """Everything a page shows. `kind`, `title`, `estimator`, `metric` and `components` must be."""

    kind: str
    title: str
    headline: list[str]
    """Sentences read first: the audit in words, then what it cost."""
    warnings: list[str]
    estimator: str
    reference: str
    metric: Mapping[str, Any]
    """`name`; `sense`, to follow "the metric"; `clean` and `corrupted`, means over pairs."""
    components: list[ComponentRow]
    shown: Mapping[str, int]
    """`components` of `of`: what was kept of the scored components."""
    statistics: list[StatisticRow]
    """Empty until the result is audited."""
    worst: list[str]
    """Names of the components with the largest errors, worst first."""
    curves: list[CurveData]
    """Response curves; a point of the scatter plot that has one opens it."""
    pairs: list[PairRow]
    pairs_shown: Mapping[str, int]
    """`shown` of `of`: what was kept of the task's pairs."""
    provenance: Mapping[str, str]


KINDS = ("attribution",)
REQUIRED = ("title", "estimator", "metric", "components")


def check(data: Mapping[str, Any]) -> None:
    """Refuse a dict that is not a page, naming what is missing.

    Raises:
        UnknownOptionError: If `data["kind"]` is not a kind of page.
        ResultError: If a key that every page needs is missing.
    """
    kind = data.get("kind")
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UnknownOptionError(
            f"no page of kind {kind!r}.{hint} The kinds: {', '.join(map(repr, KINDS))}."
        )
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        raise ResultError(
            f"the page's data lacks {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, data))}. Every page needs {', '.join(map(repr, REQUIRED))}; "
            "headwater.page.schema.PageData lists the rest."
        )
