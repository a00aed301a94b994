"""The estimator that picks one: by what is scored, by the reference, and by what it may cost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import MissingCapabilityError, UnknownOptionError
from headwater.estimators.atp_star import AtPStar
from headwater.estimators.choices import is_number
from headwater.estimators.estimator import ALONE, Estimate, Estimator, Gaps
from headwater.estimators.exact import Exact
from headwater.estimators.gradient import Gradient
from headwater.estimators.integrated import IntegratedGradients
from headwater.estimators.second_order import Parabola, SecondOrder
from headwater.gates import ATTENTION, INPUT_PATH, Family, GatedFunction
from headwater.progress import progress_bar

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
    `Gradient`. Where the gradient is zero by construction (KL to the clean run) the last two are
    left out, and `SecondOrder` stands in their place.

    Three rules bend this order:

    - The second order is not trusted where it would correct the gradient by more than 1.15 times
      the gradient's size, in the mean over all pairs: the effect is no parabola in its gate then,
      and `Gradient` is taken instead.
    - With a zero reference in a pre-norm model slopes say little, so exact effects may cost five
      times the budget.
    - Every kind gets some estimate, however small the budget is.

    What is picked is the same for every pair, whatever the batch size. Picking runs the reference
    of the first batch once more. The second order is computed for all batches before it is
    trusted; what was found is kept until it is asked for, which takes as much memory as the scores
    themselves and one more run each of the reference and of the clean prompts.
    """

    budget: float = 100.0
    """Passes a pair to stay within, in forwards, beyond the reference's run; a backward counts as
    two. Kinds share it evenly. The rules above may exceed it."""

    name: ClassVar[str] = "auto"
    estimand: ClassVar[str] = ALONE

    def __post_init__(self) -> None:
        if not (is_number(self.budget) and self.budget >= 4):
            raise UnknownOptionError(
                f"budget={self.budget!r} is no number from 4 on: the cheapest estimate takes 4 "
                "passes a pair.\nType budget=100, or hw.Gradient()."
            )

    def fitted(
        self, functions: Iterable[GatedFunction], *, progress: bool | None = False
    ) -> FittedAuto:
        """Pick once for all batches: by the first one, and the second order by what all say."""
        first = next(iter(functions))
        parts = self._parts(first)
        trials = [_Trial(part) for part in parts if isinstance(part.estimator, SecondOrder)]
        if not trials:
            return FittedAuto(self, parts)
        examples = first.batch * length_hint(functions, 1)
        del first  # its off values need not be held through all the others
        batches: list[tuple[int, ...]] = []
        with progress_bar("second order, to be judged", examples, show=progress) as advance:
            for function in functions:
                for trial in trials:
                    trial.see(function)
                batches.append(tuple(function.pairs))
                advance(function.batch)
        kept: dict[tuple[str, tuple[int, ...]], deque[Estimate]] = {}
        decided: dict[str, Part] = {}
        for trial in trials:
            decided[trial.part.kind], found = trial.outcome()
            for pairs, estimate in zip(batches, found, strict=False):
                kept.setdefault((trial.part.kind, pairs), deque()).append(estimate)
        return FittedAuto(self, [decided.get(part.kind, part) for part in parts], kept)

    def _parts(self, function: GatedFunction) -> list[Part]:
        """Pick an estimator for each kind."""
        by_kind: dict[str, list[Family]] = {}
        for family in function.families:
            by_kind.setdefault(family.kind, []).append(family)
        parts: list[Part] = []
        # what is left is split evenly among the kinds that are still to come
        left = self.budget
        for done, (kind, families) in enumerate(by_kind.items()):
            picked, cost, why = _pick(function, kind, families, left / (len(by_kind) - done))
            left -= cost
            columns = [column for family in families for column in family.columns]
            if len(by_kind) == 1:  # the whole function then, in its own order
                columns = list(range(len(function.names)))
            parts.append(Part(kind, tuple(families), tuple(columns), picked, why))
        return parts

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return scores by what is picked on this batch alone, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return scores by what is picked on this batch alone, and in `notes` what and why."""
        return self.fitted([function]).estimate(function)

    @property
    def uses_slopes(self) -> bool:
        """It says so itself, of the kinds that it scores by slopes."""
        return False

    def forwards(self, families: Sequence[Family]) -> float:
        """At most, before it is known what is picked: those of exact effects, kind by kind."""
        kinds = len({family.kind for family in families})
        return 1.0 + kinds + sum(family.one_by_one for family in families)


@dataclass(frozen=True)
class Part:
    """The components of one kind, what scores them, and why."""

    kind: str
    families: tuple[Family, ...]
    columns: tuple[int, ...]
    estimator: Estimator
    why: str

    def of(self, function: GatedFunction) -> GatedFunction:
        """Return a function's gates of this kind only."""
        whole = len(self.columns) == len(function.names)
        return function if whole else function.only(self.families)

    @property
    def plural(self) -> str:
        """What its components are called."""
        return {"query": "queries"}.get(self.kind, f"{self.kind}s")

    @property
    def note(self) -> str:
        """What was picked, and why."""
        return f"{self.plural} scored by hw.{self.estimator}: {self.why}."


