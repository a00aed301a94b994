"""Verdicts on slopes that are known in closed form, one rule at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headwater.finite_difference import Sweep, difference, steps
from headwater.gradchecks.verdicts import Compared, along, overall

RTOL = 1.5e-8  # the root of float64's spacing


def compared(f: Any, gradient: float, x: float = 0.0, **options: Any) -> Compared:
    """Compare a gradient with a function's differences at `x`, over steps from 1 on."""
    ways = steps(1.0)
    plus, minus = x + ways, x - ways
    center = np.full(len(ways), f(np.array([x]))[0])
    sweep = Sweep(ways, plus - x, x - minus, f(plus), f(minus), center, 2.0**-52)
    given: dict[str, Any] = {
        "rounding": 0.0, "movement": sweep.movement(), "reach": 1.0,
        "size": abs(float(center[0])), "eps": sweep.eps,
    }  # fmt: skip
    return Compared(gradient, difference(sweep), **given | options)


def judged(*lines: Compared, elsewhere: float = 0.0) -> tuple[str, list[str]]:
    verdict, each = overall(lines, [along(one, RTOL) for one in lines], elsewhere)
    return verdict, list(each)


def test_a_slope_below_what_rounding_does_to_the_gradient_cannot_be_told():
    # a gradient given in a coarse format: its rounding hides a slope twice as large
    assert along(compared(np.sin, 0.5, rounding=0.6), RTOL) == "ill-conditioned"
    assert along(compared(np.sin, 0.5, rounding=0.01), RTOL) == "disagree"


def test_a_gradient_within_ten_bars_of_a_slope_below_its_bar_is_no_wrong_gradient_nor_an_extremum():
    even = compared(lambda t: 1 + t * t, 0.0)
    near, far = (compared(lambda t: 1 + t * t, n * even.difference.bar) for n in (6, 20))
    assert judged(near)[0] == "ill-conditioned"
    assert judged(far)[0] == "disagree"


@pytest.mark.parametrize("offset", [0.0, 1e8, 1e10])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_gradient_equal_to_the_slope_of_one_side_of_a_kink_on_a_curve_is_a_subgradient(
    offset, side
):
    # a one-sided slope is good to the root of the spacing, the central one to far more
    def f(t: Any) -> Any:
        return offset + 3 * t - t * t + np.abs(t)

    assert along(compared(f, 3 + side), RTOL) == "kink"
    assert along(compared(f, 3 + 1.1 * side), RTOL) == "disagree"


def test_at_a_kink_a_gradient_may_be_off_by_its_own_rounding():
    # 1 and 0.4 % more, as bfloat16 rounds
    assert along(compared(np.abs, 1.004, rounding=0.01), RTOL) == "kink"


def test_a_direction_on_which_nothing_depends_is_flat_beside_a_slope_that_is_hardly_seen():
    # the offset's rounding over the longest step is more than a ten-thousandth of the slope
    steep = compared(lambda t: 1e6 + 1e-7 * t, 1e-7)
    still = compared(lambda t: 1e6 + 0 * t, 0.0)
    assert judged(steep, still) == ("agree", ["agree", "flat"])


@pytest.mark.parametrize(("elsewhere", "verdict"), [(0.0, "constant"), (0.9, "ill-conditioned")])
def test_an_objective_that_moves_beyond_the_steps_alone_is_not_constant(elsewhere, verdict):
    one = compared(lambda t: 1 + 0 * t, 0.0)
    assert judged(one, elsewhere=elsewhere)[0] == verdict


def test_a_check_in_which_most_directions_are_lost_does_not_pass():
    right = compared(np.sin, 1.0)
    lost = compared(lambda t: np.sin(1e13 * t), 1e13, 1.0)
    assert judged(right, lost)[0] == "agree"
    assert judged(right, lost, lost)[0] == "ill-conditioned"


@pytest.mark.parametrize("power", [2, 4])
def test_an_extremum_is_stationary_on_an_offset_too(power):
    assert judged(compared(lambda t: 1 + t**power, 0.0))[0] == "stationary"


def test_a_saturated_objective_that_long_steps_bring_back_is_no_extremum():
    # to rounding the logarithm is 0 at 40, and moves by 9e-14, 2e-4 and 60 at the longest steps
    slope = 100 / (1 + math.exp(40))
    saturated = compared(lambda t: -np.log(1 + np.exp(-(40 + 100 * t))), slope)
    assert judged(saturated)[0] == "ill-conditioned"


def test_an_objective_that_is_rounded_is_no_extremum():
    # autograd's gradient of a rounding is 0
    staircase = compared(lambda t: np.rint(127 * t) / 127, 0.0, 0.3)
    assert judged(staircase)[0] == "ill-conditioned"


@pytest.mark.parametrize("k", [1e10, 1e11, 1e12])
@pytest.mark.parametrize("x", [0.9, 1.0, 1.1])
def test_a_wave_shorter_than_all_steps_is_no_reason_to_disagree(k, x):
    right = k * math.cos(k * x)
    assert along(compared(lambda t: np.sin(k * t), right, x), RTOL) == "ill-conditioned"


@pytest.mark.parametrize("k", [1.0, 1e4, 1e8])
def test_of_a_wave_that_some_steps_resolve_a_flipped_gradient_disagrees(k):
    right = k * math.cos(k * 1.1)
    assert along(compared(lambda t: np.sin(k * t), right, 1.1), RTOL) == "agree"
    assert along(compared(lambda t: np.sin(k * t), -right, 1.1), RTOL) == "disagree"
