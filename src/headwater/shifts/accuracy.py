"""How often a classifier is right: in all, in each group, and how often it follows what it should
not go by. Rates have Wilson's intervals, which hold for few examples and near 0 and 1, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from headwater.shifts.examples import Examples, named

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """So many of so many."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN of none."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Between which ends the share lies, at 95 %.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference"
        (1927).
        """
        if not self.total:
            return math.nan, math.nan
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        shrunk = 1 + z**2 / self.total
        middle = (self.value + z**2 / (2 * self.total)) / shrunk
        spread = self.value * (1 - self.value) / self.total + (z / (2 * self.total)) ** 2
        half = z * math.sqrt(spread) / shrunk
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def __str__(self) -> str:
        if not self.total:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def to_dict(self) -> dict[str, float | int]:
        """Return counts, share and interval as plain data."""
        low, high = self.interval
        return {
            "right": self.right, "total": self.total, "value": self.value, "low": low, "high": high,
        }  # fmt: skip


@dataclass(frozen=True)
class Accuracies:
    """How often a classifier is right on some examples."""

    all: Rate
    groups: Mapping[str, Rate]
    """By label and spurious attribute."""
    follows: Rate | None
    """How often it says the label that the example's spurious attribute usually goes with; None if
    nobody knows what that is."""
    right: tuple[bool, ...] = ()
    """Whether it is right on each example; not saved."""

    @property
    def worst(self) -> tuple[str, Rate]:
        """The group in which it is right least often."""
        return min(self.groups.items(), key=lambda item: item[1].value)

    def __repr__(self) -> str:
        lines = [f"right on {self.all} of {self.all.total}"]
        lines += [f"  {name:<24}{rate}" for name, rate in self.groups.items()]
        if self.follows is not None:
            lines.append(f"goes with the spurious attribute on {self.follows}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "all": self.all.to_dict(),
            "groups": {name: rate.to_dict() for name, rate in self.groups.items()},
            "follows": None if self.follows is None else self.follows.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Accuracies:
        """Return what `to_dict` described."""

        def rate(one: Mapping[str, Any]) -> Rate:
            return Rate(one["right"], one["total"])

        return cls(
            rate(data["all"]),
            {name: rate(one) for name, one in data["groups"].items()},
            None if data["follows"] is None else rate(data["follows"]),
        )


def accuracies(
    positive: Bool[Tensor, " example"],
    examples: Examples,
    classes: tuple[str, str],
    stands_for: Mapping[str, str] | None = None,
) -> Accuracies:
    """Compare what a classifier says with the labels.

    Args:
        positive: Whether it says the second class.
        examples: The texts.
        classes: The two classes.
        stands_for: The label that each spurious attribute usually goes with; if given, it is
            counted how often the classifier says that.
    """
    said = [classes[int(one)] for one in positive.tolist()]
    right = [one == row.label for one, row in zip(said, examples, strict=True)]
    follows = None
    if stands_for and all(row.spurious in stands_for for row in examples):
        followed = [
            one == stands_for[row.spurious or ""] for one, row in zip(said, examples, strict=True)
        ]
        follows = _rate(followed)
    groups = {
        named(group): _rate([right[place] for place in places])
        for group, places in examples.groups().items()
    }
    return Accuracies(_rate(right), groups, follows, tuple(right))


def gained(before: Sequence[Accuracies], after: Accuracies) -> tuple[float, float, float]:
    """Return by how much more often a classifier is right than others on the same examples.

    Args:
        before: The others; several count as their mean.
        after: The one.

    Returns:
        The difference, and its 95 % ends over examples.
    """
    steps = [
        int(new) - sum(map(int, old)) / len(old)
        for new, *old in zip(after.right, *(one.right for one in before), strict=True)
    ]
    mean = sum(steps) / len(steps)
    spread = sum((step - mean) ** 2 for step in steps) / max(len(steps) - 1, 1)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(spread / len(steps))
    return mean, mean - half, mean + half


def _rate(right: Sequence[bool]) -> Rate:
    return Rate(sum(right), len(right))
