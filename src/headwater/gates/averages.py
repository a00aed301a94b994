"""Numbers by pair, averaged over the draws of the off values."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.prompts import Batch


class Averages:
    """One number, or one row of numbers, a pair, averaged over however often the pair is seen.

    What an estimator makes of a gated function need not be linear in it, so estimates are averaged
    and not gated functions.

    Args:
        pairs: Pairs in the task.
        dtype: Of the averages; by default that of the first numbers added.
    """

    def __init__(self, pairs: int, dtype: torch.dtype | None = None) -> None:
        self.pairs, self.dtype = pairs, dtype
        self._seen = torch.zeros(pairs, dtype=torch.long)
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, batch: Batch, values: Tensor) -> None:
        """Take in numbers, [batch, ...], of the pairs of a batch."""
        rows = list(batch.pairs)
        values = values.detach().cpu()
        if self._mean is None:
            self._mean = torch.zeros(
                self.pairs, *values.shape[1:], dtype=self.dtype or values.dtype
            )
        values = values.to(self._mean)
        self._seen[rows] += 1
        first = bool((self._seen[rows] == 1).all())
        if first:
            self._mean[rows] = values
            return
        # Welford: sums of squares would lose the spread of draws that differ little
        if self._squares is None:
            self._squares = torch.zeros_like(self._mean)
        count = self._seen[rows].reshape(-1, *[1] * (values.ndim - 1))
        before = self._mean[rows]
        after = before + (values - before) / count
        self._squares[rows] += (values - before) * (values - after)
        self._mean[rows] = after

    def mean(self) -> Tensor:
        """Return the averages, [pair, ...], in the order of the task's pairs."""
        assert self._mean is not None
        return self._mean

    def standard_error(self) -> Tensor | None:
        """Return the standard error of each average over draws; None where there was one draw."""
        if self._squares is None:
            return None
        draws = self._seen.reshape(-1, *[1] * (self._squares.ndim - 1))
        return (self._squares / (draws * (draws - 1))).sqrt()
