"""Edges into the metric: what reaches it directly from each node."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import StationaryMetricError
from headwater.feature_circuits.edges import Edges, Parent
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import Runs
from headwater.feature_circuits.sites import NodeSites
from headwater.gates.direct import LOGITS
from headwater.metrics import Metric, kl
from headwater.models import Model
from headwater.sites import Site


def last_residual(model: Model) -> Site:
    """Return the residual after the last layer, through which everything reaches the metric."""
    return Site(model.anatomy().n_layers - 1, "resid_post")


def refuse_stationary(model: Model, metric: Metric, nodes: NodeSites) -> None:
    """Refuse edges into a metric that has no slope in the clean run.

    Raises:
        StationaryMetricError: If the last residual is no node site and the metric is the divergence
            from the clean run.
    """
    if isinstance(metric, kl) and last_residual(model) not in nodes.sites:
        raise StationaryMetricError(
            "the metric is the KL divergence to the clean run, whose slope there is exactly 0, so "
            f"edges into it are unknown where '{last_residual(model)}' is no node.\n"
            "Add a dictionary there, or name it in sites=, or take another metric such as "
            "hw.logit_diff()."
        )


def into_metric(
    runs: Runs, kept: Mapping[Site, Kept], edges: Edges
) -> dict[Site, Float[Tensor, " kept"]]:
    """Return each kept node's edge into the metric, on the mean over pairs.

    The metric counts on every pair, so no mask applies to what reaches it. Where the residual after
    the last layer is a node site, everything passes through it: its nodes' edges are their effects,
    and no other node has one. Elsewhere the metric's slope in the clean run is taken with every
    node site held.
    """
    last = last_residual(runs.model)
    if last in runs.nodes.sites:
        return {last: edges.everywhere[last]} if len(kept[last]) else {}
    found: dict[Site, Tensor] = {}
    for one in runs:
        direct = runs.direct(one).into_metric(runs.task.metric)
        ones = torch.ones_like(direct.targets[LOGITS])[None]
        pulled = direct.pulled({LOGITS: ones})
        for node in runs.nodes:
            site = node.site
            if site not in pulled or not len(kept[site]):
                continue
            parent = Parent(one.state(node), kept[site])
            weights, _ = parent.projected(pulled[site])
            row = parent.columns(weights[0].double().cpu(), slice(None), None)
            found[site] = found.get(site, 0) + row * one.weight / runs.pairs
    return found
