"""Which nodes and edges a circuit keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from headwater.errors import GateError, UnknownOptionError
from headwater.estimators.choices import is_number
from headwater.feature_circuits.effects import Aggregation, SiteEffects
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.sites import NodeSites
from headwater.sites import Site

Mask = Literal["aggregate", "original"]


@dataclass(frozen=True)
class NodeRule:
    """Which nodes a circuit keeps: those above a threshold, or the strongest."""

    threshold: float | None
    """Nodes whose effect exceeds this in size."""
    top: int | None
    """This many nodes, the strongest of all sites together."""
    mask: Mask = "aggregate"
    """`"aggregate"`: the threshold is on the mean over pairs. `"original"`: a node counts on those
    pairs and at those positions where its effect there exceeds it, as in feature-circuits."""

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.top is None):
            raise UnknownOptionError(
                f"node_threshold={self.threshold} and nodes={self.top}: give one of them.\n"
                "node_threshold=0.02 keeps nodes whose effect exceeds that, nodes=50 the strongest."
            )
        if self.threshold is not None:
            refuse_no_size(node_threshold=self.threshold)
        if self.top is not None and (type(self.top) is not int or self.top < 1):
            raise UnknownOptionError(f"nodes={self.top!r} is no number of nodes. Type nodes=50.")
        if self.mask == "original" and self.threshold is None:
            raise UnknownOptionError(
                'mask="original" compares single pairs with a threshold.\nType node_threshold=0.1.'
            )

    def chosen(
        self, nodes: NodeSites, effects: Mapping[Site, SiteEffects], aggregation: Aggregation
    ) -> dict[Site, Kept]:
        """Return the nodes to keep, site by site.

        Raises:
            GateError: If that is none at all.
        """
        over = self._threshold(effects)
        kept: dict[Site, Kept] = {}
        for node in nodes:
            found = effects[node.site]
            sizes = found.largest if self.mask == "original" else found.mean.abs()
            where = (sizes >= over if self.top is not None else sizes > over).nonzero().tolist()
            kept[node.site] = Kept(
                node,
                tuple(index for _, index in where),
                tuple(slot for slot, _ in where) if aggregation == "none" else None,
                self.threshold if self.mask == "original" else None,
            )
        if not any(len(one) for one in kept.values()):
            raise self._nothing(nodes, effects)
        return kept

    def _threshold(self, effects: Mapping[Site, SiteEffects]) -> float:
        if self.threshold is not None:
            return self.threshold
        sizes = torch.cat([one.mean.abs().flatten() for one in effects.values()])
        assert self.top is not None
        strongest = sizes[sizes > 0]
        if not len(strongest):
            return float("inf")
        return float(strongest.topk(min(self.top, len(strongest))).values[-1])

    def _nothing(self, nodes: NodeSites, effects: Mapping[Site, SiteEffects]) -> GateError:
        best, named = 0.0, "none"
        for node in nodes:
            found = effects[node.site]
            sizes = found.largest if self.mask == "original" else found.mean.abs()
            if sizes.numel() and float(sizes.max()) > best:
                best = float(sizes.max())
                named = node.name(int(sizes.argmax()) % sizes.shape[1])
        if best == 0:
            return GateError(
                "every node's effect is exactly 0: the prompts do not differ where the metric "
                "looks, or the reference is the run itself.\nLook at the task and the reference."
            )
        return GateError(
            f"node_threshold={self.threshold} keeps no node: the largest effect is {best:.3g}, "
            f"of {named}.\nType a smaller one, or nodes=50 for the strongest."
        )


def refuse_no_size(**given: float) -> None:
    """Refuse what is no number from 0 on.

    Raises:
        UnknownOptionError: Naming the argument.
    """
    for name, value in given.items():
        if not (is_number(value) and value >= 0):
            raise UnknownOptionError(f"{name}={value!r} is no size.\nType {name}=0.02.")


def refuse_no_count(**given: int | None) -> None:
    """Refuse what is no whole number from 1 on; None stands for a number chosen elsewhere.

    Raises:
        UnknownOptionError: Naming the argument.
    """
    for name, value in given.items():
        if value is not None and (type(value) is not int or value < 1):
            raise UnknownOptionError(f"{name}={value!r} is no whole number from 1 on.")


def above(weights: Tensor, threshold: float) -> Bool[Tensor, "row column"]:
    """Return which edges are kept: those that exceed the threshold in size, and are not 0."""
    return (weights.abs() > threshold) & (weights != 0)
