"""How large may the effect of a component still be that nobody checked? One look at subset runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.audits.again import estimator_of
from headwater.audits.checks import refuse_no_number, refuse_no_share
from headwater.audits.evidence import Evidence
from headwater.audits.interventions import interventions
from headwater.audits.known import Known, known_effects
from headwater.audits.report import Audit
from headwater.audits.subsets import Pool
from headwater.audits.words import name_list
from headwater.errors import ResultError
from headwater.gates import GatedFunction
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

TIMES = 8
"""Runs that close each component; more and smaller blocks disturb the model less than more runs."""

SPOTS = 8
"""Components, drawn at random, that are closed alone too, to see whether effects add up."""

FEWEST_BLOCKS = 3
"""A round of fewer blocks would close half of the model at once."""

SHOWN_ROWS = 5
"""Components named as those that keep the bound up."""


@dataclass(frozen=True)
class BoundRow:
    """What subset runs say of one unchecked component."""

    name: str
    score: float
    size: float
    """Its effect by the subset runs, as |mean effect| or mean |effect|."""
    error: float
    """Standard error of that; infinite if too few runs closed it."""
    upper: float
    """What its effect is below, at the bound's confidence for this component alone; the largest
    interaction seen is part of it."""
    p_value: float | None
    """Of the hypothesis that its effect is at least theta, less that interaction; None without
    theta."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Bound:
    """A bound on the effects of all unchecked components, and whether its assumption was seen
    to fail."""

    theta: float | None
    confidence: float
    smallest: float
    """The smallest theta that is bounded: no unchecked effect reaches it, at this confidence."""
    checked: int
    runs: int
    """Subset runs, and components closed alone to see whether effects add up."""
    interaction: float
    """How far effects were from adding up, at most: closing two random sets together and each
    alone, a component among others and alone. Part of every limit."""
    probes: int
    """Times that was tried."""
    magnitudes: bool
    rows: tuple[BoundRow, ...]
    """Unchecked components, the largest upper limit first."""
    cost: str = ""

    @property
    def quantity(self) -> str:
        """What is bounded, in words."""
        return quantity(self.magnitudes)

    @property
    def limit(self) -> float:
        """What is claimed: theta, or without one the smallest that can be."""
        return self.smallest if self.theta is None else self.theta

    @property
    def additive(self) -> bool:
        """Whether no interaction as large as the claim was seen."""
        return self.interaction < self.limit or not self.rows

    @property
    def holds(self) -> bool:
        """Whether no unchecked component reaches the limit, as far as the assumption goes."""
        below = self.theta is None or self.smallest < self.theta
        return not self.rows or (below and self.additive and bool(np.isfinite(self.smallest)))

    @property
    def sentence(self) -> str:
        """The bound in one line of plain words."""
        total = self.checked + len(self.rows)
        if not self.rows:
            return f"All {total:,} components were checked exactly: nothing can be missing."
        scope = f"{len(self.rows):,} of {total:,} components were not checked"
        sure = f"at {100 * self.confidence:g} % confidence"
        if not self.additive:
            return f"No bound: {scope}, and effects do not add up here. {self.assumption}"
        if self.theta is None or self.smallest < self.theta:
            return (
                f"{scope}; {sure} each has a {self.quantity} below {self.limit:.3g} "
                f"({self.runs:,} subset runs; the smallest theta they bound is "
                f"{self.smallest:.3g}). {self.assumption}"
            )
        worst = name_list([row.name for row in self.rows[:SHOWN_ROWS] if row.upper >= self.theta])
        return (
            f"Not bounded: {scope}, and one may have a {self.quantity} of {self.theta:.3g} or "
            f"more: {self.runs:,} subset runs bound it below {self.smallest:.3g} {sure}. Widest: "
            f"{worst}. Check these, or raise subsets=."
        )

    @property
    def assumption(self) -> str:
        """What the bound assumes, and how that fared, in words."""
        return assumption_words(self.interaction, self.probes, self.limit, self.quantity)

    def to_dict(self) -> dict[str, Any]:
        """Return the bound as plain data."""
        return {
            "sentence": self.sentence,
            "bounded": self.quantity,
            "theta": self.theta,
            "confidence": self.confidence,
            "smallest": self.smallest,
            "holds": self.holds,
            "additive": self.additive,
            "interaction": self.interaction,
            "probes": self.probes,
            "checked": self.checked,
            "runs": self.runs,
            "components": [row.to_dict() for row in self.rows],
            "cost": self.cost,
        }

    def __repr__(self) -> str:
        lines = [self.sentence]
        if self.rows:
            lines.append(f"{'not checked':<16}{'score':>10}{'by subsets':>12}{'below':>10}")
        lines += [
            f"{row.name:<16}{row.score:>+10.3g}{row.size:>12.3g}{row.upper:>10.3g}"
            for row in self.rows[:SHOWN_ROWS]
        ]
        if len(self.rows) > SHOWN_ROWS:
            lines.append(f"... {len(self.rows) - SHOWN_ROWS:,} more in .rows")
        return "\n".join([*lines, *([f"cost: {self.cost}"] if self.cost else [])])


