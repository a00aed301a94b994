"""Off values from another pair's prompt: one donor a pair, or several to average over."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwater.coding import Place
from headwater.errors import UnfitReferenceError
from headwater.models import Model
from headwater.prompts import Batch, Task
from headwater.references.reference import Off, OffValues, Reference, capture, prompt_mask


@dataclass(frozen=True)
class Resample(Reference):
    """Set a closed component to its value in another pair's corrupted prompt of the same length.

    Tasks without corrupted prompts draw from the other clean prompts. Each pair's donors depend on
    the seed and the task alone, so the audit's exact effects have those of the estimate. No pair is
    its own donor; in each draw every prompt is the donor of exactly one pair; a pair's donors are
    all different.

    With several draws a score is the mean over draws. `row.draw_se` in `scores.rows()` is its
    standard error: of each pair the standard deviation over draws divided by the square root of
    their number, and of the mean over pairs the root of their squares' sum divided by the number of
    pairs. Donors stand for prompts beyond the task: as an estimate of the mean over all n - 1 other
    pairs, d draws of which none comes twice are closer, by `sqrt(1 - d / (n - 1))`.
    """

    seed: int = 0
    """Seed of the draws."""
    draws: int = 1
    """Donors a pair; each costs the estimate, and the audit, once more."""
    name: ClassVar[str] = "resample"
    aligned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UnfitReferenceError(
                f"hw.Resample(draws={self.draws}): every pair needs at least one donor.\n"
                "Type draws=1, or more for a standard error."
            )

    def prepare(
        self, model: Model, task: Task, batches: Sequence[Batch], places: Sequence[Place]
    ) -> Off:
        """Return the donors' values.

        Raises:
            UnfitReferenceError: If a pair has too few other pairs of its length to draw from.
        """
        prompts: dict[int, Tensor] = {}
        by_length: dict[int, list[int]] = {}
        for batch in batches:
            ids = batch.clean if batch.corrupted is None else batch.corrupted
            own = prompt_mask(batch)
            for row, pair in enumerate(batch.pairs):
                prompts[pair] = ids[row][own[row]]
                by_length.setdefault(len(prompts[pair]), []).append(pair)
        donors: dict[int, tuple[Tensor, ...]] = {}
        chooser = random.Random(self.seed)
        for length, group in sorted(by_length.items()):
            self._refuse_too_few(length, group)
            shuffled = sorted(group)
            chooser.shuffle(shuffled)
            # around the circle each pair takes the next ones: never itself, never one twice
            for place, pair in enumerate(shuffled):
                others = (shuffled[(place + 1 + draw) % len(group)] for draw in range(self.draws))
                donors[pair] = tuple(prompts[other] for other in others)
        return _Donors(model, tuple(places), donors, self.draws)

    def _refuse_too_few(self, length: int, group: Sequence[int]) -> None:
        others = len(group) - 1
        if others == 0:
            raise UnfitReferenceError(
                f"pair {group[0]} is the only one with {length} tokens, so hw.Resample has no "
                "other prompt of its length to draw from.\n"
                "Add pairs of that length, or use hw.Mean()."
            )
        if others < self.draws:
            raise UnfitReferenceError(
                f"hw.Resample(draws={self.draws}) needs {self.draws} different donors a pair, but "
                f"pair {min(group)} has only {others} other "
                f"{'pair' if others == 1 else 'pairs'} of its {length} tokens to draw from.\n"
                f"Type draws={others}, or add pairs of that length."
            )

    def to_dict(self) -> dict[str, object]:
        """Return name, seed and draws."""
        return {"name": self.name, "seed": self.seed, "draws": self.draws}


@dataclass(frozen=True)
class _Donors(Off):
    model: Model
    places: tuple[Place, ...]
    donors: Mapping[int, tuple[Tensor, ...]]
    draws: int = 1

    def __call__(self, batch: Batch, draw: int = 0) -> OffValues:
        ids, own = batch.clean.clone(), prompt_mask(batch)
        for row, pair in enumerate(batch.pairs):
            ids[row][own[row]] = self.donors[pair][draw].to(ids.device)
        values, _ = capture(self.model, ids, batch, self.places)
        return OffValues(values, forwards=len(batch))
