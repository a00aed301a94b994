"""Check components exactly until nothing above theta can be missing among the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headwater.audits.again import estimator_of
from headwater.audits.bound import SPOTS, refuse_numbers
from headwater.audits.evidence import Evidence
from headwater.audits.interventions import Interventions, interventions
from headwater.audits.known import Known, known_effects, signed_estimates
from headwater.audits.plan import LOOKS, Plan
from headwater.audits.subsets import Pool
from headwater.audits.verification import Attempt, Look, Outcome, Verification, VerifiedRow
from headwater.errors import ResultError
from headwater.gates import GatedFunction
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


def verify(
    scores: Attribution,
    *,
    theta: float,
    confidence: float = 0.95,
    budget: int = 200,
    model: Model | GatedFunction | None = None,
    magnitudes: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> Verification:
    """Check components until no other one can reach theta, or the budget ends; says which.

    Half of the budget checks components exactly, in the order of the estimate. The other half
    closes random subsets of those not checked, and Welch's test bounds each of their effects
    (AtP*, arXiv 2403.00745, diagnostics). There are three looks, declared in advance, and each has
    a third of the error rate, so that stopping at the first that succeeds stays valid. One look's
    claim is about the largest unchecked effect, so it needs no correction for their number
    (intersection-union: it is wrong only if the test is wrong for that one component). It assumes
    that effects of unchecked components add up. To see whether they do, two random sets are closed
    together in every round, and in every stage a few components, drawn at random, are closed
    alone. The largest miss is added to every limit, and where it reaches theta nothing is claimed.

    Args:
        scores: The result of `hw.attribute`, or one read back from a folder. What its audit found
            exactly is not run again and costs no budget.
        theta: The smallest effect that matters, in units of the metric.
        confidence: That the claim is right.
        budget: Exact runs in all, those of an earlier verify of `out` among them: components
            checked and subsets, each over all pairs.
        model: Needed when the result no longer has its model.
        magnitudes: Whether mean |effect| over pairs is bounded, instead of |mean effect|; by
            default what the scores estimate.
        seed: Of the subsets.
        batch_size: Most pairs in a forward; by default as in the estimate.
        progress: True, False, or None to show a bar only on a terminal.
        out: The run's folder: runs made there earlier are not made again, and what is found is
            written to `verify.json`.

    Returns:
        The verification, in words and rows.

    Raises:
        ResultError: If theta, confidence or budget are out of range.
        ModelGoneError: If the model is gone and none was given.
        RunFolderError: If `out` holds another run, or a broken ledger.
    """
    refuse_numbers(theta, confidence)
    if theta is None:
        raise ResultError(
            "theta=None: what is not to be missed has a size.\nType the smallest effect that "
            "matters to you, in units of the metric: theta=0.05."
        )
    if not isinstance(budget, int) or budget < 1:
        raise ResultError(
            f"budget={budget}: verifying takes at least one exact run.\nType budget=200."
        )
    if magnitudes is None:
        magnitudes = estimator_of(scores).magnitudes
    with scores.kept_in(out):
        verifier = _Verifier(scores, theta, confidence, budget, magnitudes, seed)
        if verifier.unknown:
            with interventions(scores, model, batch_size=batch_size, progress=progress) as exact:
                verifier.run(exact)
        scores.extras.verification = found = verifier.result()
    return found


class _Verifier:
    """The procedure: stages of checks and subset runs, each followed by a look."""

    def __init__(
        self,
        scores: Attribution,
        theta: float,
        confidence: float,
        budget: int,
        magnitudes: bool,
        seed: int,
    ) -> None:
        self.scores, self.theta, self.confidence = scores, theta, confidence
        self.budget, self.seed = budget, seed
        self.known = known_effects(scores, scores.checked, magnitudes, chosen=False)
        self.known_before = len(self.known)
        strength = np.abs(signed_estimates(scores, magnitudes))
        order = np.argsort(-strength, kind="stable").tolist()
        self.unknown = [column for column in order if column not in self.known]
        """Not checked yet, the strongest estimate first."""
        self.measured: dict[int, np.ndarray] = {}
        self.evidence = Evidence(magnitudes)
        self.looks: list[Look] = []
        self.upper: np.ndarray | None = None
        self.spent = self.subset_runs = self.fresh = 0
        self.notes: list[str] = []
        self.cost = ""
        attempt = Attempt(theta, confidence, budget, seed, magnitudes, self.known_before)
        earlier = () if scores.verification is None else scores.verification.attempts
        self.attempts = (*(one for one in earlier if one != attempt), attempt)

    def run(self, exact: Interventions) -> None:
        """Spend the budget until the bound holds."""
        pool = Pool(len(self.scores.names), exact.table)
        plan = Plan.of(self.budget, len(self.unknown), pool.depth(self.unknown))
        generator = np.random.Generator(np.random.PCG64([self.seed, 3]))
        if not plan.blocks and len(self.unknown) > self.budget:
            least, all_of_them = Plan.least_budget(plan.depth), len(self.unknown)
            needed = (
                f"they take a budget of {least:,}"
                if least < all_of_them
                else f"budget={all_of_them} checks every component"
            )
            self.notes.append(
                f"a budget of {self.budget:,} leaves no room for subset runs, so there is no "
                f"bound; {needed}."
            )
        for number in range(1, LOOKS + 1):
            if not plan.blocks or plan.just_check(len(self.unknown), self.left):
                break
            spots = min(SPOTS, plan.checks // 2)
            self._check(exact, plan.checks - spots)
            self._close_subsets(exact, pool, plan, generator)
            self._draw_first(spots, generator)
            self._check(exact, spots)
            look = self._look(number)
            if look.interaction >= self.theta or self._still_open <= plan.stage_runs:
                break
        self._check(exact, min(self.left, self._still_open))
        self.cost, self.fresh = str(exact.cost), exact.fresh

    @property
    def left(self) -> int:
        """What is left of the budget."""
        return self.budget - self.spent

    @property
    def _still_open(self) -> int:
        """How many checks, in the order of the estimate, leave only bounded components.

        Trying this after every check costs no error: of all unchecked components that reach theta,
        the one checked last must be bounded wrongly for any of these claims to be false.
        """
        if self.upper is None or self.looks[-1].interaction >= self.theta:
            return len(self.unknown)
        above = np.flatnonzero(self.upper[self.unknown] >= self.theta)
        return int(above[-1]) + 1 if len(above) else 0

    def _draw_first(self, count: int, generator: np.random.Generator) -> None:
        """Put a few components, drawn at random, before those in the order of the estimate."""
        drawn = set(generator.permutation(self.unknown)[:count].tolist())
        rest = [column for column in self.unknown if column not in drawn]
        self.unknown = sorted(drawn, key=self.unknown.index) + rest

    def _check(self, exact: Interventions, count: int) -> None:
        """Check the next components in the order of the estimate."""
        columns = self.unknown[:count]
        self.unknown = self.unknown[count:]
        title = f"checking {len(columns):,} components"
        effects = exact.runs([(column,) for column in columns], title, chosen=True)
        for (column,), effect in effects.items():
            self.measured[column] = effect
            self.known[column] = Known.of(effect, self.evidence.magnitudes)
        self.spent += len(columns)

    def _close_subsets(
        self, exact: Interventions, pool: Pool, plan: Plan, generator: np.random.Generator
    ) -> None:
        dealt = [pool.deal(self.unknown, plan.blocks, generator) for _ in range(plan.rounds)]
        sets = [run for one in dealt for run in one.runs if run]
        lost = exact.runs(sets, f"{len(sets):,} subset runs", chosen=True)
        for one in dealt:
            self.evidence.add(one, lost)
        self.spent += len(lost)
        self.subset_runs += len(lost)

    def _look(self, number: int) -> Look:
        """Bound what is unknown with this look's share of the error rate."""
        error_rate = (1 - self.confidence) / LOOKS
        _, self.upper = self.evidence.limits(self.scores, self.known, self.measured, error_rate)
        look = Look(
            number=number,
            checked=len(self.known),
            runs=self.subset_runs,
            confidence=1 - error_rate,
            smallest=float(self.upper[self.unknown].max()),
            interaction=self.evidence.interaction,
            probes=self.evidence.probes,
        )
        self.looks.append(look)
        return look

    def result(self) -> Verification:
        """Return what was found, with all that earlier runs of these scores know."""
        self.known |= known_effects(self.scores, None, self.evidence.magnitudes)
        self.unknown = [column for column in self.unknown if column not in self.known]
        outcome: Outcome = "open"
        if not self.unknown:
            outcome = "complete"
        elif self._still_open == 0:
            outcome = "bounded"
        return Verification(
            theta=self.theta,
            confidence=self.confidence,
            budget=self.budget,
            outcome=outcome,
            rows=tuple(self._rows()),
            looks=tuple(self.looks),
            planned_looks=LOOKS,
            known_before=self.known_before,
            runs=self.spent,
            fresh=self.fresh,
            magnitudes=self.evidence.magnitudes,
            seed=self.seed,
            notes=tuple(self.notes),
            cost=self.cost,
            attempts=self.attempts,
        )

    def _rows(self) -> list[VerifiedRow]:
        names, mean = self.scores.names, self.scores.mean().tolist()
        checked = sorted(self.known, key=lambda column: -self.known[column].size)
        rows = [VerifiedRow(names[c], mean[c], self.known[c].signed, None) for c in checked]
        upper = self.upper if self.evidence.interaction < self.theta else None
        if upper is None:
            return rows + [VerifiedRow(names[c], mean[c], None, None) for c in self.unknown]
        widest = sorted(self.unknown, key=lambda column: -upper[column])
        return rows + [VerifiedRow(names[c], mean[c], None, float(upper[c])) for c in widest]
