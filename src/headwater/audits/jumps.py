"""Find jumps of the metric along a single gate: what no slope sees, however finely it is summed.

Hard choices (top-k routing, ties) switch at some gate value. On every piece of the path from open
to closed, slopes integrate to the change of the metric unless the piece holds a jump; so the piece
with the largest gap is halved again and again, until the gaps are gone together or the piece is
very short. The metric is compared where slopes are taken, too: what jumps up and down again within
a piece is seen if one of its points lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.estimators.quadrature import Panel, Rule
from headwater.gates import GatedFunction, Move

SHORTEST = 2.0**-12
"""A piece of this length that still has a gap holds a jump, or a step as steep as one."""
MOST_HALVINGS = 60
"""Pieces halved for one component before it is left undecided."""
PIECES = 8
"""Equal pieces looked at in any case: jumps that cancel over the whole way do not on each of them,
unless they are closer than an eighth and no slope is taken between."""
SAME = 2.0
"""Gaps too small to be told apart are steps if together they stay within this factor however often
pieces are halved. Kinks and steep ramps leave half as much or less."""
ROUNDINGS = 1000.0
"""Roundings of the metric up to which a gap is none, where the noise floor is not known."""
_RULES = {PIECES: Rule.of("gauss", 2), 2: Rule.of("gauss", 3)}
"""Of the first pieces, and of halves."""


@dataclass(frozen=True)
class Jump:
    """What was found along one gate."""

    size: float
    """The largest change at one spot on any pair; 0 if there is none above the tolerance. Of many
    small steps what slopes miss of all together."""
    gate: float | None = None
    """Where the gate stands there, between 0 and 1; None for many small steps."""
    decided: bool = True
    """False if the search was given up."""


@dataclass
class _Search:
    column: int
    values: dict[float, Tensor]
    """The metric where pieces meet, [batch]."""
    gaps: dict[Panel, float] = field(default_factory=dict)
    first: float = 0.0
    """Sum of the gaps of the first pieces."""
    halved: int = 0

    @property
    def worst(self) -> Panel:
        return max(self.gaps, key=lambda panel: self.gaps[panel])

    @property
    def total(self) -> float:
        return sum(self.gaps.values())

    def is_open(self, tolerance: float) -> bool:
        wanting = self.total > tolerance and self.worst.width > SHORTEST
        return wanting and self.halved < MOST_HALVINGS


def find_jumps(
    function: GatedFunction, columns: Sequence[int], tolerance: float, floor: float | None = None
) -> dict[int, Jump]:
    """Return for each gate the largest jump of the metric on its way from open to closed.

    Args:
        function: The gated function.
        columns: Gates to look at, each alone.
        tolerance: Jumps up to this size are not looked for, nor steps that sum to no more.
        floor: Gaps up to this size are rounding; by default a thousand roundings of the metric.
    """
    edges = [k / PIECES for k in range(PIECES + 1)]
    rest = function.value()
    inner = function.moved([Move((column,), t) for column in columns for t in edges[1:]])
    if floor is None:
        floor = ROUNDINGS * torch.finfo(rest.dtype).eps * float(rest.abs().max())
    searches = [
        _Search(column, dict(zip(edges, [rest, *values], strict=True)))
        for column, values in zip(columns, inner.unflatten(0, (-1, PIECES)), strict=True)
    ]
    pieces = [Panel(low, high) for low, high in pairwise(edges)]
    _measure(function, [(s, piece) for s in searches for piece in pieces], _RULES[PIECES], floor)
    for search in searches:
        search.first = search.total
    while going := [search for search in searches if search.is_open(tolerance)]:
        halving = [(search, search.worst) for search in going]
        middles = [Move((search.column,), panel.middle) for search, panel in halving]
        for (search, panel), value in zip(halving, function.moved(middles), strict=True):
            search.values[panel.middle] = value
            search.halved += 1
            del search.gaps[panel]
        halves = [(search, half) for search, panel in halving for half in panel.halves()]
        _measure(function, halves, _RULES[2], floor)
    return {search.column: _found(search, function, tolerance) for search in searches}


def _measure(
    function: GatedFunction, pieces: Sequence[tuple[_Search, Panel]], rule: Rule, floor: float
) -> None:
    """Note the gap of each piece: the largest on any pair between what its slopes sum to and the
    change of the metric, up to each point of the rule and to the end."""
    moves = [Move((s.column,), t) for s, panel in pieces for t in panel.points(rule)]
    slopes = iter(function.slopes(moves))
    sign = -1.0 if function.end == "clean" else 1.0  # a clean gate closes as it moves
    for search, panel in pieces:
        seen = [next(slopes) for _ in rule.points]
        slope = sign * torch.stack([one.gradient[:, 0] for one in seen])
        change = torch.stack([*(one.value for one in seen), search.values[panel.high]])
        upto = torch.as_tensor(_integrals_upto(rule), dtype=slope.dtype, device=slope.device)
        gap = change - search.values[panel.low] - panel.width * (upto @ slope)
        size = float(gap.abs().max())
        search.gaps[panel] = size if size > floor else 0.0


def _integrals_upto(rule: Rule) -> Float[np.ndarray, "upto point"]:
    """Return weights that integrate a function from 0 to each point of a rule, and to 1."""
    points = np.array(rule.points)
    powers = np.arange(len(points))
    ends = np.array([*points, 1.0])[:, None]
    monomials = ends ** (powers + 1) / (powers + 1)
    return monomials @ np.linalg.inv(points[:, None] ** powers)


def _found(search: _Search, function: GatedFunction, tolerance: float) -> Jump:
    panel, total = search.worst, search.total
    size = search.gaps[panel]
    if size > tolerance and panel.width <= SHORTEST:
        return Jump(size, abs(function.base - panel.middle))
    if total <= tolerance:
        return Jump(0.0)
    if search.first / SAME <= total <= search.first * SAME:
        return Jump(total)
    return Jump(size, decided=False) if size > tolerance else Jump(0.0)
