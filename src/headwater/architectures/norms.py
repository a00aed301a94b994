"""What the norm before an MLP does to a normalized residual: a factor and a shift for each channel.

Found by asking the norm, since some keep a weight, some a weight less one, some none.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.errors import UnavailableSiteError
from headwater.precision import true_float64

_LARGE = 1e6  # beside it the norm's epsilon is below rounding


def mlp_norm(
    adapter: Adapter, layer: int
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Return what the norm before a layer's MLP multiplies and adds, in float64.

    Args:
        adapter: Of the model.
        layer: The layer's number.

    Returns:
        Factor and shift: `mlp.in = normalized * factor + shift`.

    Raises:
        UnavailableSiteError: If this family's table names no norm whose output the MLP reads.
    """
    path = adapter.family.mlp_norm
    norm: Any = None if path is None else getattr(adapter.layers[layer], path, None)
    if norm is None or adapter.d_model % 2:
        raise UnavailableSiteError(
            f"no norm in layer {layer} of {adapter.family.name} is known whose output the MLP "
            "reads, so what lies before that norm's weight is not known."
        )
    exact = copy.deepcopy(norm).double()
    # mean 0 and mean square 1: what a norm makes of it is the very same
    signs = torch.ones(adapter.d_model, dtype=torch.float64, device=next(norm.parameters()).device)
    signs[1::2] = -1
    with torch.no_grad(), true_float64():
        up, down = (exact.forward(sign * _LARGE * signs[None, None]) for sign in (1, -1))
    return ((up - down)[0, 0] / 2 * signs).cpu(), ((up + down)[0, 0] / 2).cpu()