def quantity(magnitudes: bool) -> str:
    """Return which size of an effect is meant, in words."""
    return "mean |effect|" if magnitudes else "|mean effect|"


def assumption_words(interaction: float, probes: int, limit: float, size: str) -> str:
    """Return what the test assumes and what was seen of it."""
    said = "This assumes that effects of unchecked components add up"
    if not probes:
        return f"{said}, which was not tried."
    tried = (
        f"in {probes} tries, two random sets closed together or a component closed alone, they "
        f"missed that by up to {interaction:.3g} ({size})"
    )
    if interaction < limit:
        return f"{said}: {tried}, which every limit includes; more was not excluded."
    return f"{said}, and that fails: {tried}, which is not below {limit:.3g}."


def blocks_of(runs: int, rounds: int) -> int:
    """Return the blocks of each round when this many runs are spent; one more closes two."""
    return runs // rounds - 1


def refuse_numbers(theta: float | None, confidence: float) -> None:
    """Refuse a theta or a confidence that has no meaning.

    Raises:
        ResultError: Saying what to type.
    """
    if theta is not None:
        refuse_no_number("theta", theta, 0.05)
    if theta is not None and theta > 0 and not np.isfinite(theta):
        raise ResultError(
            f"theta={theta}: no effect is that large, so there is nothing to verify.\n"
            "Type the smallest effect that matters to you, in units of the metric: theta=0.05."
        )
    if theta is not None and not theta > 0:
        raise ResultError(
            f"theta={theta} is not above 0: an effect of any size is at least that large.\n"
            "Type the smallest effect that matters to you, in units of the metric: theta=0.05."
        )
    refuse_no_share("confidence", confidence, 0.95)


def bound(
    scores: Attribution,
    audit: Audit,
    theta: float | None = None,
    *,
    confidence: float = 0.95,
    subsets: int = 72,
    seed: int = 0,
    magnitudes: bool | None = None,
    model: Model | GatedFunction | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Bound:
    """Bound what an audit may have missed; see `Audit.bound`."""
    refuse_numbers(theta, confidence)
    if magnitudes is None:
        magnitudes = estimator_of(scores).magnitudes
    known = known_effects(scores, audit, magnitudes)
    members = [column for column in range(len(scores.names)) if column not in known]
    evidence, cost, runs = Evidence(magnitudes), "", 0
    measured: dict[int, np.ndarray] = {}
    if members:
        with interventions(scores, model, batch_size=batch_size, progress=progress) as exact:
            pool = Pool(len(scores.names), exact.table)
            rounds = TIMES * pool.depth(members)
            blocks = blocks_of(subsets - SPOTS, rounds)
            if blocks < FEWEST_BLOCKS:
                least = rounds * (FEWEST_BLOCKS + 1) + SPOTS
                raise ResultError(
                    f"subsets={subsets} is too few: {rounds} rounds of at least {FEWEST_BLOCKS} "
                    f"sets and a union each, and {SPOTS} components closed alone, take {least}.\n"
                    f"Type subsets={least} or more."
                )
            generator = np.random.Generator(np.random.PCG64([seed, 2]))
            dealt = [pool.deal(members, blocks, generator) for _ in range(rounds)]
            wanted = list(dict.fromkeys(run for r in dealt for run in r.runs if run))
            spots = generator.permutation(members)[: min(SPOTS, len(members) // 2)].tolist()
            lost = exact.closed(wanted, f"{len(wanted)} subset runs")
            alone = exact.runs([(column,) for column in spots], f"{len(spots)} closed alone")
            cost, runs = str(exact.cost), len(wanted) + exact.fresh
        by_set = dict(zip(wanted, lost.T, strict=True))
        for one in dealt:
            evidence.add(one, by_set)
        measured = {column: effect for (column,), effect in alone.items()}
        known |= {column: Known.of(effect, magnitudes) for column, effect in measured.items()}
        members = [column for column in members if column not in known]
    return _judged(scores, evidence, known, measured, members, theta, confidence, runs, cost)


def _judged(
    scores: Attribution,
    evidence: Evidence,
    known: dict[int, Known],
    measured: dict[int, np.ndarray],
    members: list[int],
    theta: float | None,
    confidence: float,
    runs: int,
    cost: str,
) -> Bound:
    rows: list[BoundRow] = []
    if members:
        found, upper = evidence.limits(scores, known, measured, 1 - confidence)
        p = None if theta is None else found.p_values(theta - evidence.interaction)
        mean, names = scores.mean().tolist(), scores.names
        for column in sorted(members, key=lambda column: -upper[column]):
            rows.append(
                BoundRow(
                    names[column],
                    mean[column],
                    float(found.size[column]),
                    float(found.error[column]),
                    float(upper[column]),
                    None if p is None else float(p[column]),
                )
            )
    return Bound(
        theta=theta,
        confidence=confidence,
        smallest=max((row.upper for row in rows), default=0.0),
        checked=len(known),
        runs=runs,
        interaction=evidence.interaction,
        probes=evidence.probes,
        magnitudes=evidence.magnitudes,
        rows=tuple(rows),
        cost=cost,
    )
