"""The estimator that picks one: by what is scored, by the reference, and by what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from headwater.errors import MissingCapabilityError, UnknownOptionError
from headwater.estimators.atp_star import AtPStar
from headwater.estimators.estimator import Estimate, Estimator
from headwater.estimators.exact import Exact
from headwater.estimators.gradient import Gradient
from headwater.estimators.integrated import IntegratedGradients
from headwater.estimators.second_order import SecondOrder
from headwater.gates import ATTENTION, INPUT_PATH, Family, GatedFunction

INSIDE_SOFTMAX = ("query", "key")
"""Kinds that act through a softmax: the input path does not repair them."""
SMALL = ("neuron", "channel")
"""Kinds of which a layer holds hundreds: each changes little alone, so its effect is nearly a
parabola in its gate, while closing all of a layer together is another world."""
PROBES = (16, 8)
"""Probes of the curvature, the better choice first."""
LARGEST_CORRECTION = 1.15
"""Times the gradient's norm by which the second order may correct it. Of 26 measured cases
(`benchmarks/second_order.md`) one beyond it, 3.9, was six times worse than the gradient; of those
within it 24 were better, and one, at 1.1, was four times worse: no threshold tells all of them."""
POINTS = (8, 4)
"""Points on a family's path, the better choice first."""
INPUT_POINTS = 10
"""Points on the path of the layer-0 input."""


DOUBTED = 5.0
"""Where slopes are doubtful, exact effects may cost this many times the budget."""


@dataclass(frozen=True)
class Auto(Estimator):
    """Pick the most accurate estimator that fits a budget, kind by kind, and say which and why.

    In this order, as measured on trained models (median relative error over seven behaviors in
    `benchmarks/accuracy.md`): `Exact` where it costs no more than the best estimate or fits; for
    neurons and channels `SecondOrder`, for other kinds `IntegratedGradients(path="family")`; for
    all but queries and keys, with the corrupted prompts as reference,
    `IntegratedGradients(path="inputs")`; `AtPStar(grad_drop=False)` for queries and keys;
    `Gradient`.
    """

    budget: float = 100.0
    """Most passes a pair, in forwards, beyond the reference's run; a backward counts as two."""

    name: ClassVar[str] = "auto"
    estimand: ClassVar[str] = "each component alone, by intervention"

    def __post_init__(self) -> None:
        if not self.budget >= 4:
            raise UnknownOptionError(
                f"budget={self.budget}: the cheapest estimate takes 4 passes a pair.\n"
                "Type budget=100, or hw.Gradient()."
            )

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return scores, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return scores by the picked estimators, and in `notes` what was picked and why."""
        by_kind: dict[str, list[Family]] = {}
        for family in function.families:
            by_kind.setdefault(family.kind, []).append(family)
        scores = function.gates()[0].zero_()
        notes: list[str] = []
        exact: list[int] = []
        # what is left is split evenly among the kinds that are still to come
        left = self.budget
        for done, (kind, families) in enumerate(by_kind.items()):
            picked, cost, why = _pick(function, kind, families, left / (len(by_kind) - done))
            left -= cost
            part = function if len(by_kind) == 1 else function.only(families)
            found = picked.estimate(part) if not isinstance(picked, SecondOrder) else None
            if found is None:
                found, picked, why = _second_order(part, picked, why)
            columns = [column for family in families for column in family.columns]
            scores[:, columns] = found.scores.to(scores)
            exact += [columns[place] for place in found.exact]
            notes += [f"{_plural(kind)} scored by {_described(picked)}: {why}.", *found.notes]
            if picked.uses_slopes and function.doubt:
                notes.append(function.doubt)
        return Estimate(scores, exact=tuple(exact), notes=tuple(dict.fromkeys(notes)))

    @property
    def uses_slopes(self) -> bool:
        """It says so itself, of the kinds that it scores by slopes."""
        return False

    def forwards(self, shares: Sequence[float]) -> float:
        """At most the budget."""
        return min(self.budget, 1.0 + sum(shares))


def _second_order(
    function: GatedFunction, picked: Estimator, why: str
) -> tuple[Estimate, Estimator, str]:
    """Return the second-order scores if they can be trusted, else those of first order.

    Where a correction outweighs the gradient, the effect is no parabola in its gate, and the
    correction is the larger part of the error.
    """
    gradient = Gradient().estimate(function)
    try:
        found = picked.estimate(function)
    except MissingCapabilityError:  # a step that cannot be differentiated twice
        return gradient, Gradient(), f"{why}, and hw.SecondOrder() cannot run here; audit these"
    slopes = gradient.scores.mean(0)
    share = float((found.scores.mean(0) - slopes).norm() / slopes.norm().clamp(min=1e-30))
    if share <= LARGEST_CORRECTION:
        return found, picked, why
    return (
        gradient,
        Gradient(),
        f"{why}, and the second order would correct the gradient by {share:.1f} times its size, so "
        "effects are no parabolas here; audit these",
    )


def _pick(
    function: GatedFunction, kind: str, families: Sequence[Family], budget: float
) -> tuple[Estimator, float, str]:
    """Return the best estimator of one kind within a budget, its cost, and the reason."""
    exact = 1.0 + sum(len(family.columns) * family.share for family in families)
    each = sum(family.share for family in families)
    if function.doubt and exact <= DOUBTED * budget:
        return Exact(), exact, f"slopes say little here; exact effects cost {exact:.3g} forwards"
    if exact <= budget or exact <= _along_families(each, POINTS[-1]):
        return Exact(), exact, f"exact effects cost {exact:.3g} forwards a pair"
    dear = f"exact effects would cost {exact:,.0f} forwards a pair"
    if kind in SMALL:
        for probes in PROBES:
            cost = 3.0 + 4 * probes
            if cost <= budget:
                return SecondOrder(probes=probes), cost, dear
        return Gradient(), 4.0, f"{dear}, second order {3 + 4 * PROBES[-1]}; audit these"
    for points in POINTS:
        cost = _along_families(each, points)
        if cost <= budget:
            return IntegratedGradients(steps=points), cost, dear
    dearer = f"{dear}, integrating family by family {_along_families(each, POINTS[-1]):.0f}"
    if kind not in INSIDE_SOFTMAX and INPUT_PATH in function.capabilities:
        cost = 1.0 + 3 * INPUT_POINTS
        if cost <= budget:
            path = IntegratedGradients(path="inputs", rule="midpoint", steps=INPUT_POINTS)
            return path, cost, dearer
    if kind in INSIDE_SOFTMAX and ATTENTION in function.capabilities:
        return AtPStar(grad_drop=False), 4.0, f"{dearer}; audit these"
    return Gradient(), 4.0, f"{dearer}; a ranking at best, audit these"


def _along_families(share: float, points: int) -> float:
    """What integrating along the families' paths costs, in forwards."""
    return 1.0 + share * (1 + 3 * points)


def _described(picked: Estimator) -> str:
    """Return an estimator as it is written, with the options that are not its defaults."""
    usual = type(picked)()
    options = ", ".join(
        f"{field.name}={getattr(picked, field.name)!r}"
        for field in fields(picked)
        if getattr(picked, field.name) != getattr(usual, field.name)
    )
    return f"hw.{type(picked).__name__}({options})"


def _plural(kind: str) -> str:
    return {"query": "queries"}.get(kind, f"{kind}s")
