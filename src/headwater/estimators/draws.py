"""Random numbers that belong to a pair: the same however the pairs are batched or split."""

import hashlib

import torch


def generator(seed: int, pair: int) -> torch.Generator:
    """Return a generator for one pair, on the CPU so that every device draws the same numbers.

    Args:
        seed: The estimator's seed.
        pair: Number of the pair in its task.
    """
    digest = hashlib.sha256(f"{seed} {pair}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
