"""Find jumps of the metric along a single gate: what no slope sees, however finely it is summed.

Hard choices (top-k routing, ties) switch at some gate value. On every piece of the path from open
to closed, slopes integrate to the change of the metric unless the piece holds a jump; so the piece
with the largest gap is halved again and again, until its gap is gone or the piece is very short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from headwater.estimators.adaptive import integrals
from headwater.estimators.quadrature import Panel, Rule
from headwater.gates import GatedFunction, Move

SHORTEST = 2.0**-12
"""A piece of this length that still has a gap holds a jump, or a step as steep as one."""
MOST_HALVINGS = 60
"""Pieces halved for one component before it is left undecided."""
_WHOLE, _PIECE = Rule.of("gauss", 8), Rule.of("gauss", 3)


@dataclass(frozen=True)
class Jump:
    """What was found along one gate."""

    size: float
    """The largest change at one spot on any pair; 0 if there is none above the tolerance."""
    gate: float | None = None
    """Where the gate stands there, between 0 and 1."""
    decided: bool = True
    """False if the search was given up."""


@dataclass
class _Search:
    column: int
    values: dict[float, Tensor]
    """The metric where pieces meet, [batch]."""
    gaps: dict[Panel, float] = field(default_factory=dict)
    halved: int = 0

    @property
    def worst(self) -> Panel:
        return max(self.gaps, key=lambda panel: self.gaps[panel])

    def is_open(self, tolerance: float) -> bool:
        panel = self.worst
        wanting = self.gaps[panel] > tolerance and panel.width > SHORTEST
        return wanting and self.halved < MOST_HALVINGS


def find_jumps(
    function: GatedFunction, columns: Sequence[int], tolerance: float
) -> dict[int, Jump]:
    """Return for each gate the largest jump of the metric on its way from open to closed.

    Args:
        function: The gated function.
        columns: Gates to look at, each alone.
        tolerance: Jumps up to this size are not looked for.
    """
    rest = function.value()
    closed = function.moved([Move((column,), 1.0) for column in columns])
    searches = [
        _Search(column, {0.0: rest, 1.0: end}) for column, end in zip(columns, closed, strict=True)
    ]
    _measure(function, [(search, Panel()) for search in searches], _WHOLE)
    while going := [search for search in searches if search.is_open(tolerance)]:
        pieces = [(search, search.worst) for search in going]
        middles = [Move((search.column,), panel.middle) for search, panel in pieces]
        for (search, panel), value in zip(pieces, function.moved(middles), strict=True):
            search.values[panel.middle] = value
            search.halved += 1
            del search.gaps[panel]
        _measure(function, [(s, half) for s, panel in pieces for half in panel.halves()], _PIECE)
    return {search.column: _found(search, function, tolerance) for search in searches}


def _measure(function: GatedFunction, pieces: Sequence[tuple[_Search, Panel]], rule: Rule) -> None:
    """Note the gap of each piece: its change minus what its slopes sum to, on the worst pair."""
    asked = [((search.column,), panel, search.values) for search, panel in pieces]
    for (search, panel), (_, gap) in zip(pieces, integrals(function, asked, rule), strict=True):
        search.gaps[panel] = float(gap.abs().max())


def _found(search: _Search, function: GatedFunction, tolerance: float) -> Jump:
    panel = search.worst
    size = search.gaps[panel]
    if size <= tolerance:
        return Jump(0.0)
    gate = abs(function.base - panel.middle)
    return Jump(size, gate, decided=panel.width <= SHORTEST)
