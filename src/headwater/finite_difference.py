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
        The slope at the step where truncation (what the next shorter step changes) plus rounding
        (noise over step) is smallest; extrapolated where the error falls with the square.
    """
    dead = _dead(sweep)
    alive = sweep.first(len(sweep.nominal) - dead)
    if len(alive.nominal) < 4:
        return _lost(sweep, dead)
    half = alive.half
    central = (alive.plus - alive.minus) / (2 * half)
    forward = (alive.plus - alive.center) / alive.ahead
    backward = (alive.center - alive.minus) / alive.behind
    change = np.abs(np.diff(central))
    noise, turn = _noise(change, half, 0.5 * sweep.eps * sweep.size)
    error = _errors(change, half, noise)
    best = int(error.argmin())
    slope, bar, step = central[best], error[best], half[best]
    order = _order(change[: turn + 1], half, noise)
    extrapolated = False
    if order is not None and 1.7 < order < 2.3:
        refined, its_error = _richardson(central, half, noise)
        at = int(its_error.argmin())
        if its_error[at] < bar:
            slope, bar, step, extrapolated = refined[at], its_error[at], half[at], True
    shape, jump = _shape(alive, noise)
    near = np.flatnonzero(error <= 30 * error[best])
    first = int(near.max())
    return Difference(
        slope=float(slope),
        bar=float(bar),
        step=float(step),
        extrapolated=extrapolated,
        order=order,
        noise=float(noise),
        plateau=(float(half[first]), float(half[near.min()])),
        linear=_linear(forward, backward, half, float(slope), best),
        one_sided=tuple(_settled(side, half, noise) for side in (backward, forward)),  # type: ignore[arg-type]
        shape=shape,
        jump=jump,
        dead=dead,
        steps=half,
        central=central,
        forward=forward,
        backward=backward,
        error=error,
    )


def _dead(sweep: Sweep) -> int:
    """Count the shortest steps that rounding swallowed, at the point or at the value.

    Where the value is the same on both sides, a function that is flat there must be told from a
    change too small to be seen: the last change that was seen is then a few roundings.
    """
    off = np.maximum(sweep.ahead, sweep.behind) > 2 * sweep.nominal
    off |= np.minimum(sweep.ahead, sweep.behind) < sweep.nominal / 2
    changes = np.abs(sweep.plus - sweep.minus)
    seen = np.flatnonzero((changes > 0) & ~off)
    # operations inside a float64 function may round to float32
    inside = max(sweep.eps, float(np.finfo(np.float32).eps))
    rounded = len(seen) > 0 and changes[seen[-1]] <= 64 * inside * max(
        sweep.size, changes.max(initial=0.0)
    )
    swallowed = off | ((changes == 0) & rounded)
    trailing = np.flatnonzero(~swallowed)
    return len(swallowed) - (int(trailing[-1]) + 1 if len(trailing) else 0)


def _noise(change: ndarray, half: ndarray, floor: float) -> tuple[float, int]:
    """Return the rounding error of a value, and the step from which rounding rules.

    Beyond the step where the differences agree best they part again, in inverse proportion to the
    step: their products with the step are the noise.
    """
    neighbors = np.maximum(change[:-1], change[1:])
    turn = int(neighbors.argmin())
    beyond = change[turn + 1 :] * half[turn + 2 :]
    return max(3 * float(np.median(beyond)) if len(beyond) else 0.0, floor), turn


def _errors(change: ndarray, half: ndarray, noise: float) -> ndarray:
    """Return the error of each step but the last: what the next step changes, and rounding.

    With the error falling tenfold a step, the change to the next is 0.9 of it. The larger of two
    neighbors guards against two differences that agree by chance.
    """
    truncation = 1.15 * change
    truncation[:-1] = 1.15 * np.maximum(change[:-1], change[1:])
    return np.append(truncation + noise / half[:-1], np.inf)


def _richardson(central: ndarray, half: ndarray, noise: float) -> tuple[ndarray, ndarray]:
    """Return the extrapolations of neighboring steps, and their errors."""
    square = (half[:-1] / half[1:]) ** 2
    refined = (square * central[1:] - central[:-1]) / (square - 1)
    change = np.abs(np.diff(refined))
    error = 1.15 * change
    error[:-1] = 1.15 * np.maximum(change[:-1], change[1:])
    return refined, np.append(error + 1.3 * noise / half[1:-1], np.inf)


def _order(change: ndarray, half: ndarray, noise: float) -> float | None:
    """Return by which power of the step the differences approach the slope, where they do."""
    clear = change > 10 * noise / half[1 : len(change) + 1]
    both = np.flatnonzero(clear[:-1] & clear[1:])[-5:]
    if not len(both):
        return None
    fall = np.log(change[both] / change[both + 1])
    return float(np.median(fall / np.log(half[both] / half[both + 1])))


def _shape(alive: Sweep, noise: float) -> tuple[Shape, float]:
    """Tell a smooth function from one with a kink or a jump at the point itself."""
    rise = alive.plus - alive.minus
    bend = alive.plus + alive.minus - 2 * alive.center
    clear = 1e3 * alive.eps * alive.size
    for values in (rise, bend):
        last = values[-6:]
        middle = float(np.abs(last).mean())
        if len(last) == 6 and middle > clear and np.ptp(last) <= 0.02 * middle:
            return "jump", float(np.abs(rise[-1]))
    bend, half = np.abs(bend), alive.half
    visible = np.flatnonzero(bend > 40 * noise)[-4:]
    slope = np.abs(rise / half).max()
    last = int(visible[-1]) if len(visible) else 0
    # a kink beside the point shows at long steps only: the next shorter one would show it as well
    here = last + 1 >= len(half) or bend[last] * half[last + 1] / half[last] < 80 * noise
    if here and len(visible) == 4 and (bend[visible] / half[visible]).min() > 1e-6 * slope:
        power = np.polyfit(np.log(half[visible]), np.log(bend[visible]), 1)[0]
        # a smooth function bends with the square of the step
        if 0.5 < power < (1.5 if alive.eps < 1e-12 else 1.25):
            return "kink", 0.0
    return "smooth", 0.0


def _settled(side: ndarray, half: ndarray, noise: float) -> float:
    """Return a one-sided slope at the step where its error is smallest."""
    error = np.abs(np.diff(side)) + 2 * noise / half[:-1]
    return float(side[int(error.argmin())])


def _linear(
    forward: ndarray, backward: ndarray, half: ndarray, slope: float, best: int
) -> float | None:
    """Return the longest step up to which both one-sided slopes are within a tenth."""
    away = np.maximum(np.abs(forward - slope), np.abs(backward - slope))
    outside = np.flatnonzero(away[: best + 1] > 0.1 * abs(slope))
    first = int(outside.max()) + 1 if len(outside) else 0
    return float(half[first]) if first <= best and slope != 0 else None


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
