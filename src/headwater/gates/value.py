"""The metric of one prompt as a function of a value inside the model: an activation, a weight.

One forward a call, with many values stacked in the batch, from the value's layer on: the residual
that enters it is given. What runs is all that lies between the value and the metric, so gradients
with respect to the value are total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headwater.interrupts import Held
from headwater.models import Model
from headwater.precision import context_for
from headwater.prompts import Batch
from headwater.running import forward
from headwater.sites import Site
from headwater.taps import Tap, in_turn, keeper

Objective = Callable[[Tensor, Batch], Tensor]
"""`[rows, read, vocab]` logits and their batch to one number a row, or several."""

LOGITS = 2**24
"""Most logits in one stacked run."""


@runtime_checkable
class ValueFunction(Protocol):
    """What a gradient check runs: a value, and the objective at values in its place."""

    value: Tensor
    """The point: where the gradient is taken."""
    stacked: int
    """Most points in one run."""

    def rows(self, points: Float[Tensor, "point *shape"]) -> Float[Tensor, "point *entry"]:
        """Return the objective at each point, in the caller's gradient mode."""
        ...


class _OnePrompt:
    """What every function of one prompt's run needs: the batch stacked, and where to start."""

    def __init__(
        self,
        model: Model,
        batch: Batch,
        objective: Objective,
        start: tuple[int, Float[Tensor, "one pos d_model"]] | None,
        tokens: int,
    ) -> None:
        self.model, self.batch, self.objective, self.start = model, batch, objective, start
        vocab = model.anatomy().vocab * len(batch.read_columns())
        self.stacked = max(1, min(tokens // batch.clean.numel(), LOGITS // vocab))

    def _run(self, count: int, taps: Mapping[Site, Tap]) -> Tensor:
        rows = self.batch.repeat(count) if count > 1 else self.batch
        start = self.start
        if start is not None:
            start = (start[0], start[1].repeat(count, 1, 1))
        with context_for(self.model.module):
            return self.objective(forward(self.model, rows, taps, start), rows)


class SiteFunction(_OnePrompt):
    """The objective as a function of the value at a site.

    Args:
        model: The model; parameters should be frozen while it is used.
        batch: One prompt.
        objective: Reads the logits.
        site: Where the value is.
        columns: The columns of the prompt that the value covers: one, or several side by side.
        start: The first layer that runs and the residual that enters it.
        tokens: Most tokens in one stacked run.
        scales: Sites whose deviation from the run is multiplied by a number or tensor: the
            function whose gradient is the model's with the gradient there multiplied by it.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        objective: Objective,
        site: Site,
        columns: int | range,
        start: tuple[int, Float[Tensor, "one pos d_model"]],
        *,
        tokens: int,
        scales: Mapping[Site, float | Tensor] | None = None,
    ) -> None:
        super().__init__(model, batch, objective, start, tokens)
        self.site = site
        self.axis = _position_axis(site)
        self.columns = columns
        self.scales = scales or {}
        kept: dict[Site, Tensor] = {}
        wanted = {site, *self.scales}
        with torch.no_grad():
            self._run(1, {one: keeper(kept, one) for one in wanted})
        self.whole: Tensor = kept[site]
        """The value at every position."""
        self.value = self._picked(self.whole)[0]
        self._held = {one: kept[one] for one in self.scales}

    def rows(self, points: Float[Tensor, "point *shape"]) -> Float[Tensor, "point *entry"]:
        """Return the objective with each point in the value's place."""
        return self._with_taps(len(points), lambda value: self._put(value, points))

    def everywhere(self, values: Float[Tensor, "point *shape"]) -> Float[Tensor, "point *entry"]:
        """Return the objective with values at every position, shaped as `whole`."""
        return self._with_taps(len(values), lambda _: values)

    def moves(self, other: Site) -> bool:
        """Whether the value at a site of the same run depends on this one."""
        if other == self.site:
            return True
        seen: list[bool] = []

        def look(value: Tensor) -> None:
            seen.append(value.requires_grad)

        with torch.enable_grad():
            points = self.value.clone().requires_grad_()[None]
            self._run(1, {self.site: lambda value: self._put(value, points), other: look})
        return any(seen)

    def _with_taps(self, count: int, put: Tap) -> Tensor:
        taps: dict[Site, Tap] = {self.site: put}
        for one, scale in self.scales.items():
            tap = _scaling(self._held[one], scale)
            taps[one] = in_turn(taps[one], tap) if one in taps else tap
        return self._run(count, taps)

    def _picked(self, whole: Tensor) -> Tensor:
        if isinstance(self.columns, int):
            return whole.select(self.axis, self.columns)
        return whole.narrow(self.axis, self.columns.start, len(self.columns))

    def _put(self, value: Tensor, points: Tensor) -> Tensor:
        if isinstance(self.columns, int):
            first, end, points = self.columns, self.columns + 1, points.unsqueeze(self.axis)
        else:
            first, end = self.columns.start, self.columns.stop
        before = value.narrow(self.axis, 0, first)
        after = value.narrow(self.axis, end, value.shape[self.axis] - end)
        return torch.cat([before, points.to(value.dtype), after], self.axis)


class WeightFunction(_OnePrompt):
    """The objective as a function of one weight of the model; one run a point.

    Args:
        model: The model; parameters should be frozen while it is used.
        batch: One prompt.
        objective: Reads the logits.
        name: The weight's name, as `module.named_parameters()` has it.
        start: The first layer that runs, not after the weight's, and the residual that enters it;
            None for the whole model.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        objective: Objective,
        name: str,
        start: tuple[int, Float[Tensor, "one pos d_model"]] | None,
    ) -> None:
        super().__init__(model, batch, objective, start, tokens=batch.clean.numel())
        self.name = name
        self.value = model.module.get_parameter(name).detach().clone()

    def rows(self, points: Float[Tensor, "point *shape"]) -> Float[Tensor, "point *entry"]:
        """Return the objective with each point in the weight's place."""
        values = []
        for point in points:
            with self.model.lock, _weight_at(self.model.module, self.name, point):
                values.append(self._run(1, {}))
        return torch.cat(values)


@contextmanager
def _weight_at(module: nn.Module, name: str, tensor: Tensor) -> Iterator[None]:
    """Have a module compute with another tensor in a weight's place, wherever it is shared."""
    weight = module.get_parameter(name)
    places = [
        (part, own)
        for part in module.modules()
        for own, there in part._parameters.items()
        if there is weight
    ]
    try:
        for part, own in places:
            part._parameters[own] = tensor  # type: ignore[assignment]
        yield
    finally:
        with Held():
            for part, own in places:
                part._parameters[own] = weight


def _scaling(held: Tensor, scale: float | Tensor) -> Tap:
    def tap(value: Tensor) -> Tensor:
        factor = scale.to(value) if isinstance(scale, Tensor) else scale
        return held + factor * (value - held)

    return tap


def _position_axis(site: Site) -> int:
    """Return the axis along which a site's positions lie; for a pattern, those that look."""
    axes = site.axes.split()
    return axes.index("pos" if "pos" in axes else "query")
