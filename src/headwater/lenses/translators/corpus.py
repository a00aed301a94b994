"""The texts that a translator is fitted to or judged on, read one window after another.

Only a window of prompts is held at a time. Of what was read the hash is kept, and eight bytes a
prompt, by which a translator knows later whether it has seen a prompt.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from headwater.errors import HeadwaterError, PromptError, UnknownOptionError, did_you_mean
from headwater.lenses.asked import batches, encoded
from headwater.models import Model
from headwater.prompts import Batch, Task
from headwater.references.streams import FIELDS, JSON_LINES, PLAIN_LINES

Dataset: TypeAlias = str | Path | Task | Iterable[Any] | Callable[[], Iterable[Any]] | Tensor
"""A file with one text a line (.txt, .jsonl), texts, token ids, rows with a text, or a function
that returns such things one after another."""

Keep: TypeAlias = Callable[[int, tuple[int, ...]], bool]
"""Gets a prompt's number and ids, and says whether it is read."""

WINDOW = 16
"""Batches of prompts read ahead, to be sorted by length."""


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
        self.model, self.dataset, self.limit, self.length = model, dataset, limit, length
        self.batch_size, self.keep = batch_size, keep
        self.prompts = self.tokens = 0
        self._keys = array("q")
        self._digest = hashlib.sha256()
        self._passes = self._noted = 0

    @property
    def expected(self) -> int:
        """How many prompts a pass will read, as far as is known beforehand; for a bar."""
        size: Any = getattr(self.dataset, "__len__", None)
        known = self.limit or 0
        if isinstance(self.dataset, str | Path):
            known = _count_lines(Path(self.dataset))
        elif size is not None:
            known = size()
        return min(known, self.limit or known)

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
            "source": _named(self.dataset),
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
        if self._passes and isinstance(self.dataset, Iterator):
            raise PromptError(
                f"{_named(self.dataset)} can be read only once, and a second pass is needed.\n"
                "Pass a list, a file, or a function that makes it anew: "
                "lambda: (text for text in ...)."
            )
        self._passes += 1
        rows, number, found = islice(_rows(self.dataset), self.limit), 0, 0
        while window := list(islice(rows, WINDOW * self.batch_size)):
            prompts = [
                replace(one, ids=one.ids[: self.length]) for one in self._encoded(window, number)
            ]
            kept = [
                one
                for place, one in enumerate(prompts, number)
                if self.keep is None or self.keep(place, one.ids)
            ]
            # a pass may end early: what a later one reads beyond it is new
            if number >= self._noted:
                self._note([one.ids for one in kept])
                self._noted = number + len(prompts)
            packed = batches(self.model, kept, self.batch_size, first=found)
            if order is not None:
                order.shuffle(packed)
            number, found = number + len(prompts), found + len(kept)
            yield from packed
        if not found:
            raise PromptError(_nothing(_named(self.dataset), number))

    def _encoded(self, window: list[Any], first: int) -> list[Any]:
        try:
            ids = [one.tolist() if isinstance(one, Tensor) else one for one in window]
            return encoded(self.model, ids)
        except HeadwaterError as error:
            where = f"{_named(self.dataset)}, prompts from number {first} on"
            raise type(error)(f"{where}: {error}") from None

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
    if read:
        return (
            f"of the {read} prompts in {name} none is left: a translator is judged on prompts that "
            "neither it nor a control was fitted to.\nGive more prompts, held out from the start; "
            "with controls_from=texts all of them are judged on."
        )
    return f"{name} gave no prompt.\nGive texts, token ids, or a file with one text a line."


def _named(dataset: Dataset) -> str:
    if isinstance(dataset, str | Path):
        return f"the file {dataset}"
    if isinstance(dataset, Task):
        return "the task's clean prompts"
    if callable(dataset):
        return f"the function {getattr(dataset, '__qualname__', type(dataset).__name__)}"
    return f"the {type(dataset).__name__} of prompts"


def _rows(dataset: Dataset) -> Iterator[Any]:
    """Yield prompts as `encoded` takes them: texts, or lists of ids."""
    if isinstance(dataset, str | Path):
        yield from _lines(Path(dataset))
        return
    if isinstance(dataset, Task):
        yield from (pair.clean for pair in dataset.pairs)
        return
    rows = dataset() if callable(dataset) and not isinstance(dataset, Iterable) else dataset
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise PromptError(
            f"{rows!r:.60} ({type(rows).__name__}) is no list of prompts.\nGive texts, token ids, "
            "a file with one text a line, or a function that returns prompts."
        )
    for number, row in enumerate(rows):
        yield _prompt(row, f"prompt {number}")


def _prompt(row: Any, where: str) -> Any:
    """Return a text or ids: the row itself, or its one field that is known to hold a text."""
    if isinstance(row, int):
        raise PromptError(
            f"{where} is the number {row}: the dataset is one prompt's ids.\n"
            "A translator needs several prompts: give a list of lists of ids."
        )
    if not isinstance(row, Mapping):
        return row
    found = [row[name] for name in FIELDS if isinstance(row.get(name), str)]
    if len(found) != 1:
        raise PromptError(
            f"{where} has the fields {', '.join(map(repr, islice(row, 8)))}, of which "
            f"{'several' if found else 'none'} could be the text ({', '.join(FIELDS)}).\n"
            "Choose one: (row['text'] for row in data)."
        )
    return found[0]


def _lines(path: Path) -> Iterator[Any]:
    kind = path.suffix.lower()
    if not path.is_file():
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [one.name for one in near if one.is_file()]
        raise PromptError(
            f"no file {str(path)!r}.{did_you_mean(path.name, names)}\n"
            "A dataset given as text is a file's name; of texts give a list."
        )
    if kind not in JSON_LINES + PLAIN_LINES:
        raise PromptError(
            f"{path} is neither a text file (.txt) nor JSON lines (.jsonl).\n"
            "Write one text a line, or pass the texts themselves."
        )
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            yield _prompt(_parsed(line, where), where) if kind in JSON_LINES else line.rstrip("\n")


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{where}: not JSON ({error.msg}, column {error.colno}).\n"
            'Write one text ("..."), object ({"text": "..."}) or list of ids on each line.'
        ) from None
