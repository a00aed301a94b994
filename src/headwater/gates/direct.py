"""How one site of a model depends on others *directly*: with every other node site held fixed.

Each node site before the target hands on a leaf of its own, so a backward pass from the target ends
at the first node site it meets on every path. Costs one forward over the layers between the last
residual that is a node and the target, and a backward over the same for each cotangent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.metrics import Metric
from headwater.models import Model
from headwater.prompts import Batch
from headwater.sites import Site
from headwater.taps import Tap

_RESIDUALS = ("embed", "resid_post")


@dataclass(frozen=True)
class Paths:
    """One run's direct dependence of target values on the node sites before them."""

    targets: Mapping[Site, Tensor]
    """Values with their graph; of the metric one number a row, under `logits`."""
    leaves: Mapping[Site, Tensor]
    """The node sites that lie before the targets, in the order of the run."""

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
    """

    def __init__(
        self, model: Model, batch: Batch, sites: Sequence[Site], values: Mapping[Site, Tensor]
    ) -> None:
        self.model, self.batch, self.sites, self.values = model, batch, sites, values

    def into(self, targets: Sequence[Site], among: Sequence[Site]) -> Paths:
        """Run up to a node, and return how it depends on the node sites before it.

        Args:
            targets: Where its value is read, the last one last: one site, or two for a transcoder.
            among: The node sites before it.
        """
        seen: dict[Site, Tensor] = {}

        def arrive(value: Tensor) -> None:
            seen[targets[-1]] = value
            raise _ArrivedError

        leaves, taps, start = self._leaves(among, targets[-1].layer)
        taps |= {site: _keep(seen, site) for site in targets[:-1]}
        taps[targets[-1]] = arrive
        with suppress(_ArrivedError), torch.enable_grad():
            self._forward(taps, start)
        return Paths({site: seen[site] for site in targets}, leaves)

    @torch.no_grad()
    def reached(
        self, targets: Sequence[Site], among: Sequence[Site], changed: Mapping[Site, Tensor]
    ) -> dict[Site, Tensor]:
        """Return target values with some node sites changed and every other one held.

        Args:
            targets: Where they are read, as for `into`.
            among: The node sites before them.
            changed: New values, whole batches one behind the other.
        """
        settings = len(next(iter(changed.values()))) // len(self.batch)
        seen: dict[Site, Tensor] = {}

        def arrive(value: Tensor) -> None:
            seen[targets[-1]] = value
            raise _ArrivedError

        held = {
            site: changed[site] if site in changed else _repeated(self.values[site], settings)
            for site in among
        }
        leaves, taps, start = self._leaves(among, targets[-1].layer, held)
        taps |= {site: _keep(seen, site) for site in targets[:-1]}
        taps[targets[-1]] = arrive
        with suppress(_ArrivedError):
            self._forward(taps, start, settings)
        return {site: seen[site] for site in targets} if leaves else {}

    @torch.no_grad()
    def metric_with(self, metric: Metric, changed: Mapping[Site, Tensor]) -> Float[Tensor, " row"]:
        """Return the metric with some node sites changed and every other one held."""
        settings = len(next(iter(changed.values()))) // len(self.batch)
        held = {
            site: changed[site] if site in changed else _repeated(self.values[site], settings)
            for site in self.sites
        }
        _, taps, start = self._leaves(self.sites, None, held)
        logits = self._forward(taps, start, settings)
        return metric(logits, self.batch.repeat(settings) if settings > 1 else self.batch)

    def into_metric(self, metric: Metric) -> Paths:
        """Run to the end, and return how the metric depends on the node sites."""
        leaves, taps, start = self._leaves(self.sites, None)
        with torch.enable_grad():
            value = metric(self._forward(taps, start), self.batch)
        return Paths({Site(None, "logits"): value}, leaves)

    def _leaves(
        self,
        among: Sequence[Site],
        layer: int | None,
        values: Mapping[Site, Tensor] | None = None,
    ) -> tuple[dict[Site, Tensor], dict[Site, Tap], tuple[int, Tensor] | None]:
        """Return the leaves that the target may see, the taps that put them there, the start."""
        place = _last_residual(among, layer)
        if values is None:
            leaves = {site: self.values[site].detach().requires_grad_() for site in among[place:]}
        else:
            leaves = {site: values[site] for site in among[place:]}
        first = among[place] if place < len(among) and among[place].name in _RESIDUALS else None
        start = None
        if first is not None:
            start = (0 if first.layer is None else first.layer + 1, leaves[first])
        taps: dict[Site, Tap] = {
            site: _give(leaf) for site, leaf in leaves.items() if site != first
        }
        return leaves, taps, start

    def _forward(
        self, taps: Mapping[Site, Tap], start: tuple[int, Tensor] | None, settings: int = 1
    ) -> Tensor:
        batch = self.batch.repeat(settings) if settings > 1 else self.batch
        return self.model.forward(
            batch.clean,
            mask=batch.mask,
            position_ids=batch.position_ids,
            taps=taps,
            start=start,
            read=batch.read,
        )


class _ArrivedError(Exception):
    """The run has reached the target: nothing behind it is needed."""


def _last_residual(among: Sequence[Site], layer: int | None) -> int:
    """Return which node site a run can start from: the last whole residual before the target."""
    places = [
        place
        for place, site in enumerate(among)
        if site.name in _RESIDUALS and (layer is None or site.layer is None or site.layer < layer)
    ]
    return places[-1] if places else 0


def in_order(adapter: Adapter, sites: Sequence[Site]) -> list[Site]:
    """Return sites in the order in which a forward pass computes them."""
    order = {site: place for place, site in enumerate(adapter.sites())}
    return sorted(sites, key=order.__getitem__)


def _keep(seen: dict[Site, Tensor], site: Site) -> Tap:
    def tap(value: Tensor) -> None:
        seen[site] = value

    return tap


def _repeated(value: Tensor, settings: int) -> Tensor:
    return value.repeat(settings, *[1] * (value.ndim - 1))


def _give(leaf: Tensor) -> Tap:
    return lambda _: leaf
