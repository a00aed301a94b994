"""Numbers with the ends of their interval, as they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headwater.errors import UnknownOptionError, did_you_mean


@dataclass(frozen=True)
class Figure:
    """A number, and between which ends it would lie with other prompts or token types."""

    value: float
    low: float
    high: float
    """NaN where there is no interval."""

    @property
    def has_interval(self) -> bool:
        """Whether there are ends."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def side(self, of: float) -> int:
        """Return 1 if the interval lies above a number, -1 if below, 0 if it does not tell."""
        if not self.has_interval:
            return 0
        return int(self.low > of) - int(self.high < of)

    def to_dict(self) -> dict[str, float | None]:
        """Return plain data, None for NaN."""
        named = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number(value) for name, value in named.items()}

    def told(self, form: str = ".2f") -> str:
        """Return it as text, `0.45 (0.40 to 0.51)`."""
        if math.isnan(self.value):
            return "-"
        if not self.has_interval:
            return f"{self.value:{form}}"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"

    def percent(self) -> str:
        """Return a share as text, `45 % (40 to 51)`."""
        if math.isnan(self.value):
            return "-"
        digits = 0 if abs(self.value) >= 0.1 else 1
        ends = (
            f" ({100 * self.low:.{digits}f} to {100 * self.high:.{digits}f})"
            if self.has_interval
            else ""
        )
        return f"{100 * self.value:.{digits}f} %{ends}"


def number(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None


def interval_note(prompts: int) -> str:
    """Return in words what intervals rest on."""
    if prompts == 1:
        return "One prompt: no interval."
    few = ", which are few" if prompts < 10 else ""
    return f"Intervals: 95 %, a bootstrap over {prompts:,} prompts{few}."


def one_of(option: str, word: Any, known: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the words that are asked for: all, or the one that is given.

    Raises:
        UnknownOptionError: If there is no such word.
    """
    if word is None:
        return known
    if word not in known:
        raise UnknownOptionError(
            f"{option}={word!r} is unknown.{did_you_mean(str(word), known)}\n"
            f"Write one of {', '.join(map(repr, known))}, or None for all."
        )
    return (word,)
