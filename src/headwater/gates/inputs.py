"""Gate slopes while the input of layer 0 goes from the corrupted prompt's to the clean one's.

No gate moves: the run is that of an input in between, and a component's slope there is multiplied
by how far the component itself lies from its reference. Costs one forward and backward a point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.coding import Coded, Place, joined, keepers
from headwater.components import Group
from headwater.gates.placement import spread_weight
from headwater.references import capture
from headwater.running import forward
from headwater.sites import EMBED, Site
from headwater.taps import Tap

if TYPE_CHECKING:
    from headwater.gates.model import ModelGates
    from headwater.prompts import Batch


@dataclass(frozen=True)
class InputSlope:
    """Slopes at one point between the two inputs."""

    gradient: Float[Tensor, "batch component"]
    """`increment_i . df/dx_i` for every component."""
    input: Float[Tensor, " batch"]
    """The same for the input itself, `(input - corrupted input) . df/d input`."""


class InputPath:
    """The straight path between the layer-0 inputs of a batch's two prompts.

    Args:
        function: The gated model at its clean end, with the corrupted prompts as reference.
    """

    def __init__(self, function: ModelGates) -> None:
        self.function = function
        rows, model = function.rows, function.model
        resting = function.at_rest({EMBED, *(group.place for group in function.table.groups)})
        self.clean = resting.kept
        self.corrupted = dict(function.off.values)
        if EMBED not in self.corrupted:
            assert rows.corrupted is not None
            kept, _ = capture(model, rows.corrupted, rows, {EMBED})
            function.cost.ran(function.batch)
            self.corrupted[EMBED] = kept[EMBED]
        corrupted = function.corrupted_value()
        assert corrupted is not None
        self.change = resting.value - corrupted
        """`f(1) - f(0)` on each example."""

    def slopes(
        self, shares: Sequence[float], increments: Mapping[Place, Tensor] | None = None
    ) -> list[InputSlope]:
        """Return slopes at points of the path; 0 is the corrupted input, 1 the clean one.

        Args:
            shares: Where on the path.
            increments: What multiplies the gradient at each place; by default clean minus
                reference.
        """
        if increments is None:
            increments = {place: self.clean[place] - self.corrupted[place] for place in self.clean}
        chunk = max(1, self.function.tokens // self.function.ids.numel())
        parts = [shares[i : i + chunk] for i in range(0, len(shares), chunk)]
        return [slope for part in parts for slope in self._slopes(part, increments)]

    def conductance(self, cells: Sequence[tuple[float, float, float]]) -> list[InputSlope]:
        """Return slopes multiplied by how far each site moves itself, cell by cell.

        Args:
            cells: Start, point and end of each cell, one behind the other.
        """
        slopes = []
        before = self.values(cells[0][0])
        for _, point, end in cells:
            after = self.values(end)
            moved = {place: after[place] - before[place] for place in after}
            slopes += self._slopes([point], moved)
            before = after
        return slopes

    def values(self, share: float) -> dict[Place, Tensor]:
        """Return the value at every gated place, and the input, at a point of the path."""
        kept: dict[Place, Tensor] = {}
        moved = self._moved_input(torch.tensor([share], dtype=torch.float64))
        taps = joined([{EMBED: moved}, keepers(kept, self.clean)])
        with torch.no_grad():
            self._forward(taps, 1)
        return kept

    def _slopes(
        self, shares: Sequence[float], increments: Mapping[Place, Tensor]
    ) -> list[InputSlope]:
        function, points = self.function, len(shares)
        rows = function.rows.repeat(points) if points > 1 else function.rows
        m = function.gates(points).requires_grad_()
        own = m.new_ones(points, function.batch).requires_grad_()
        at_place: dict[Place, dict[Group, Tensor]] = defaultdict(dict)
        for group in function.table.groups:
            at_place[group.place][group] = m[..., group.columns]
        share = torch.tensor(list(shares), dtype=torch.float64)
        taps = joined(
            [
                {EMBED: self._moved_input(share, own=own)},
                *(
                    {
                        place if isinstance(place, Site) else place.site: self._noted(
                            place, gates, increments[place], rows
                        )
                    }
                    for place, gates in at_place.items()
                ),
            ]
        )
        with torch.enable_grad():
            value = self._forward(taps, points)
            gradient, along = torch.autograd.grad(value.sum(), (m, own))
        return [InputSlope(gradient[i], along[i].detach()) for i in range(points)]

    def _noted(
        self, place: Place, gates: Mapping[Group, Tensor], increment: Tensor, rows: Batch
    ) -> Tap:
        """Return a tap that adds `(m - 1) increment`: nothing at m = 1, but with the slope."""
        decoder = place.dictionary.decoder if isinstance(place, Coded) else None

        def tap(value: Tensor) -> Tensor:
            points = len(value) // self.function.batch
            dtype = value.dtype if decoder is None else decoder.dtype
            step = increment.to(value.device, dtype).repeat(points, *[1] * (increment.ndim - 1))
            for group, m in gates.items():
                own = step if isinstance(place, Site) else place.split(step)[group.kind == "error"]
                change = (spread_weight(group, m.to(own), own, rows, 1.0) - 1) * own
                if decoder is not None and group.kind == "feature":
                    change = change @ decoder
                value = value + change.reshape(value.shape).to(value.dtype)
            return value

        return tap

    def _moved_input(
        self,
        share: Float[Tensor, " point"],
        *,
        own: Float[Tensor, "point batch"] | None = None,
    ) -> Tap:
        """Return a tap at the layer-0 input that replaces it by a point of the path."""

        def tap(value: Tensor) -> Tensor:
            points, shape = len(share), [1] * (value.ndim - 1)
            clean = self.clean[EMBED].to(value).repeat(points, *shape)
            corrupted = self.corrupted[EMBED].to(value).repeat(points, *shape)
            at = share.to(value).repeat_interleave(self.function.batch).reshape(-1, *shape)
            moved = torch.lerp(corrupted, clean, at)
            if own is not None:
                scale = own.to(value).flatten().reshape(-1, *shape) - 1
                moved = moved + scale * (clean - corrupted)
            return moved

        return tap

    def _forward(self, taps: Mapping[Site, Tap], points: int) -> Float[Tensor, "point batch"]:
        function = self.function
        rows = function.rows.repeat(points) if points > 1 else function.rows
        logits = forward(function.model, rows, taps)
        function.cost.ran(points * function.batch, backward=torch.is_grad_enabled())
        return function.metric(logits, rows).reshape(points, function.batch)
