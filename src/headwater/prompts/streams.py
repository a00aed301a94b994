"""Prompts of a corpus, read one after another: files, generators, dataset columns.

Only a window of prompts is held at a time. What was read is counted and hashed on the way, because
the prompts themselves are not saved.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from io import IOBase
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from headwater.errors import HeadwaterError, PromptError, UnfitReferenceError, did_you_mean
from headwater.models import Model
from headwater.prompts.batches import Batch, Row, pack
from headwater.prompts.encoding import Encoder, Ids
from headwater.prompts.task import Task

Streamed = Path | Iterable[Any] | Callable[[], Iterable[Any]]
"""A file with one prompt a line, anything that can be iterated over, or a function returning it."""

Dataset: TypeAlias = str | Path | Task | Iterable[Any] | Callable[[], Iterable[Any]]
"""A corpus as it is given: a file with one prompt a line (.txt, .jsonl), a task, texts, token ids,
rows with a text, or a function that returns such things one after another."""

WINDOW = 16
"""Batches of prompts read ahead, to be sorted by length: with less padding they run faster."""

FIELDS = ("text", "prompt", "clean")
"""Where the prompt is, of a row with several fields."""

JSON_LINES = (".jsonl", ".ndjson")
PLAIN_LINES = (".txt", ".text", "")


@dataclass(frozen=True)
class Argument:
    """The argument that prompts were given as, for what is said when they cannot be read."""

    name: str
    purpose: str
    """What there is nothing to do with, if there is no prompt."""
    refusal: type[HeadwaterError]
    """Raised for what gives no prompts at all; a prompt that cannot be used is a `PromptError`."""
    any_corpus: bool = False
    """Whether token ids are prompts too, and blank texts are left out as blank lines are."""


OVER = Argument("over", "average", UnfitReferenceError)
DATASET = Argument("dataset", "read", PromptError, any_corpus=True)


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


def source_of(dataset: Dataset) -> Streamed:
    """Return what the prompts of a dataset are read from; a text is the name of a file.

    Args:
        dataset: As it was given.

    Raises:
        PromptError: If it gives no prompts.
    """
    if isinstance(dataset, str):
        return Path(dataset)
    if isinstance(dataset, Task):
        return [pair.clean for pair in dataset.pairs]
    refuse_unreadable(dataset, DATASET)
    return dataset


def expected(source: Streamed, limit: int | None) -> float:
    """Return how many prompts will be read, for a bar; infinity where nobody knows."""
    known = float("inf")
    if isinstance(source, Path):
        if source.is_file():
            with source.open("rb") as stream:
                known = sum(1 for line in stream if line.strip())
    elif isinstance(source, Sized):
        known = len(source)
    return known if limit is None else min(known, limit)


def refuse_unreadable(over: Any, argument: Argument = OVER) -> None:
    """Refuse what could be iterated over but gives no prompts.

    Args:
        over: Where prompts should come from.
        argument: What it was given as.

    Raises:
        HeadwaterError: The argument's refusal, saying what to pass instead.
    """
    name = argument.name
    if isinstance(over, Mapping):
        keys = ", ".join(map(repr, islice(over, 5)))
        raise argument.refusal(
            f"{name}= is a mapping with {keys}, not prompts.\n"
            f"Of a dictionary of datasets choose one and its column: {name}=data['train']['text']."
        )
    if isinstance(over, IOBase):
        raise argument.refusal(
            f"{name}= is an open file.\nPass its path: {name}=pathlib.Path('prompts.txt')."
        )
    if not isinstance(over, Path | Iterable) and not callable(over):
        words = '"corrupted", "clean", ' if argument is OVER else ""
        raise argument.refusal(
            f"{name}={over!r:.60} ({type(over).__name__}) gives no prompts.\n"
            f"Pass {words}a list of texts, a task, a pathlib.Path, an iterable of "
            "texts, or a function that returns one."
        )


class Reading:
    """One pass over prompts.

    Args:
        over: Where they come from.
        limit: Read at most this many.
        argument: What they were given as.
    """

    def __init__(
        self, over: Streamed | Once | Lost, limit: int | None, argument: Argument = OVER
    ) -> None:
        self.over, self.argument = over, argument
        self.count = 0
        """Prompts read so far."""
        self._digest = hashlib.sha256()
        self._prompts = islice(_prompts(over, argument), limit)

    @property
    def sha256(self) -> str:
        """Hash of the prompts read so far, in their order."""
        return self._digest.hexdigest()

    def skip(self, count: int) -> None:
        """Read so many prompts, or all if there are fewer, and do nothing with them."""
        for prompt in islice(self._prompts, count):
            self._take(prompt)

    def windows(self, model: Model, size: int) -> Iterator[list[Row]]:
        """Yield so many prompts at a time, encoded; `row.pair` counts from the first prompt.

        Raises:
            PromptError: If a prompt cannot be used; says which.
            HeadwaterError: The argument's refusal, if there is no prompt at all.
        """
        while window := list(islice(self._prompts, size)):
            texts = [one for one in window if isinstance(one, str)]
            encoder = Encoder(model.tokenizer) if texts else None
            if encoder is not None:
                encoder.prime(texts)
                encoder.prime(texts, special=True)
            yield [self._encoded(prompt, encoder) for prompt in window]
        if self.count == 0:
            name = self.argument.name
            raise self.argument.refusal(
                f"{described(self.over)} in {name}= gave no prompt, so there is nothing to "
                f"{self.argument.purpose}.\n"
                "A generator that was read before is empty: pass a function that makes it anew, "
                f"{name}=lambda: (text for text in ...)."
            )

    def batches(self, model: Model, batch_size: int) -> Iterator[Batch]:
        """Yield the prompts as batches for a model; `batch.pairs` counts from the first prompt.

        Raises:
            PromptError: If a prompt cannot be used; says which.
            HeadwaterError: The argument's refusal, if there is no prompt at all.
        """
        pads = model.anatomy().pads
        for rows in self.windows(model, WINDOW * batch_size):
            pad_id = Encoder(model.tokenizer).pad_id
            for batch in pack(rows, batch_size=batch_size, pad_id=pad_id, pad=pads):
                yield batch.to(model.device)

    def _encoded(self, prompt: str | Ids, encoder: Encoder | None) -> Row:
        try:
            ids = encoder.prompt(prompt) if encoder and isinstance(prompt, str) else prompt
        except HeadwaterError as error:
            where = f"prompt {self.count} of {described(self.over)}"
            raise type(error)(f"{where}: {error}") from None
        assert not isinstance(ids, str)  # the encoder is there wherever a text is
        row = Row(self.count, ids)
        self._take(prompt)
        return row

    def _take(self, prompt: str | Ids) -> None:
        self._digest.update(json.dumps(prompt).encode() + b"\n")
        self.count += 1


def _prompts(over: Streamed | Once | Lost, argument: Argument) -> Iterator[str | Ids]:
    if isinstance(over, Path):
        yield from _lines(over, argument)
        return
    rows = over if isinstance(over, Iterable) else over()
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise argument.refusal(
            f"{described(over)} in {argument.name}= returned {rows!r:.60}, not texts one after "
            "another.\nLet it return a list of texts, or yield them."
        )
    for number, row in enumerate(rows):
        prompt = _prompt(row, f"prompt {number} of {described(over)}", argument)
        if isinstance(prompt, tuple) or prompt.strip() or not argument.any_corpus:
            yield prompt


def _prompt(row: Any, where: str, argument: Argument) -> str | Ids:
    """Return a row's prompt: the row itself, or its one field that is known to hold it."""
    if isinstance(row, str):
        return str(row)
    if argument.any_corpus and isinstance(row, int):
        raise PromptError(
            f"{where} is the number {row}: {argument.name}= is one prompt's token ids.\n"
            "A corpus has several prompts: give a list of lists of ids."
        )
    if argument.any_corpus and (ids := _ids(row)):
        return ids
    if isinstance(row, Mapping):
        found = [name for name in FIELDS if isinstance(row.get(name), str)]
        if len(found) == 1:
            return str(row[found[0]])
        fields = ", ".join(map(repr, islice(row, 8)))
        raise PromptError(
            f"{where} is a row with the fields {fields}, of which "
            f"{'several' if found else 'none'} could be the prompt ({', '.join(FIELDS)}).\n"
            f"Choose one: {argument.name}=data['text'], or "
            f"{argument.name}=lambda: (row['text'] for row in data)."
        )
    raise PromptError(
        f"{where} is {row!r:.60} ({type(row).__name__}), not a text.\n"
        f"Leave such rows out: {argument.name}=lambda: (row for row in rows if "
        "isinstance(row, str))."
    )


