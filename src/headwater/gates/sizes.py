"""How large a change closing a gate makes, beside the residual: measured in a run at rest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.coding import Coded, Place
from headwater.components import ComponentTable
from headwater.gates.placement import places_of
from headwater.prompts import Batch
from headwater.taps import Tap


class Sizes:
    """Squared norms of `x - reference` and of the residual entering the component's layer.

    Both are Euclidean norms over the real positions that a component covers.

    Args:
        adapter: Says which sites are scaled before they reach the residual.
        table: The components.
        rows: The prompts of the run at rest.
    """

    def __init__(self, adapter: Adapter, table: ComponentTable, rows: Batch) -> None:
        self.adapter, self.table, self.rows = adapter, table, rows
        self._change: dict[int, Tensor] = {}  # by a group's first column: [batch, component]
        self._residual: dict[int, Tensor] = {}  # by layer: [batch, pos], zero at padding

    @property
    def measured(self) -> bool:
        """Whether a run at rest has been measured."""
        return bool(self._change)

    def measure(self, place: Place, value: Tensor, held: Tensor) -> None:
        """Take the norms of `value - held` for every group at a place."""
        # what an attention or MLP puts out is multiplied before it reaches the residual in some
        scale = self.adapter.write_scale if place.name in self.adapter.writes else 1.0
        real = self.rows.mask.to(value.device)
        value = value.detach()
        square = (scale * (value - held.to(value.device, value.dtype)).float()).square()
        for group in self.table.groups:
            if group.place != place:
                continue
            change = square
            if isinstance(place, Coded):
                features, change = place.split(square)
                if group.kind == "feature":
                    # what a feature writes is its decoder row
                    change = features * place.dictionary.decoder.float().square().sum(1)
            if group.count == 1:
                change = change.flatten(2).sum(2, keepdim=True)
            elif change.ndim == 4:
                change = change.sum(3)
            change = change * real[..., None]
            if group.positions is None:
                self._change[group.start] = change.sum(1)
            else:
                places = places_of(group, self.rows).to(value.device)
                index = places[..., None].expand(-1, -1, change.shape[2])
                self._change[group.start] = change.gather(1, index).flatten(1)

    def residual_tap(self, layer: int) -> Tap:
        """Return a tap that takes the norm of the residual entering a layer."""

        def tap(value: Tensor) -> None:
            norms = value.detach().float().square().sum(2)
            self._residual[layer] = norms * self.rows.mask.to(value.device)

        return tap

    def relative(self) -> Float[Tensor, "batch component"]:
        """Return |x - reference| / |residual| for every component, in gate order."""
        columns = []
        for group in self.table.groups:
            change = self._change[group.start]
            residual = self._residual[group.site.layer or 0].to(change)
            if group.positions is None:
                norm = residual.sum(1, keepdim=True)
            else:
                places = places_of(group, self.rows).to(residual.device)
                norm = residual.gather(1, places).repeat_interleave(group.count, 1)
            columns.append((change / norm).sqrt().cpu())
        return torch.cat(columns, 1)
