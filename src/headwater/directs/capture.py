"""One forward over a batch, of which only the position that is read is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.directs.linear import WIDE
from headwater.directs.metric import LogitMetric
from headwater.models import Model
from headwater.prompts import Batch
from headwater.sites import EMBED, Site

FINAL = Site(None, "final_norm")


@dataclass(frozen=True, eq=False)
class Capture:
    """What a model computed at each prompt's read position."""

    batch: Batch
    values: dict[Site, Tensor]
    """[row, width] in float64, heads side by side."""
    residual: Float[Tensor, "row d_model"]
    """What enters the final norm."""
    normed: Float[Tensor, "row d_model"]
    """What leaves it, as the model computed it."""
    logits: Float[Tensor, "row vocab"]
    """The model's own."""


@torch.no_grad()
def captured(model: Model, batch: Batch, metric: LogitMetric, sites: Sequence[Site]) -> Capture:
    """Run a batch once and keep what is at the read position.

    Args:
        model: With its parameters frozen.
        batch: The prompts.
        metric: Says which position that is.
        sites: What to keep beside the ends of the residual stream.

    Returns:
        The values there, in float64 on the model's device.
    """
    adapter, home = model.anatomy(), model.device
    last = Site(adapter.n_layers - 1, "resid_post")
    ends = [EMBED, last, *([] if adapter.final_norm is None else [FINAL])]
    columns = metric.columns(batch)
    kept: dict[Site, Tensor] = {}

    def keeping(site: Site) -> Any:
        def tap(value: Tensor) -> None:
            rows = torch.arange(len(value), device=value.device)
            there = value.detach()[rows, columns.to(value.device)]
            kept[site] = there.flatten(1).to(home, WIDE)

        return tap

    logits = model.forward(
        batch.clean,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps={site: keeping(site) for site in dict.fromkeys([*ends, *sites])},
        read=metric.read(batch),
    )
    return Capture(
        batch=batch,
        values=kept,
        residual=kept[last],
        normed=kept[ends[-1]],
        logits=metric.at_position(logits, batch).to(home),
    )
