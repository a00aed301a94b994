"""Integrate gate slopes along straight paths, halving the path where the sum does not close.

Along a path on which some gates move together, the slopes integrate to the change of the metric
(fundamental theorem of calculus), on the whole path and on every piece of it. So each piece has a
gap of its own that costs one run to know, and pieces with too large a gap are halved. At a jump
(hard routing) slopes never see the change: the piece that holds it keeps its gap however short it
is, which is reported and never called converged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.estimators.quadrature import Panel, Rule
from headwater.gates import GatedFunction, Move

Piece = tuple[tuple[int, ...], Panel, Mapping[float, Tensor]]
"""Columns that move together, a piece of their path, and the metric [batch] where pieces meet."""

SHORTEST = 2.0**-16
"""A piece of this length that still has a gap holds a jump."""
MOST_PANELS = 128
"""Pieces of one path; beyond them the integral is given up, and it says so."""
ROUNDINGS = 1000.0
"""Roundings of the metric up to which a gap at a short piece is no jump."""


@dataclass
class Integral:
    """The integral along one path."""

    score: Float[Tensor, "batch index"]
    """`int df/dm` for each gate that moves."""
    gap: Float[Tensor, " batch"]
    """Sum of the scores minus the exact change."""
    problem: str = ""
    """Why it did not converge; empty if it did, or was not asked to."""


@dataclass
class _Path:
    """A path while it is being integrated."""

    columns: tuple[int, ...]
    edges: dict[float, Float[Tensor, " batch"]]
    """The metric where pieces meet."""
    done: list[tuple[Panel, Tensor, Tensor]] = field(default_factory=list)
    """Finished pieces: integral [batch, index] and gap [batch]."""
    open: list[Panel] = field(default_factory=lambda: [Panel()])
    short: dict[Panel, float] = field(default_factory=dict)
    """The gaps of pieces that are too short to be halved once more."""
    given_up: bool = False


def integrate(
    function: GatedFunction,
    families: Sequence[tuple[int, ...]],
    rule: Rule,
    tolerance: float | None = None,
) -> list[Integral]:
    """Return for each family the integral of its gates' slopes while they close together.

    Args:
        function: The gated function.
        families: Columns that move together, one path each.
        rule: Quadrature on every piece.
        tolerance: Largest gap on any example; None takes one piece and reports its gap.

    Returns:
        One integral a family. Its gap sums what its pieces miss.
    """
    rest = function.value()
    closed = function.moved([Move(columns, 1.0) for columns in families])
    paths = [
        _Path(columns, {0.0: rest, 1.0: end}) for columns, end in zip(families, closed, strict=True)
    ]
    while any(path.open for path in paths):
        _measure(function, paths, rule)
        if tolerance is None:
            break
        _refine(function, paths, tolerance)
    return [_integral(path, tolerance) for path in paths]


def integrals(
    function: GatedFunction, pieces: Sequence[Piece], rule: Rule
) -> list[tuple[Float[Tensor, "batch index"], Float[Tensor, " batch"]]]:
    """Integrate slopes over pieces of paths, stacked in as few runs as fit.

    Args:
        function: The gated function.
        pieces: For each the columns that move, where on their path, and the metric where pieces
            meet, among them at both of its ends.
        rule: Quadrature on every piece.

    Returns:
        For each piece its integral, and how much more its sum is than the exact change.
    """
    moves = [Move(columns, t) for columns, panel, _ in pieces for t in panel.points(rule)]
    slopes = iter(function.slopes(moves))
    sign = 1.0 if function.end == "clean" else -1.0
    found = []
    for _, panel, edges in pieces:
        weighted = [weight * next(slopes).gradient for weight in rule.weights]
        integral = panel.width * torch.stack(weighted).sum(0)
        change = sign * (edges[panel.low] - edges[panel.high])
        found.append((integral, integral.sum(1) - change))
    return found


def _measure(function: GatedFunction, paths: Sequence[_Path], rule: Rule) -> None:
    """Integrate every open piece of every path."""
    work = [(path, panel) for path in paths for panel in path.open]
    pieces = [(path.columns, panel, path.edges) for path, panel in work]
    for (path, panel), found in zip(work, integrals(function, pieces, rule), strict=True):
        path.done.append((panel, *found))
    for path in paths:
        path.open = []


def _refine(function: GatedFunction, paths: Sequence[_Path], tolerance: float) -> None:
    """Halve the pieces with the largest gaps until the rest together is within tolerance."""
    halved = [(path, panel) for path in paths for panel in _too_coarse(path, tolerance)]
    middles = function.moved([Move(path.columns, panel.middle) for path, panel in halved])
    for (path, panel), value in zip(halved, middles, strict=True):
        path.edges[panel.middle] = value
        path.open += panel.halves()


def _too_coarse(path: _Path, tolerance: float) -> list[Panel]:
    """Take out of a path the pieces to be halved: the largest gaps beyond the tolerance."""
    by_gap = sorted(path.done, key=lambda piece: float(piece[2].abs().max()))
    kept, halved, total = [], [], 0.0
    for piece in by_gap:
        panel, _, gap = piece
        total += float(gap.abs().max())
        if total <= tolerance:
            kept.append(piece)
        elif panel.width <= SHORTEST:
            path.short[panel] = float(gap.abs().max())
            kept.append(piece)
        elif len(kept) + 2 * len(halved) >= MOST_PANELS:
            path.given_up = True
            kept.append(piece)
        else:
            halved.append(panel)
    path.done = kept
    return halved


def _integral(path: _Path, tolerance: float | None) -> Integral:
    score = torch.stack([integral for _, integral, _ in path.done]).sum(0)
    gap = torch.stack([gap for _, _, gap in path.done]).sum(0)
    return Integral(score, gap, "" if tolerance is None else _problem(path, gap, tolerance))


def _problem(path: _Path, gap: Tensor, tolerance: float) -> str:
    largest = float(gap.abs().max())
    ends = torch.stack([path.edges[0.0], path.edges[1.0]])
    rounding = ROUNDINGS * torch.finfo(ends.dtype).eps * float(ends.abs().max())
    jumps = sorted({1 - panel.middle for panel, size in path.short.items() if size > rounding})
    if jumps:
        places = ", ".join(f"{place:.3g}" for place in jumps[:3])
        return (
            f"the metric jumps near gate {places}, where no slope sees it (hard routing, ties): "
            f"not converged, the gap stays {largest:.2g}. Use hw.Exact() there."
        )
    if path.short or path.given_up:
        return (
            f"not converged to {tolerance:g}: the gap is {largest:.2g} after {len(path.done)} "
            "pieces. Raise tolerance=, compute in dtype='float64', or use hw.Exact()."
        )
    return ""
