"""What subset runs have shown so far of the components that were not checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headwater.audits.known import Known, signed_estimates
from headwater.audits.subsets import OUT, Round
from headwater.audits.welch import Contrasts, contrasts

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

FEWEST_FOR_A_SLOPE = 5
"""Known effects below which the estimate is subtracted as it is."""


@dataclass
class Evidence:
    """Rounds of subset runs, and what the metric lost in each.

    Args:
        magnitudes: Whether mean |effect| is bounded, which needs every pair, instead of
            |mean effect|.
    """

    magnitudes: bool
    rounds: list[Round] = field(default_factory=list)
    lost: list[Float[np.ndarray, "block pair"]] = field(default_factory=list)
    interactions: list[float] = field(default_factory=list)
    """For each round in which two blocks were tried together: how far the effect of closing both
    is from the sum of closing each."""
    alone: float = 0.0
    """How far the effect of closing a component alone is from what runs that closed it among others
    say, at most and beyond what sampling explains."""
    tried_alone: int = 0
    """How many components were closed both ways."""

    def reduced(self, lost: Float[np.ndarray, "pair set"]) -> Float[np.ndarray, "set column"]:
        """Return runs as they are compared: by pair, or as the mean over pairs."""
        return lost.T if self.magnitudes else lost.mean(0)[:, None]

    def add(self, dealt: Round, lost: Mapping[tuple[int, ...], Float[np.ndarray, " pair"]]) -> None:
        """Take in a round: what was lost in each of its runs that is not empty."""
        pairs = len(next(iter(lost.values())))
        empty = np.zeros(pairs)
        runs = [lost.get(run, empty) if run else empty for run in dealt.runs]
        reduced = self.reduced(np.stack(runs, 1))
        self.rounds.append(dealt)
        self.lost.append(reduced[: dealt.blocks])
        if dealt.union:
            over = reduced[0] + reduced[1] - reduced[-1]
            self.interactions.append(float(np.abs(over).mean()))

    @property
    def interaction(self) -> float:
        """The largest interaction seen; 0 if none was looked for."""
        return max([*self.interactions, self.alone])

    @property
    def probes(self) -> int:
        """How often interactions were looked for."""
        return len(self.interactions) + self.tried_alone

    def limits(
        self,
        scores: Attribution,
        known: Mapping[int, Known],
        measured: Mapping[int, Float[np.ndarray, " pair"]],
        error_rate: float,
    ) -> tuple[Contrasts, Float[np.ndarray, " component"]]:
        """Return the contrasts, and what each effect is below.

        A limit is that of Welch's test, plus the largest interaction that was seen: closed among
        others, a component may show that much less of its effect than it has alone.

        Args:
            scores: The result.
            known: Exact effects as means over pairs, by column.
            measured: Exact effects by pair, of components that subset runs closed too.
            error_rate: Of the test, for each component.
        """
        found = self._contrasts(control_of(scores, known, measured, self))
        tried = [column for column in measured if np.isfinite(found.error[column])]
        self.alone, self.tried_alone = found.surely_shifted(tried), len(tried)
        return found, found.upper(error_rate) + self.interaction

    def _contrasts(self, control: Float[np.ndarray, "component column"]) -> Contrasts:
        """Compare, for each component, the runs that closed it with those that did not."""
        dealt = [np.repeat((r.labels != OUT)[None], r.blocks, 0) for r in self.rounds]
        return contrasts(
            np.concatenate([r.closed for r in self.rounds]),
            np.concatenate(dealt),
            np.concatenate(self.lost),
            control,
        )


def control_of(
    scores: Attribution,
    known: Mapping[int, Known],
    measured: Mapping[int, Float[np.ndarray, " pair"]],
    evidence: Evidence,
) -> Float[np.ndarray, "component column"]:
    """Return what to subtract for each component: its exact effect, else the scaled estimate.

    The factor is the least-squares slope of exact effects on estimates where both are known. It
    does not depend on which subsets were drawn, so the contrasts stay unbiased whatever it is.

    Args:
        scores: The result.
        known: Exact effects as means over pairs, for the slope.
        measured: Exact effects by pair, of the components that were closed in subset runs before
            they were checked.
        evidence: How runs are compared.
    """
    slope = 1.0
    if len(known) >= FEWEST_FOR_A_SLOPE:
        columns = list(known)
        x = signed_estimates(scores, evidence.magnitudes)[columns]
        y = np.array([known[column].signed for column in columns])
        square = float((x * x).sum())
        slope = float((x * y).sum()) / square if square > 0 else 0.0
    control = slope * evidence.reduced(scores.scores.double().cpu().numpy())
    for column, effect in measured.items():
        control[column] = evidence.reduced(effect[:, None])[0]
    return control
