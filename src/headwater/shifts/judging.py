"""Which features a classifier should not go by, from a small set that is balanced.

What a feature adds to the probe's logit differs between examples. On a set in which label and
spurious attribute are independent, how much it differs between the labels and how much between the
attributes are two numbers:

    on_label    = mean over attributes of (mean c | second label) - (mean c | first label)
    on_spurious = mean over labels of (mean c | attribute of the second) - (... of the first)

A feature is to be ablated if it tells the attribute better than the label: `|on_spurious|` exceeds
`|on_label|`, and its own error. Marks et al. have a person judge instead, who sees no labels of the
attribute but what each feature means; see `headwater.shifts.judgments`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headwater.errors import PromptError, UnknownOptionError
from headwater.shifts.effects import FeatureEffect, ProbeEffects
from headwater.shifts.examples import Examples

ABLATE, KEEP = "ablate", "keep"
SURE = 1.96
"""Standard errors by which a contrast must differ from 0."""
THRESHOLD = 0.5


@dataclass(frozen=True)
class Judged:
    """A feature that a probe goes by, and what is to be done with it."""

    name: str
    effect: float | None = None
    """On the margin, on biased examples; None if it was not measured."""
    se: float | None = None
    judgment: str = ""
    """`"ablate"`, `"keep"`, or nothing yet."""
    on_label: float | None = None
    """What it adds to the logit of the second label more than to that of the first."""
    on_spurious: float | None = None
    """The same between the attributes that usually go with them."""
    contexts: tuple[str, ...] = ()
    """Where it is strongest, the token in double brackets."""
    note: str = ""

    @property
    def share(self) -> float | None:
        """Which share of what it tells is about the spurious attribute."""
        if self.on_label is None or self.on_spurious is None:
            return None
        both = abs(self.on_label) + abs(self.on_spurious)
        return abs(self.on_spurious) / both if both else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, what is unknown left out."""
        found = {
            "feature": self.name,
            "judgment": self.judgment,
            "effect": self.effect,
            "se": self.se,
            "on_label": self.on_label,
            "on_spurious": self.on_spurious,
            "contexts": list(self.contexts),
            "note": self.note,
        }
        must = ("feature", "judgment")
        return {key: one for key, one in found.items() if key in must or one not in (None, [], "")}


def judge(
    features: Sequence[FeatureEffect],
    balanced: ProbeEffects,
    sides: Mapping[str, bool],
    *,
    threshold: float = THRESHOLD,
) -> list[Judged]:
    """Judge features by what they tell about label and spurious attribute.

    Args:
        features: Those to be judged, with their effects on biased examples.
        balanced: Effects on balanced examples, which know their attributes.
        sides: Of each attribute whether it usually goes with the second label; see `sides_of`.
        threshold: Ablate a feature if this share of what it tells is about the attribute.

    Returns:
        The features in their order, each `"ablate"` or `"keep"`.

    Raises:
        PromptError: If one of the four groups is empty.
        UnknownOptionError: If the threshold is no share.
    """
    if not 0 <= threshold < 1:
        raise UnknownOptionError(
            f"threshold={threshold} is no share from 0 to 1.\nType threshold=0.5: what tells the "
            "spurious attribute better than the label is ablated."
        )
    adds = balanced.contributions([one.name for one in features])
    label, spurious, error = contrasts(adds, balanced.examples, balanced.probe.classes[1], sides)
    found: list[Judged] = []
    for place, one in enumerate(features):
        on_label, on_spurious = float(label[place]), float(spurious[place])
        judged = Judged(one.name, one.effect, one.se, KEEP, on_label, on_spurious)
        share = judged.share
        if share is not None and share > threshold and abs(on_spurious) > SURE * error[place]:
            judged = Judged(one.name, one.effect, one.se, ABLATE, on_label, on_spurious)
        found.append(judged)
    return found


def contrasts(
    adds: Float[Tensor, "example feature"],
    examples: Examples,
    second: str,
    sides: Mapping[str, bool],
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Return `on_label`, `on_spurious`, and the standard error of either.

    Args:
        adds: What each feature adds to the logit.
        examples: Of which examples.
        second: The second label.
        sides: Of each attribute whether it goes with that.

    Raises:
        PromptError: If one of the four groups is empty.
    """
    means: dict[tuple[bool, bool], Tensor] = {}
    variance = adds.new_zeros(adds.shape[1])
    for label in (False, True):
        for side in (False, True):
            places = [
                place
                for place, row in enumerate(examples)
                if (row.label == second) == label and sides.get(row.spurious or "") == side
            ]
            if not places:
                raise PromptError(
                    f"{examples.name} has no example that is {'' if label else 'not '}{second!r} "
                    f"with {_of(sides, side)}: label and attribute cannot be told apart there.\n"
                    "Give a set with examples of all four groups, or judge by hand: "
                    "headwater shift features."
                )
            means[label, side] = adds[places].mean(0)
            if len(places) > 1:
                variance += adds[places].var(0) / len(places) / 4
    high, low = means[True, True] + means[True, False], means[False, True] + means[False, False]
    same, other = means[True, True] + means[False, True], means[True, False] + means[False, False]
    return (high - low) / 2, (same - other) / 2, variance.sqrt()


def sides_of(biased: Examples, balanced: Examples, second: str) -> dict[str, bool]:
    """Return of each spurious attribute whether it usually goes with the second label.

    Which one does is counted in the biased set. Where that does not know its attributes, or they
    say nothing, two attributes are two sides in their own order.

    Args:
        biased: The set in which they go together.
        balanced: The set whose attributes are wanted.
        second: The second label.

    Raises:
        PromptError: If the balanced set does not know its attributes, or there are not two sides.
    """
    if not balanced.know_attributes:
        raise PromptError(
            f"{balanced.name} does not say what is spurious, so features cannot be judged by it.\n"
            'Give each line "spurious": "...", or judge by hand: headwater shift features.'
        )
    usual = biased.stands_for()
    sides = {one: usual[one] == second for one in balanced.attributes if one in usual}
    if len(sides) == len(balanced.attributes) and len(set(sides.values())) == 2:
        return sides
    if len(balanced.attributes) == 2:
        return {one: bool(place) for place, one in enumerate(balanced.attributes)}
    raise PromptError(
        f"which of the attributes {', '.join(map(repr, balanced.attributes[:8]))} goes with which "
        f"label cannot be told from {biased.name}.\n"
        'Give its lines "spurious", too, or a balanced set with two attributes.'
    )


def _of(sides: Mapping[str, bool], side: bool) -> str:
    return " or ".join(repr(one) for one, own in sides.items() if own == side) or "the other side"
