"""Quantiles of numbers that come in batches, good to 1 % of the number.

Numbers are counted in bins that grow by a constant factor, so that any number is within 1 % of the
middle of its bin (Masson, Rim and Lee, "DDSketch", 2019); 1 is the middle of its own. Negative
numbers have bins of their own. The order of numbers does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

ACCURACY = 0.01
"""Largest relative error of a quantile."""
SMALLEST, LARGEST = 1e-6, 1e7
"""Magnitudes below count as 0, those above as the largest."""

_GROWTH = 2 * math.log(1 + ACCURACY)
_FIRST = math.floor(math.log(SMALLEST) / _GROWTH)
_SIDE = math.ceil(math.log(LARGEST) / _GROWTH) - _FIRST + 1
_ZERO = _SIDE + 1
BINS = 2 * _SIDE + 3
"""Minus infinity, negative numbers, 0, positive numbers, infinity."""


@dataclass(eq=False)
class Sketch:
    """How many numbers of each statistic and row fell into each bin."""

    counts: Int[Tensor, "statistic row bin"]

    @classmethod
    def empty(cls, statistics: int, rows: int) -> Sketch:
        """Return a sketch of no number."""
        return cls(torch.zeros(statistics, rows, BINS, dtype=torch.int64))

    def add(self, values: Float[Tensor, "statistic position row"]) -> None:
        """Take numbers in; NaN is none."""
        statistics, positions, rows = values.shape
        place = torch.arange(statistics)[:, None, None] * rows + torch.arange(rows)
        flat = place.expand(statistics, positions, rows) * BINS + bins_of(values)
        known = flat[~values.isnan()]
        self.counts.view(-1).index_add_(0, known, torch.ones_like(known))

    def quantile(self, share: float, statistic: int) -> Float[Tensor, " row"]:
        """Return the smallest number that this share of numbers does not exceed, NaN of none.

        Args:
            share: From 0 to 1.
            statistic: Its number.
        """
        upto = self.counts[statistic].cumsum(-1)
        total = upto[..., -1:]
        wanted = (share * total.to(torch.float64)).ceil().clamp(min=1).to(torch.int64)
        found = _middles()[torch.searchsorted(upto, wanted).squeeze(-1).clamp(max=BINS - 1)]
        return found.masked_fill(total.squeeze(-1) == 0, torch.nan)

    def infinite(self, statistic: int) -> Int[Tensor, " row"]:
        """Return how many numbers of a statistic were infinite."""
        counts = self.counts[statistic]
        return counts[..., 0] + counts[..., -1]

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors: of most bins there is nothing to say."""
        bins = self.counts.view(-1).nonzero()[:, 0]
        shape = torch.tensor(self.counts.shape[:2])
        return {"bins": bins, "counts": self.counts.view(-1)[bins], "shape": shape}

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> Sketch:
        """Return what `state` was of."""
        found = cls.empty(*state["shape"].tolist())
        found.counts.view(-1)[state["bins"]] = state["counts"]
        return found


def bins_of(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the bin of each number; NaN has none that means anything."""
    size = values.abs()
    step = (size.log() / _GROWTH).round().clamp(_FIRST, _FIRST + _SIDE - 1)
    side = torch.where(size < SMALLEST, torch.zeros_like(step), step - _FIRST + 1)
    side = torch.where(size.isinf(), torch.full_like(side, _SIDE + 1), side)
    return _ZERO + (side * values.sign()).nan_to_num(0).to(torch.int64)


@cache
def _middles() -> Float[Tensor, " bin"]:
    """Return the number that stands for each bin."""
    steps = torch.arange(_FIRST, _FIRST + _SIDE, dtype=torch.float64)
    positive = torch.cat([(steps * _GROWTH).exp(), steps.new_tensor([torch.inf])])
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
