"""The metric's slope at many sites: in the clean run, or averaged along a path of each site's own.

In the clean run one forward and one backward serve all sites. Along a path only one site moves,
straight from its off value to its clean one, and everything behind it is computed again: one
forward and backward from its layer on for each point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gates.function import Cost
from headwater.metrics import Metric
from headwater.models import Model
from headwater.prompts import Batch
from headwater.running import forward
from headwater.sites import EMBED, Site
from headwater.taps import Tap


@dataclass(frozen=True)
class SiteRun:
    """One run of a batch: the metric, and values and slopes at sites."""

    metric: Float[Tensor, " batch"]
    values: Mapping[Site, Float[Tensor, "batch pos ..."]]
    slopes: Mapping[Site, Float[Tensor, "batch pos ..."]]
    """`df/dx` at each site, the total derivative; zero where a site cannot reach the metric."""
    residuals: Mapping[int, Float[Tensor, "batch pos d_model"]]
    """What enters each layer."""


def clean_run(
    model: Model, batch: Batch, metric: Metric, sites: Sequence[Site], cost: Cost
) -> SiteRun:
    """Run the clean prompts, and differentiate once."""
    kept: dict[Site, Tensor] = {}
    depth = model.anatomy().n_layers
    wanted = dict.fromkeys([EMBED, *sites, *(Site(layer, "resid_pre") for layer in range(depth))])

    def keep(site: Site) -> Tap:
        def tap(value: Tensor) -> Tensor:
            kept[site] = value if value.requires_grad else value.detach().requires_grad_()
            return kept[site]

        return tap

    with torch.enable_grad():
        logits = forward(model, batch, {site: keep(site) for site in wanted})
        value = metric(logits, batch)
    slopes = torch.autograd.grad(
        value.sum(), [kept[site] for site in sites], materialize_grads=True, allow_unused=True
    )
    cost.ran(len(batch), backward=True)
    return SiteRun(
        metric=value.detach(),
        values={site: kept[site].detach() for site in sites},
        slopes=dict(zip(sites, slopes, strict=True)),
        residuals={layer: kept[Site(layer, "resid_pre")].detach() for layer in range(depth)},
    )


class SitePaths:
    """The metric while one site moves and everything behind it follows.

    Args:
        model: A frozen model.
        batch: The clean prompts.
        metric: Reads the logits.
        run: Their clean run.
        cost: Where passes are counted.
        tokens: Most tokens in one stacked run.
    """

    def __init__(
        self, model: Model, batch: Batch, metric: Metric, run: SiteRun, cost: Cost, tokens: int
    ) -> None:
        self.model, self.batch, self.metric, self.run = model, batch, metric, run
        self.cost = cost
        self.stacked = max(1, tokens // batch.clean.numel())

    def average(
        self,
        site: Site,
        off: Float[Tensor, "..."],
        points: Sequence[float],
        weights: Sequence[float],
    ) -> Float[Tensor, "batch pos ..."]:
        """Return the weighted sum of slopes at points from the off value (0) to the clean (1)."""
        clean = self.run.values[site]
        total = torch.zeros_like(clean)
        for first in range(0, len(points), self.stacked):
            part = torch.tensor(points[first : first + self.stacked]).to(clean)
            share = part.reshape(-1, *[1] * clean.ndim)
            value = torch.lerp(off.to(clean), clean, share).flatten(0, 1).requires_grad_()
            with torch.enable_grad():
                metric = self.at(site, value)
            (slopes,) = torch.autograd.grad(metric.sum(), value)
            weight = torch.tensor(weights[first : first + self.stacked]).to(slopes)
            total += torch.einsum("p,p...->...", weight, slopes.unflatten(0, (len(part), -1)))
        return total

    def at(self, site: Site, value: Float[Tensor, "row pos ..."]) -> Float[Tensor, " row"]:
        """Return the metric with values at a site, whole batches one behind the other."""
        settings = len(value) // len(self.batch)
        rows = self.batch.repeat(settings) if settings > 1 else self.batch
        layer = site.layer or 0
        start = None
        if site.layer is not None and layer > 0:
            start = (layer, self.run.residuals[layer].repeat(settings, 1, 1))
        logits = forward(self.model, rows, {site: lambda _: value}, start)
        share = 1 - layer / self.model.anatomy().n_layers
        self.cost.ran(len(value) * share, backward=value.requires_grad)
        return self.metric(logits, rows)
