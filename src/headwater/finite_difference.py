"""The slope of a function along a line, by central differences over many steps, with its error.

Costs nothing but arithmetic: the function was run elsewhere. A step that is too large bends away
from the slope, one that is too small drowns in rounding. Where both are smallest is read from the
values themselves, so the error bar assumes nothing about the function but that it is smooth there;
where it is not, the values say so too: a kink, a jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

RATIO = 10.0**0.5
"""Each step is this much shorter than the one before."""

FLOAT32 = float(np.finfo(np.float32).eps)
"""Spacing of float32 at 1: operations inside a float64 function may use it."""
INSIDE = 64 * FLOAT32
"""Share of a value that may be rounding, whatever the format of the values."""

FEWEST = 3
"""Steps below which nothing tells an error: two changes from step to step."""
HIGHEST = 8
"""Highest power that is taken for one: the first four terms of a central difference's error."""

SINKS = 5 * RATIO
"""Times what is visible up to which the last visible bend of a kink at the point may be."""

Shape = Literal["smooth", "kink", "jump", "lost"]
"""What the values look like around the middle; `lost`: every step was rounded away."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Values of a function on both sides of a point, at steps from the longest to the shortest."""

    nominal: Float[ndarray, " step"]
    """The steps asked for."""
    ahead: Float[ndarray, " step"]
    """The steps forward as the number format realized them."""
    behind: Float[ndarray, " step"]
    """The steps backward, positive."""
    plus: Float[ndarray, " step"]
    minus: Float[ndarray, " step"]
    center: Float[ndarray, " step"]
    """The value in the middle, run in the same batch as its step's."""
    eps: float
    """Spacing of the number format at 1."""

    @property
    def half(self) -> Float[ndarray, " step"]:
        """Half the distance between the two points of a step."""
        return (self.ahead + self.behind) / 2

    @property
    def size(self) -> float:
        """Size of the value in the middle."""
        return float(np.abs(self.center).max(initial=0.0))

    @property
    def sizes(self) -> Float[ndarray, " step"]:
        """Size of the largest value of each step."""
        return np.max(np.abs([self.plus, self.minus, self.center]), axis=0)

    def first(self, count: int) -> Sweep:
        """Return the longest `count` steps."""
        cut = slice(0, count)
        return Sweep(
            self.nominal[cut], self.ahead[cut], self.behind[cut], self.plus[cut], self.minus[cut],
            self.center[cut], self.eps,
        )  # fmt: skip

    def movement(self) -> float:
        """Return how far the value goes from the middle's at most."""
        away = [np.abs(side - self.center).max(initial=0) for side in (self.plus, self.minus)]
        return float(max(away))


@dataclass(frozen=True, eq=False)
class Difference:
    """The slope that a sweep shows, and how sure it is."""

    slope: float
    """The best estimate."""
    bar: float
    """Its error bar: truncation and rounding of the step that is best."""
    step: float
    """Half the distance between the two points of that step."""
    extrapolated: bool
    """Whether two steps were combined (Richardson), which removes the second-order error."""
    order: float | None
    """The power of the step by which the error falls; 2 for a smooth function, None if unseen."""
    noise: float
    """Rounding error of one value, read from the short steps."""
    plateau: tuple[float, float]
    """The shortest and the longest step with an error within 30 times the best one's."""
    linear: float | None
    """The longest step up to which both one-sided slopes are within a tenth of `slope`."""
    one_sided: tuple[float, float]
    """The slopes backward and forward."""
    shape: Shape
    jump: float
    """Height of the jump; 0 for any other shape."""
    dead: int
    """How many of the shortest steps were rounded away."""
    steps: Float[ndarray, " step"]
    """The steps that were not."""
    central: Float[ndarray, " step"]
    forward: Float[ndarray, " step"]
    backward: Float[ndarray, " step"]
    error: Float[ndarray, " step"]
    """Error of each central difference, as the model of truncation and rounding has it."""


def steps(scale: float, count: int = 24) -> Float[ndarray, " step"]:
    """Return half a decade's steps: `scale`, `scale / 10**0.5`, and so on.

    Args:
        scale: The longest.
        count: How many.
    """
    return scale * RATIO ** -np.arange(count, dtype=float)


