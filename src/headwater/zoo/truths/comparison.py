"""Every estimator on one ground-truth model, beside its closed form and the exact effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headwater.errors import HeadwaterError
from headwater.estimators import ESTIMATORS, Estimator, Exact, TrainedMask
from headwater.gates import End
from headwater.zoo.truths.rendering import as_text
from headwater.zoo.truths.truth import Truth
from headwater.zoo.truths.verdicts import badness, verdict_of

CLOSE = 1e-9
"""How near a number must come to its closed form, relative to it or to 1."""
SHORTER: dict[type[Estimator], Estimator] = {TrainedMask: TrainedMask(steps=100)}
"""Instances that stand for a kind where its default takes long."""


@dataclass(frozen=True)
class Cell:
    """One score: of one component on one example."""

    example: str
    component: str
    score: float
    exact: float | None
    """The effect by intervention at the estimator's end; None where it does not exist."""
    expected: float | None
    """The closed form; None where none is written down."""
    agrees: bool
    """Whether the score is its closed form."""
    verdict: str


@dataclass(frozen=True, eq=False)
class Result:
    """What one estimator gives on a ground-truth model."""

    estimator: Estimator
    cells: tuple[Cell, ...] = field(default=(), repr=False)
    refusal: str = ""
    """Why it cannot run here."""
    as_foreseen: bool = True
    """Whether it was refused if it had to be, and only then."""
    other_question: str = ""
    """What it estimates, where that is not each component's own effect."""
    worst: Cell | None = None
    """The score furthest from the effect; None if all are right."""

    @property
    def agrees(self) -> bool:
        """Whether every score is its closed form, and what should be refused is."""
        return self.as_foreseen and all(cell.agrees for cell in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return every number as plain data."""
        shown = {
            "estimator": self.estimator.to_dict(),
            "label": str(self.estimator),
            "estimand": self.estimator.estimand,
            "agrees": self.agrees,
        }
        if self.refusal:
            return {**shown, "refusal": self.refusal}
        worst = "right" if self.worst is None else self.worst.verdict
        cells = [{f.name: getattr(cell, f.name) for f in fields(cell)} for cell in self.cells]
        return {**shown, "worst": worst, "scores": cells}


@dataclass(frozen=True, eq=False)
class Measured:
    """A fact beside what was measured."""

    name: str
    expected: Float[Tensor, "..."]
    measured: Float[Tensor, "..."]

    @property
    def agrees(self) -> bool:
        """Whether the measurement is the closed form."""
        allowed = CLOSE * self.expected.abs().clamp(min=1)
        return bool(((self.measured - self.expected).abs() <= allowed).all())

    def to_dict(self) -> dict[str, Any]:
        """Return both as plain data."""
        both = {"expected": self.expected.tolist(), "measured": self.measured.tolist()}
        return {"name": self.name, "agrees": self.agrees, **both}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimators on one ground-truth model; prints as a table."""

    truth: Truth
    results: tuple[Result, ...]
    facts: tuple[Measured, ...]

    @property
    def agrees(self) -> bool:
        """Whether every number is its closed form."""
        return all(result.agrees for result in self.results) and all(
            fact.agrees for fact in self.facts
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every number as plain data."""
        return {
            "name": self.truth.name,
            "shows": self.truth.shows,
            "formulas": list(self.truth.formulas),
            "agrees": self.agrees,
            "results": [result.to_dict() for result in self.results],
            "facts": [fact.to_dict() for fact in self.facts],
        }

    def __repr__(self) -> str:
        return as_text(self)


def compare(truth: Truth, estimators: Sequence[Estimator] | None = None) -> Comparison:
    """Run estimators on a ground-truth model.

    Args:
        truth: The model.
        estimators: Which; by default `every_estimator(truth)`.
    """
    asked = every_estimator(truth) if estimators is None else estimators
    ends: set[End] = {estimator.end for estimator in asked}
    exact = {end: _exact(truth, end) for end in ends}
    return Comparison(
        truth,
        tuple(_result(truth, estimator, exact[estimator.end]) for estimator in asked),
        tuple(Measured(fact.name, fact.expected, fact.measure()) for fact in truth.facts),
    )


def every_estimator(truth: Truth) -> list[Estimator]:
    """Return those with a closed form, then one of each other kind the library has."""
    known: list[Estimator] = [*truth.expected, *truth.refused]
    others = [kind for kind in ESTIMATORS.values() if not any(type(one) is kind for one in known)]
    return known + [SHORTER[kind] if kind in SHORTER else kind() for kind in others]


def _exact(truth: Truth, end: End) -> Tensor | None:
    try:
        return truth.attribute(Exact(at=end)).scores
    except HeadwaterError:
        return None  # shown as a result of its own


def _result(truth: Truth, estimator: Estimator, exact: Tensor | None) -> Result:
    foreseen = truth.refused.get(estimator)
    try:
        scores = truth.attribute(estimator).scores
    except HeadwaterError as error:
        right_error = foreseen is None or isinstance(error, foreseen)
        return Result(
            estimator,
            refusal=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            as_foreseen=right_error and estimator not in truth.expected,
        )
    # of one component, all together are that one; a magnitude is another question even so
    same = estimator.leaves_one_out or len(truth.names) == 1
    other = estimator.magnitudes or not same
    cells = tuple(_cells(truth, estimator, scores, exact))
    return Result(
        estimator,
        cells,
        as_foreseen=foreseen is None,
        other_question=estimator.estimand if other else "",
        worst=None if exact is None else _worst(estimator, cells),
    )


def _cells(
    truth: Truth, estimator: Estimator, scores: Tensor, exact: Tensor | None
) -> Iterator[Cell]:
    closed_form = truth.expected.get(estimator)
    for row, example in enumerate(truth.examples):
        scale = 0.0 if exact is None else float(exact[row].abs().max())
        for column, name in enumerate(truth.names):
            score = float(scores[row, column])
            effect = None if exact is None else float(exact[row, column])
            expected = None if closed_form is None else float(closed_form[row, column])
            yield Cell(
                example,
                name,
                score,
                effect,
                expected,
                expected is None or _is_close(estimator, score, expected),
                verdict_of(estimator, score, effect, scale),
            )


def _is_close(estimator: Estimator, score: float, expected: float) -> bool:
    # an estimator that was told a tolerance may use it
    told = getattr(estimator, "tolerance", None) or 0.0
    return abs(score - expected) <= max(told, CLOSE * max(1.0, abs(expected)))


def _worst(estimator: Estimator, cells: Sequence[Cell]) -> Cell | None:
    worst = max(cells, key=lambda cell: badness(estimator, cell.score, cell.exact, cell.verdict))
    return None if worst.verdict in ("right", "kept", "closed") else worst
