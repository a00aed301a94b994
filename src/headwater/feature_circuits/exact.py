"""Exact effects of nodes and edges, by intervention: what their estimates are held against.

An edge takes two runs. In the first the upstream node is at its reference and every other node
site at its clean value; it ends at the downstream site and gives the value that the downstream node
takes then. In the second that node alone has this value and everything behind it follows. What the
metric loses is the edge. If the first run changes nothing, the edge is 0 without a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.coding import flat
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import BatchRun, Runs
from headwater.feature_circuits.sites import NodeSite
from headwater.feature_circuits.state import SiteState
from headwater.gates.direct import DirectPaths
from headwater.gates.slopes import SitePaths
from headwater.progress import Advance, silent
from headwater.sites import Site


@dataclass(frozen=True)
class NodeKey:
    """One node: its site, its number there (the error's is F), its position."""

    site: Site
    index: int
    slot: int | None


EdgeKey = tuple[NodeKey, NodeKey | None]
"""From and to; None is the metric."""


class Interventions:
    """Exact effects on the pairs of a task, mean over pairs.

    Args:
        runs: The clean runs.
        kept: The nodes of each site; their masks apply.
        tokens: Most tokens in one stacked run.
    """

    def __init__(self, runs: Runs, kept: Mapping[Site, Kept], tokens: int) -> None:
        self.runs, self.kept, self.tokens = runs, kept, tokens
        self.by_site = {node.site: node for node in runs.nodes}
        self.advance: Advance = silent
        self.noise = 0.0
        """How far rounding alone moves the mean metric: a site's own value, patched in."""

    def of_nodes(self, nodes: Sequence[NodeKey]) -> Float[Tensor, " node"]:
        """Return what the metric loses when each node is at its reference."""
        total = torch.zeros(len(nodes), dtype=torch.float64)
        groups = _grouped(nodes, lambda node: node.site)
        for one in self.runs:
            paths = self._paths(one)
            for site, members in groups.items():
                state = one.state(self.by_site[site])
                self._measure_noise(one, paths, site)
                values = [self._closed(one, state, nodes[n]) for n in members]
                total[members] += self._lost(one, paths, site, values)
                self.advance(len(members) * len(one.batch))
        return total / self.runs.pairs

    def of_edges(self, edges: Sequence[EdgeKey]) -> Float[Tensor, " edge"]:
        """Return what the metric loses through each edge alone."""
        total = torch.zeros(len(edges), dtype=torch.float64)
        groups = _grouped(edges, lambda edge: (edge[0].site, edge[1].site if edge[1] else None))
        for one in self.runs:
            paths = self._paths(one)
            direct = self.runs.direct(one)
            for (up, down), members in groups.items():
                chosen = [edges[n] for n in members]
                if down is None:
                    total[members] += self._into_metric(one, direct, up, chosen)
                else:
                    self._measure_noise(one, paths, down)
                    total[members] += self._into(one, direct, paths, up, down, chosen)
                self.advance(len(members) * len(one.batch))
        return total / self.runs.pairs

    def _into_metric(
        self, one: BatchRun, direct: DirectPaths, up: Site, edges: Sequence[EdgeKey]
    ) -> Float[Tensor, " edge"]:
        state = one.state(self.by_site[up])
        lost = []
        for source, _ in edges:
            value = direct.metric_with(
                self.runs.task.metric, {up: self._closed(one, state, source)}
            )
            lost.append((one.run.metric - value).double().sum().cpu() * one.weight)
        return torch.stack(lost)

    def _into(
        self,
        one: BatchRun,
        direct: DirectPaths,
        paths: SitePaths,
        up: Site,
        down: Site,
        edges: Sequence[EdgeKey],
    ) -> Float[Tensor, " edge"]:
        source, target = one.state(self.by_site[up]), one.state(self.by_site[down])
        mask = self.kept[down].mask_of(one)
        lost = torch.zeros(len(edges), dtype=torch.float64)
        pending: list[tuple[int, Tensor]] = []
        for key, members in _grouped(edges, lambda edge: edge[0]).items():
            reached = self._reached(one, direct, target.node, up, self._closed(one, source, key))
            for n in members:
                to = edges[n][1]
                assert to is not None
                value = self._taking(one, target, to, reached, mask)
                if value is not None:
                    pending.append((n, value))
        if pending:
            values = [value for _, value in pending]
            lost[[n for n, _ in pending]] = self._lost(one, paths, down, values)
        return lost

    def _reached(
        self, one: BatchRun, direct: DirectPaths, node: NodeSite, up: Site, value: Tensor
    ) -> dict[Site, Tensor]:
        """Return what a node site is read from, with one site changed and the others held."""
        addends = self.runs.nodes.addends(node)
        if addends is not None:
            # a sum: no model has to run
            own = one.run.values[node.site]
            return {node.site: own + addends[up] * (value - one.run.values[up])}
        return direct.reached(node.reads, self.runs.nodes.before(node), {up: value})

    def _taking(
        self,
        one: BatchRun,
        state: SiteState,
        key: NodeKey,
        reached: Mapping[Site, Tensor],
        mask: Bool[Tensor, "batch pos node"] | None,
    ) -> Tensor | None:
        """Return the site with one node at the value it takes there, or None if that is its own."""
        node, dictionary = state.node, state.node.dictionary
        read = flat(reached[node.reads[0]])
        if key.index < node.features:
            column = torch.tensor([key.index], device=read.device)
            moved = dictionary.encode(read, column) - state.features[..., column]
            change = moved @ dictionary.decoder[column]
        else:
            features = dictionary.encode(read)
            error = dictionary.error(features, flat(reached[node.site]))
            change = error - dictionary.error(state.features, state.written)
        change = change if key.slot is None else _at(change, key.slot)
        change = change if mask is None else change * mask[..., key.index, None]
        if not bool(change.any()):
            return None
        whole = one.run.values[node.site]
        return whole + change.view(whole.shape).to(whole.dtype)

    def _closed(self, one: BatchRun, state: SiteState, key: NodeKey) -> Tensor:
        """Return a site with one node at its reference."""
        dictionary = state.node.dictionary
        if key.index < state.node.features:
            change = state.change[..., key.index, None] * dictionary.decoder[key.index]
        else:
            change = state.error_change
        if key.slot is not None:
            change = _at(change, key.slot)
        whole = one.run.values[state.node.site]
        return whole - change.view(whole.shape).to(whole.dtype)

    def _lost(
        self, one: BatchRun, paths: SitePaths, site: Site, values: Sequence[Tensor]
    ) -> Float[Tensor, " value"]:
        lost = []
        for first in range(0, len(values), paths.stacked):
            part = values[first : first + paths.stacked]
            with torch.no_grad():
                metric = paths.at(site, torch.cat(list(part))).view(len(part), -1)
            lost.append((one.run.metric - metric).double().sum(1).cpu() * one.weight)
        return torch.cat(lost)

    def _measure_noise(self, one: BatchRun, paths: SitePaths, site: Site) -> None:
        own = self._lost(one, paths, site, [one.run.values[site]] * 2)
        self.noise = max(self.noise, float(own.abs().max()) / self.runs.pairs)

    def _paths(self, one: BatchRun) -> SitePaths:
        runs = self.runs
        return SitePaths(runs.model, one.batch, runs.task.metric, one.run, runs.cost, self.tokens)


def _grouped(items: Sequence, key) -> dict:  # pyright: ignore
    groups: dict = defaultdict(list)
    for place, item in enumerate(items):
        groups[key(item)].append(place)
    return groups


def _at(change: Tensor, slot: int) -> Tensor:
    """Return a change at one position, and 0 elsewhere."""
    kept = torch.zeros_like(change)
    kept[:, slot] = change[:, slot]
    return kept
