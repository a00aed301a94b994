"""How far a mean over positions would move with other prompts: a bootstrap over prompts.

Positions of one prompt are not independent, so a replicate counts each *prompt* a random number of
times, Poisson with mean 1. The numbers are drawn from the seed and the prompt's number alone, so
that it does not matter in which batch, or in which of several interrupted runs, a prompt is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

REPLICATES = 200


@dataclass(eq=False)
class Replicates:
    """Sums and counts over positions: of the corpus itself, then of each replicate."""

    seed: int
    sums: Float[Tensor, "replicate statistic row"]
    counts: Float[Tensor, "replicate statistic row"]

    @classmethod
    def empty(cls, seed: int, statistics: int, rows: int) -> Replicates:
        """Return replicates of no position."""
        shape = (REPLICATES + 1, statistics, rows)
        return cls(seed, *(torch.zeros(shape, dtype=torch.float64) for _ in range(2)))

    def add(
        self,
        prompts: Int[Tensor, " position"],
        values: Float[Tensor, "statistic position row"],
    ) -> None:
        """Take positions in; numbers that are not finite are left out.

        Args:
            prompts: The prompt of each position.
            values: Their numbers.
        """
        numbers, which = prompts.unique(return_inverse=True)
        weights = torch.stack([weights_of(self.seed, one) for one in numbers.tolist()], dim=1)
        finite = values.isfinite()
        known = torch.where(finite, values, torch.zeros_like(values))
        self.sums += _by_prompt(known, which, weights)
        self.counts += _by_prompt(finite.to(torch.float64), which, weights)

    def means(
        self, statistic: int | slice = slice(None)
    ) -> Float[Tensor, "replicate *statistic row"]:
        """Return the means, of the corpus first; NaN where a replicate has no number.

        Args:
            statistic: Its number; left out, all of them.
        """
        return self.sums[:, statistic] / self.counts[:, statistic]

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors."""
        return {"seed": torch.tensor(self.seed), "sums": self.sums, "counts": self.counts}

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> Replicates:
        """Return what `state` was of."""
        return cls(int(state["seed"]), state["sums"], state["counts"])


def weights_of(seed: int, prompt: int) -> Float[Tensor, " replicate"]:
    """Return how often a prompt counts: once in the corpus, at random in each replicate."""
    generator = np.random.Generator(np.random.PCG64([seed, prompt]))
    drawn = torch.from_numpy(generator.poisson(1.0, REPLICATES).astype(np.float64))
    return torch.cat([drawn.new_ones(1), drawn])


def _by_prompt(values: Tensor, which: Tensor, weights: Tensor) -> Tensor:
    statistics, _, rows = values.shape
    sums = values.new_zeros(statistics, weights.shape[1], rows).index_add_(1, which, values)
    flat = sums.transpose(0, 1).reshape(weights.shape[1], -1)
    return (weights @ flat).view(-1, statistics, rows)
