"""Tiny models with random dictionaries, their circuits by headwater, and their twins."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import headwater as hw
import tiny_tasks
from circuit_twins import CircuitTwin, random_dictionary
from headwater.architectures.widths import width
from headwater.dictionaries import Dictionary
from headwater.dictionaries.collection import Dictionaries
from headwater.feature_circuits.edges import EdgeRule, Edges, connect
from headwater.feature_circuits.effects import SiteEffects, measure
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import Runs
from headwater.feature_circuits.sites import NodeSites, node_sites, without_features
from headwater.sites import Site

SERIAL = ["Llama", "GPT-2", "Gemma 2", "Granite"]
"""Their MLP reads what attention wrote; Gemma 2 norms its writes, Granite scales them."""
PARALLEL = ["GPT-NeoX", "Falcon"]
FAMILIES = SERIAL + PARALLEL

BLOCK = ("attn.out", "mlp.out", "resid_post")
EMBED = Site(None, "embed")
LENGTH = 3


@dataclass(frozen=True)
class Layout:
    """Which sites are nodes."""

    names: tuple[str, ...] = BLOCK
    """Inside both layers."""
    whole: tuple[str, ...] = ()
    """Those of them that have no dictionary."""
    transcodes: bool = False
    """MLP dictionaries read `mlp.in`."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of every dictionary."""

    def sites(self) -> list[Site]:
        """The node sites."""
        return [EMBED, *(Site(layer, name) for layer in (0, 1) for name in self.names)]


STANDARD = Layout()
LAYOUTS = {
    "standard": STANDARD,
    "heads and neurons": Layout(("attn.z", "attn.out", "mlp.post", "mlp.out", "resid_post")),
    "neurons alone": Layout(("mlp.post",)),
    "residuals alone": Layout(("resid_post",)),
    "no residual": Layout(("attn.out", "mlp.out")),
    "whole attention": Layout(whole=("embed", "attn.out")),
    "layer norm": Layout(fields={"scaling": "layer_norm"}),
    "constant norm": Layout(fields={"scaling": "constant_norm"}),
    "transcoders": Layout(transcodes=True),
}


@dataclass
class Found:
    """What headwater found, before thresholds."""

    nodes: NodeSites
    runs: Runs
    effects: dict[Site, SiteEffects]
    kept: dict[Site, Kept]
    edges: Edges

    def into(self, site: Site) -> Tensor:
        """Sum of the edges into each node of a site, from every node."""
        return sum(
            (block.total for (_, down), block in self.edges.blocks.items() if down == site),
            torch.zeros(len(self.kept[site]), dtype=torch.float64),
        )

    def out_of(self, site: Site) -> Tensor:
        """Sum of the edges out of each kept node of a site."""
        return sum(
            (block.weights.sum(0) for (up, _), block in self.edges.blocks.items() if up == site),
            torch.zeros(len(self.kept[site]), dtype=torch.float64),
        )

    def own(self, site: Site) -> Tensor:
        """Effects of the kept nodes of a site."""
        return self.effects[site].mean.flatten()


def dictionaries(family: str, layout: Layout = STANDARD, seed: int = 0) -> Dictionaries:
    """Random dictionaries, each of another width, for every node site that is to have one."""
    adapter = tiny_tasks.model(family).anatomy()
    found, reads = {}, {}
    for number, site in enumerate(layout.sites()):
        if site.name in layout.whole:
            continue
        size, fields = width(adapter, site), dict(layout.fields)
        if layout.transcodes and site.name == "mlp.out":
            reads[site] = Site(site.layer, "mlp.in")
            fields["transcoder"] = True
        found[site] = random_dictionary(size, 4 + number, 100 * seed + number, **fields)
    return Dictionaries(found, reads)


def twin(family: str, found: Dictionaries, layout: Layout = STANDARD) -> CircuitTwin:
    """The slow twin of the same."""
    adapter = tiny_tasks.model(family).anatomy()
    everywhere: dict[Site, Dictionary] = {
        site: found[site]
        if site in found
        else without_features(width(adapter, site), dtype=torch.float64)
        for site in layout.sites()
    }
    reads = [found.reads(site) for site in found if found.reads(site) != site]
    return CircuitTwin(family, everywhere, reads)


@functools.cache
def pairs(count: int = 2, length: int = LENGTH, seed: int = 1) -> hw.Task:
    """Pairs of one length that differ before the last position."""
    changed = (0, length - 2)
    return hw.Task([tiny_tasks.pair(length, seed=seed + i, changed=changed) for i in range(count)])


def every(nodes: NodeSites, aggregation: str, length: int = LENGTH) -> dict[Site, Kept]:
    """All nodes, position by position if they are told apart."""
    kept = {}
    for node in nodes:
        indices = tuple(range(node.features + 1))
        slots = None
        if aggregation == "none":
            slots = tuple(slot for slot in range(length) for _ in indices)
            indices *= length
        kept[node.site] = Kept(node, indices, slots)
    return kept


def found(
    family: str,
    sources: Dictionaries,
    task: hw.Task,
    *,
    layout: Layout = STANDARD,
    aggregation: str = "none",
    slope: str = "gradient",
    steepest: float = 1e9,
    subtract: bool = False,
    batch_size: int = 32,
    reference: Any = None,
    estimator: Any = None,
    length: int = LENGTH,
    keep: Any = None,
) -> Found:
    """Compute every edge of a model; `keep` changes which nodes are kept."""
    model = tiny_tasks.model(family)
    nodes = node_sites(model.anatomy(), sources, layout.sites(), dtype=torch.float64)
    reference = hw.Corrupted() if reference is None else reference
    with model.frozen():
        runs = Runs(model, task, nodes, estimator or hw.Gradient(), reference, batch_size)
        effects = measure(runs, aggregation)
        kept = every(nodes, aggregation, length)
        kept = kept if keep is None else keep(kept, effects)
        edges = connect(runs, kept, EdgeRule(slope, steepest, subtract=subtract))
    return Found(nodes, runs, dict(effects), kept, edges)
