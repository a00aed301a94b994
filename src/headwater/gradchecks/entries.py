"""An objective with several entries: whose gradient is `grad_outputs=ones_like(...)`?

It is the gradient of the sum. Each entry has one of its own, and it may point the other way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gradchecks.directions import Direction
from headwater.gradchecks.lines import Weighed
from headwater.gradchecks.result import Entry

SHOWN = 16
"""Most entries that are shown: those that move most along the checked directions."""


def entries_of(
    function: Weighed,
    lines: Sequence[Direction],
    tangents: Float[Tensor, "direction *entry"] | None,
) -> tuple[Entry, ...]:
    """Return the entries of a vector objective with their own slopes.

    Args:
        function: The objective and its weights.
        lines: The directions of the check.
        tangents: Slopes of every entry along them; by backward passes if there is no forward mode.
    """
    assert function.weights is not None
    with torch.no_grad():
        values = function.function.rows(function.function.value[None])[0].flatten().double().cpu()
    weights = function.weights.flatten().double().cpu()
    slopes = _by_backward(function, lines) if tangents is None else tangents.flatten(1)
    total = slopes @ weights
    size = slopes.abs().amax(0)
    shown = size.argsort(descending=True, stable=True)[:SHOWN].sort().values
    # a slope that is rounding beside the others, or a sum beside its parts, has no sign
    clear = slopes.abs() > 1e-9 * size
    clear &= (total.abs() > 1e-9 * (slopes * weights).abs().sum(1))[:, None]
    opposite = (slopes.sign() != total.sign()[:, None]) & clear
    return tuple(
        Entry(
            index=index,
            value=float(values[index]),
            weight=float(weights[index]),
            opposite=float(opposite[:, index].double().mean()),
            slopes=tuple(slopes[:, index].tolist()),
        )
        for index in shown.tolist()
    )


def _by_backward(function: Weighed, lines: Sequence[Direction]) -> Float[Tensor, "direction entry"]:
    """Return every entry's slope along every direction, one backward pass an entry."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = function.function.value.detach().clone().requires_grad_()
        entries = function.function.rows(leaf[None])[0].flatten()
        vectors = torch.stack([line.vector for line in lines]).flatten(1)
        found = []
        for entry in entries:
            (own,) = torch.autograd.grad(entry, leaf, retain_graph=True, allow_unused=True)
            own = torch.zeros_like(leaf) if own is None else own
            found.append((vectors @ own.flatten()).double().cpu())
    return torch.stack(found, 1)
