"""Edge weights: what of a node's effect comes directly from each node before it.

    E[d, u] = g_d (dz_d/dz_u with every other node site held) (z_u - z_u_ref)

added up over pairs and positions before anything is differentiated: both sums are linear in the
cotangent, so a feature costs one backward pass over one sub-block however often it is active, and
none where the sub-block is a sum.

Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647), equation 5; holding the other
sites replaces the subtraction of equation 6, to which it is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.estimators.choices import is_number
from headwater.feature_circuits.cotangents import Cotangents, Weights, cotangents
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import BatchRun, Runs
from headwater.feature_circuits.sites import NodeSite
from headwater.feature_circuits.state import SiteState
from headwater.feature_circuits.subtracted import Subtraction, refuse_unfit
from headwater.sites import Site

Slope = Literal["secant", "gradient"]
Method = Literal["direct", "subtracted"]
ROWS_BYTES = 2**27
"""Bytes that the cotangents of one chunk of rows may take at their widest."""


@dataclass
class Block:
    """The edges from one site's kept nodes into another's, and what comes from all its nodes."""

    weights: Float[Tensor, "row column"]
    total: Float[Tensor, " row"]
    """From every node of the upstream site, kept or not."""


@dataclass
class SlopeReport:
    """What secant slopes of one site were."""

    steepest: float = 0.0
    """The largest in size that was used."""
    replaced: int = 0
    """Activations whose secant was too steep: the clean run's slope took its place."""
    active: int = 0
    """Activations that differ from their reference."""


@dataclass
class Edges:
    """Every block of a circuit, on the mean over pairs."""

    blocks: dict[tuple[Site, Site], Block] = field(default_factory=dict)
    """By (upstream, downstream) site."""
    own: dict[Site, Float[Tensor, " row"]] = field(default_factory=dict)
    """What edges into each kept node should add up to: slope of the metric times change, where the
    node counts."""
    everywhere: dict[Site, Float[Tensor, " row"]] = field(default_factory=dict)
    """The same on every pair and at every position."""
    slopes: dict[Site, SlopeReport] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeRule:
    """How edges are computed."""

    slope: Slope = "secant"
    """Of the downstream encoder."""
    steepest: float = 10.0
    """The largest secant slope that is used."""
    clean: bool = False
    """Multiply by the metric's slope in the clean run, whatever the node effects take."""
    subtract: bool = False
    """Compute edges between residuals by subtraction, not by holding what lies between."""

    def __post_init__(self) -> None:
        if not (is_number(self.steepest) and self.steepest > 0):
            raise UnknownOptionError(
                f"steepest={self.steepest!r} allows no secant slope.\nType steepest=10.0, or "
                'slope="gradient".'
            )


def connect(runs: Runs, kept: Mapping[Site, Kept], rule: EdgeRule) -> Edges:
    """Return the edges between kept nodes.

    Args:
        runs: The clean runs.
        kept: The nodes of each site whose edges are wanted.
        rule: How.

    Raises:
        UnknownOptionError: If a residual is not the sum of other nodes, and edges are to be
            subtracted.
    """
    if rule.subtract:
        refuse_unfit(runs.nodes)
    edges = Edges()
    for one in runs:
        Connector(runs, one, kept, rule).add_to(edges)
    return edges


