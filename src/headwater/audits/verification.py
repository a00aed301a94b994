"""The result of `verify`: what was checked, what is bounded, and why it ended."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from headwater.audits.bound import assumption_words, quantity
from headwater.audits.words import name_list
from headwater.frames import frame

if TYPE_CHECKING:
    import pandas

Outcome = Literal["complete", "bounded", "open"]

SHOWN_ROWS = 10
"""Components of a printed verification."""


@dataclass(frozen=True)
class VerifiedRow:
    """One component."""

    name: str
    score: float
    """Mean over pairs."""
    exact: float | None
    """Its exact effect: the mean, or the mean size with the mean's sign; None if not checked."""
    below: float | None
    """What its size is below, by the last look; None if checked, or if nothing is known."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Attempt:
    """What makes one verification another one than that before it."""

    theta: float
    confidence: float
    budget: int
    seed: int
    magnitudes: bool
    known_before: int


@dataclass(frozen=True)
class Look:
    """One look at the evidence, declared in advance."""

    number: int
    checked: int
    """Components known exactly by then."""
    runs: int
    """Subset runs by then."""
    confidence: float
    """Of this look; the error rates of all looks sum to that of the whole."""
    smallest: float
    """The smallest theta it bounds."""
    interaction: float
    """How far effects were from adding up, at most; part of every limit."""
    probes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the look as plain data."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Verification:
    """Whether a component above theta can be missing among those not checked."""

    theta: float
    confidence: float
    budget: int
    outcome: Outcome
    """`complete`: all checked. `bounded`: no unchecked effect reaches theta, at this confidence.
    `open`: the budget ended first."""
    rows: tuple[VerifiedRow, ...]
    """The checked components by the size of their effect, then the others by what they may hide."""
    looks: tuple[Look, ...]
    planned_looks: int
    known_before: int
    """Components known exactly before the first run: audited, or exact already."""
    runs: int
    """Exact runs of the budget: components checked and subsets."""
    fresh: int
    """Those of them that no earlier verify of the folder had made."""
    magnitudes: bool
    seed: int
    notes: tuple[str, ...] = ()
    cost: str = ""
    attempts: tuple[Attempt, ...] = ()
    """All different ones on these scores so far, this one the last of them."""

    @property
    def holds(self) -> bool:
        """Whether nothing above theta can be missing, at this confidence."""
        return self.outcome != "open"

    @property
    def quantity(self) -> str:
        """What is bounded, in words."""
        return quantity(self.magnitudes)

    @property
    def smallest(self) -> float | None:
        """The smallest theta that bounds the unchecked components; None if nothing does."""
        limits = [row.below for row in self.unchecked]
        known = [limit for limit in limits if limit is not None]
        return max(known, default=0.0) if len(known) == len(limits) else None

    @property
    def found(self) -> tuple[VerifiedRow, ...]:
        """The checked components that reach theta, the strongest first."""
        return tuple(r for r in self.rows if r.exact is not None and abs(r.exact) >= self.theta)

    @property
    def unchecked(self) -> tuple[VerifiedRow, ...]:
        """The components that were not checked."""
        return tuple(row for row in self.rows if row.exact is None)

    @property
    def sentence(self) -> str:
        """The answer in plain words."""
        return " ".join(filter(None, [self._answer(), self._repeated(), self._found()]))

    def _repeated(self) -> str:
        """Say what trying again costs: whoever tries until it holds is wrong more often."""
        if len(self.attempts) < 2 or self.outcome != "bounded":
            return ""
        together = 100 * sum(1 - attempt.confidence for attempt in self.attempts)
        return (
            f"This is attempt {len(self.attempts)} on these scores: that one of their claims is "
            f"wrong has a chance of up to {min(together, 100):.3g} %."
        )

    def _answer(self) -> str:
        total, left = len(self.rows), len(self.unchecked)
        theta, sure = f"{self.theta:.3g}", f"at {100 * self.confidence:g} % confidence"
        if self.outcome == "complete":
            return f"All {total:,} components were checked exactly: nothing can be missing."
        if self.outcome == "bounded":
            last = self.looks[-1]
            return (
                f"No unchecked component has a {self.quantity} of {theta} or more, {sure}: "
                f"{total - left:,} of {total:,} were checked exactly, and {last.runs:,} subset "
                f"runs bound the other {left:,} below {self.smallest:.3g} (look {last.number} of "
                f"{self.planned_looks}). {self._assumption(last)}"
            )
        said = (
            f"The budget of {self.budget:,} exact runs ended with {left:,} of {total:,} unchecked"
        )
        if not self.looks:
            return f"{said} and no bound on them: a {self.quantity} of {theta} may be missing."
        last = self.looks[-1]
        if last.interaction >= self.theta:
            return f"{said} and no bound on them. {self._assumption(last)}"
        sure = f"{100 * last.confidence:.3g} % confidence"
        return (
            f"{said}: the last look bounds them below {self.smallest:.3g} at {sure}, not below "
            f"{theta}. {self._assumption(last)}"
        )

    def _assumption(self, look: Look) -> str:
        return assumption_words(look.interaction, look.probes, self.theta, self.quantity)

    def _found(self) -> str:
        found = [row.name for row in self.found]
        checked = len(self.rows) - len(self.unchecked)
        if not found:
            return f"None of the {checked:,} checked reaches {self.theta:.3g}."
        verb = "reaches" if len(found) == 1 else "reach"
        return f"{len(found):,} of the {checked:,} checked {verb} {self.theta:.3g}: " + (
            f"{name_list(found)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the verification as plain data."""
        return {
            "sentence": self.sentence,
            "outcome": self.outcome,
            "holds": self.holds,
            "bounded": self.quantity,
            "magnitudes": self.magnitudes,
            "theta": self.theta,
            "confidence": self.confidence,
            "smallest": self.smallest,
            "budget": self.budget,
            "runs": self.runs,
            "fresh": self.fresh,
            "known_before": self.known_before,
            "planned_looks": self.planned_looks,
            "looks": [look.to_dict() for look in self.looks],
            "notes": list(self.notes),
            "seed": self.seed,
            "cost": self.cost,
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "components": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        """Read a verification back from plain data.

        Raises:
            KeyError: If something is missing.
            TypeError: If the data are no verification at all.
        """
        plain = ("theta", "confidence", "budget", "outcome", "planned_looks", "known_before")
        plain += ("runs", "fresh", "magnitudes", "seed", "cost")
        return cls(
            **{key: data[key] for key in plain},
            rows=tuple(VerifiedRow(**row) for row in data["components"]),
            looks=tuple(Look(**look) for look in data["looks"]),
            notes=tuple(data["notes"]),
            attempts=tuple(Attempt(**attempt) for attempt in data["attempts"]),
        )

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a component as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((row.to_dict() for row in self.rows), "verification.rows")

    def __repr__(self) -> str:
        lines = [self.sentence, f"{'component':<16}{'score':>10}{'exact':>10}{'below':>10}"]
        for row in self.rows[:SHOWN_ROWS]:
            exact = "" if row.exact is None else f"{row.exact:+.3g}"
            below = "" if row.below is None else f"{row.below:.3g}"
            lines.append(f"{row.name:<16}{row.score:>+10.3g}{exact:>10}{below:>10}")
        if len(self.rows) > SHOWN_ROWS:
            lines.append(f"... {len(self.rows) - SHOWN_ROWS:,} more in .rows")
        lines += [f"note: {note}" for note in self.notes]
        before = f"{self.known_before:,} known before" if self.known_before else ""
        earlier = (
            f"{self.runs - self.fresh:,} of them made earlier" if self.fresh < self.runs else ""
        )
        told = ", ".join(filter(None, [f"{self.runs:,} exact runs", earlier, before]))
        return "\n".join([*lines, f"{told}; {self.cost}" if self.cost else told])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
