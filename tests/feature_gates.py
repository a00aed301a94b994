"""A tiny model with random dictionaries, gated, beside its twin of plain hooks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import headwater as hw
from feature_twins import Twin, corrupted_code, features_of, random_dictionaries
from headwater.components import ComponentTable
from headwater.gates import ModelGates, Move
from headwater.sites import Site
from tiny_tasks import gated, model, pair

CASES = {
    "Llama": ("embed", "0.attn.out", "0.mlp.out", "0.resid_post", "1.mlp.out"),
    "GPT-2": ("embed", "0.attn.out", "1.mlp.out", "1.resid_post"),
    "GPT-NeoX": ("0.attn.out", "0.mlp.out", "0.resid_post", "1.attn.out"),
    "Gemma 2": ("0.attn.out", "0.mlp.out", "0.resid_post"),
    "Granite": ("0.attn.out", "1.mlp.out", "0.resid_post"),
    "Mamba": ("embed", "0.mixer.post", "0.mixer.out", "0.resid_post"),
}
"""Families, and places that get a dictionary."""
TIGHT = {"rtol": 0, "atol": 1e-10}


def prompts() -> hw.Task:
    """Two pairs of one length whose prompts differ early, late and at the end."""
    return hw.Task([pair(6, seed=i, changed=(1, 3, -1)) for i in range(2)])


class Case:
    """A family's tiny model with random dictionaries, gated, and its twin."""

    def __init__(
        self,
        family: str,
        *places: str,
        reference: Any = None,
        pairs: hw.Task | None = None,
        positions: Any = "all",
        **fields: Any,
    ) -> None:
        self.model = model(family)
        self.places = places or CASES[family]
        self.dictionaries = random_dictionaries(self.model, *self.places, **fields)
        self.selection = hw.features(self.dictionaries, positions=positions)
        self.pairs = prompts() if pairs is None else pairs
        self.function = gated(self.model, self.pairs, self.selection, reference)
        # it has the corrupted prompts at hand, whatever the reference
        self.twin = Twin(self.model, family, gated(self.model, self.pairs, self.selection))

    @property
    def table(self) -> ComponentTable:
        return self.function.table

    def columns(self, site: Site) -> list[int]:
        """The columns of a site's features and error."""
        return [
            column
            for group in self.table.groups
            if group.site == site
            for column in range(group.columns.start, group.columns.stop)
        ]

    def sampled(self, site: Site, count: int = 3) -> list[int]:
        """A few columns of a site: features that move, and the error, which comes last."""
        dictionary = self.dictionaries[site]
        off, _ = corrupted_code(self.twin, site, dictionary)
        # the last position reaches the metric from every layer
        moved = (features_of(dictionary, self.twin.value(site)) - off)[:, -1].abs().sum(0)
        strongest = moved.argsort(descending=True)[:count].tolist()
        assert float(moved[strongest].min()) > 0
        columns = self.columns(site)
        return [*(columns[i] for i in strongest), columns[-1]]

    def index(self, site: Site, column: int) -> int | str:
        """Which feature of a site a column is, or that it is the error."""
        place = self.columns(site).index(column)
        return place if place < self.dictionaries[site].features else "error"


def closed(function: ModelGates, columns: list[int]) -> Tensor:
    """The metric with columns closed in one run."""
    return function.moved([Move(tuple(columns), 1.0)])[0]
