"""Files of pairs: JSON lines, a JSON list, CSV or clusters, told apart by their content.

Files are read line by line. Every error names the file and the line.
"""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from headwater.errors import HeadwaterError, PairFileError, did_you_mean
from headwater.prompts.clusters import cluster_rows, opens_clusters
from headwater.prompts.formats import Format, recognize, to_pair
from headwater.prompts.pairs import Pair

Line = tuple[int, str]
_EXAMPLE = '{"clean": "...", "corrupted": "...", "answer": "...", "wrong": "..."}'

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Where each row stands in its file, `line 4`, and its fields."""


def read_pairs(path: Path, *, corrupted: str | None = None) -> tuple[list[Pair], str | None]:
    """Read every pair of a file.

    Args:
        path: The file; its name does not matter, only what is in it.
        corrupted: The field or column to take corrupted prompts from, if not the usual one.

    Returns:
        The pairs in file order, and the name of the metric such data is measured with (None if
        it has none of its own).

    Raises:
        PairFileError: If there is no such file, or a line of it cannot be read.
    """
    _refuse_no_file(path)
    lines = _lines(path)
    first = next(((number, text) for number, text in lines if text.strip()), None)
    if first is None:
        raise PairFileError(f"{path} is empty. A file of pairs has at least one.")
    lines = chain([first], lines)
    opening = first[1].lstrip()[0]
    read = {"[": _list_objects, "{": _line_objects}.get(opening, _table)
    if opens_clusters(first[1]):
        read = _clusters

    format: Format | None = None
    pairs: list[Pair] = []
    for place, row in read(path, lines):
        try:
            format = format or recognize(row, table=read is _table)
            origin = f"{path.name}, {place}"
            pairs.append(to_pair(row, format, corrupted=corrupted, origin=origin))
        except HeadwaterError as error:
            raise PairFileError(f"{path}, {place}: {error}") from None
    if format is None:
        raise PairFileError(f"{path} has no pairs. A file of pairs has at least one.")
    return pairs, format.metric


def _lines(path: Path) -> Iterator[Line]:
    """Yield (line number, text), decoded one by one so that an error can say where."""
    offset = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            offset += len(raw)
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset - len(raw) + error.start
                guess = " It looks like UTF-16." if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise PairFileError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02x} at offset {at} of the "
                    f"file is not UTF-8.{guess} Save the file as UTF-8."
                ) from None


def _line_objects(path: Path, lines: Iterator[Line]) -> Rows:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise PairFileError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}). "
                "Write one whole object on each line, or one JSON list."
            ) from None
        yield f"line {number}", _as_object(path, number, row)


def _list_objects(path: Path, lines: Iterator[Line]) -> Rows:
    number, opening = next(lines)
    text = opening + "".join(text for _, text in lines)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise PairFileError(
            f"{path}, line {number + error.lineno - 1}: not a JSON list ({error.msg}, "
            f"column {error.colno})."
        ) from None
    # Parsed values forget where they stood: walk over the text again, item by item.
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    for row in rows:
        start = _BETWEEN_ITEMS.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        number += text.count("\n", at, start)
        yield f"line {number}", _as_object(path, number, row)
        at = decoder.raw_decode(text, start)[1]
        number += text.count("\n", start, at)


_BETWEEN_ITEMS = re.compile(r"[ \t\r\n,]*")


def _clusters(path: Path, lines: Iterator[Line]) -> Rows:
    number, opening = next(lines)
    text = opening + "".join(text for _, text in lines)
    return cluster_rows(path, text, number)


def _as_object(path: Path, number: int, row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise PairFileError(
            f"{path}, line {number}: {row!r:.60} is not an object. A pair looks like {_EXAMPLE}."
        )
    return row


def _table(path: Path, lines: Iterator[Line]) -> Rows:
    number, header = next(lines)
    reader = csv.reader(chain([header], (text for _, text in lines)), strict=True)
    before = number - 1  # blank lines in front, which the reader did not count
    try:
        columns = next(reader)
        _check_header(path, number, columns)
        while True:
            # A quoted cell may span lines; errors name the line on which its row starts.
            number = before + reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise PairFileError(
                    f"{path}, line {number}: {len(cells)} cells under {len(columns)} columns. "
                    "Put a prompt that has a comma in double quotes."
                )
            # An empty cell is a field left out.
            row = {name: cell or None for name, cell in zip(columns, cells, strict=True)}
            yield f"line {number}", row
    except csv.Error as error:
        raise PairFileError(f"{path}, line {number}: not CSV ({error}).") from None


def _check_header(path: Path, number: int, columns: list[str]) -> None:
    prompts = ("clean", "clean_prefix")
    if not set(prompts) & set(columns):
        close = next((found for name in columns if (found := did_you_mean(name, prompts))), "")
        raise PairFileError(
            f"{path}, line {number}: neither JSON nor the header of a CSV file with a column "
            f"'clean': {','.join(columns)!r:.80}.{close}\n"
            f"Write JSON lines such as {_EXAMPLE}, or CSV with these columns."
        )
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise PairFileError(f"{path}, line {number}: the column {twice[0]!r} stands there twice.")


def _refuse_no_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise PairFileError(f"{path} is a folder. Name a file of pairs in it.")
    near = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [one.name for one in near if one.is_file()]
    raise PairFileError(f"no file {str(path)!r}.{did_you_mean(path.name, names)}")
