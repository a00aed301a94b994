"""Edges between residuals by subtraction: everything that flows, minus what flows through a layer.

    E = RR - RMR - RAR + RAMR

RR is the total derivative of a residual by the one before the layer; RMR and RAR are what of it
goes through the MLP and through attention, *through the features and the error* of each; RAMR, what
goes through attention and then the MLP, was taken away twice (of parallel blocks it is nothing).
Holding the layer's writes gives the same numbers with no pass at all. This is the check of it, and
costs several passes over the layer and the dictionaries of the mediators for each row.

Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647), equation 6, which has no RAMR:
its models have parallel blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.feature_circuits.cotangents import Cotangents
from headwater.feature_circuits.sites import NodeSite, NodeSites
from headwater.feature_circuits.state import SiteState
from headwater.gates.direct import DirectPaths, Paths
from headwater.sites import Site


class Subtraction:
    """Equation 6 for one residual of one batch.

    Args:
        paths: The batch's clean run.
        states: Its node sites.
        node: The residual, downstream.
        upstream: The residual before the layer.
        mediators: What the layer writes, in the order of the run.
    """

    def __init__(
        self,
        paths: DirectPaths,
        states: Mapping[Site, SiteState],
        node: NodeSite,
        upstream: Site,
        mediators: Sequence[Site],
    ) -> None:
        self.paths, self.states, self.node = paths, states, node
        self.upstream, self.mediators = upstream, mediators
        self._runs: dict[tuple[Site, ...], Paths] = {}

    def pulled(self, at: Cotangents) -> Float[Tensor, "row batch pos width"]:
        """Return the direct cotangents at the residual before the layer, one row each.

        Args:
            at: Cotangents at the downstream residual.
        """
        return self.total(at) - self.indirect(at)

    def total(self, at: Cotangents) -> Float[Tensor, "row batch pos width"]:
        """Return RR: the cotangents with nothing held in between."""
        return self._run(self.node, self.upstream).pulled(at)[self.upstream]

    def indirect(self, at: Cotangents) -> Float[Tensor, "row batch pos width"]:
        """Return RMR + RAR - RAMR: what of `total` passes a mediator."""
        found = sum(self.through(site, self.gradients(site, at)) for site in self.mediators)
        assert isinstance(found, Tensor)
        return found - self.twice(at)

    def gradients(self, mediator: Site, at: Cotangents) -> Float[Tensor, "row batch pos coded"]:
        """Return the gradient of each row by every node of a mediator: features, then error.

        The gradient alone: not multiplied by a change, and the error not summed over its width.
        """
        found = self._run(self.node, self.upstream, mediator).pulled(at)
        return self._coded(mediator, found[mediator])

    def through(
        self, mediator: Site, gradients: Float[Tensor, "row batch pos coded"]
    ) -> Float[Tensor, "row batch pos width"]:
        """Return what gradients by all nodes of a mediator are at the residual before the layer.

        One scalar a row is differentiated: the sum, over every feature and error at every
        position, of its gradient times itself.
        """
        return self._through(mediator, gradients, self.upstream)[self.upstream]

    def twice(self, at: Cotangents) -> Float[Tensor, "row batch pos width"] | float:
        """Return RAMR: what passes attention and then the MLP; 0 where no path does."""
        if len(self.mediators) < 2:
            return 0.0
        first, second = self.mediators
        between = self._through(second, self.gradients(second, at), self.upstream, first)
        if first not in between:
            return 0.0
        return self.through(first, self._coded(first, between[first]))

    def _through(self, mediator: Site, gradients: Tensor, *among: Site) -> dict[Site, Tensor]:
        node = self.states[mediator].node
        run = self._run(node, *among)
        with torch.enable_grad():
            coded = node.coded.code(run.targets[node.coded.reads], run.targets[mediator])
        return replace(run, targets={mediator: coded}).pulled({mediator: gradients.to(coded.dtype)})

    def _coded(self, site: Site, pulled: Tensor) -> Float[Tensor, "row batch pos coded"]:
        decoder = self.states[site].node.dictionary.decoder
        pulled = pulled.to(decoder.dtype)
        return torch.cat([pulled @ decoder.T, pulled], -1)

    def _run(self, node: NodeSite, *among: Site) -> Paths:
        """Return a run up to a node in which only some sites hand on a leaf of their own."""
        key = (node.site, *among)
        if key not in self._runs:
            self._runs[key] = self.paths.into(node.reads, among)
        return self._runs[key]


def refuse_unfit(nodes: NodeSites) -> None:
    """Refuse node sites among which a residual is not the sum of others.

    Raises:
        UnknownOptionError: Naming the sites that are missing.
    """
    residuals = [node for node in nodes if nodes.parts(node) is not None]
    if not residuals:
        raise UnknownOptionError(
            'edges="subtracted" is about edges between residuals, and no residual after a layer '
            f"is a node here: nodes are at {', '.join(str(site) for site in nodes.sites)}.\n"
            'Give dictionaries of resid_post too, or write edges="direct".'
        )
    for node in residuals:
        missing = [str(site) for site in nodes.parts(node) or () if site not in nodes.sites]
        if missing:
            raise UnknownOptionError(
                f'edges="subtracted" takes away what reaches {node.site} through everything its '
                f"layer writes, so these must be nodes: {', '.join(missing)}.\n"
                "Give dictionaries there, or name them in sites= (a site without a dictionary is "
                'one node), or write edges="direct".'
            )
