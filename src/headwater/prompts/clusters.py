"""Files of clusters: contexts that are continued alike, in one JSON object.

    {id: entry}                                                  one cluster
    {cluster: {id: entry}}            {cluster: [entry]}         several
    {cluster: {"contexts": either}}   {cluster: {"contexts": [context], "answers": [answer]}}

An entry is `{"context": ..., "answer": ...}`. Anything else is refused with its line and its keys.
"""

import json
import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.errors import PairFileError
from headwater.prompts.formats import FORMATS
from headwater.prompts.pairs import described

EXAMPLE = '{"17": {"context": ["The", " cat"], "answer": " sat"}}'


def opens_clusters(line: str) -> bool:
    """Return whether a file that begins with this line holds clusters rather than pairs.

    Args:
        line: The first line that is not blank.
    """
    try:
        first = json.loads(line)
    except json.JSONDecodeError:
        # An object over several lines: a lone brace, or an id with a brace or bracket behind it.
        spread = _SPREAD.fullmatch(line.strip())
        return bool(spread) and spread[1] not in _PAIR_FIELDS
    return (
        isinstance(first, dict)
        and bool(first)
        and not _PAIR_FIELDS & first.keys()
        and _holds_containers(first.values())
    )


def cluster_rows(path: Path, text: str, line: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every entry of a file of clusters.

    Args:
        path: The file, for messages.
        text: What stands in it, from its first line that is not blank.
        line: The number of that line.

    Yields:
        Where the entry stands (`line 4, entry '17'`), and its fields. Its `label` is its id in a
        file of one cluster, else the cluster's.

    Raises:
        PairFileError: If the file is no JSON, names something twice, or holds something else.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PairFileError(
            f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg}, column "
            f"{error.colno}). Write clusters as one object, {EXAMPLE}; pairs as one whole object "
            "on each line, or one JSON list."
        ) from None
    if _PAIR_FIELDS & data.keys() and not _holds_containers(data.values()):
        raise PairFileError(
            f"{path}, line {line}: a pair over several lines. "
            "Write one whole object on each line, or one JSON list."
        )
    walk = _Walk(path, text, line)
    for entry in walk.entries(_Value(data, text.index("{"))):
        yield walk.place(entry), {"label": str(entry.way[0])} | entry.data


_PAIR_FIELDS = {name for one in FORMATS for name in one.fields}

_CONTAINER = (dict, list)

_SPREAD = re.compile(r'\{\s*(?:"((?:[^"\\]|\\.)*)"\s*:\s*(?:[{\[].*)?)?')


def _holds_containers(values: Iterable[Any]) -> bool:
    return all(isinstance(one, _CONTAINER) for one in values)


_BETWEEN = re.compile(r"[ \t\r\n,:]*")


@dataclass(frozen=True)
class _Value:
    """A parsed value that remembers where it stood, which JSON forgets."""

    data: Any
    start: int
    way: tuple[str | int, ...] = ()
    """The keys and places that lead there from the whole file: cluster, entry."""


class _Walk:
    """A walk over the text of one file, from the whole to its entries."""

    def __init__(self, path: Path, text: str, line: int) -> None:
        self.path, self.text, self.line = path, text, line
        self.line_ends = [found.start() for found in re.finditer("\n", text)]
        self.decode = json.JSONDecoder().raw_decode

    def entries(self, value: _Value) -> Iterator[_Value]:
        """Yield the entries in a value: the whole file, a cluster, or one entry."""
        data = value.data
        if value.way and isinstance(data, dict) and "context" in data:
            yield _Value(self.fields(value), value.start, value.way)
        elif isinstance(data, dict) and "contexts" in data:
            yield from self.contexts(value)
        elif len(value.way) < 2 and isinstance(data, _CONTAINER) and data:
            inner = list(self.items(value))
            if not _holds_containers(one.data for one in inner):
                raise self.refused(value)
            for one in inner:
                yield from self.entries(one)
        else:
            raise self.refused(value)

    def contexts(self, value: _Value) -> Iterator[_Value]:
        """Yield the entries of a cluster that has them under "contexts"."""
        found = {str(one.way[-1]): one for one in self.items(value)}
        contexts, answers = found.pop("contexts"), found.pop("answers", None)
        if found or not isinstance(contexts.data, _CONTAINER):
            raise self.refused(value)
        if answers is None:
            yield from self.entries(_Value(contexts.data, contexts.start, value.way))
            return
        if not (isinstance(contexts.data, list) and isinstance(answers.data, list)):
            raise self.refused(value)
        if len(contexts.data) != len(answers.data):
            raise PairFileError(
                f"{self.path}, {self.place(value)}: {len(contexts.data)} contexts and "
                f"{len(answers.data)} answers. Give one answer for each context."
            )
        for one, answer in zip(self.items(contexts), answers.data, strict=True):
            fields = {"context": one.data, "answer": answer}
            yield _Value(fields, one.start, (*value.way, one.way[-1]))

    def fields(self, value: _Value) -> dict[str, Any]:
        """Return the fields of an entry."""
        return {str(one.way[-1]): one.data for one in self.items(value)}

    def items(self, value: _Value) -> Iterator[_Value]:
        """Yield what stands in an object or a list, under its key or its place there.

        Raises:
            PairFileError: If a key of the object stands there twice, of which JSON keeps the last.
        """
        at, seen = self.skipped(value.start + 1), set()
        while self.text[at] not in "}]":
            key: str | int = len(seen)
            if isinstance(value.data, dict):
                key, at = self.decode(self.text, at)
                at = self.skipped(at)
            if key in seen:
                here = self.place(_Value(None, at, value.way))
                raise PairFileError(f"{self.path}, {here}: {key!r} stands there twice.")
            seen.add(key)
            one, end = self.decode(self.text, at)
            yield _Value(one, at, (*value.way, key))
            at = self.skipped(end)

    def skipped(self, at: int) -> int:
        """Return where the next value, key or closing bracket stands."""
        return _BETWEEN.match(self.text, at).end()  # pyright: ignore[reportOptionalMemberAccess]

    def place(self, value: _Value) -> str:
        """Return where a value stands, in words: `line 4, entry '17' of cluster '5'`."""
        words = f"line {self.line + bisect(self.line_ends, value.start)}"
        if value.way:
            words += f", entry {value.way[-1]!r}"
        if len(value.way) > 1:
            words += f" of cluster {value.way[0]!r}"
        return words

    def refused(self, value: _Value) -> PairFileError:
        """Return the error of a value that is no cluster and no entry of one."""
        match value.data:
            case dict() as data if data:
                shown = f"an object with {', '.join(map(repr, list(data)[:8]))}"
                shown += " and more" * (len(data) > 8)
            case list() as data if data:
                shown = f"a list that begins with {described(data[0])}"
            case data:
                shown = described(data)
        return PairFileError(
            f"{self.path}, {self.place(value)}: {shown}; an entry of a cluster is an object with "
            f"'context' and 'answer'. A file of clusters looks like {EXAMPLE}."
        )
