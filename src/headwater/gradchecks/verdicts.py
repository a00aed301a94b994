"""What a comparison of slopes amounts to: for one direction, and for a whole check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.finite_difference import INSIDE, Difference, side_errors

Verdict = Literal[
    "agree",
    "disagree",
    "constant",
    "stationary",
    "kink",
    "jump",
    "ill-conditioned",
    "unresolved",
    "flat",
]

MEANING: dict[Verdict, str] = {
    "agree": "the gradient is the slope, within the error of the difference",
    "disagree": "the gradient is not the slope",
    "constant": "nothing moves the objective, so there is no slope to check",
    "stationary": "the objective is at an extremum here: the slope is zero, the effect is not",
    "kink": "the slopes on the two sides differ, so there is no gradient here",
    "jump": "the objective jumps here, so there is no gradient",
    "ill-conditioned": "the slope is lost in rounding: nothing can be said of the gradient",
    "unresolved": "the number format is too coarse to check a gradient",
    "flat": "the slope is too small beside the steepest one to be told from zero",
}
"""Each verdict in words."""

PASSES: frozenset[Verdict] = frozenset({"agree", "flat"})
CONSTANT = 50
"""Roundings within which an objective counts as constant."""
COARSE = 1e-4
"""Number formats with a wider spacing at 1 (bfloat16, float16) never pass."""
SWING = 0.01
"""Share of the largest movement that steps a million times shorter do not make of a slope."""
RESOLVED = 1e-4
"""A direction is flat if its error is below this share of the steepest slope."""


@dataclass(frozen=True, eq=False)
class Compared:
    """The gradient along one direction and what the differences say."""

    gradient: float
    """The gradient's slope along the direction."""
    difference: Difference
    rounding: float
    """What rounding alone can do to the gradient's slope."""
    movement: float
    """How far the objective moves along the direction at most."""
    reach: float
    """The longest step."""
    size: float
    """Size of the objective at the point."""
    eps: float
    given_eps: float = 0.0
    """Spacing at 1 of the format a given gradient was computed in; 0 for autograd's."""

    @property
    def scale(self) -> float:
        """The larger of the two slopes."""
        return max(abs(self.gradient), abs(self.difference.slope))

    @property
    def apart(self) -> float:
        """How far the two slopes are apart."""
        return abs(self.gradient - self.difference.slope)

    @property
    def limit(self) -> float:
        """How far the objective moves by rounding alone; nothing is known of a coarse format."""
        if self.eps >= COARSE:
            return 0.0
        inside = min(10 * self.difference.noise, INSIDE * self.size)
        return max(CONSTANT * self.eps * self.size, inside)

    def is_still(self, limit: float) -> bool:
        """Whether neither the objective moves by more nor the gradient says that it would."""
        rounding = max(limit, CONSTANT * self.given_eps * self.size)
        return self.movement <= limit and abs(self.gradient) * self.reach <= rounding

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was seen to move, and nothing is said to."""
        return self.movement == self.gradient == 0

    def is_below(self, noise: float) -> bool:
        """Whether nothing was seen to move, and what the gradient says is less than a noise."""
        found = self.difference
        return found.slope == 0 and self.apart * found.step <= 4 * noise


def along(compared: Compared, rtol: float) -> Verdict:
    """Judge one direction alone; `flat` is for `overall` to tell from `ill-conditioned`.

    Args:
        compared: Both slopes.
        rtol: Relative difference that always counts as agreement.
    """
    found = compared.difference
    if found.shape == "lost":
        return "ill-conditioned" if compared.eps < COARSE else "unresolved"
    if compared.eps >= COARSE:
        return _coarsely(compared)
    if found.shape == "jump":
        return "jump"
    if found.shape == "kink":
        return "kink" if is_between(compared) else "disagree"
    if swings(found, compared.size):
        return "ill-conditioned"
    within = max(4 * found.bar, rtol * abs(found.slope), compared.rounding)
    if max(found.bar, compared.rounding) > 0.1 * compared.scale:
        return "disagree" if compared.apart > max(10 * found.bar, within) else "ill-conditioned"
    return "agree" if compared.apart <= within else "disagree"


def swings(found: Difference, size: float) -> bool:
    """Whether an objective still swings at the shortest steps, and by more than rounding can.

    A wave shorter than all steps, or low precision whose result is converted: no step resolves it,
    and a long one says that the slope is small.

    Args:
        found: What the differences say.
        size: Of the objective.
    """
    moved = np.abs(found.central * found.steps)
    resolved = len(moved) < 8 or moved[-4:].max() <= SWING * moved.max()
    return not resolved and found.noise > INSIDE * size


def is_between(compared: Compared) -> bool:
    """Whether a gradient lies between the slopes of the two sides: a subgradient."""
    found = compared.difference
    low, high = sorted(found.one_sided)
    # one side alone has no second-order error: it is far less sure than the central difference
    off = max(
        float(side_errors(side, found.steps, found.noise).min())
        for side in (found.backward, found.forward)
    )
    slack = 4 * off + compared.rounding
    return low - slack <= compared.gradient <= high + slack


def _coarsely(compared: Compared) -> Verdict:
    """Judge in a coarse format: a wrong sign of a slope that is far above its error, no more."""
    found = compared.difference
    opposite = compared.gradient * found.slope < 0
    certain = opposite and min(abs(found.slope), abs(compared.gradient)) > 4 * found.bar
    return "disagree" if certain else "unresolved"


def overall(
    compared: Sequence[Compared], verdicts: Sequence[Verdict], elsewhere: float
) -> tuple[Verdict, list[Verdict]]:
    """Judge a whole check.

    Args:
        compared: Both slopes of each direction.
        verdicts: What `along` said of each.
        elsewhere: How far the objective moves beyond the steps: when the value is set to zero.

    Returns:
        The verdict, and those of the directions.
    """
    # along a line on which nothing moves noise is not seen; it is the function's, not the line's
    limit = float(np.median([one.limit for one in compared]))
    if elsewhere <= limit and all(one.is_still(limit) for one in compared):
        return "constant", ["constant"] * len(verdicts)
    noise = float(np.median([one.difference.noise for one in compared]))
    verdicts = [
        "ill-conditioned" if verdict == "disagree" and one.is_below(noise) else verdict
        for one, verdict in zip(compared, verdicts, strict=True)
    ]
    settled = [one.scale for one, verdict in zip(compared, verdicts, strict=True)
               if verdict in ("agree", "disagree")]  # fmt: skip
    steepest = max(settled, default=0.0)
    judged: list[Verdict] = [
        "flat" if verdict == "ill-conditioned" and _is_flat(one, steepest) else verdict
        for one, verdict in zip(compared, verdicts, strict=True)
    ]
    for decisive in ("disagree", "jump", "kink", "unresolved"):
        if decisive in judged:
            return decisive, judged
    if judged.count("ill-conditioned") * 2 > len(judged) or "agree" not in judged:
        moving = [one for one in compared if not one.is_nothing]
        stationary = bool(moving) and all(map(_is_stationary, moving))
        return ("stationary" if stationary else "ill-conditioned"), judged
    return "agree", judged


def _is_flat(compared: Compared, steepest: float) -> bool:
    """Whether a slope is too small beside the steepest, or gradient and slope are both nothing."""
    found = compared.difference
    if steepest > 0 and compared.gradient == found.slope == 0:
        return True
    return found.bar <= RESOLVED * steepest


def _is_stationary(compared: Compared) -> bool:
    """Whether the slope explains nothing of how the objective moves, by a power of the step.

    A saturated objective moves at long steps as well, but all at once.
    """
    found = compared.difference
    if abs(compared.gradient) > 4 * found.bar or abs(found.slope) > 4 * found.bar:
        return False  # level, and not stationary
    moved = np.maximum(abs(found.forward), abs(found.backward)) * found.steps
    visible = np.flatnonzero(moved > 40 * found.noise)
    if len(visible) < 3:
        return False
    powers = np.diff(np.log(moved[visible[-3:]])) / np.diff(np.log(found.steps[visible[-3:]]))
    return bool((powers > 1.5).all() and (powers < 6).all())
