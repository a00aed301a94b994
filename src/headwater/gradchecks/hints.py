"""What a wrong gradient looks like: the mistakes that are made, told by the ratio they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gradchecks.result import Check, DirectionCheck
from headwater.gradchecks.verdicts import Verdict

CLOSE = 1e-3
"""Relative distance within which a ratio counts as met."""
NOTHING = 1e-4
"""Share of the slope below which a gradient may be rounding alone."""
ALIKE = 1e-2
"""Relative distance within which two vectors count as one: either may be in a coarse format."""


def hint_of(
    check: Check,
    own: Float[Tensor, "*shape"] | None,
    own_is_right: Callable[[], bool],
    counts: Mapping[str, int],
    elsewhere: Callable[[Tensor], str],
) -> str:
    """Return what a verdict suggests; empty where it says all there is.

    Args:
        check: What was found.
        own: Autograd's gradient; None if it sees no path.
        own_is_right: Whether that is the slope.
        counts: Numbers by which a sum and a mean could be confused, by what they count.
        elsewhere: Says of which other place a gradient is the right one.
    """
    verdict, directions, gradient = check.verdict, check.directions, check.gradient
    given = check.claimed != "autograd's"
    if verdict == "constant":
        return _of_constant(check, own)
    if verdict == "kink":
        kink = _steepest(directions, verdict)
        low, high = kink.difference.one_sided
        return (
            f"along {kink.name} the slope is {low:.4g} behind and {high:.4g} ahead; the gradient's "
            f"{kink.gradient:.4g} lies between: a subgradient"
        )
    if verdict == "jump":
        jump = _steepest(directions, verdict)
        return f"along {jump.name} the objective jumps by {jump.difference.jump:.4g}"
    if verdict != "disagree":
        return ""
    right = given and own is not None and bool(own.any()) and own_is_right()
    if right and own is not None:
        ratio = times(gradient, own)
        said = "" if ratio is None else of_ratio(ratio, check.objective, counts)
        said = said or of_vectors(gradient, own, check.value) or elsewhere(gradient)
        return said or _of_nothing(gradient, own)
    ratio = common_ratio(directions)
    said = "" if ratio is None else of_ratio(ratio, check.objective, counts)
    if given and own is not None and own.any():
        also = "autograd's own gradient is not the slope either"
        return f"{said}; {also}" if said else also
    if given or own is None:
        return said
    if _forward_mode_is(directions, lambda one: one.difference.slope):
        custom = "forward mode agrees with the differences: the backward of an operation is wrong"
        return f"{said}; {custom}" if said else custom
    if not said and _forward_mode_is(directions, lambda one: one.gradient):
        return (
            "forward mode repeats the gradient, and the differences contradict both: part of the "
            "way is detached, straight-through or rounded"
        )
    return said


def _steepest(directions: Sequence[DirectionCheck], verdict: Verdict) -> DirectionCheck:
    found = [one for one in directions if one.verdict == verdict]
    # one entry says where it is
    found = [one for one in found if one.index is not None] or found
    return max(found, key=lambda one: abs(one.gradient))


def _of_constant(check: Check, own: Float[Tensor, "*shape"] | None) -> str:
    if check.movement > check.rounding:
        return ""
    if own is not None and float(own.abs().sum()) * check.size > check.rounding:
        return "its gradient is not zero: an operation inside rounds all changes away"
    objective, near = check.objective, round(check.objective)
    if near and abs(objective - near) < 1e-6 * abs(near):
        entries = "the entries sum to a constant: " if check.entries else ""
        return (
            f"{entries}the objective is {near} whatever the value is. A softmax summed over the "
            "whole vocabulary? grad_outputs=ones_like(probs) gives the gradient of probs.sum(), "
            "which is zero. Choose one token's probability"
        )
    return (
        "the objective does not depend on this value: a position that it cannot see (the causal "
        "mask), a value that is overwritten, or a graph that is cut"
    )


def _forward_mode_is(
    directions: Sequence[DirectionCheck], slope: Callable[[DirectionCheck], float]
) -> bool:
    """Whether forward mode gives a slope wherever the gradient is wrong."""
    wrong = [one for one in directions if one.verdict == "disagree" and one.forward is not None]
    return bool(wrong) and all(
        abs(one.forward - slope(one))  # pyright: ignore[reportOptionalOperand]
        <= min(
            max(10 * one.difference.bar, 1e-6 * abs(one.difference.slope)),
            0.1 * abs(one.gradient - one.difference.slope),
        )
        for one in wrong
    )


def common_ratio(directions: Sequence[DirectionCheck]) -> float | None:
    """Return the ratio of claimed to measured slopes, if it is the same in all directions."""
    ratios = [
        one.gradient / one.difference.slope
        for one in directions
        if abs(one.difference.slope) > 100 * one.difference.bar
    ]
    if not ratios:
        return None
    middle = sorted(ratios)[len(ratios) // 2]
    spread = max(abs(ratio - middle) for ratio in ratios)
    return middle if spread <= max(CLOSE * abs(middle), 1e-9) else None


def times(claimed: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> float | None:
    """Return how many times the right gradient a claimed one is; None if it is another vector."""
    ratio = float((claimed * right).sum() / (right * right).sum())
    return ratio if same(claimed, ratio * right) or not claimed.any() else None


def of_ratio(ratio: float, value: float, counts: Mapping[str, int]) -> str:
    """Return what a common ratio suggests; empty if nothing.

    Args:
        ratio: Claimed over measured.
        value: The objective at the point.
        counts: Numbers a sum and a mean can differ by, and what they count.
    """
    if abs(ratio) < 1e-9:
        return (
            "the graph is cut between the value and the objective (detach, no_grad, .item(), "
            "argmax), or this is the gradient of another position or site"
        )
    if abs(ratio + 1) < CLOSE:
        return "the sign is flipped"
    said = _of_size(abs(ratio), value, counts)
    return f"the sign is flipped, and {said}" if said and ratio < 0 else said


def _of_size(ratio: float, value: float, counts: Mapping[str, int]) -> str:
    for factor, words in _factors(value, counts):
        if factor > 0 and abs(ratio / factor - 1) < CLOSE:
            return words
    return ""


def _factors(value: float, counts: Mapping[str, int]) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = [
        (2.0, "a factor of two: counted twice, or a square without its half"),
        (0.5, "a factor of a half: halved on the way, or a square without its two"),
    ]
    if 0 < value < 1:
        words = "this is the gradient of the log-probability where the objective is the probability"
        found.append((1 / value, f"{words} (they differ by the factor p = {value:.3g})"))
    if -500 < value < 0:
        words = "this is the gradient of the probability where the objective is the log-probability"
        found.append((math.exp(value), f"{words} (they differ by p = {math.exp(value):.3g})"))
    for what, count in counts.items():
        if count > 1:
            found += [
                (float(count), f"this is a sum over {count} {what} where the objective is a mean"),
                (1 / count, f"this is a mean over {count} {what} where the objective is a sum"),
            ]
    return found


def of_vectors(
    claimed: Float[Tensor, "*shape"],
    right: Float[Tensor, "*shape"],
    value: Float[Tensor, "*shape"],
) -> str:
    """Return how a claimed gradient comes from the right one entry by entry; empty if unknown."""
    if same(claimed, value * right):
        return "this is activation times gradient, not the gradient"
    if same(claimed, -value * right):
        return "this is minus activation times gradient: the effect of zeroing, to first order"
    if same(claimed, right.abs()) and bool((right < 0).any()):
        return "this is the size of the gradient, without its sign"
    return ""


def _of_nothing(claimed: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> str:
    if torch.linalg.vector_norm(claimed) > NOTHING * torch.linalg.vector_norm(right):
        return ""
    return (
        "next to nothing beside the slope: the rounding of a gradient that is zero, such as that "
        "of a whole softmax summed, grad_outputs=ones_like(probs)"
    )


def same(claimed: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> bool:
    """Whether two gradients are the same vector, within rounding."""
    size = torch.linalg.vector_norm(other)
    return bool(size > 0) and bool(torch.linalg.vector_norm(claimed - other) <= ALIKE * size)
