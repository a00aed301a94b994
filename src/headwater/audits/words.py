"""What an audit says: the figures as sentences, and the verdict by fixed thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GOOD_CORRELATION = 0.8
"""From this r on the ranking of the strong components is trusted ..."""
GOOD_RECALL = 0.7
"""... if at least this share of the truly strongest is among the estimated strongest."""
WEAK_CORRELATION = 0.5
"""Below this r the estimate is not trusted at all."""
GOOD_ERROR = 0.2
"""Up to this relative error sizes are trusted."""
GOOD_SIGNS = 0.9
"""From this sign agreement on signs are trusted, if none is wrong among the top."""
RIGHT_SIZE = 0.02
"""A slope this near to 1 is the right size."""
TIMES = 1.5
"""From this factor on sizes are said in times, below in per cent."""
NAMED = 5
"""Components named in a sentence; the rest are counted."""


@dataclass(frozen=True)
class Statistic:
    """One figure of an audit."""

    name: str
    value: float | None
    """None where the figure is unknown or undefined; `words` says why."""
    low: float | None
    high: float | None
    """Ends of the interval for the full run; None where everything was checked, or none can be
    given."""
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        return {
            "name": self.name,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "words": self.words,
        }

    @property
    def most(self) -> float:
        """How large it may be: the upper end of the interval, else the value."""
        ends = [end for end in (self.high, self.value) if end is not None]
        return ends[0] if ends else math.nan

    @property
    def brief(self) -> str:
        """Name, value and interval, as in `slope 0.41 [0.35, 0.50]`."""
        if self.value is None:
            return f"{self.name} {self.words.partition(':')[0]}"
        if self.low is None or self.high is None:
            return f"{self.name} {figure(self.value)}"
        return f"{self.name} {figure(self.value)} [{figure(self.low)}, {figure(self.high)}]"


@dataclass(frozen=True)
class Counts:
    """How much of what was checked."""

    components: int
    checked: int
    by_stratum: Mapping[str, int]
    covers: bool
    """Whether every component could have been drawn."""
    top: int
    """How many of the strongest were all checked."""
    within_noise: int
    noise_floor: float | None
    intervals: bool
    """Whether the sample is large enough for intervals."""

    @property
    def complete(self) -> bool:
        """Whether every component was checked."""
        return self.checked == self.components

    @property
    def suffice(self) -> bool:
        """Whether enough was checked to judge by."""
        return self.complete or self.intervals

    @property
    def so_far(self) -> str:
        """How a judgment starts that rests on a sample; empty where everything was checked."""
        return "" if self.complete else f"As far as the {self.checked:,} checked tell, "

    @property
    def unseen(self) -> str:
        """What no sample of this size excludes; empty where everything was checked."""
        if self.complete:
            return ""
        return (
            " Strong effects that the estimate does not see may be among those not checked: "
            "hw.verify(scores, theta=...) looks for them."
        )


def figure(value: float) -> str:
    """Return a figure in two decimals, or as many as it takes not to read as 0 or 1 when it is not.

    From 10 on three significant digits, from 1,000 on no fraction.
    """
    size = abs(value)
    if size >= 1e6 or 0 < size < 0.0005:
        return f"{value:.1e}"
    if size >= 10:
        return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
    if 0.995 <= size < 1:
        return f"{math.copysign(math.floor(size * 1000) / 1000, value):.3f}"
    return f"{value:.3f}" if 0 < size < 0.005 else f"{value:.2f}"


def effect(value: float) -> str:
    """Return an effect with its sign and three significant digits."""
    return f"{value:+.3g}"


def size_words(slope: float) -> str:
    """Return what a slope says of the size of the estimates."""
    if slope <= 0:
        return "the estimate points the wrong way" if slope < 0 else "the estimate sees no effect"
    if abs(slope - 1) <= RIGHT_SIZE:
        return "the estimate has the right size"
    large = slope > 1
    factor = slope if large else 1 / slope
    direction = "large" if large else "small"
    if factor > 100:
        return f"the estimate is more than 100 times too {direction}"
    if factor >= TIMES:
        return f"the estimate is about {factor:.2g} times too {direction}"
    return f"the estimate is {abs(slope - 1) * 100:.0f} % too {direction}"


def wrong_sign_words(names: Sequence[str], counts: Counts) -> str:
    """Return the wrong signs among the strongest, by name."""
    among = f"the top {counts.top}"
    if not names:
        return f"no wrong sign among {among}"
    signs = "1 wrong sign" if len(names) == 1 else f"{len(names)} wrong signs"
    return f"{signs} among {among}: {name_list(names)}"


def counted(count: int, noun: str) -> str:
    """Return how many there are, as in `1 pair` and `1,024 components`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def name_list(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - NAMED
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {more:,} more" if more > 0 else shown


def sentence(counts: Counts, statistics: Sequence[Statistic], wrong: Sequence[str]) -> str:
    """Return the audit in one sentence: what was checked, then how well it agrees."""
    by_name = {statistic.name: statistic for statistic in statistics}
    size = by_name["slope"]
    noise = ""
    if counts.within_noise:
        floor = f"noise floor {counts.noise_floor:.2g}" if counts.noise_floor else "noise floor"
        noise = f"{counts.within_noise:,} of {counts.checked:,} checked are within the {floor}"
    recall = [s.brief for s in statistics if s.name.startswith("recall")]
    parts = [
        by_name["r"].brief,
        by_name["rho"].brief,
        size.brief if size.value is None else f"{size.brief} ({size_words(size.value)})",
        by_name["relative error"].brief,
        *recall,
    ]
    ending = "; ".join(filter(None, [wrong_sign_words(wrong, counts), noise]))
    return f"{checked_words(counts)}: {', '.join(parts)}; {ending}."


def checked_words(counts: Counts) -> str:
    """Return what was checked, with the sample's make-up where not everything was."""
    start = f"{counts.checked:,} of {counted(counts.components, 'component')} checked exactly"
    if counts.complete:
        return start
    if not counts.covers:
        return f"{start} (the strongest; nothing is known of the others)"
    words = {"top": "strongest", "middle": "middle", "tail": "tail"}
    parts = [
        f"{counts.by_stratum[name]:,} {word}"
        for name, word in words.items()
        if counts.by_stratum.get(name)
    ]
    few = "" if counts.intervals else "; too few for intervals"
    return f"{start} ({', '.join(parts)}{few})"


def verdict(counts: Counts, statistics: Sequence[Statistic], wrong: Sequence[str]) -> str:
    """Return what to trust, by the thresholds of this module.

    The ranking is trusted from r 0.8 on (and recall 0.7, where known), sizes up to a relative
    error of 0.2, signs if none is wrong among the top and 90 % agree. Below r 0.5, nothing. Of a
    sample sizes are trusted if the whole interval is below 0.2, and what it leaves open is said.
    """
    by_name = {statistic.name: statistic for statistic in statistics}
    error, r = by_name["relative error"], by_name["r"]
    if error.value is None:
        return f"Nothing to judge: {error.words.partition(': ')[2]}."
    if counts.within_noise == counts.checked:
        return "Nothing to judge: every exact effect checked is within the noise floor."
    if not counts.suffice:
        return "Too few checks for a verdict: raise sample=."
    recall = next((s for s in statistics if s.name.startswith("recall")), None)
    judged, useful = _trust(r.value, None if recall is None else recall.value, error)
    agreement = by_name["sign agreement"].value
    distrusted = bool(wrong) or (agreement is not None and agreement < GOOD_SIGNS)
    if useful and distrusted:
        judged += "; do not trust single signs"
    if not counts.complete:
        judged = counts.so_far + judged[0].lower() + judged[1:]
    return f"{judged}.{_open(counts, r, error)}{counts.unseen if useful else ''}"


def _trust(r: float | None, recall: float | None, error: Statistic) -> tuple[str, bool]:
    """Return what to trust, and whether that is anything at all."""
    off = error.value
    assert off is not None
    about = f"the size (to {'about' if off >= 0.01 else 'within'} {max(1, round(100 * off))} %)"
    size, is_open = off <= GOOD_ERROR, off <= GOOD_ERROR < error.most
    if r is None:
        if size:
            return "The size is open" if is_open else f"Trust {about}", True
        guess = "it is no better than zero everywhere" if off >= 1 else "the sizes are off"
        return f"Do not trust this estimate: {guess}", False
    ranked = r >= GOOD_CORRELATION and (recall is None or recall >= GOOD_RECALL)
    if is_open:
        ranking = "Trust the ranking" if ranked else "Do not trust the ranking"
        return f"{ranking}; the size is open", True
    if ranked:
        said = f"Trust the ranking and {about}" if size else "Trust the ranking, not the size"
        return said, True
    if size:
        return f"Trust {about}, not the ranking", True
    if r >= WEAK_CORRELATION:
        weak = "The estimate finds strong components but misorders some: confirm with hw.Exact()"
        return weak, True
    return "Do not trust this estimate: use hw.Exact(), or another estimator or reference", False


def _open(counts: Counts, r: Statistic, error: Statistic) -> str:
    """Return which thresholds of the verdict lie inside the intervals."""
    if counts.complete:
        return ""
    doubts = [
        _doubt("r", r, GOOD_CORRELATION),
        _doubt("the relative error", error, GOOD_ERROR),
    ]
    said = " and ".join(doubt for doubt in doubts if doubt)
    return f" The sample leaves this open ({said}): a larger sample= decides." if said else ""


def _doubt(name: str, statistic: Statistic, threshold: float) -> str | None:
    """Return how far beyond a threshold a figure may be on its other side."""
    value, low, high = statistic.value, statistic.low, statistic.high
    if value is None or low is None or high is None:
        return None
    if low < threshold <= value:
        return f"{name} may be as low as {figure(low)}"
    if value < threshold <= high:
        return f"{name} may be as high as {figure(high)}"
    return None
