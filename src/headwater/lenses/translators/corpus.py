"""The texts that a translator is fitted to or judged on, read one window after another.

Only a window of prompts is held at a time. Of what was read the hash is kept, and eight bytes a
prompt, by which a translator knows later whether it has seen a prompt.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from headwater.errors import PromptError, UnknownOptionError
from headwater.models import Model
from headwater.prompts.batches import Batch, Row, pack
from headwater.prompts.streams import (
    DATASET,
    WINDOW,
    Dataset,
    Reading,
    described,
    expected,
    source_of,
)

Keep: TypeAlias = Callable[[int, tuple[int, ...]], bool]
"""Gets a prompt's number and ids, and says whether it is read."""


class Corpus:
    """Prompts in batches; may be gone through again unless it is an iterator.

    Args:
        model: Whose tokenizer reads texts.
        dataset: Where prompts come from.
        limit: Read at most this many prompts.
        length: Cut each prompt to this many tokens.
        batch_size: Most prompts in a batch.
        keep: Which prompts to read; None for all.

    Raises:
        UnknownOptionError: If `limit` or `length` leaves nothing.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        *,
        limit: int | None = None,
        length: int | None = None,
        batch_size: int = 8,
        keep: Keep | None = None,
    ) -> None:
        for name, value in {"limit": limit, "length": length}.items():
            if value is not None and value < 1:
                raise UnknownOptionError(
                    f"{name}={value} leaves nothing to read.\nWrite a positive number, or None for "
                    "all there is."
                )
        self.model, self.source, self.limit, self.length = model, source_of(dataset), limit, length
        self.batch_size, self.keep = batch_size, keep
        self.prompts = self.tokens = 0
        self._keys = array("q")
        self._digest = hashlib.sha256()
        self._passes = self._noted = 0

    @property
    def expected(self) -> float:
        """How many prompts a pass will read, as far as is known beforehand; for a bar."""
        return expected(self.source, self.limit)

    @property
    def sha256(self) -> str:
        """Hash of the token ids that were read, in their order."""
        return self._digest.hexdigest()

    @property
    def seen(self) -> Int[Tensor, " prompt"]:
        """The prompts that were read, each by a number made from its ids; sorted."""
        return torch.tensor(sorted(set(self._keys)), dtype=torch.int64)

    @property
    def described(self) -> dict[str, Any]:
        """What was read, as plain data."""
        return {
            "source": described(self.source),
            "prompts": self.prompts,
            "tokens": self.tokens,
            "sha256": self.sha256,
            "length": self.length,
        }

    def batches(self, order: random.Random | None = None) -> Iterator[Batch]:
        """Yield all prompts once, as batches of similar length.

        Args:
            order: Shuffles the batches of each window; None: from short to long.

        Raises:
            PromptError: If a prompt cannot be used, there is none, or they can be read only once.
        """
        if self._passes and isinstance(self.source, Iterator):
            raise PromptError(
                f"{described(self.source)} can be read only once, and a second pass is needed.\n"
                "Pass a list, a file, or a function that makes it anew: "
                "lambda: (text for text in ...)."
            )
        self._passes += 1
        reading, found = Reading(self.source, self.limit, DATASET), 0
        for window in reading.windows(self.model, WINDOW * self.batch_size):
            kept = [
                replace(row, pair=place, clean=row.clean[: self.length])
                for place, row in enumerate(filter(self._keeps, window), found)
            ]
            # a pass may end early: what a later one reads beyond it is new
            if reading.count > self._noted:
                self._note([row.clean for row in kept])
                self._noted = reading.count
            pads = self.model.anatomy().pads
            packed = pack(kept, batch_size=self.batch_size, pad_id=0, pad=pads)
            if order is not None:
                order.shuffle(packed)
            found += len(kept)
            for batch in packed:
                yield batch.to(self.model.device)
        if not found:
            raise PromptError(_nothing(described(self.source), reading.count))

    def _keeps(self, row: Row) -> bool:
        return self.keep is None or self.keep(row.pair, row.clean[: self.length])

    def _note(self, prompts: Sequence[tuple[int, ...]]) -> None:
        for ids in prompts:
            self.prompts, self.tokens = self.prompts + 1, self.tokens + len(ids)
            self._keys.append(key_of(ids))
            self._digest.update(_bytes(ids))


def key_of(ids: Sequence[int]) -> int:
    """Return a number of 64 bits made from a prompt's ids."""
    return int.from_bytes(hashlib.sha256(_bytes(ids)).digest()[:8], "little", signed=True)


def _bytes(ids: Sequence[int]) -> bytes:
    return json.dumps(list(ids)).encode() + b"\n"


def _nothing(name: str, read: int) -> str:
    return (
        f"of the {read} prompts in {name} none is left: a translator is judged on prompts that "
        "neither it nor a control was fitted to, and controls take half of them.\n"
        "Give two at least, held out from the start; with controls_from=texts all are judged on."
    )