def difference(sweep: Sweep) -> Difference:
    """Find the slope in a sweep, and its error.

    Args:
        sweep: Values at both sides of the point, at the steps of `steps`.

    Returns:
        The slope at the step where truncation (what shorter steps change) plus rounding (noise over
        step) is smallest; of two steps combined, where their error is smaller.
    """
    if len(sweep.nominal) < FEWEST:
        return _lost(sweep, 0)
    dead, least = _dead(sweep)
    alive = sweep.first(len(sweep.nominal) - dead)
    if len(alive.nominal) < FEWEST:
        return _lost(sweep, dead)
    half = alive.half
    central = (alive.plus - alive.minus) / (2 * half)
    forward = (alive.plus - alive.center) / alive.ahead
    backward = (alive.center - alive.minus) / alive.behind
    change = np.abs(np.diff(central))
    # the value is rounded, and inside so is what is as large as the point
    rounded = np.maximum(alive.sizes, np.abs(central) * sweep.nominal[0])
    floor = np.maximum(0.5 * sweep.eps * rounded, least)
    noise = np.maximum(_noise(change, half), floor)
    error = _errors(central, half, noise)
    best = int(error.argmin())
    slope, bar, step = central[best], error[best], half[best]
    square = (half[:-1] / half[1:]) ** 2
    refined = (square * central[1:] - central[:-1]) / (square - 1)
    its_error = _errors(refined, half[1:], 1.3 * noise[1:])  # it has the noise of two steps
    at = int(its_error.argmin())
    extrapolated = bool(its_error[at] < bar)
    if extrapolated:
        slope, bar, step = refined[at], its_error[at], half[at]
    level = float(noise.min())
    shape, jump = _shape(alive, level, least)
    near = np.flatnonzero(error <= 30 * error[best])
    return Difference(
        slope=float(slope),
        bar=float(bar),
        step=float(step),
        extrapolated=extrapolated,
        order=_order(change, half, noise),
        noise=level,
        plateau=(float(half[near.max()]), float(half[near.min()])),
        linear=_linear(forward, backward, half, float(slope), noise),
        one_sided=(_settled(backward, half, noise), _settled(forward, half, noise)),
        shape=shape,
        jump=jump,
        dead=dead,
        steps=half,
        central=central,
        forward=forward,
        backward=backward,
        error=error,
    )


def _dead(sweep: Sweep) -> tuple[int, float]:
    """Count the shortest steps that rounding swallowed, at the point or at the value.

    Returns:
        How many, and the least change of a value that would be seen at those that remain.
    """
    off = np.minimum(sweep.ahead, sweep.behind) < sweep.nominal / 2
    # a few roundings wide, steps agree because they end on the same few numbers
    off |= sweep.nominal < 4 * sweep.eps * sweep.nominal[0]
    kept = np.flatnonzero(~off)
    realized = sweep.first(int(kept[-1]) + 1 if len(kept) else 0)
    seen, least = _seen(realized)
    return len(off) - seen, least


def _seen(sweep: Sweep) -> tuple[int, float]:
    """Return how many steps tell something, and the least change that would be seen.

    Where the value is the same on both sides of all short steps, a function that is flat there
    must be told from a change too small to be seen. Such a change was small, or made by a short
    step, when it was last seen, and it was seen on both sides; a ReLU beside its kink moves on one.
    """
    every = len(sweep.nominal)
    changes = np.abs(sweep.plus - sweep.minus)
    # one change among many that are swallowed is not seen: another kernel ran the last rows
    pairs = np.flatnonzero((changes[1:] > 0) & (changes[:-1] > 0))
    seen = int(pairs[-1]) + 2 if len(pairs) else 0
    if seen == every:
        return every, 0.0
    smallest = float(changes[changes > 0].min(initial=np.inf))
    if _are_small(changes, seen, sweep) and _moves_on_both_sides(sweep.first(seen)):
        return seen, smallest / 2
    if seen < 8 and smallest <= 4 * FLOAT32 * sweep.size:
        return every, smallest
    if not sweep.plus[-1] == sweep.center[-1] == sweep.minus[-1]:
        return every, 0.0
    # a value that stays exactly 0 may be a logarithm rounded at 1
    return every, sweep.eps / 2 * max(sweep.size, 1.0)


def _are_small(changes: ndarray, seen: int, sweep: Sweep) -> bool:
    """Whether the last change that was seen, or its step, is no more than a few roundings."""
    if not seen:
        return False
    short = sweep.nominal[seen - 1] <= 16 * INSIDE * sweep.nominal[0]
    return bool(changes[seen - 1] <= INSIDE * sweep.size or short)


def _moves_on_both_sides(seen: Sweep) -> bool:
    """Whether at some step the value goes the same way on both sides."""
    forward, backward = seen.plus - seen.center, seen.center - seen.minus
    return bool((forward * backward > 0).any())


def _noise(change: ndarray, half: ndarray) -> float:
    """Return the rounding error of a value.

    Beyond the step where the differences agree best they part again, in inverse proportion to the
    step: their products with the step are the noise. The root of the step keeps the longest ones
    from agreeing best only because a bounded function has no large slope over them.
    """
    weighed = np.maximum(change[:-1], change[1:]) * np.sqrt(half[1:-1])
    turn = int(weighed.argmin())
    beyond = change[turn + 1 :] * half[turn + 2 :]
    if not len(beyond):
        return 0.0
    largest = float(beyond.max()) or 1.0  # squares of large numbers overflow
    return 2 * largest * float(np.sqrt(np.mean((beyond / largest) ** 2)))


