"""Where the runs of a check begin: the residual that enters a layer, and what follows it.

The prompt runs once as the model is. What follows runs on in float64, or natively.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gradchecks.asked import Asked
from headwater.models import Model
from headwater.prompts import Batch
from headwater.running import forward
from headwater.sites import Site
from headwater.suffix import float64_suffix
from headwater.taps import keeper


@dataclass(frozen=True, eq=False)
class Start:
    """A model that runs from a layer on, and what enters it."""

    model: Model
    batch: Batch
    layer: int
    residual: Float[Tensor, "one pos d_model"]

    @property
    def pair(self) -> tuple[int, Tensor]:
        """Layer and residual, as a run takes them."""
        return self.layer, self.residual

    def forward(self, taps: Mapping[Site, Any]) -> Float[Tensor, "one read vocab"]:
        """Run what follows, with taps, and return the logits that the metric reads."""
        return forward(self.model, self.batch, taps, self.pair)


@torch.no_grad()
def started(model: Model, asked: Asked, layer: int) -> Start:
    """Run the prompt once as the model is, and return how to go on from a layer.

    Args:
        model: The model.
        asked: Prompt and objective.
        layer: The first layer that will run; the number of layers for what follows them.
    """
    last = layer == model.anatomy().n_layers
    where = Site(layer - 1, "resid_post") if last else Site(layer, "resid_pre")
    kept: dict[Any, Tensor] = {}
    forward(model, asked.batch, {where: keeper(kept, "residual")})
    return _with_clean_logits(Start(model, asked.batch, layer, kept["residual"]), asked)


@torch.no_grad()
def in_float64(start: Start, asked: Asked) -> Start:
    """Return a start that goes on in float64 from the same residual."""
    runner = float64_suffix(start.model, start.layer)
    if runner is start.model:
        return start
    residual = start.residual.to(torch.float64)
    return _with_clean_logits(Start(runner, asked.batch, start.layer, residual), asked)


def _with_clean_logits(start: Start, asked: Asked) -> Start:
    """Give a metric that compares with the clean run the logits of this very run."""
    if "clean_logits" not in asked.metric.needs:
        return start
    return replace(start, batch=start.batch.with_clean_logits(start.forward({})))