def _ids(row: Any) -> Ids:
    """Return a row's token ids; none if it has none."""
    row = row.get("input_ids") if isinstance(row, Mapping) and "text" not in row else row
    listed = row.tolist() if isinstance(row, Tensor) else row
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return ()
    return tuple(listed) if all(type(one) is int for one in listed) else ()


def _lines(path: Path, argument: Argument) -> Iterator[str | Ids]:
    name = argument.name
    if not path.is_file():
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [one.name for one in near if one.is_file()]
        raise PromptError(f"no file {str(path)!r} in {name}=.{did_you_mean(path.name, names)}")
    kind = path.suffix.lower()
    if kind not in JSON_LINES + PLAIN_LINES:
        raise PromptError(
            f"{path} in {name}= is neither a text file (.txt) nor JSON lines (.jsonl) with one "
            f"prompt a line.\nRead it yourself: {name}=lambda: (row['text'] for row in rows)."
        )
    with path.open(encoding="utf-8-sig") as stream:
        numbered = enumerate(stream, start=1)
        while True:
            try:
                number, line = next(numbered)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise PromptError(f"{path} in {name}= is not UTF-8: {error}.") from None
            if line.strip():
                where = f"{path}, line {number}"
                line = line.rstrip("\n")
                yield _prompt(_parsed(line, where), where, argument) if kind in JSON_LINES else line


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{where}: not JSON ({error.msg}, column {error.colno}).\n"
            'Write one text ("...") or one object ({"text": "..."}) on each line.'
        ) from None
