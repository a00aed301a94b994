"""The residual stream at the rows of a batch, real tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.lenses.rows import Row
from headwater.models import Model
from headwater.prompts import Batch
from headwater.taps import keeper


def residuals(
    model: Model, batch: Batch, rows: Sequence[Row]
) -> Float[Tensor, "row position d_model"]:
    """Run a batch once and return the residual stream at each row, as `read_rows` does.

    Args:
        model: The model, frozen.
        batch: Prompts, padded on the left.
        rows: Where to look.
    """
    return read_rows(model, batch, rows)[0]


@torch.no_grad()
def read_rows(
    model: Model, batch: Batch, rows: Sequence[Row]
) -> tuple[Float[Tensor, "row position d_model"], Float[Tensor, "batch vocab"]]:
    """Run a batch once and return what stands at each row, and the model's own last logits.

    Args:
        model: The model, frozen.
        batch: Prompts, padded on the left.
        rows: Where to look.

    Returns:
        The rows, one entry a real token, prompt after prompt; and the logits at the last position
        of each prompt.
    """
    kept: dict[int, Tensor] = {}
    taps = {row.site: keeper(kept, number) for number, row in enumerate(rows)}
    logits = model.forward(
        batch.clean, mask=batch.mask, position_ids=batch.position_ids, taps=taps, read=1
    )
    values = torch.stack([kept.pop(number)[batch.mask] for number in range(len(rows))])
    return values, logits[:, -1]


def prompts_of(batch: Batch) -> Int[Tensor, " position"]:
    """Return the number of the prompt that each real token belongs to."""
    pairs = torch.tensor(batch.pairs, device=batch.mask.device)
    return pairs[:, None].expand_as(batch.mask)[batch.mask]


def together(device: torch.device, width: int) -> int:
    """Return how many positions are worked on at once, of `width` numbers each."""
    room = 2**24 if device.type == "cpu" else 2**28
    return max(16, room // width)
