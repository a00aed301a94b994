"""Prompts that a mean is taken over, read one after another: files, generators, dataset columns.

Only a window of prompts is held at a time. What was read is counted and hashed on the way, because
the prompts themselves are not saved.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import IOBase
from itertools import islice
from pathlib import Path
from typing import Any

from headwater.errors import HeadwaterError, PromptError, UnfitReferenceError, did_you_mean
from headwater.models import Model
from headwater.prompts import Batch
from headwater.prompts.batches import Row, pack
from headwater.prompts.encoding import Encoder

Streamed = Path | Iterable[Any] | Callable[[], Iterable[Any]]
"""A file with one prompt a line, anything that can be iterated over, or a function returning it."""

WINDOW = 16
"""Batches of prompts read ahead, to be sorted by length: with less padding they run faster."""

FIELDS = ("text", "prompt", "clean")
"""Where the prompt is, of a row with several fields."""

JSON_LINES = (".jsonl", ".ndjson")
PLAIN_LINES = (".txt", ".text", "")


class Once:
    """An iterator that refuses to be read a second time, instead of giving what is left of it."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator, self.read = iterator, False

    def __iter__(self) -> Iterator[Any]:
        if self.read:
            raise UnfitReferenceError(
                f"{described(self)} in over= has been read by an earlier run, and can be read only "
                "once.\nPass a function that makes it anew: over=lambda: (text for text in ...)."
            )
        self.read = True
        return self.iterator


class Lost:
    """Prompts of a saved run, of which only the hash and the means are saved."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __iter__(self) -> Iterator[Any]:
        raise UnfitReferenceError(
            f"the mean of this run was over {self.words}; of its prompts only the hash is saved, "
            "and means only at the sites that were scored then. Another site is needed now.\n"
            "Start from the model, with the prompts: "
            "hw.attribute(model, task, ..., reference=hw.Mean(over=prompts))."
        )


def described(over: Streamed | Once | Lost) -> str:
    """Return in words where prompts come from."""
    if isinstance(over, Lost):
        return over.words
    if isinstance(over, Once):
        over = over.iterator
    if isinstance(over, Path):
        return f"the file {over}"
    if inspect.isgenerator(over):
        return f"the generator {over.__qualname__}"
    if inspect.isroutine(over):
        return f"the function {over.__module__}.{over.__qualname__}"
    return f"the {type(over).__name__}"


def refuse_unreadable(over: Any) -> None:
    """Refuse what could be iterated over but gives no prompts.

    Raises:
        UnfitReferenceError: Saying what to pass instead.
    """
    if isinstance(over, Mapping):
        keys = ", ".join(map(repr, islice(over, 5)))
        raise UnfitReferenceError(
            f"over= is a mapping with {keys}, not prompts.\n"
            "Of a dictionary of datasets choose one and its column: over=data['train']['text']."
        )
    if isinstance(over, IOBase):
        raise UnfitReferenceError(
            "over= is an open file.\nPass its path: over=pathlib.Path('prompts.txt')."
        )
    if not isinstance(over, Path | Iterable) and not callable(over):
        raise UnfitReferenceError(
            f"over={over!r:.60} ({type(over).__name__}) gives no prompts.\n"
            'Pass "corrupted", "clean", a list of texts, a task, a pathlib.Path, an iterable of '
            "texts, or a function that returns one."
        )


class Reading:
    """One pass over prompts.

    Args:
        over: Where they come from.
        limit: Read at most this many.
    """

    def __init__(self, over: Streamed | Once | Lost, limit: int | None) -> None:
        self.over, self.limit = over, limit
        self.count = 0
        """Prompts read so far."""
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash of the prompts read so far, in their order."""
        return self._digest.hexdigest()

    def batches(self, model: Model, batch_size: int) -> Iterator[Batch]:
        """Yield the prompts as batches for a model; `batch.pairs` counts from the first prompt.

        Raises:
            PromptError: If a prompt cannot be used; says which.
            UnfitReferenceError: If there is none at all.
        """
        prompts = islice(_texts(self.over), self.limit)
        while window := list(islice(prompts, WINDOW * batch_size)):
            encoder = Encoder(model.tokenizer)
            rows = self._encoded(window, encoder)
            pads = model.anatomy().pads
            for batch in pack(rows, batch_size=batch_size, pad_id=encoder.pad_id, pad=pads):
                yield batch.to(model.device)
        if self.count == 0:
            raise UnfitReferenceError(
                f"{described(self.over)} in over= gave no prompt, so there is nothing to average.\n"
                "A generator that was read before is empty: pass a function that makes it anew, "
                "over=lambda: (text for text in ...)."
            )

    def _encoded(self, window: list[str], encoder: Encoder) -> list[Row]:
        encoder.prime(window)
        encoder.prime(window, special=True)
        rows = []
        for text in window:
            try:
                rows.append(Row(self.count, encoder.prompt(text)))
            except HeadwaterError as error:
                where = f"prompt {self.count} of {described(self.over)}"
                raise type(error)(f"{where}: {error}") from None
            self._digest.update(json.dumps(text).encode() + b"\n")
            self.count += 1
        return rows


def _texts(over: Streamed | Once | Lost) -> Iterator[str]:
    if isinstance(over, Path):
        yield from _lines(over)
        return
    rows = over if isinstance(over, Iterable) else over()
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise UnfitReferenceError(
            f"{described(over)} in over= returned {rows!r:.60}, not texts one after another.\n"
            "Let it return a list of texts, or yield them."
        )
    for number, row in enumerate(rows):
        yield _text(row, f"prompt {number} of {described(over)}")


def _text(row: Any, where: str) -> str:
    """Return a row's prompt: the row itself, or its one field that is known to hold it."""
    if isinstance(row, str):
        return str(row)
    if isinstance(row, Mapping):
        found = [name for name in FIELDS if isinstance(row.get(name), str)]
        if len(found) == 1:
            return str(row[found[0]])
        fields = ", ".join(map(repr, islice(row, 8)))
        raise PromptError(
            f"{where} is a row with the fields {fields}, of which "
            f"{'several' if found else 'none'} could be the prompt ({', '.join(FIELDS)}).\n"
            "Choose one: over=data['text'], or over=lambda: (row['text'] for row in data)."
        )
    raise PromptError(
        f"{where} is {row!r:.60} ({type(row).__name__}), not a text.\n"
        "Leave such rows out: over=lambda: (row for row in rows if isinstance(row, str))."
    )


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [one.name for one in near if one.is_file()]
        raise PromptError(f"no file {str(path)!r} in over=.{did_you_mean(path.name, names)}")
    kind = path.suffix.lower()
    if kind not in JSON_LINES + PLAIN_LINES:
        raise PromptError(
            f"{path} in over= is neither a text file (.txt) nor JSON lines (.jsonl) with one "
            "prompt a line.\nRead it yourself: over=lambda: (row['text'] for row in rows)."
        )
    with path.open(encoding="utf-8-sig") as stream:
        numbered = enumerate(stream, start=1)
        while True:
            try:
                number, line = next(numbered)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise PromptError(f"{path} in over= is not UTF-8: {error}.") from None
            if line.strip():
                where = f"{path}, line {number}"
                line = line.rstrip("\n")
                yield _text(_parsed(line, where), where) if kind in JSON_LINES else line


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{where}: not JSON ({error.msg}, column {error.colno}).\n"
            'Write one text ("...") or one object ({"text": "..."}) on each line.'
        ) from None