class Connector:
    """The edges of one batch.

    Args:
        runs: Whose batch it is.
        one: The batch.
        kept: The nodes of each site.
        rule: How edges are computed.
    """

    def __init__(
        self, runs: Runs, one: BatchRun, kept: Mapping[Site, Kept], rule: EdgeRule
    ) -> None:
        self.runs, self.one, self.kept, self.rule = runs, one, kept, rule
        self.share = one.weight / runs.pairs
        self.paths = runs.direct(one)
        self.parents: dict[Site, Parent] = {}

    def add_to(self, edges: Edges) -> None:
        """Compute every block of this batch and add it.

        Sites come in the order of the run, so those before one have left what its edges take, and
        the features of one site at a time are in memory.
        """
        for node in self.runs.nodes:
            kept, state = self.kept[node.site], self.one.state(node, clean=self.rule.clean)
            if len(kept):
                mask, effects = kept.mask_of(self.one), state.effects()
                whole = kept.of(effects) * self.share
                own = whole if mask is None else kept.of(effects * mask) * self.share
                edges.own[node.site] = own + edges.own.get(node.site, 0)
                edges.everywhere[node.site] = whole + edges.everywhere.get(node.site, 0)
                if self.runs.nodes.before(node):
                    self._into(state, mask, edges)
            self.parents[node.site] = Parent(state, kept)

    def _into(
        self, state: SiteState, mask: Bool[Tensor, "batch pos node"] | None, edges: Edges
    ) -> None:
        node, kept = state.node, self.kept[state.node.site]
        slopes, secant = self._slopes(state, edges), self.rule.slope == "secant"
        weights = Weights.of(state, slopes, mask, secant=secant)
        wise = self.runs.nodes.position_wise(node)
        addends = self.runs.nodes.addends(node)
        if addends is not None and node.dictionary.scaling == "none" and not self.rule.subtract:
            self._closed(state, weights, addends, edges)
            return
        pull = self._pull(node)
        for rows, positions in kept.chunks(self._chunk(state), split=not wise):
            pulled = pull(cotangents(state, weights, rows, positions))
            for site, value in pulled.items():
                found = self.parents[site].projected(value)
                self._add(edges, site, node, rows, positions, *found, wise=wise)

    def _pull(self, node: NodeSite) -> Callable[[Cotangents], Cotangents]:
        """Return what takes cotangents of a node site to the node sites before it."""
        addends = self.runs.nodes.addends(node)
        if addends is None:
            paths = self.paths.into(node.reads, self.runs.nodes.before(node))
            return lambda at: paths.pulled(
                {
                    site: value.view(len(value), *paths.targets[site].shape).to(paths.targets[site])
                    for site, value in at.items()
                }
            )

        def parts(at: Cotangents) -> Cotangents:
            (whole,) = at.values()
            return {site: whole * factor for site, factor in addends.items()}

        if not self.rule.subtract:
            return parts
        states = {other.site: self.one.state(other) for other in self.runs.nodes}
        first, *mediators = addends
        subtraction = Subtraction(self.paths, states, node, first, mediators)
        return lambda at: parts(at) | {first: subtraction.pulled(at)}

    def _closed(
        self, state: SiteState, weights: Weights, addends: Mapping[Site, float], edges: Edges
    ) -> None:
        """Add the edges into a sum: products of encoder and decoder, and no cotangent for features.

        `E = g_j sigma'_j <W_enc_j, W_dec_i> change_i`.
        """
        node, kept = state.node, self.kept[state.node.site]
        columns = list(kept.rows.features)
        place = torch.tensor(columns, device=state.features.device, dtype=torch.long)
        along = weights.features[..., place] * weights.slopes[..., place]
        direction = node.dictionary.encoder[:, place].T
        for site, factor in addends.items():
            if columns:
                found = self.parents[site].multiplied(direction * factor, along)
                self._add(edges, site, node, columns, None, *found, wise=True)
            if kept.rows.error:
                (whole,) = cotangents(state, weights, [-1]).values()
                found = self.parents[site].projected(whole * factor)
                self._add(edges, site, node, [-1], None, *found, wise=True)

    def _slopes(self, state: SiteState, edges: Edges) -> Float[Tensor, "batch pos feature"]:
        report = edges.slopes.setdefault(state.node.site, SlopeReport())
        real = self.one.batch.mask.to(state.features.device)[..., None]
        report.active += int(((state.change != 0) & real).sum())
        if self.rule.slope == "gradient":
            return state.gradient_slopes
        slopes, replaced = state.secant_slopes(self.rule.steepest)
        report.replaced += int((replaced & real).sum())
        if slopes.numel():
            used = slopes * real * ~replaced
            report.steepest = max(report.steepest, float(used.abs().max()))
        return slopes

    def _chunk(self, state: SiteState) -> int:
        """Return how many rows to pull back at once."""
        adapter = self.runs.model.anatomy()
        width = max(adapter.d_model, adapter.d_mlp or 0, adapter.d_inner or 0)
        width = max(width, (adapter.n_heads or 0) * state.read.shape[1])
        if self.rule.subtract:  # gradients by all features and the error of a mediator
            width = max(width, *(one.features + one.dictionary.d_out for one in self.runs.nodes))
        return max(1, ROWS_BYTES // (4 * width * math.prod(state.read.shape[:2])))

    def _add(
        self,
        edges: Edges,
        site: Site,
        node: NodeSite,
        rows: Sequence[int],
        positions: Sequence[int] | None,
        weights: Float[Tensor, "row pos kind"],
        total: Float[Tensor, "row pos"],
        *,
        wise: bool,
    ) -> None:
        parent, kept = self.parents[site], self.kept[node.site]
        weights, total = weights.double().cpu() * self.share, total.double().cpu() * self.share
        block = edges.blocks.get((site, node.site))
        if block is None:
            shape = len(kept), len(parent.kept)
            block = Block(
                torch.zeros(shape, dtype=torch.float64), torch.zeros(len(kept), dtype=torch.float64)
            )
            edges.blocks[site, node.site] = block
        for number, row in enumerate(rows):
            for place, slot in kept.places(row, None if positions is None else positions[number]):
                # a row of a position-wise node holds every position: each reads its own
                own = slice(None) if slot is None or not wise else slice(slot, slot + 1)
                block.weights[place] += parent.columns(weights[number], own, slot if wise else None)
                block.total[place] += total[number][own].sum()


class Parent:
    """The upstream side of a batch's edges: what multiplies a cotangent there.

    Args:
        state: The site, of whose features only the kept ones are held on to.
        kept: Its kept nodes.
    """

    def __init__(self, state: SiteState, kept: Kept) -> None:
        decoder = state.node.dictionary.decoder
        place = torch.tensor(kept.rows.features, device=decoder.device, dtype=torch.long)
        self.kept = kept
        self.decoder = decoder[place]
        self.change = state.change[..., place]
        self.error_change = state.error_change
        self.moved = state.moved

    def projected(
        self, pulled: Float[Tensor, "row batch pos ..."]
    ) -> tuple[Float[Tensor, "row pos kind"], Float[Tensor, "row pos"]]:
        """Return each row's product with what the kept features and the error add, by position.

        Returns:
            For each distinct kept feature, then the error if it is kept; and for all nodes.
        """
        pulled = pulled.flatten(3).to(self.decoder.dtype)  # heads side by side
        parts = [torch.einsum("rbpc,bpc->rpc", pulled @ self.decoder.T, self.change)]
        if self.kept.rows.error:
            parts.append(torch.einsum("rbpd,bpd->rp", pulled, self.error_change)[..., None])
        return torch.cat(parts, -1), torch.einsum("rbpd,bpd->rp", pulled, self.moved)

    def multiplied(
        self, direction: Float[Tensor, "row width"], along: Float[Tensor, "batch pos row"]
    ) -> tuple[Float[Tensor, "row pos kind"], Float[Tensor, "row pos"]]:
        """Return what `projected` does for cotangents that are one direction a row, scaled."""
        inner = direction @ self.decoder.T
        parts = [inner[:, None] * torch.einsum("bpr,bpc->rpc", along, self.change)]
        if self.kept.rows.error:
            met = self.error_change @ direction.T
            parts.append(torch.einsum("bpr,bpr->rp", along, met)[..., None])
        total = torch.einsum("bpr,bpr->rp", along, self.moved @ direction.T)
        return torch.cat(parts, -1), total

    def columns(
        self, found: Float[Tensor, "pos kind"], own: slice, slot: int | None
    ) -> Float[Tensor, " column"]:
        """Return the edges of one row from each kept node.

        Args:
            found: By position and distinct feature.
            own: The positions that count.
            slot: The downstream node's position, if its edges stay there.
        """
        if self.kept.slots is None:
            return found[own].sum(0)
        column, at = self.kept.column_index
        edges = found[at, column]
        return edges if slot is None else edges * (at == slot)
