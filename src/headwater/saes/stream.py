"""Activations of one site over a corpus, shuffled in a bounded buffer.

Prompts are read one window after another until the buffer is full; its tokens are served in random
order, and the next round begins where the last one stopped reading. A corpus that fits into the
buffer runs through the model once and is only shuffled anew.

Nothing of a round needs to be saved: which prompts it read and how it was shuffled follow from its
number and the seed, so a training is continued by making its round again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import NonFiniteError, PromptError, RunFolderError
from headwater.models import Model
from headwater.progress import Advance, silent
from headwater.prompts.batches import Row
from headwater.prompts.streams import DATASET, Dataset, Reading, described, source_of
from headwater.saes.reading import packed, values_at
from headwater.sites import Site

WINDOW = 4
"""Batches of prompts read at a time, to be sorted by length: memory beyond the buffer."""


@dataclass(frozen=True)
class Place:
    """How far a stream has come."""

    round: int = 0
    """Rounds before this one."""
    read: int = 0
    """Prompts that this pass over the corpus read before this round."""
    end: int = 0
    """Prompts that it has read with this round."""
    served: int = 0
    """Batches served from this round."""
    sha256: str = ""
    """Hash of the prompts that it has read with this round."""


@dataclass(frozen=True, eq=False)
class Filled:
    """A round's activations, in the order in which they were read."""

    values: Float[Tensor, "token width"]
    place: Place
    """The place before its first batch, or where it is taken up."""
    last: bool
    """Whether the corpus ends with them."""


class Stream:
    """The activations of a site, so many tokens at a time, without end.

    Args:
        model: The model, frozen.
        dataset: Where prompts come from.
        site: Whose values are read; heads are laid side by side.
        tokens: How many tokens are served at a time.
        buffer: Tokens that are shuffled together.
        batch_size: Most prompts in a forward.
        limit: Read at most this many prompts.
        length: Cut each prompt to this many tokens.
        skip: Positions at the front of each prompt that are left out.
        seed: Of the order.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        site: Site,
        *,
        tokens: int,
        buffer: int,
        batch_size: int,
        limit: int | None,
        length: int | None,
        skip: int,
        seed: int,
    ) -> None:
        self.model, self.source, self.site = model, source_of(dataset), site
        self.tokens, self.buffer, self.batch_size = tokens, buffer, batch_size
        self.limit, self.length, self.skip, self.seed = limit, length, skip, seed
        self.advance: Advance = silent
        """Called with the prompts that were run."""

    def rounds(self, place: Place) -> Iterator[Filled]:
        """Yield rounds without end, from a place on.

        Args:
            place: Where to go on; the first round is the one it is in.

        Raises:
            PromptError: If the corpus is too small for a batch, or can be read only once.
            RunFolderError: If the prompts there are not those that led to `place`.
        """
        while True:
            for filled in self._pass(place):
                if place.sha256 not in ("", filled.place.sha256):
                    self._refuse_prompts()
                yield filled
                whole = filled.last and filled.place.read == 0
                place = replace(filled.place, round=filled.place.round + 1, served=0, sha256="")
                while whole:  # all there is, in the buffer already
                    yield replace(filled, place=replace(place, sha256=filled.place.sha256))
                    place = replace(place, round=place.round + 1)
            if isinstance(self.source, Iterator):
                raise PromptError(
                    f"{described(self.source)} can be read only once, and has ended before the "
                    "steps were done.\nPass a list, a file, or a function that makes it anew: "
                    "lambda: (text for text in ...)."
                )
            place = replace(place, read=0)

    def confirm(self, place: Place) -> None:
        """Refuse a corpus that has other prompts than those that led to a place.

        Args:
            place: Where a stream has come.

        Raises:
            RunFolderError: If it has.
        """
        reading = Reading(self.source, self.limit, DATASET)
        reading.skip(place.end)
        if reading.sha256 != place.sha256:
            self._refuse_prompts()

    def batches(self, filled: Filled) -> Iterator[tuple[Place, Float[Tensor, "token width"]]]:
        """Yield what a round has not served yet, each with the place after it.

        Args:
            filled: The round.
        """
        order = torch.randperm(len(filled.values), generator=drawing(self.seed, filled.place.round))
        order = order.to(filled.values.device)
        for served in range(filled.place.served, len(order) // self.tokens):
            chosen = order[served * self.tokens : (served + 1) * self.tokens]
            yield replace(filled.place, served=served + 1), filled.values[chosen]

    def _pass(self, place: Place) -> Iterator[Filled]:
        """Yield the rounds of one pass over the corpus, from a place in it on."""
        reading = Reading(self.source, self.limit, DATASET)
        reading.skip(place.read)
        if reading.count < place.read:
            self._refuse_prompts()
        windows = reading.windows(self.model, WINDOW * self.batch_size)
        last = False
        while not last:
            start, parts, count = reading.count, list[Tensor](), 0
            while count < self.buffer and not last:
                window = next(windows, None)
                last = window is None
                for values in () if window is None else self._values(window):
                    parts.append(values)
                    count += len(values)
            if count >= self.tokens:
                reached = replace(place, read=start, end=reading.count, sha256=reading.sha256)
                yield Filled(torch.cat(parts), reached, last)
                place = Place(round=place.round + 1)
            elif start == 0:
                raise PromptError(self._too_small(reading.count, count))

    def _values(self, window: list[Row]) -> Iterator[Float[Tensor, "token width"]]:
        for batch in packed(self.model, window, self.batch_size, self.length):
            values = values_at(self.model, batch, self.site, self.skip)
            if not bool(values.isfinite().all()):
                raise NonFiniteError(
                    f"{self.model.name} has values at '{self.site}' that are NaN or infinite: "
                    "there is nothing to learn from them.\nLoad it in a wider dtype."
                )
            self.advance(len(batch))
            yield values

    def _too_small(self, prompts: int, count: int) -> str:
        skipped = f" (the first {self.skip} of each prompt left out)" if self.skip else ""
        fewer = f", or fewer tokens a step: tokens={count // 8}" if count >= 64 else ""
        return (
            f"{described(self.source)} has {count:,} tokens in {prompts:,} prompts{skipped}, and a "
            f"step takes {self.tokens:,}.\nGive more text{fewer}."
        )

    def _refuse_prompts(self) -> NoReturn:
        raise RunFolderError(
            f"{described(self.source)} holds other prompts than those that the training in this "
            "folder has read.\nGive the same corpus, or choose another folder."
        )


def drawing(seed: int, *what: int) -> torch.Generator:
    """Return a generator for one purpose, on the CPU so that every device draws the same numbers.

    Args:
        seed: The training's seed.
        *what: Numbers that tell purposes apart.
    """
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
