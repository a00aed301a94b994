"""What was found at one value: every direction, the signs, the reach, the precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.finite_difference import Difference
from headwater.gradchecks.directions import Kind
from headwater.gradchecks.effects import Effects, Reach, SignCount
from headwater.gradchecks.verdicts import PASSES, Verdict

ROUNDINGS = 10
"""Roundings within which the last operation of an objective may move it."""


@dataclass(frozen=True, eq=False)
class DirectionCheck:
    """The gradient along one direction, beside the difference."""

    name: str
    kind: Kind
    index: int | None
    """Which entry of the value, for a coordinate."""
    gradient: float
    """Slope that the gradient claims."""
    forward: float | None
    """Slope by forward-mode differentiation; None where an operation has none."""
    difference: Difference
    verdict: Verdict

    @property
    def apart(self) -> float:
        """How far gradient and difference are apart, relative to the larger of the two."""
        scale = max(abs(self.gradient), abs(self.difference.slope))
        return abs(self.gradient - self.difference.slope) / scale if scale > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the direction as plain data, with every step."""
        found = asdict(self.difference)
        lists = {key: value.tolist() for key, value in found.items() if hasattr(value, "tolist")}
        return {
            "name": self.name,
            "kind": self.kind,
            "index": self.index,
            "gradient": self.gradient,
            "forward": self.forward,
            "verdict": self.verdict,
            "difference": found | lists,
        }


@dataclass(frozen=True)
class Precision:
    """The gradient in the model's own numbers, beside the one in float64."""

    dtype: str
    largest: float
    """Largest error of an entry, in units of the largest entry."""
    cosine: float
    signs: float
    """Share of entries with the right sign, of those that are not zero."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Entry:
    """One entry of a vector objective."""

    index: int
    value: float
    weight: float
    """Its `grad_outputs`."""
    opposite: float
    """Share of directions along which its own slope has another sign than the weighed sum's."""
    slopes: tuple[float, ...]
    """Its own slope along each direction of the check."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Check:
    """A gradient at one value, checked."""

    name: str
    """The site, weight or argument."""
    where: str
    """Position and token, or empty."""
    objective: float
    """The objective at the point."""
    size: float
    """Root mean square of the value: the unit of steps and of the linear range."""
    dtype: str
    """The number format of the differences."""
    claimed: str
    """Whose gradient it is: autograd's, or one that was given."""
    verdict: Verdict
    hint: str
    """What a wrong gradient suggests; why there is no slope."""
    directions: tuple[DirectionCheck, ...]
    effects: tuple[Effects, ...]
    signs: SignCount | None
    reach: Reach | None
    precision: Precision | None
    entries: tuple[Entry, ...]
    """Of a vector objective; empty for a number."""
    notes: tuple[str, ...]
    value: Float[Tensor, "*shape"] = field(repr=False)
    gradient: Float[Tensor, "*shape"] = field(repr=False)
    """The gradient that was checked."""

    def __getitem__(self, name: str) -> DirectionCheck:
        """Return the direction of that name."""
        return {one.name: one for one in self.directions}[name]

    @property
    def steepest(self) -> DirectionCheck:
        """The direction to look at first: of the worst that do not pass, else the steepest."""
        wrong: tuple[Verdict, ...] = ("disagree", "jump", "kink")
        verdicts = () if self.verdict in PASSES else (*wrong, "unresolved", "ill-conditioned")
        for verdict in verdicts:
            found = [one for one in self.directions if one.verdict == verdict]
            if found and verdict in wrong:
                # a single entry says where it is; the others dilute it
                found = [one for one in found if one.index is not None] or found
                return max(found, key=lambda one: one.apart)
            if found:
                return max(found, key=lambda one: abs(one.gradient))
        passing = [one for one in self.directions if one.verdict in PASSES] or self.directions
        return max(passing, key=lambda one: abs(one.gradient))

    @property
    def tells_signs(self) -> bool:
        """Whether the signs of small changes are those of a slope, rather than of rounding."""
        return self.signs is not None and self.verdict in ("agree", "disagree")

    @property
    def movement(self) -> float:
        """How far the objective went from where it is, at most."""
        return max(
            float(abs(side * one.difference.steps).max(initial=0.0))
            for one in self.directions
            for side in (one.difference.forward, one.difference.backward)
        )

    @property
    def rounding(self) -> float:
        """How far the rounding of a sum in the check's number format may move the objective."""
        return ROUNDINGS * torch.finfo(getattr(torch, self.dtype)).eps * abs(self.objective)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the two tensors as plain data."""
        return {
            "name": self.name,
            "where": self.where,
            "objective": self.objective,
            "size": self.size,
            "dtype": self.dtype,
            "claimed": self.claimed,
            "verdict": self.verdict,
            "hint": self.hint,
            "directions": [one.to_dict() for one in self.directions],
            "effects": [one.to_dict() for one in self.effects],
            "signs": None if self.signs is None else self.signs.to_dict(),
            "reach": None if self.reach is None else self.reach.to_dict(),
            "precision": None if self.precision is None else self.precision.to_dict(),
            "entries": [one.to_dict() for one in self.entries],
            "notes": list(self.notes),
        }
