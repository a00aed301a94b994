"""Drawing at random: numbers that belong to a pair, and the mean of what was found with them.

A pair's numbers are the same however the pairs are batched or split.
"""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, pair: int) -> torch.Generator:
    """Return a generator for one pair, on the CPU so that every device draws the same numbers.

    Args:
        seed: The estimator's seed.
        pair: Number of the pair in its task.
    """
    digest = hashlib.sha256(f"{seed} {pair}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class RunningMean:
    """The mean over draws and its standard error, without keeping a draw.

    Args:
        like: A tensor with the shape, dtype and device of one draw.
    """

    def __init__(self, like: Tensor) -> None:
        self.draws = 0
        self.mean = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)

    def add(self, found: Tensor) -> None:
        """Take in one draw, by Welford's update: sums of squares would cancel."""
        self.draws += 1
        difference = found - self.mean
        self.mean += difference / self.draws
        self._squares += difference * (found - self.mean)

    def standard_error(self) -> Tensor:
        """Return the standard error of the mean, from two draws on."""
        return (self._squares / (self.draws - 1) / self.draws).sqrt()
