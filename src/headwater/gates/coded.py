"""Gates on the features of a dictionary: `x + (m - 1) (f - reference) decoder`, and so the error.

What a gate at 1 adds is exactly nothing, so the model runs as it does without dictionaries, and
slopes at the clean end are total: nothing that flows past a dictionary is cut. Only features that
are moved, or whose slope is wanted, are encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from headwater.coding import Coded
from headwater.components import Group
from headwater.gates.placement import spread_weight
from headwater.prompts import Batch
from headwater.sites import Site
from headwater.taps import Tap

SPARSE = 4
"""Encode only the moved features where they are fewer than one in so many."""


class CodedGates:
    """The taps that gate what a dictionary says of one site.

    Args:
        place: The coded site.
        gates: Gates [setting, batch, component] of its features, of its error, or of both.
        held: What a moved gate leads to: features and error, or 0 for all.
        rows: The prompts of the run, one setting behind the other.
        batch: Rows of one setting.
        base: Where gates rest: 1 if the run holds the components' own values, 0 if `held` does.
    """

    def __init__(
        self,
        place: Coded,
        gates: Mapping[Group, Float[Tensor, "setting batch component"]],
        held: Float[Tensor, "... coded"],
        rows: Batch,
        batch: int,
        base: float,
    ) -> None:
        self.place, self.gates, self.held = place, gates, held
        self.rows, self.batch, self.base = rows, batch, base
        self._read: Tensor | None = None

    def taps(self) -> dict[Site, Tap]:
        """Return the taps: one, or of a transcoder one where it reads and one where it writes."""
        if not self.place.transcodes:
            return {self.place.site: lambda value: self._gated(value, value)}
        return {self.place.reads: self._keep, self.place.site: self._written}

    def _keep(self, value: Tensor) -> None:
        self._read = value

    def _written(self, value: Tensor) -> Tensor:
        read, self._read = self._read, None
        assert read is not None
        return self._gated(read, value)

    def _gated(self, read: Tensor, value: Tensor) -> Tensor:
        dictionary = self.place.dictionary
        held = self.held.to(value.device, dictionary.decoder.dtype)
        if held.ndim and len(held) == self.batch and len(value) > self.batch:
            held = held.repeat(len(value) // self.batch, *[1] * (held.ndim - 1))
        held_features, held_error = self.place.split(held)
        whole: Tensor | None = None
        change = None
        for group, m in self.gates.items():
            flat = read.flatten(2) if read.ndim == 4 else read
            like = flat.new_empty(flat.shape, dtype=dictionary.decoder.dtype)
            away = spread_weight(group, m.to(like), like, self.rows, self.base) - self.base
            if group.kind == "error":
                whole = dictionary.encode(flat) if whole is None else whole
                written = value.flatten(2) if value.ndim == 4 else value
                found = self._towards(dictionary.error(whole, written), held_error) * away
            else:
                columns = None if m.requires_grad else self._moved(away)
                if columns is None:
                    whole = dictionary.encode(flat) if whole is None else whole
                    found = (self._towards(whole, held_features) * away) @ dictionary.decoder
                elif not len(columns):
                    continue
                else:
                    kept = held_features[..., columns] if held_features.ndim else held_features
                    moved = self._towards(dictionary.encode(flat, columns), kept)
                    found = (moved * away[..., columns]) @ dictionary.decoder[columns]
            change = found if change is None else change + found
        if change is None:
            return value
        return value + change.view(value.shape).to(value.dtype)

    def _towards(self, own: Tensor, held: Tensor) -> Tensor:
        """Return what a gate moved by 1 adds: towards the run's own value at the clean end."""
        return own - held if self.base == 1 else held - own

    def _moved(self, away: Float[Tensor, "row ... feature"]) -> Int[Tensor, " column"] | None:
        """Return which features are away from rest, or None if they are many."""
        moved = (away != 0).flatten(0, -2).any(0).nonzero().flatten()
        return None if len(moved) * SPARSE > away.shape[-1] else moved
