"""Least squares from each row's residual to the final one, by sums that can be merged.

One pass, in float64; memory is two `[d_model, d_model]` matrices a row, however long the corpus.
The sums of two halves of a corpus merge to those of the whole (Chan, Golub and LeVeque, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

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


class Moments:
    """Means and covariances of every row with the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.means: Tensor = torch.zeros(0)
        """[row, d_model], the final row last."""
        self.own: Tensor = torch.zeros(0)
        """[row, d_model, d_model]: sums of products of a row with itself, centered."""
        self.cross: Tensor = torch.zeros(0)
        """[row, d_model, d_model]: the same of a row with the final one, which comes second."""

    def add(self, values: Float[Tensor, "row position d_model"]) -> None:
        """Take tokens in.

        Args:
            values: The residual stream at each row, the final row last.

        Raises:
            NonFiniteError: If one is NaN or infinite.
        """
        other = Moments()
        other.count = values.shape[1]
        other.means = values.mean(1, dtype=torch.float64)
        if not bool(other.means.isfinite().all()):
            raise NonFiniteError(
                "a residual is NaN or infinite, so nothing can be fitted to it.\nLook for overflow "
                "(float16?): load the model with dtype='float32' or 'bfloat16'."
            )
        final = values[-1].to(torch.float64) - other.means[-1]
        own, cross = [], []
        for value, mean in zip(values, other.means, strict=True):
            centered = value.to(torch.float64) - mean
            own.append(centered.mT @ centered)
            cross.append(centered.mT @ final)
        other.own, other.cross = torch.stack(own), torch.stack(cross)
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Take the sums of other tokens in."""
        if self.count == 0:
            self.means, self.own, self.cross = other.means, other.own, other.cross
        elif other.count:
            apart = other.means - self.means
            share = other.count / (self.count + other.count)
            weighted = apart * (self.count * share)
            self.own = self.own + other.own + weighted[:, :, None] * apart[:, None, :]
            self.cross = self.cross + other.cross + weighted[:, :, None] * apart[-1:, None, :]
            self.means = self.means + apart * share
        self.count += other.count

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