@dataclass(frozen=True, eq=False)
class FittedAuto(Estimator):
    """What `Auto` picked for a task."""

    settings: Auto
    parts: Sequence[Part]
    kept: dict[tuple[str, tuple[int, ...]], deque[Estimate]] = field(default_factory=dict)
    """Estimates that picking brought along, by kind and pairs, one for each draw of off values in
    their order; each is handed out once."""

    name: ClassVar[str] = Auto.name
    estimand: ClassVar[str] = Auto.estimand

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return scores by the picked estimators, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return scores by the picked estimators, with all that these know of them."""
        scores = function.gates()[0].zero_()
        errors: Tensor | None = None
        exact: list[int] = []
        notes: list[str] = []
        found: list[Estimate] = []
        for part in self.parts:
            waiting = self.kept.get((part.kind, tuple(function.pairs)))
            one = waiting.popleft() if waiting else part.estimator.estimate(part.of(function))
            found.append(one)
            columns = list(part.columns)
            scores[:, columns] = one.scores.to(scores)
            if one.errors is not None:
                errors = torch.zeros_like(scores) if errors is None else errors
                errors[:, columns] = one.errors.to(scores)
            exact += [columns[place] for place in one.exact]
            notes += [part.note, *one.notes]
            if part.estimator.uses_slopes and function.doubt:
                notes.append(function.doubt)
        return Estimate(
            scores,
            errors=errors,
            gaps=_joined(self.parts, found),
            exact=tuple(exact),
            notes=tuple(dict.fromkeys(notes)),
        )

    @property
    def uses_slopes(self) -> bool:
        """As for `Auto`."""
        return self.settings.uses_slopes

    def forwards(self, families: Sequence[Family]) -> float:
        """Those of the picked estimators, and the clean run where none has run the whole."""
        kept = {kind for kind, _ in self.kept}
        run = [p.estimator.forwards(p.families) for p in self.parts if p.kind not in kept]
        return sum(run) + (len(self.parts) > 1 or not run)

    def to_dict(self) -> dict[str, Any]:
        """Return what it was asked for."""
        return self.settings.to_dict()


class _Trial:
    """The second order of one kind, until every batch has been seen."""

    def __init__(self, part: Part) -> None:
        assert isinstance(part.estimator, SecondOrder)
        self.part, self.estimator = part, part.estimator
        self.found: list[Parabola] = []
        self.flat = False
        """Whether the gradient is zero by construction, and nothing to measure by."""
        self.refused = False
        """Whether a step of the function has no second derivative."""

    def see(self, function: GatedFunction) -> None:
        """Compute it for one batch."""
        self.flat = _is_flat(function)
        if self.refused:
            return
        try:
            found = self.estimator.parabola(self.part.of(function))
        except MissingCapabilityError:
            self.refused = True
            self.found.clear()
        else:
            self.found.append(_on_cpu(found))

    def outcome(self) -> tuple[Part, list[Estimate]]:
        """Return what scores this kind after all, and what is known of each batch already."""
        why = self.part.why
        if self.refused:
            # of the first order nothing but an integral sees anything where gradients are 0
            instead = IntegratedGradients(steps=POINTS[-1]) if self.flat else Gradient()
            why = f"{why}, and hw.SecondOrder() cannot run here; audit these"
            return replace(self.part, estimator=instead, why=why), []
        share = self._correction()
        if self.flat or share <= LARGEST_CORRECTION:
            return self.part, [
                Estimate(one.slopes + one.correction, one.errors) for one in self.found
            ]
        why = (
            f"{why}, and the second order would correct the gradient by {share:.1f} times its "
            "size, so effects are no parabolas here; audit these"
        )
        first_order = replace(self.part, estimator=Gradient(), why=why)
        return first_order, [Estimate(one.slopes) for one in self.found]

    def _correction(self) -> float:
        """Return the norm of the mean correction over that of the mean gradient.

        Where it outweighs the gradient, the effect is no parabola in its gate, and the correction
        is the larger part of the error. A gradient of exactly 0 is no measure: 0 then.
        """
        slopes, correction = (
            torch.cat(terms).double().mean(0).norm()
            for terms in (
                [one.slopes for one in self.found],
                [one.correction for one in self.found],
            )
        )
        return float(correction / slopes) if slopes > 0 else 0.0


def _on_cpu(found: Parabola) -> Parabola:
    errors = None if found.errors is None else found.errors.cpu()
    return Parabola(found.slopes.cpu(), found.correction.cpu(), errors)


def _joined(parts: Sequence[Part], found: Sequence[Estimate]) -> Gaps | None:
    """Return the gaps of all estimates; names that come twice are told apart by kind."""
    gaps = [
        (part, name, values)
        for part, one in zip(parts, found, strict=True)
        if one.gaps is not None
        for name, values in zip(one.gaps.names, one.gaps.values.unbind(1), strict=True)
    ]
    if not gaps:
        return None
    count = Counter(name for _, name, _ in gaps)
    names = [name if count[name] == 1 else f"{part.plural}: {name}" for part, name, _ in gaps]
    return Gaps(tuple(names), torch.stack([values for *_, values in gaps], 1))


def _pick(
    function: GatedFunction, kind: str, families: Sequence[Family], budget: float
) -> tuple[Estimator, float, str]:
    """Return the best estimator of one kind within a budget, its cost, and the reason."""
    exact = 1.0 + sum(family.one_by_one for family in families)
    each = sum(family.share for family in families)
    if function.doubt and exact <= DOUBTED * budget:
        return Exact(), exact, f"slopes say little here; exact effects cost {exact:.3g} forwards"
    if exact <= budget or exact <= _along_families(each, POINTS[-1]):
        return Exact(), exact, f"exact effects cost {exact:.3g} forwards a pair"
    dear = f"exact effects would cost {exact:,.0f} forwards a pair"
    if kind in SMALL:
        for probes in PROBES:
            if _curved(probes) <= budget:
                return SecondOrder(probes=probes), _curved(probes), dear
        return _cheapest(function, kind, f"{dear}, second order {_curved(PROBES[-1]):.0f}")
    for points in POINTS:
        cost = _along_families(each, points)
        if cost <= budget:
            return IntegratedGradients(steps=points), cost, dear
    dearer = f"{dear}, integrating family by family {_along_families(each, POINTS[-1]):.0f}"
    if kind not in INSIDE_SOFTMAX and INPUT_PATH in function.capabilities:
        cost = 2.0 + 3 * INPUT_POINTS
        if cost <= budget:
            path = IntegratedGradients(path="inputs", rule="midpoint", steps=INPUT_POINTS)
            return path, cost, dearer
    return _cheapest(function, kind, dearer)


def _cheapest(function: GatedFunction, kind: str, dear: str) -> tuple[Estimator, float, str]:
    """Return what is left where nothing better fits; it may exceed the budget."""
    if _is_flat(function):
        why = f"{dear}, and a gradient is 0 by construction; audit these"
        return SecondOrder(probes=PROBES[-1]), _curved(PROBES[-1]), why
    if kind in INSIDE_SOFTMAX and ATTENTION in function.capabilities:
        return AtPStar(grad_drop=False), 4.0, f"{dear}; audit these"
    little = "" if kind in SMALL else "a ranking at best, "
    return Gradient(), 4.0, f"{dear}; {little}audit these"


def _is_flat(function: GatedFunction) -> bool:
    """Return whether every gradient at rest is zero by construction."""
    return function.end in function.stationary


def _along_families(share: float, points: int) -> float:
    """What integrating along the families' paths costs, in forwards."""
    return 1.0 + share * (1 + 3 * points)


def _curved(probes: int) -> float:
    """What the second order costs, in forwards, with the runs that trying it adds."""
    return 2.0 + 3 + 4 * probes
