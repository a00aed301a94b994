"""Integrate gate slopes along straight paths, halving the path where the sum does not close.

Along a path on which some gates move together, the slopes integrate to the change of the metric
(fundamental theorem of calculus), on the whole path and on every piece of it. So each piece has a
gap of its own that costs one run to know, and pieces with too large a gap are halved. At a jump
(hard routing) slopes never see the change: the piece that holds it keeps its gap however short it
is, which is reported and never called converged. Rounding keeps a gap, too, and in every piece:
halving ends where it no longer shrinks a gap that rounding could make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.estimators.quadrature import Panel, Rule
from headwater.gates import GatedFunction, ModelGates, Move

SHORTEST = 2.0**-16
"""A piece of this length that still has a gap holds a jump."""
MOST_PANELS = 128
"""Pieces of one path; beyond them the integral is given up, and it says so."""
ROUNDINGS = 32.0
"""Roundings up to which a gap may be nothing else. One rounding is the dtype's eps times the size
of what is summed; with nothing else to see, gaps of small models are 1 to 12 of them."""
SHRUNK = 0.25
"""Share of a gap that a half may keep to be worth halving again; smooth slopes leave an eighth or
less (the midpoint rule), rounding all of it."""


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
    before: dict[Panel, float] = field(default_factory=dict)
    """The gap of the piece that a piece is half of."""

    def rounding(self, precision: torch.dtype) -> float:
        """Return the largest gap that rounding could make; no piece may be open."""
        ends = torch.stack([self.edges[0.0], self.edges[1.0]])
        scores = torch.stack([integral for _, integral, _ in self.done]).sum(0)
        # terms that cancel round as what they are, not as what is left of them
        size = max(_size(ends), _size(scores.abs().sum(1)))
        return ROUNDINGS * torch.finfo(precision).eps * size


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
    # what a model returns is wider than what it computes in
    precision = function.model.dtype if isinstance(function, ModelGates) else rest.dtype
    closed = function.moved([Move(columns, 1.0) for columns in families])
    paths = [
        _Path(columns, {0.0: rest, 1.0: end}) for columns, end in zip(families, closed, strict=True)
    ]
    while any(path.open for path in paths):
        _measure(function, paths, rule)
        if tolerance is None:
            break
        _refine(function, paths, tolerance, precision)
    return [_integral(path, tolerance, precision) for path in paths]


def _measure(function: GatedFunction, paths: Sequence[_Path], rule: Rule) -> None:
    """Integrate every open piece of every path, stacked in as few runs as fit."""
    work = [(path, panel) for path in paths for panel in path.open]
    moves = [Move(path.columns, t) for path, panel in work for t in panel.points(rule)]
    slopes = iter(function.slopes(moves))
    sign = 1.0 if function.end == "clean" else -1.0
    for path, panel in work:
        weighted = [weight * next(slopes).gradient for weight in rule.weights]
        integral = panel.width * torch.stack(weighted).sum(0)
        change = sign * (path.edges[panel.low] - path.edges[panel.high])
        path.done.append((panel, integral, integral.sum(1) - change))
    for path in paths:
        path.open = []


def _refine(
    function: GatedFunction, paths: Sequence[_Path], tolerance: float, precision: torch.dtype
) -> None:
    """Halve the pieces with the largest gaps until the rest together is within tolerance."""
    halved = [(path, panel) for path in paths for panel in _too_coarse(path, tolerance, precision)]
    middles = function.moved([Move(path.columns, panel.middle) for path, panel in halved])
    for (path, panel), value in zip(halved, middles, strict=True):
        path.edges[panel.middle] = value
        path.open += panel.halves()


def _too_coarse(path: _Path, tolerance: float, precision: torch.dtype) -> list[Panel]:
    """Take out of a path the pieces to be halved: the largest gaps beyond the tolerance."""
    rounding = path.rounding(precision)
    pieces = sorted(path.done, key=lambda piece: _size(piece[2]))
    together = accumulate(_size(gap) for _, _, gap in pieces)
    within = sum(total <= tolerance for total in together)
    # a round takes at most half of the pieces that are left: where they run out, the largest gap
    # can still be halved again and again
    room = (MOST_PANELS - len(pieces) + 1) // 2
    coarse = [
        (panel, _size(gap))
        for panel, _, gap in reversed(pieces[within:])
        if panel.width > SHORTEST and not _is_stuck(path, panel, _size(gap), rounding)
    ][:room]
    halved = [panel for panel, _ in coarse]
    path.done = [piece for piece in pieces if piece[0] not in halved]
    path.before |= {half: size for panel, size in coarse for half in panel.halves()}
    return halved


def _is_stuck(path: _Path, panel: Panel, size: float, rounding: float) -> bool:
    """Whether halving did not shrink a gap that may be rounding."""
    before = path.before.get(panel)
    return before is not None and before <= rounding and size > SHRUNK * before


def _integral(path: _Path, tolerance: float | None, precision: torch.dtype) -> Integral:
    score = torch.stack([integral for _, integral, _ in path.done]).sum(0)
    gap = torch.stack([gap for _, _, gap in path.done]).sum(0)
    problem = "" if tolerance is None else _problem(path, gap, tolerance, precision)
    return Integral(score, gap, problem)


def _problem(path: _Path, gap: Tensor, tolerance: float, precision: torch.dtype) -> str:
    rounding = path.rounding(precision)
    jumps = {
        1 - panel.middle: _size(missed)
        for panel, _, missed in path.done
        if panel.width <= SHORTEST and _size(missed) > rounding
    }
    # asked first: jumps up and down may cancel in the sum, and no slope has seen either
    if sum(jumps.values()) > tolerance:
        places = ", ".join(f"{place:.3g}" for place in sorted(jumps)[:3])
        return (
            f"the metric jumps near gate {places}, where no slope sees it (hard routing, ties): "
            f"not converged, a gap of {max(jumps.values()):.2g} stays. Use hw.Exact() there."
        )
    if _size(gap) <= tolerance:
        return ""
    said = f"not converged to {tolerance:g}: the gap is up to {_size(gap):.2g} on a pair"
    wider = "float64" if precision == torch.float32 else "float32"
    if precision != torch.float64 and all(_size(missed) <= rounding for *_, missed in path.done):
        name = str(precision).removeprefix("torch.")
        return (
            f"{said}, which rounding in {name} alone can make. Use dtype='{wider}', or raise "
            "tolerance=."
        )
    return (
        f"{said} after {len(path.done)} pieces. Raise tolerance=, use dtype='float64', or use "
        "hw.Exact()."
    )


def _size(gap: Tensor) -> float:
    """Return the largest on any example."""
    return float(gap.abs().max())
