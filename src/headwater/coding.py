"""A site written in the features of a dictionary, and copies of values at sites of either kind.

Costs an encoding a site, in the number type of the dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.dictionaries import Dictionary
from headwater.sites import Site
from headwater.taps import Tap, in_turn, keeper


@dataclass(frozen=True)
class Coded:
    """A site in the coordinates of a dictionary: its features, and the error beside them."""

    site: Site
    """Where the features are written."""
    reads: Site
    """Where they are read; the same site for all but transcoders."""
    dictionary: Dictionary

    @property
    def name(self) -> str:
        """The site's name inside its layer."""
        return self.site.name

    @property
    def layer(self) -> int | None:
        """The site's layer."""
        return self.site.layer

    @property
    def transcodes(self) -> bool:
        """Whether it reads one site and writes another."""
        return self.reads != self.site

    def __str__(self) -> str:
        return f"{self.site}, coded"

    def features(self, read: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos feature"]:
        """Return the features of a value at `reads`."""
        return self.dictionary.encode(flat(read))

    def code(
        self,
        read: Float[Tensor, "batch pos ..."],
        written: Float[Tensor, "batch pos ..."],
    ) -> Float[Tensor, "batch pos coded"]:
        """Return features and error, side by side: feature + d_out numbers a position."""
        features = self.features(read)
        return torch.cat([features, self.dictionary.error(features, flat(written))], -1)

    def split(
        self, coded: Float[Tensor, "*at"]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Return the features and the error of what `code` returned (or of one 0 for all)."""
        if not coded.ndim:
            return coded, coded
        return coded[..., : self.dictionary.features], coded[..., self.dictionary.features :]


Place: TypeAlias = Site | Coded
"""What off values are kept for."""


def keepers(kept: dict[Place, Tensor], places: Iterable[Place]) -> dict[Site, Tap]:
    """Return the taps that keep a copy of the value at each place.

    Args:
        kept: Where copies go.
        places: Sites, in their own shape, and coded sites as `Coded.code` returns them.
    """
    return joined(looking(place, keeper(kept, place)) for place in places)


def looking(place: Place, look: Callable[[Tensor], None]) -> dict[Site, Tap]:
    """Return the taps that show the value at a place: one, or for a transcoder two."""
    if isinstance(place, Site):
        return {place: look}
    held: list[Tensor] = []

    def read(value: Tensor) -> None:
        held.append(value.detach())

    def write(value: Tensor) -> None:
        look(place.code(held.pop() if place.transcodes else value.detach(), value.detach()))

    return {place.reads: read, place.site: write} if place.transcodes else {place.site: write}


def joined(parts: Iterable[Mapping[Site, Tap]]) -> dict[Site, Tap]:
    """Return all taps; those at one site act one after the other, in their order."""
    taps: dict[Site, Tap] = {}
    for part in parts:
        for site, tap in part.items():
            taps[site] = in_turn(taps[site], tap) if site in taps else tap
    return taps


def flat(value: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos width"]:
    """Return a value as a dictionary reads it: its heads side by side."""
    return value.flatten(2) if value.ndim == 4 else value
