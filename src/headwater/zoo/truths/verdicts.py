"""How far a score is from the truth, and what an estimator is called, in words."""

from __future__ import annotations

from dataclasses import fields

from headwater.estimators import Estimator

RIGHT = 0.01
"""Scores within this share of the exact effect are called right."""
NOTHING = 1e-9
"""Numbers below this share of the largest effect are called 0."""
BLIND = 1e-6
"""Estimators that see less than this share of an effect are called blind to it."""


def verdict_of(estimator: Estimator, score: float, exact: float | None, scale: float) -> str:
    """Say whether an estimator's score is right.

    Args:
        estimator: Decides what a score means: an effect, its magnitude, or a choice.
        score: What it says.
        exact: The effect; None where there is none to compare with.
        scale: The largest effect of the example, which says what counts as 0.
    """
    if not estimator.are_effects:
        return "kept" if abs(score) > 0.5 else "closed"
    if exact is None:
        return "no exact effect"
    if estimator.magnitudes:
        return verdict(abs(score), abs(exact), scale)
    return verdict(score, exact, scale)


def verdict(score: float, exact: float, scale: float) -> str:
    """Say whether a score is right, and by how much it is not."""
    floor = NOTHING * (scale if scale > NOTHING else 1.0)
    if abs(exact) <= floor:
        return "right" if abs(score) <= floor else "should be 0"
    if abs(score - exact) <= RIGHT * abs(exact):
        return "right"
    ratio = score / exact
    if abs(ratio) <= BLIND:
        return "blind"
    if ratio < 0:
        return "wrong sign" + ("" if 0.5 <= -ratio <= 2 else f", {_times(-ratio)}")
    if 0.9 <= ratio <= 1.1:
        return f"{100 * abs(ratio - 1):.1f} % too {'large' if ratio > 1 else 'small'}"
    return _times(ratio)


def badness(estimator: Estimator, score: float, exact: float | None, said: str) -> float:
    """Return how wrong a score is, to find the worst: 0 is right, sizes count by their ratio."""
    if said == "right" or exact is None or not estimator.are_effects:
        return 0.0
    if said == "should be 0":
        return abs(score)
    ratio = abs(score / exact)
    # at least 1: wrong signs and small errors come after none
    return 1 + max(ratio, min(1 / ratio, 1 / BLIND) if ratio else 1 / BLIND)


def words(estimator: Estimator) -> tuple[str, ...]:
    """Return an estimator in words: the command line's, then what is not at its default.

    Numbers of steps are always told where anything else is.
    """
    said = [estimator.name]
    for entry in fields(estimator):
        value = getattr(estimator, entry.name)
        changed = value != entry.default
        if entry.name == "steps" and (changed or len(said) > 1):
            said.append(str(value))
        elif changed and isinstance(value, bool):
            said.append(f"{'with' if value else 'without'} {entry.name.replace('_', ' ')}")
        elif changed:
            said.append(value if isinstance(value, str) else f"{entry.name} {value}")
    return tuple(said)


def merged(estimators: list[tuple[str, ...]]) -> list[str]:
    """Return names of estimators, those that differ in their last word on one line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for said in estimators:
        lines.setdefault(said[:-1], []).append(said[-1])
    return [" ".join([*first, ", ".join(last)]) for first, last in lines.items()]


def _times(ratio: float) -> str:
    factor = ratio if ratio > 1 else 1 / ratio
    shown = f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"
    return f"{shown} times too {'large' if ratio > 1 else 'small'}"
