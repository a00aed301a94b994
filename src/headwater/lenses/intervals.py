"""Figures with the ends of their interval, from a bootstrap over whole prompts or token types.

Positions of one prompt are not independent, nor are those of one token type, so whole units are
drawn anew. Percentiles of the figure in such resamples lie too close to it where units are few: a
resample of n units spreads by `(n - 1) / n` of the variance, and its percentiles are those of a
normal distribution where Student's t is due. Both are made up for by stretching the distance of
each end from the figure (tested: at 3 and 6 units means are covered as often as is said).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits.intervals import student_quantile

CONFIDENCE = 0.95
"""How often an interval should hold."""
FEWEST = 8
"""Units from which on a correlation has an interval: three points are in line by chance."""
RESAMPLES, FEWER = 1000, 200
"""Most and fewest resamples: many units take long, and move little."""
_DEFINED = 0.5
"""A figure that is undefined in more resamples than this share has no interval."""
_NUMBERS, _TOGETHER = 400_000, 2**21
"""Weights in all, and at once; but for the fewest resamples."""
_MANY = 1000
"""Units from which on nothing is stretched: Student's t is normal within 0.2 %."""


@dataclass(frozen=True)
class Figure:
    """A number, and between which ends it would lie with other prompts or token types."""

    value: float
    low: float = math.nan
    high: float = math.nan
    """NaN where there is no interval."""

    @classmethod
    def of(
        cls,
        value: float,
        drawn: Float[Tensor, " resample"],
        units: int,
        *,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> Figure:
        """Return a number with the interval that resamples give it.

        Args:
            value: The number itself.
            drawn: The same in resamples.
            units: How many units were drawn from.
            least: The number is never below this ...
            most: ... nor above this.
        """
        ends = stretched(drawn.new_tensor(value), drawn, units)
        low, high = (float(end.clamp(least, most)) for end in ends)
        return cls(value, low, high)

    @property
    def has_interval(self) -> bool:
        """Whether there are ends."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def side(self, of: float = 0.0) -> int:
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
        """Return a share as text, `45 % (40 to 51)`; ends that are the share itself say nothing."""
        if math.isnan(self.value):
            return "-"
        digits = 0 if abs(self.value) >= 0.1 or self.value == 0 else 1
        said = f"{100 * self.value:.{digits}f} %"
        if not self.has_interval or self.low == self.value == self.high:
            return said
        return f"{said} ({100 * self.low:.{digits}f} to {100 * self.high:.{digits}f})"


def stretched(
    value: Float[Tensor, "*shape"],
    drawn: Float[Tensor, "resample *shape"],
    units: int,
    confidence: float = CONFIDENCE,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return the ends of an interval: percentiles of resamples, pushed out where units are few.

    Args:
        value: The figure, which lies between the ends.
        drawn: The figure in resamples; one that is not finite is left out.
        units: How many units were drawn from; of one there is no interval.
        confidence: How often the interval should hold.

    Returns:
        Low and high; NaN where there is none.
    """
    if units < 2:
        none = torch.full_like(value, torch.nan)
        return none, none
    known = drawn.isfinite()
    tail = (1 - confidence) / 2
    shares = torch.tensor([tail, 1 - tail], dtype=drawn.dtype)
    low, high = drawn.masked_fill(~known, torch.nan).nanquantile(shares, dim=0)
    stretch = _stretch(units, confidence)
    undefined = known.to(torch.float64).mean(0) < _DEFINED
    # a maximum is larger in most resamples: an end beyond the figure is pulled back to it
    low = value - stretch * (value - low).clamp(min=0)
    high = value + stretch * (high - value).clamp(min=0)
    return low.masked_fill(undefined, torch.nan), high.masked_fill(undefined, torch.nan)


@cache
def _stretch(units: int, confidence: float) -> float:
    """Return by how much an end is farther from the figure than a percentile is."""
    if units > _MANY:
        return 1.0
    inside = (1 + confidence) / 2
    wider = student_quantile(inside, units - 1) / NormalDist().inv_cdf(inside)
    return wider * math.sqrt(units / (units - 1))


def weights(units: int, seed: int) -> Iterator[Float[np.ndarray, "resample unit"]]:
    """Yield how often each unit is drawn with replacement, some resamples at a time.

    Args:
        units: How many there are.
        seed: Of the draws.
    """
    generator = np.random.Generator(np.random.PCG64([seed, units]))
    resamples = min(max(_NUMBERS // units, FEWER), RESAMPLES)
    together = max(1, _TOGETHER // units)
    shares = np.full(units, 1 / units)
    for first in range(0, resamples, together):
        count = min(together, resamples - first)
        yield generator.multinomial(units, shares, size=count).astype(np.float64)


def number(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None


def interval_note(prompts: int) -> str:
    """Return in words what intervals over prompts rest on."""
    if prompts == 1:
        return "One prompt: no interval."
    few = ", which are few" if prompts < 10 else ""
    return f"Intervals: 95 %, a bootstrap over {prompts:,} prompts{few}."
