"""From effects and blocks to a circuit's records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.feature_circuits.choice import above
from headwater.feature_circuits.edges import Edges, SlopeReport
from headwater.feature_circuits.effects import SiteEffects
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.nodes import Node, SiteSummary
from headwater.feature_circuits.runs import Runs
from headwater.sites import Site


@dataclass(frozen=True)
class Graph:
    """A circuit's nodes and edges; the metric is node number `len(nodes)`."""

    nodes: tuple[Node, ...]
    sources: Int[Tensor, " edge"]
    targets: Int[Tensor, " edge"]
    weights: Float[Tensor, " edge"]
    dropped: int
    """Edges between kept nodes that are not 0 and not above the threshold."""
    dropped_size: float
    """Sum of their sizes."""
    sites: tuple[SiteSummary, ...]


def collected(
    runs: Runs,
    kept: Mapping[Site, Kept],
    effects: Mapping[Site, SiteEffects],
    edges: Edges,
    metric_edges: Mapping[Site, Float[Tensor, " kept"]],
    threshold: float,
) -> Graph:
    """Return the circuit's records.

    Args:
        runs: The clean runs.
        kept: The nodes.
        effects: Of every node.
        edges: Every block between kept nodes.
        metric_edges: Each kept node's edge into the metric.
        threshold: Of edges.
    """
    starts, count = {}, 0
    for node in runs.nodes:
        starts[node.site] = count
        count += len(kept[node.site])
    # the metric is a site of one node behind all others
    blocks = [(starts[up], starts[down], one.weights) for (up, down), one in edges.blocks.items()]
    blocks += [(starts[site], count, row[None]) for site, row in metric_edges.items()]
    empty = torch.zeros(0, dtype=torch.long)
    parts = [(empty, empty, empty.double())]
    dropped, size = 0, 0.0
    for up, down, block in blocks:
        chosen = above(block, threshold)
        left = block[~chosen]
        dropped, size = dropped + int((left != 0).sum()), size + float(left.abs().sum())
        rows, columns = chosen.nonzero(as_tuple=True)
        parts.append((columns + up, rows + down, block[chosen]))
    sources, targets, weights = (torch.cat(one) for one in zip(*parts, strict=True))
    order = weights.abs().argsort(descending=True, stable=True)
    return Graph(
        nodes=tuple(one for node in runs.nodes for one in _nodes(kept[node.site], effects, edges)),
        sources=sources[order],
        targets=targets[order],
        weights=weights[order],
        dropped=dropped,
        dropped_size=size,
        sites=tuple(_summary(kept[node.site], effects, edges) for node in runs.nodes),
    )


def _nodes(kept: Kept, effects: Mapping[Site, SiteEffects], edges: Edges) -> list[Node]:
    node, found = kept.node, effects[kept.node.site]
    blocks = [block for (_, down), block in edges.blocks.items() if down == node.site]
    nodes = []
    for place, index in enumerate(kept.indices):
        slot = None if kept.slots is None else kept.slots[place]
        error = index == node.features
        incoming = below = unexplained = None
        orphan = False
        if blocks:
            incoming = sum(float(block.weights[place].sum()) for block in blocks)
            total = sum(float(block.total[place]) for block in blocks)
            own = float(edges.own[node.site][place])
            below, unexplained = total - incoming, own - total
            # a node that does not change is none, though a mask may keep it
            orphan = own != 0 and all(
                not bool(block.weights[place].any()) and float(block.total[place]) == 0
                for block in blocks
            )
        nodes.append(
            Node(
                name=kept.names[place],
                kind=("error" if node.features else "site") if error else "feature",
                site=str(node.site),
                index=None if error else index,
                position=slot,
                effect=float(found.mean[slot or 0, index]),
                se=None if found.se is None else float(found.se[slot or 0, index]),
                incoming=incoming,
                below=below,
                unexplained=unexplained,
                orphan=orphan,
            )
        )
    return nodes


def _summary(kept: Kept, effects: Mapping[Site, SiteEffects], edges: Edges) -> SiteSummary:
    node, found = kept.node, effects[kept.node.site]
    slopes = edges.slopes.get(node.site, SlopeReport())
    dictionary = node.dictionary
    return SiteSummary(
        site=str(node.site),
        label=node.label,
        kind=(dictionary.origin.kind or dictionary.activation.name) if node.features else "whole",
        features=node.features,
        kept=len(kept),
        effects=float(found.mean.sum()),
        exact=found.exact,
        steepest=slopes.steepest,
        replaced=slopes.replaced,
        active=slopes.active,
        explained=None if found.fit is None else found.fit.explained,
        active_features=None if found.fit is None else found.fit.active,
    )
