"""Least squares from each row's residual to the final one, by sums of one pass.

In float64. Sums about the batch's own mean are added to those so far in place (Chan, Golub and
LeVeque, 1979), so memory is two `[d_model, d_model]` matrices a row, one of the final row, and a
few copies of one row's residuals in a batch, however long the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import NonFiniteError, PromptError


@dataclass(frozen=True)
class Solved:
    """The best affine map of one row: `r + r W^T + b`."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]
    rank: int
    """Directions in which the corpus varies."""
    explained: float
    """Share of the final residual's variance that the map gets right, on the same tokens."""

    def to(self, dtype: torch.dtype) -> Solved:
        """Return the same in another number format."""
        return replace(self, weight=self.weight.to(dtype), bias=self.bias.to(dtype))


class Moments:
    """Means and covariances of every row with itself and with the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.means: Tensor = torch.zeros(0)
        """[row, d_model], the final row last."""
        self.own: Tensor = torch.zeros(0)
        """[row, d_model, d_model]: sums of products of a row with itself, centered."""
        self.cross: Tensor = torch.zeros(0)
        """[row, d_model, d_model]: the same of a row, but the final one, with the final one."""

    def add(self, values: Float[Tensor, "row position d_model"]) -> None:
        """Take tokens in.

        Args:
            values: The residual stream at each row, the final row last.

        Raises:
            NonFiniteError: If one is NaN or infinite.
        """
        # row by row: never the float64 copy of all of them
        means = torch.stack([value.mean(0, dtype=torch.float64) for value in values])
        if not bool(means.isfinite().all()):
            raise NonFiniteError(
                "a residual is NaN or infinite, so nothing can be fitted to it.\nLook for overflow "
                "(float16?): load the model with dtype='float32' or 'bfloat16'."
            )
        if self.count == 0:
            self._begin(means)
        new = values.shape[1]
        share = new / (self.count + new)
        apart = means - self.means
        weight = self.count * share
        final = values[-1].to(torch.float64) - means[-1]
        for row, own in enumerate(self.own):
            last = row == len(self.own) - 1
            centered = final if last else values[row].to(torch.float64) - means[row]
            own.addmm_(centered.mT, centered).addr_(apart[row], apart[row], alpha=weight)
            if not last:
                cross = self.cross[row].addmm_(centered.mT, final)
                cross.addr_(apart[row], apart[-1], alpha=weight)
        self.means += apart * share
        self.count += new

    def _begin(self, means: Float[Tensor, "row d_model"]) -> None:
        rows, width = means.shape
        self.means = torch.zeros_like(means)
        self.own = means.new_zeros(rows, width, width)
        self.cross = means.new_zeros(rows - 1, width, width)

    def solve(self, row: int) -> Solved:
        """Return the affine map of one row that is nearest to the final row in the mean square.

        Where the tokens do not vary in all directions, many maps are as near: of those it is the
        one that changes least, so directions that were never seen are left as they are.

        Raises:
            PromptError: If there are fewer than two tokens.
        """
        if self.count < 2:
            raise PromptError(
                f"least squares needs at least two tokens, and there were {self.count}.\n"
                "Give more text."
            )
        own = self.own[row]
        values, directions = torch.linalg.eigh(own)
        floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
        kept = values > floor
        inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0)
        # of the difference to the final row, so that its smallest solution is the identity
        wanted = self.cross[row] - own
        weight = ((directions * inverse) @ (directions.mT @ wanted)).mT
        mean, final = self.means[row], self.means[-1]
        return Solved(
            weight,
            final - mean - weight @ mean,
            int(kept.sum()),
            1 - float(self._left(row, weight) / self.own[-1].trace()),
        )

    def _left(self, row: int, weight: Tensor) -> Tensor:
        """Return the sum of squares that a map leaves."""
        whole = weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        got = (whole @ self.cross[row]).trace()
        return self.own[-1].trace() - 2 * got + ((whole @ self.own[row]) * whole).sum()