def _errors(found: ndarray, half: ndarray, noise: ndarray) -> ndarray:
    """Return the error of each step's estimate: what shorter steps change, and rounding.

    With the error falling tenfold a step, the change to the next is 0.9 of it. The larger of two
    neighbors guards against two estimates that agree by chance; all shorter steps, where they
    differ by more than their rounding, against a wave that is longer than its period.
    """
    change = np.abs(np.diff(found))
    change[:-1] = np.maximum(change[:-1], change[1:])
    between = np.abs(found[:, None] - found[None, :]) - 3 * (noise / half)[None, :]
    shorter = np.triu(between, 1).max(axis=1, initial=0.0)[:-1]
    return np.append(1.15 * np.maximum(change, shorter) + (noise / half)[:-1], np.inf)


def _order(change: ndarray, half: ndarray, noise: ndarray) -> float | None:
    """Return by which power of the step the differences approach the slope, where they do."""
    clear = change > 10 * (noise / half)[1 : len(change) + 1]
    both = np.flatnonzero(clear[:-1] & clear[1:])[-5:]
    if not len(both):
        return None
    fall = np.log(change[both] / change[both + 1])
    order = float(np.median(fall / np.log(half[both] / half[both + 1])))
    # a wave whose period the steps pass, a step into rounding: neither approaches by a power
    return order if 0 < order <= HIGHEST else None


def _shape(alive: Sweep, noise: float, least: float) -> tuple[Shape, float]:
    """Tell a smooth function from one with a kink or a jump at the point itself."""
    rise = alive.plus - alive.minus
    bend = alive.plus + alive.minus - 2 * alive.center
    # whatever is rounded to float32 inside, or at 1 before a logarithm, is a staircase of its own
    clear = INSIDE * alive.size + 64 * max(alive.eps, least)
    for values in (rise, bend):
        height = float(np.abs(values[-6:]).mean())
        if np.ptp(values[-6:]) <= 0.02 * height and height > clear:
            return "jump", height
    bend, half = np.abs(bend), alive.half
    visible = np.flatnonzero(bend > 40 * noise)[-3:]
    # a bend that ends far above the noise ends at a kink beside the point
    last = visible[-1] if len(visible) else 0
    sinks = last == len(bend) - 1 or bend[last] < SINKS * 40 * noise
    if sinks and len(visible) == 3:
        powers = np.diff(np.log(bend[visible])) / np.diff(np.log(half[visible]))
        # a smooth function bends with the square of the step; beside a kink the bend sets in
        # faster than in proportion
        if powers.min() > 0.85 and powers.max() < 1.15:
            return "kink", 0.0
    return "smooth", 0.0


def _settled(side: ndarray, half: ndarray, noise: ndarray) -> float:
    """Return a one-sided slope at the step where its error is smallest."""
    return float(side[int(side_errors(side, half, noise).argmin())])


def side_errors(
    side: Float[ndarray, " step"], half: Float[ndarray, " step"], noise: ndarray | float
) -> Float[ndarray, " less"]:
    """Return the error of each one-sided slope but the last: what the next changes, and rounding.

    Args:
        side: The slope at each step.
        half: The steps.
        noise: Of one value.
    """
    return np.abs(np.diff(side)) + 2 * (noise / half)[:-1]


def _linear(
    forward: ndarray, backward: ndarray, half: ndarray, slope: float, noise: ndarray
) -> float | None:
    """Return the longest step up to which both one-sided slopes are within a tenth."""
    clear = np.flatnonzero(2 * noise / half < 0.05 * abs(slope))
    if not len(clear):
        return None
    last = int(clear[-1])
    away = np.maximum(np.abs(forward - slope), np.abs(backward - slope))
    outside = np.flatnonzero(away[: last + 1] > 0.1 * abs(slope))
    first = int(outside[-1]) + 1 if len(outside) else 0
    return float(half[first]) if first <= last else None


def _lost(sweep: Sweep, dead: int) -> Difference:
    nothing = np.zeros(0)
    return Difference(
        slope=float("nan"),
        bar=float("inf"),
        step=float("nan"),
        extrapolated=False,
        order=None,
        noise=0.5 * sweep.eps * sweep.size,
        plateau=(float("nan"), float("nan")),
        linear=None,
        one_sided=(float("nan"), float("nan")),
        shape="lost",
        jump=0.0,
        dead=dead,
        steps=nothing,
        central=nothing,
        forward=nothing,
        backward=nothing,
        error=nothing,
    )
