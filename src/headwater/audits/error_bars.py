"""An interval on every score, as a table that says of each how it came about."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headwater.audits.words import effect
from headwater.errors import ResultError, did_you_mean
from headwater.frames import frame

if TYPE_CHECKING:
    import pandas

CHECKED = "checked exactly"
CONFORMAL = "conformal"
UNKNOWN = "unknown: too few checked in its group"

SHOWN_ROWS = 20
"""Rows of a printed table."""


@dataclass(frozen=True)
class ErrorBar:
    """One component: its score, and where its exact effect is, both as means over pairs."""

    name: str
    score: float
    low: float | None
    """None where nothing can be said."""
    high: float | None
    how: str
    """`checked exactly`, `conformal`, or `unknown: too few checked in its group`."""
    group: str = ""
    """The components it is exchangeable with; empty where it was checked."""

    @property
    def half_width(self) -> float:
        """Half the width of the interval: 0 if checked, infinite if unknown."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class ErrorBars:
    """Intervals for all components, the strongest estimate first."""

    confidence: float
    rows: tuple[ErrorBar, ...]
    notes: tuple[str, ...] = ()
    """Where too few were checked, in sentences."""
    magnitudes: bool = False
    """Whether the effects are means over pairs of |effect|."""
    doubts: tuple[str, ...] = ()
    """Where exchangeability is doubtful, in sentences."""
    sure: float | None = None
    """With which probability over the draw of the sample they hold; None: on average over draws."""

    @property
    def sentence(self) -> str:
        """What the intervals promise, in one line of plain words."""
        counts = {how: sum(row.how == how for row in self.rows) for how in (CHECKED, UNKNOWN)}
        rest = len(self.rows) - counts[CHECKED] - counts[UNKNOWN]
        quantity = "mean |effects|" if self.magnitudes else "mean effects"
        said = f"{counts[CHECKED]:,} of {len(self.rows):,} components were checked exactly"
        if rest:
            said += (
                f"; of the {rest:,} other intervals at least {100 * self.confidence:g} % hold "
                f"their exact {quantity}, {self.how_often}"
            )
        if counts[UNKNOWN]:
            said += f"; nothing can be said of {counts[UNKNOWN]:,}"
        return f"{said}."

    @property
    def how_often(self) -> str:
        """With which samples they hold, in words."""
        if self.sure is None:
            return "on average over draws of the sample"
        return f"in {100 * self.sure:g} % of draws of the sample"

    def __getitem__(self, name: str) -> ErrorBar:
        """Return one component's interval.

        Raises:
            ResultError: If there is no component of that name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ResultError(
            f"no component {name!r} among these {len(self.rows):,}."
            f"{did_you_mean(name, [row.name for row in self.rows])}\nAll names: `scores.names`."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {
            "sentence": self.sentence,
            "confidence": self.confidence,
            "sure": self.sure,
            "notes": [*self.doubts, *self.notes],
            "components": [row.to_dict() for row in self.rows],
        }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a component as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((row.to_dict() for row in self.rows), "intervals.rows")

    def __repr__(self) -> str:
        lines = [self.sentence, f"{'component':<16}{'score':>10}{'low':>10}{'high':>10}"]
        lines += [
            f"{row.name:<16}{effect(row.score):>10}{_end(row.low):>10}{_end(row.high):>10}"
            f"  {row.how}"
            for row in self.rows[:SHOWN_ROWS]
        ]
        if len(self.rows) > SHOWN_ROWS:
            lines.append(f"... {len(self.rows) - SHOWN_ROWS:,} more in .rows")
        return "\n".join([*lines, *(f"note: {note}" for note in (*self.doubts, *self.notes))])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


@dataclass(frozen=True)
class Aim:
    """The error bars that were asked for."""

    tolerance: float
    """Largest half width that is accepted, in units of the metric."""
    confidence: float
    budget: int | None
    """Exact runs that ended it; None: as many as it took, or a later audit has spent more."""
    sure: float | None = None
    """With which probability over the draw they are to hold; None: on average over draws."""

    def met_by(self, bars: ErrorBars) -> str:
        """Return in words whether error bars are as short as was asked for."""
        wide = [bar for bar in bars.rows if bar.half_width > self.tolerance]
        runs = sum(bar.how == CHECKED for bar in bars.rows)
        width, sure = f"{self.tolerance:g}", f"{100 * self.confidence:g} %"
        if not wide:
            return (
                f"error bars: every half width is at most {width} at {sure}, after "
                f"{runs:,} exact runs."
            )
        unknown = sum(math.isinf(bar.half_width) for bar in wide)
        worst = max(wide, key=lambda bar: (not math.isinf(bar.half_width), bar.half_width))
        widest = (
            f"{unknown:,} of them are unknown"
            if unknown == len(wide)
            else f"the widest is {worst.half_width:.3g} ({worst.name})"
            + (f", and {unknown:,} are unknown" if unknown else "")
        )
        ended = (
            f"{runs:,} exact runs leave"
            if self.budget is None
            else f"the budget of {self.budget:,} exact runs ended with"
        )
        return (
            f"error bars: {ended} {len(wide):,} of {len(bars.rows):,} half widths above {width} at "
            f"{sure}; {widest}."
        )


def _end(value: float | None) -> str:
    return "?" if value is None else effect(value)
