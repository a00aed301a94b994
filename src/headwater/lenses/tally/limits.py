"""Between which numbers a statistic lies, whatever the model: no interval leaves these."""

from __future__ import annotations

import math

_LIMITS = {
    "kl": (0.0, math.inf),
    "rank": (1.0, math.inf),
    "log rank": (0.0, math.inf),
    "js": (0.0, math.log(2)),
    "tv": (0.0, 1.0),
    "agrees": (0.0, 1.0),
    "max-prob": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "logprob": (-math.inf, 0.0),
    "margin": (0.0, math.inf),
    "rms": (0.0, math.inf),
}


def limits(key: str) -> tuple[float, float]:
    """Return the smallest and the largest number that a statistic can be.

    Args:
        key: Of the statistic, such as `rank(next)`; logarithms of ranks are `log rank(next)`.
    """
    return _LIMITS.get(key.partition("(")[0], (-math.inf, math.inf))
