"""What a model does to its logits after the unembedding: nothing, a scale, or a soft cap.

Found by looking: logits before and after are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.models import Model

EXACT = 1e-4
"""A fitted scale this near to 1, or nearer in formats that tell numbers further apart, is 1."""


@dataclass(frozen=True)
class Ending:
    """What a model does to its logits after the unembedding."""

    scale: float = 1.0
    cap: float | None = None
    """Logits become `cap * tanh(logits / cap)`."""


def ending_of(
    model: Model,
    raw: Float[Tensor, "row vocab"],
    logits: Float[Tensor, "row vocab"],
    allowed: float,
) -> tuple[Ending, float]:
    """Find the soft cap or the scale that leads from logits before to logits after.

    A cap that the configuration names is preferred to a scale: logits that are small beside the
    cap show no difference.

    Args:
        model: Whose configuration names the cap, if it has one.
        raw: What the unembedding returned, in float64.
        logits: The model's own logits.
        allowed: How far an ending may miss them.

    Returns:
        The ending, and how far it misses them at most: by more than `allowed` (or NaN) if none
        does better.
    """
    logits = logits.to(raw)
    cap = cap_of(model)
    endings = [Ending(_scale(model, raw, logits))]
    if cap is not None:
        endings.insert(0, Ending(cap=cap))
    offs = [float((ended(raw, one) - logits).abs().max()) for one in endings]
    pairs = list(zip(endings, offs, strict=True))
    fitting = [one for one in pairs if one[1] <= allowed]
    return fitting[0] if fitting else min(pairs, key=lambda one: one[1])


def ended(raw: Float[Tensor, "row vocab"], ending: Ending) -> Float[Tensor, "row vocab"]:
    """Return the logits that an ending makes of those before it."""
    if ending.cap is not None:
        return ending.cap * (raw / ending.cap).tanh()
    return ending.scale * raw


def cap_of(model: Model) -> float | None:
    """Return the soft cap of logits that a model's configuration names."""
    config: Any = model.module.config
    config = getattr(config, "get_text_config", lambda: config)()
    cap = getattr(config, "final_logit_softcapping", None)
    return float(cap) if cap else None


def _scale(model: Model, raw: Tensor, logits: Tensor) -> float:
    """Return the scale that fits best; rounding in the model's format makes no scale."""
    found = float((raw * logits).sum() / raw.square().sum().clamp(min=1e-300))
    near = min(torch.finfo(model.dtype).eps, EXACT)
    return 1.0 if abs(found - 1) <= near else found
