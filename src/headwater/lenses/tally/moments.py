"""Count, mean and variance of numbers that come in batches, each number seen once.

Batches are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979): sums of squares are of deviations, so nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(eq=False)
class Moments:
    """Of every statistic and row: how many numbers, their mean, their squared deviations' sum."""

    count: Float[Tensor, "statistic row"]
    mean: Float[Tensor, "statistic row"]
    squares: Float[Tensor, "statistic row"]
    """Sum of squared deviations from the mean."""

    @classmethod
    def empty(cls, statistics: int, rows: int) -> Moments:
        """Return moments of no number."""
        return cls(*(torch.zeros(statistics, rows, dtype=torch.float64) for _ in range(3)))

    def add(self, values: Float[Tensor, "statistic position row"]) -> None:
        """Take numbers in; those that are not finite are left out."""
        finite = values.isfinite()
        count = finite.sum(1).to(torch.float64)
        known = torch.where(finite, values, torch.zeros_like(values))
        mean = known.sum(1) / count.clamp(min=1)
        apart = torch.where(finite, values - mean[:, None], torch.zeros_like(values))
        total = self.count + count
        share = count / total.clamp(min=1)
        step = mean - self.mean
        self.squares += apart.square().sum(1) + step.square() * self.count * share
        self.mean += step * share
        self.count = total

    def means(self, statistic: int | slice = slice(None)) -> Float[Tensor, "*statistic row"]:
        """Return the means, NaN where there was no number.

        Args:
            statistic: Its number; left out, all of them.
        """
        return self.mean[statistic].masked_fill(self.count[statistic] == 0, torch.nan)

    def deviations(self, statistic: int | slice = slice(None)) -> Float[Tensor, "*statistic row"]:
        """Return the standard deviations over positions, NaN where there was one number or none.

        Args:
            statistic: Its number; left out, all of them.
        """
        count = self.count[statistic]
        found = (self.squares[statistic] / (count - 1).clamp(min=1)).sqrt()
        return found.masked_fill(count < 2, torch.nan)

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> Moments:
        """Return what `state` was of."""
        return cls(**state)
