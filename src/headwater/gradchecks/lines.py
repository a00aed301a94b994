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
from headwater.finite_difference import Sweep
from headwater.gates.value import ValueFunction
from headwater.gradchecks.directions import Direction
from headwater.progress import Advance, silent


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
        found = self.sum(self.function.rows(points))
        self.advance(len(points))
        return found

    def sum(self, rows: Float[Tensor, "point *entry"]) -> Float[Tensor, " point"]:
        """Add the entries of each row."""
        if self.weights is None:
            return rows
        return (rows * self.weights.to(rows)).flatten(1).sum(1)


@torch.no_grad()
def sweeps(function: Weighed, directions: Sequence[Direction], steps: int) -> list[Sweep]:
    """Return the values along each direction.

    Args:
        function: What is run.
        directions: The lines.
        steps: How many steps each is run at.
    """
    value, capacity = function.function.value, function.function.stacked
    count = 2 * steps + 1
    if capacity < count:
        return [_in_parts(function, _Line(value, one, steps), capacity) for one in directions]
    together, found = capacity // count, list[Sweep]()
    for first in range(0, len(directions), together):
        lines = [_Line(value, one, steps) for one in directions[first : first + together]]
        values = function(torch.cat([line.points() for line in lines]))
        for line, own in zip(lines, values.double().cpu().split(count), strict=True):
            found.append(line.sweep(own[:1].numpy().repeat(steps), own[1:].numpy()))
    return found


def _in_parts(function: Weighed, line: _Line, capacity: int) -> Sweep:
    """Run one line in parts of equal size, each with the middle in it where it has room."""
    count = len(line.nominal)
    parts = math.ceil(count / max(1, (capacity - 1) // 2))
    centers, sides = np.empty(count), np.empty(2 * count)
    alone = float(function(line.value[None]).double()) if capacity < 3 else math.nan
    for part in np.array_split(np.arange(count), parts):
        if capacity < 3:
            values = [float(function(one[None]).double()) for one in line.around(part)]
            centers[part] = alone
        else:
            points = torch.cat([line.value[None], line.around(part)])
            first, *values = function(points).double().cpu().tolist()
            centers[part] = first
        sides[np.stack([2 * part, 2 * part + 1], 1).flatten()] = values
    return line.sweep(centers, sides)


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
        self.ahead[part] = self._along(plus - self.value)
        self.behind[part] = self._along(self.value - minus)
        return torch.stack([plus, minus], 1).flatten(0, 1)

    def _along(self, moved: Tensor) -> np.ndarray:
        vector = self.direction.vector.double().flatten()
        along = moved.double().reshape(len(moved), -1) @ vector / (vector @ vector)
        return along.cpu().numpy()

    def sweep(self, centers: np.ndarray, sides: np.ndarray) -> Sweep:
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
            eps=torch.finfo(self.value.dtype).eps,
        )


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
