"""Put a model into the state a trustworthy run needs, and back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from headwater.errors import ModelStateError
from headwater.interrupts import Held

_RATES = (
    "attention_dropout",
    "attn_dropout",
    "dropout",
    "hidden_dropout",
    "layerdrop",
    "jitter_noise",
)


def active_dropouts(module: nn.Module) -> list[str]:
    """Name the parts of a model that would drop something at random in a run now.

    Args:
        module: The model, in whatever mode it is.

    Returns:
        Module names with their probability, for example `transformer.drop (p=0.1)`; empty in
        evaluation mode and where every probability is 0.
    """
    found = []
    for name, part in module.named_modules():
        if not part.training:
            continue
        if isinstance(part, nn.modules.dropout._DropoutNd):
            if part.p > 0:
                found.append(f"{name} (p={part.p:g})")
            continue
        for field in _RATES:
            # families that call F.dropout keep the probability in a plain number
            rate = getattr(part, field, None)
            if isinstance(rate, float) and rate > 0:
                found.append(f"{name or 'the model'}.{field} (p={rate:g})")
    return found


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters ask for no gradient inside the block; their flags come back exactly.

    Args:
        module: The model.

    Yields:
        Nothing.

    Raises:
        ModelStateError: If dropout is active: two runs would then give two results.
    """
    active = active_dropouts(module)
    if active:
        more = f" and {len(active) - 3} more" if len(active) > 3 else ""
        raise ModelStateError(
            f"dropout is active in {', '.join(active[:3])}{more}: the model is in training mode, "
            "so every run would give other numbers.\nCall model.eval() first."
        )
    thawed = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in thawed:
            parameter.requires_grad_(False)
        yield
    finally:
        with Held():
            for parameter in thawed:
                parameter.requires_grad_(True)
