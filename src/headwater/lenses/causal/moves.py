"""How far to go along a line for a function to change by so much."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_DOUBLINGS = 12
_SECANTS = 14
_NEAR = 1e-4
"""Share of the change asked for that may be missed."""


def steps_for(
    change: Callable[[Float[Tensor, " step"]], Float[Tensor, " step"]],
    slope: float,
    wanted: Float[Tensor, " step"],
    most: float,
) -> Float[Tensor, " step"]:
    """Return the steps at which a function has changed by so much, NaN where none was found.

    From the step that the slope suggests, doubled until the change is reached, then narrowed by
    the regula falsi (Illinois form), all steps together.

    Args:
        change: The function's change at each step from 0, where it is 0.
        slope: Its slope there, above 0.
        wanted: The changes asked for, none of them 0; a negative one asks for a negative step.
        most: The longest step to try.
    """
    sign = wanted.sign()

    def gap(step: Tensor) -> Tensor:
        return sign * change(sign * step) - wanted.abs()

    near, below = torch.zeros_like(wanted), -wanted.abs()
    far = (wanted / slope).abs().clamp(max=most)
    above = gap(far)
    for _ in range(_DOUBLINGS):
        short = (above < 0) & (far < most)
        if not bool(short.any()):
            break
        near, below = torch.where(short, far, near), torch.where(short, above, below)
        far = torch.where(short, (2 * far).clamp(max=most), far)
        above = gap(far)
    reached = above >= 0
    best, miss = far, above.abs()
    side = torch.zeros_like(wanted)
    for _ in range(_SECANTS):
        if not bool((reached & (miss > _NEAR * wanted.abs())).any()):
            break
        middle = far - above * (far - near) / (above - below)
        middle = torch.where(middle.isfinite(), middle, far)
        off = gap(middle)
        over = off >= 0
        # an end that stays twice running counts half, or it would stay for good
        below = torch.where(over, torch.where(side > 0, below / 2, below), off)
        above = torch.where(over, off, torch.where(side < 0, above / 2, above))
        far, near = torch.where(over, middle, far), torch.where(over, near, middle)
        side = torch.where(over, 1.0, -1.0).to(wanted.dtype)
        closer = off.abs() < miss
        best, miss = torch.where(closer, middle, best), torch.where(closer, off.abs(), miss)
    return sign * torch.where(reached, best, torch.nan)
