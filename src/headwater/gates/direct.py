"""How one site of a model depends on others *directly*: with every other node site held fixed.

Each node site before the target hands on a leaf of its own, so a backward pass from the target ends
at the first node site it meets on every path. Costs one forward over the layers between the last
residual that is a node and the target, and a backward over the same for each cotangent.
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
from headwater.running import Start, as_far_as, forward
from headwater.sites import Site
from headwater.taps import Tap

_RESIDUALS = ("embed", "resid_post")
LOGITS = Site(None, "logits")


@dataclass(frozen=True)
class Paths:
    """One run's direct dependence of target values on the node sites before them."""

    targets: Mapping[Site, Tensor]
    """Values with their graph; of the metric one number a row, under `logits`."""
    leaves: Mapping[Site, Tensor]
    """The node sites that lie before the targets, in the order of the run."""
    cost: Cost
    """Where backward passes are counted."""
    share: float
    """What a row costs, in backward passes over one prompt."""

    def pulled(
        self, cotangents: Mapping[Site, Float[Tensor, "row batch ..."]]
    ) -> dict[Site, Float[Tensor, "row batch pos ..."]]:
        """Return the cotangents at the leaves, one row each, without leaves that nothing reaches.

        Args:
            cotangents: Of the targets, many rows at once.
        """
        outputs = [self.targets[site] for site in cotangents if self.targets[site].requires_grad]
        if not outputs or not self.leaves:
            return {}
        self.cost.backwards += self.share * len(next(iter(cotangents.values())))
        found = torch.autograd.grad(
            outputs,
            list(self.leaves.values()),
            [value for site, value in cotangents.items() if self.targets[site].requires_grad],
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        return {
            site: value for site, value in zip(self.leaves, found, strict=True) if value is not None
        }


class DirectPaths:
    """The direct paths of one batch.

    Args:
        model: A frozen model.
        batch: The clean prompts.
        sites: The node sites, in the order of a forward pass.
        values: Their values in the clean run.
        cost: Where passes are counted; one over some layers is their share of a whole one.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        sites: Sequence[Site],
        values: Mapping[Site, Tensor],
        cost: Cost,
    ) -> None:
        self.model, self.batch, self.sites, self.values = model, batch, sites, values
        self.cost = cost

    def into(self, targets: Sequence[Site], among: Sequence[Site]) -> Paths:
        """Run up to a node, and return how it depends on the node sites before it.

        Args:
            targets: Where its value is read, the last one last: one site, or two for a transcoder.
            among: The node sites before it.
        """
        leaves = self._leaves(among, targets[-1].layer, self._anew(among))
        with torch.enable_grad():
            return self._paths(self._as_far_as(targets, leaves), leaves)

    @torch.no_grad()
    def reached(
        self, targets: Sequence[Site], among: Sequence[Site], changed: Mapping[Site, Tensor]
    ) -> dict[Site, Tensor]:
        """Return target values with some node sites changed and every other one held.

        Args:
            targets: Where they are read, as for `into`.
            among: The node sites before them.
            changed: New values.
        """
        held = {site: changed.get(site, self.values[site]) for site in among}
        return self._as_far_as(targets, self._leaves(among, targets[-1].layer, held))

    @torch.no_grad()
    def metric_with(self, metric: Metric, changed: Mapping[Site, Tensor]) -> Float[Tensor, " row"]:
        """Return the metric with some node sites changed and every other one held."""
        held = {site: changed.get(site, self.values[site]) for site in self.sites}
        return self._to_the_end(metric, self._leaves(self.sites, None, held))

    def into_metric(self, metric: Metric) -> Paths:
        """Run to the end, and return how the metric depends on the node sites."""
        leaves = self._leaves(self.sites, None, self._anew(self.sites))
        with torch.enable_grad():
            return self._paths({LOGITS: self._to_the_end(metric, leaves)}, leaves)

    def _anew(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return {site: self.values[site].detach().requires_grad_() for site in sites}

    def _leaves(
        self, among: Sequence[Site], layer: int | None, values: Mapping[Site, Tensor]
    ) -> _Leaves:
        """Return the leaves that a target may see, and where a run to it can begin."""
        place = _last_residual(among, layer)
        first = among[place] if place < len(among) and among[place].name in _RESIDUALS else None
        begin = 0 if first is None or first.layer is None else first.layer + 1
        return _Leaves({site: values[site] for site in among[place:]}, first, begin)

    def _as_far_as(self, targets: Sequence[Site], leaves: _Leaves) -> dict[Site, Tensor]:
        batch, layer = self.batch, targets[-1].layer or 0
        self.cost.ran(len(batch) * self._share(leaves.begin, layer + 1))
        return as_far_as(
            self.model,
            targets,
            batch.clean,
            batch.mask,
            batch.position_ids,
            taps=leaves.taps(),
            start=leaves.start(),
        )

    def _to_the_end(self, metric: Metric, leaves: _Leaves) -> Float[Tensor, " row"]:
        self.cost.ran(len(self.batch) * self._share(leaves.begin, self._depth))
        logits = forward(self.model, self.batch, leaves.taps(), leaves.start())
        return metric(logits, self.batch)

    def _paths(self, targets: Mapping[Site, Tensor], leaves: _Leaves) -> Paths:
        end = max(self._depth if site.layer is None else site.layer + 1 for site in targets)
        share = len(self.batch) * self._share(leaves.begin, end)
        return Paths(targets, leaves.values, self.cost, share)

    def _share(self, begin: int, end: int) -> float:
        """Return which share of a forward the layers from one up to another are."""
        return (end - begin) / self._depth

    @property
    def _depth(self) -> int:
        return self.model.anatomy().n_layers


@dataclass(frozen=True)
class _Leaves:
    """What node sites hand on in place of their own values."""

    values: dict[Site, Tensor]
    first: Site | None
    """The residual that the run begins with; None: it begins at the prompt."""
    begin: int
    """The first layer that runs."""

    def taps(self) -> dict[Site, Tap]:
        """Return the taps that put them there."""
        return {site: _give(leaf) for site, leaf in self.values.items() if site != self.first}

    def start(self) -> Start | None:
        """Return where the run begins, as a run takes it."""
        return None if self.first is None else (self.begin, self.values[self.first])


def _last_residual(among: Sequence[Site], layer: int | None) -> int:
    """Return which node site a run can start from: the last whole residual before the target."""
    places = [
        place
        for place, site in enumerate(among)
        if site.name in _RESIDUALS and (layer is None or site.layer is None or site.layer < layer)
    ]
    return places[-1] if places else 0


def _give(leaf: Tensor) -> Tap:
    return lambda _: leaf
