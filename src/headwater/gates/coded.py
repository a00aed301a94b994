"""Gates on the features of a dictionary: `x + (m - 1) (f - reference) decoder`, and so the error.

What a gate at 1 adds is exactly nothing, so the model runs as it does without dictionaries, and
slopes at the clean end are total: nothing that flows past a dictionary is cut. Only features that
are moved, or whose slope is wanted, are encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.coding import Coded, flat
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
        held: Float[Tensor, "..."],
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
        read, written = flat(read), flat(value)
        held_features, held_error = self.place.split(self.held.to(value.device, self._dtype))
        features: Tensor | None = None
        changes = []
        for group, m in self.gates.items():
            away = self._away(group, m, read)
            columns = None if m.requires_grad else _moved(away)
            if columns is not None and not len(columns):
                continue
            if columns is not None and group.kind == "feature" and self._are_few(columns):
                changes.append(self._of_few(columns, read, held_features, away))
                continue
            features = self.place.dictionary.encode(read) if features is None else features
            if group.kind == "feature":
                away = self._towards(features, held_features) * away
                changes.append(away @ self.place.dictionary.decoder)
            else:
                error = self.place.dictionary.error(features, written)
                changes.append(self._towards(error, held_error) * away)
        if not changes:
            return value
        moved = written.to(self._dtype)
        for change in changes:
            moved = moved + change
        # rounded once, to what the model computes in
        return moved.reshape(value.shape).to(value.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.place.dictionary.decoder.dtype

    def _away(self, group: Group, m: Tensor, read: Tensor) -> Float[Tensor, "row pos_or_1 unit"]:
        """Return how far gates are from rest, spread over the positions."""
        like = read.new_empty((*read.shape[:2], 0), dtype=self._dtype)
        return spread_weight(group, m.to(like), like, self.rows, self.base) - self.base

    def _are_few(self, columns: Int[Tensor, " column"]) -> bool:
        return len(columns) * SPARSE <= self.place.dictionary.features

    def _of_few(
        self,
        columns: Int[Tensor, " column"],
        read: Float[Tensor, "row pos d_in"],
        held: Float[Tensor, "..."],
        away: Float[Tensor, "row pos_or_1 feature"],
    ) -> Float[Tensor, "row pos d_out"]:
        """Return what some features change; nothing else of them is encoded or decoded."""
        dictionary = self.place.dictionary
        kept = held[..., columns] if held.ndim else held
        moved = self._towards(dictionary.encode(read, columns), kept) * away[..., columns]
        return moved @ dictionary.decoder[columns]

    def _towards(self, own: Tensor, held: Tensor) -> Tensor:
        """Return what a gate moved by 1 adds: towards the run's own value at the clean end."""
        rows = len(own)
        if held.ndim and len(held) == self.batch and rows > self.batch:
            own = own.unflatten(0, (-1, self.batch))  # one setting behind the other, none copied
        difference = own - held if self.base == 1 else held - own
        return difference.reshape(rows, *difference.shape[-2:])


def _moved(away: Float[Tensor, "row ... unit"]) -> Int[Tensor, " column"]:
    """Return which components are away from rest somewhere."""
    return (away != 0).flatten(0, -2).any(0).nonzero().flatten()
