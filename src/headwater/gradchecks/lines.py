"""Run a function along lines through a point: the values of all steps, and its derivative forward.

Costs two runs a step and one for the middle, stacked in the batch. The middle runs with the steps,
so that both come from the same kernels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater import finite_difference
from headwater.errors import HeadwaterError, NonFiniteError
from headwater.finite_difference import Sweep
from headwater.gates.value import ValueFunction
from headwater.gradchecks.directions import Direction
from headwater.progress import Advance, silent

OUTSIDE = (ArithmeticError, ValueError, torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]
"""Raised where a function is not defined: a scale below zero, a matrix that is not positive."""


class Weighed:
    """A function's entries added up with weights: the one number whose slope is checked.

    Args:
        function: Its rows have one entry, or several.
        weights: `grad_outputs` of the entries; None for a function of one entry.
        advance: Told after each run of how many points it was.
    """

    def __init__(
        self,
        function: ValueFunction,
        weights: Float[Tensor, " entry"] | None,
        advance: Advance = silent,
    ) -> None:
        self.function, self.weights, self.advance = function, weights, advance

    def __call__(self, points: Float[Tensor, "point *shape"]) -> Float[Tensor, " point"]:
        """Return the one number at each point."""
        return self.sum(self.function.rows(points))

    def anywhere(self, points: Float[Tensor, "point *shape"]) -> Float[Tensor, " point"]:
        """Return the one number at each point; NaN where the function is not defined."""
        found = self._tried(points)
        self.advance(len(points))
        return found

    def _tried(self, points: Tensor) -> Tensor:
        try:
            return self(points)
        except OUTSIDE as error:
            if isinstance(error, HeadwaterError) and not isinstance(error, NonFiniteError):
                raise
            if len(points) == 1:
                return points.new_full((1,), math.nan)
            return torch.cat([self._tried(one[None]) for one in points])

    def sum(self, rows: Float[Tensor, "point *entry"]) -> Float[Tensor, " point"]:
        """Add the entries of each row."""
        if self.weights is None:
            return rows.reshape(len(rows))
        return (rows * self.weights.to(rows)).flatten(1).sum(1)


@torch.no_grad()
def sweeps(
    function: Weighed, directions: Sequence[Direction], steps: int, kind: torch.dtype
) -> list[Sweep]:
    """Return the values along each direction.

    Args:
        function: What is run.
        directions: The lines.
        steps: How many steps each is run at.
        kind: The coarsest number format on the way.
    """
    value, capacity = function.function.value, function.function.stacked
    count = 2 * steps + 1
    if capacity < count:
        return [_in_parts(function, _Line(value, one, steps), capacity, kind) for one in directions]
    together, found = capacity // count, list[Sweep]()
    for first in range(0, len(directions), together):
        lines = [_Line(value, one, steps) for one in directions[first : first + together]]
        values = function.anywhere(torch.cat([line.points() for line in lines]))
        for line, own in zip(lines, values.double().cpu().split(count), strict=True):
            centers = own[:1].numpy().repeat(steps)
            found.append(line.sweep(centers, own[1:].numpy(), kind))
    return found


def _in_parts(function: Weighed, line: _Line, capacity: int, kind: torch.dtype) -> Sweep:
    """Run one line in parts of equal size, each with the middle in it where it has room."""
    count = len(line.nominal)
    parts = math.ceil(count / max(1, (capacity - 1) // 2))
    centers, sides = np.empty(count), np.empty(2 * count)
    middle = function(line.value[None])
    for part in np.array_split(np.arange(count), parts):
        if capacity < 3:
            values = torch.cat([function.anywhere(one[None]) for one in line.around(part)])
            centers[part] = float(middle.double())
        else:
            first, values = function.anywhere(
                torch.cat([line.value[None], line.around(part)])
            ).split([1, 2 * len(part)])
            centers[part] = float(first.double())
        places = np.stack([2 * part, 2 * part + 1], 1).flatten()
        sides[places] = values.double().cpu().numpy()
    return line.sweep(centers, sides, kind)


class _Line:
    """The points of one line: the middle, and both ends of every step."""

    def __init__(self, value: Tensor, direction: Direction, steps: int) -> None:
        self.value, self.direction = value, direction
        self.nominal = finite_difference.steps(direction.longest, steps)
        self.ahead, self.behind = np.empty(steps), np.empty(steps)

    def points(self) -> Tensor:
        """Return the middle and all steps."""
        return torch.cat([self.value[None], self.around(np.arange(len(self.nominal)))])

    def around(self, part: np.ndarray) -> Tensor:
        """Return both ends of some steps, and note how long the number format made them."""
        vector = self.direction.vector
        length = torch.tensor(self.nominal[part]).to(self.value)
        length = length.reshape(-1, *[1] * self.value.ndim)
        plus, minus = self.value + length * vector, self.value - length * vector
        self.ahead[part] = self._realized(plus - self.value, length)
        self.behind[part] = self._realized(self.value - minus, length)
        return torch.stack([plus, minus], 1).flatten(0, 1)

    def _realized(self, moved: Tensor, length: Tensor) -> np.ndarray:
        """Return how long each step became: what its entries say, each to its own rounding."""
        vector, moved = self.direction.vector.double(), moved.double()
        # numbers are spaced in proportion to their size; a small one tells a step more exactly
        exact = vector / torch.hypot(self.value.double(), length.double() * vector)
        exact = torch.where(vector == 0, 0.0, exact).reshape(len(length), -1)
        weight = (exact / exact.abs().amax(1, keepdim=True)) ** 2
        each = torch.where(vector == 0, 0.0, moved / vector).reshape(len(length), -1)
        return ((weight * each).sum(1) / weight.sum(1)).cpu().numpy()

    def sweep(self, centers: np.ndarray, sides: np.ndarray, kind: torch.dtype) -> Sweep:
        """Return what the values at `centers` and at both ends of each step are."""
        plus, minus = sides[0::2], sides[1::2]
        # at long steps a function may overflow; only what is nearer than that counts
        broken = np.flatnonzero(~(np.isfinite(plus) & np.isfinite(minus)))
        kept = slice(int(broken[-1]) + 1 if len(broken) else 0, None)
        return Sweep(
            nominal=self.nominal[kept],
            ahead=self.ahead[kept],
            behind=self.behind[kept],
            plus=plus[kept],
            minus=minus[kept],
            center=centers[kept],
            eps=max(spacing(kind), _within(centers, sides)),
        )


def spacing(kind: torch.dtype) -> float:
    """Return the spacing of a number format at 1."""
    return torch.finfo(kind).eps


def _within(centers: np.ndarray, sides: np.ndarray) -> float:
    """Return float32's spacing if every value is a number of float32, converted; else 0."""
    values = np.concatenate([centers, sides])
    with np.errstate(over="ignore"):
        single = bool((values == values.astype(np.float32)).all())
    return finite_difference.FLOAT32 if single else 0.0


def forward_slopes(
    function: Weighed, directions: Sequence[Direction]
) -> Float[Tensor, "direction *entry"]:
    """Return each entry's derivative along each direction, by forward-mode differentiation.

    Raises:
        RuntimeError: If an operation of the function has no forward mode.
        NotImplementedError: Likewise.
    """
    value, together = function.function.value, max(1, function.function.stacked // 2)
    found = []
    for first in range(0, len(directions), together):
        tangents = torch.stack([one.vector for one in directions[first : first + together]])
        points = value.expand_as(tangents).clone()
        # fused attention has no forward mode; the plain one is the same function
        plain = sdpa_kernel(SDPBackend.MATH)
        with forward_ad.dual_level(), torch.no_grad(), plain, warnings.catch_warnings():
            # torch's own formulas warn of torch.jit the first time they are loaded
            warnings.simplefilter("ignore", DeprecationWarning)
            rows = function.function.rows(forward_ad.make_dual(points, tangents))
            tangent = forward_ad.unpack_dual(rows).tangent
            found.append(torch.zeros_like(rows) if tangent is None else tangent.detach().clone())
    return torch.cat(found)
