"""Texts to be classified: each with its label, and, where it is known, a spurious attribute."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from headwater.errors import PairFileError, PromptError, did_you_mean
from headwater.files import write_text
from headwater.prompts.pairs import described

FIELDS = ("text", "label", "spurious")
_EXAMPLE = '{"text": "She treats patients", "label": "nurse", "spurious": "female"}'


@dataclass(frozen=True)
class Example:
    """One text with its label."""

    text: str
    label: str
    """What a classifier should tell."""
    spurious: str | None = None
    """What it should not go by; None if nobody knows."""

    @property
    def group(self) -> tuple[str, str | None]:
        """Label and spurious attribute."""
        return self.label, self.spurious

    def to_dict(self) -> dict[str, str]:
        """Return the fields as plain data, what is unknown left out."""
        found = {"text": self.text, "label": self.label}
        return found if self.spurious is None else found | {"spurious": self.spurious}


class Examples(Sequence[Example]):
    """Texts of two classes.

    Labels and attributes may be texts, whole numbers or truth values; they are kept as texts.

    Args:
        rows: `Example`s, or mappings with `text`, `label` and perhaps `spurious`.
        name: Shown in results.
        source: Where they come from, for provenance.

    Example:
        ```python
        hw.Examples([{"text": "Mary said that she", "label": "female", "spurious": "singular"},
                     {"text": "John said that he", "label": "male", "spurious": "plural"}])
        ```

    Raises:
        PromptError: If there is none, or one cannot be used; says which.
    """

    def __init__(
        self,
        rows: Iterable[Example | Mapping[str, Any]],
        *,
        name: str = "examples",
        source: str = "",
    ) -> None:
        self.rows: tuple[Example, ...] = tuple(_checked(rows))
        self.name, self.source = name, source

    @classmethod
    def read(cls, path: str | Path, *, name: str | None = None) -> Examples:
        """Read a file of JSON lines, one example a line.

        Args:
            path: The file.
            name: Shown in results; the file's name without its ending if left out.

        Raises:
            PairFileError: If there is no such file, or a line cannot be used; names file and line.
        """
        path = Path(path)
        if not path.is_file():
            raise PairFileError(f"there is no file {path}.\nA line of examples: {_EXAMPLE}")
        rows: list[Example] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                rows.append(_as_example(json.loads(line)))
            except json.JSONDecodeError as error:
                raise PairFileError(
                    f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}).\n"
                    f"Write one object a line: {_EXAMPLE}"
                ) from None
            except PromptError as error:
                raise PairFileError(f"{path}, line {number}: {error}") from None
        if not rows:
            raise PairFileError(f"{path} holds no example.\nWrite one object a line: {_EXAMPLE}")
        return cls(rows, name=name or path.stem, source=str(path))

    def write(self, path: str | Path) -> Path:
        """Write the file that `read` reads."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row.to_dict(), ensure_ascii=False) for row in self.rows)
        write_text(path, "\n".join(lines) + "\n")
        return path

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return [row.text for row in self.rows]

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    @property
    def attributes(self) -> tuple[str, ...]:
        """The spurious attributes that occur, sorted."""
        return tuple(sorted({row.spurious for row in self.rows if row.spurious is not None}))

    @property
    def know_attributes(self) -> bool:
        """Whether every example has its spurious attribute."""
        return all(row.spurious is not None for row in self.rows)

    def groups(self) -> dict[tuple[str, str | None], list[int]]:
        """Return the places of each group of one label and one attribute, sorted by group."""
        found: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            found[row.group].append(place)
        return dict(sorted(found.items(), key=lambda item: tuple(map(str, item[0]))))

    def stands_for(self) -> dict[str, str]:
        """Return the label that each attribute mostly goes with; on a tie the first of them."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            if row.spurious is not None:
                counts[row.spurious][row.label] += 1
        return {
            attribute: max(sorted(labels), key=lambda label, of=labels: of[label])
            for attribute, labels in sorted(counts.items())
        }

    def split(self, share: float, seed: int = 0) -> tuple[Examples, Examples]:
        """Return two parts, each with the same mix of groups.

        Args:
            share: Of every group in the first part, at least one example in each part.
            seed: Which ones.

        Raises:
            PromptError: If a group has one example only, so it cannot be in both parts.
        """
        first: set[int] = set()
        for group, places in self.groups().items():
            if len(places) < 2:
                raise PromptError(
                    f"{self.name} has one example of {named(group)}, and is to be split in two "
                    "parts that both have some.\nGive more of it, or leave that group out."
                )
            count = min(max(round(share * len(places)), 1), len(places) - 1)
            first |= set(random.Random(f"{group} {seed}").sample(places, count))
        there = [row for place, row in enumerate(self.rows) if place in first]
        rest = [row for place, row in enumerate(self.rows) if place not in first]
        return self._of(there), self._of(rest)

    def sample(self, count: int, seed: int = 0) -> Examples:
        """Return at most so many examples drawn at random, each group by its share, in order.

        Args:
            count: How many.
            seed: Which ones.
        """
        places_by_turn: list[tuple[float, int]] = []
        for group, places in self.groups().items():
            drawn = random.Random(f"{group} {seed}").sample(places, len(places))
            places_by_turn += [
                ((turn + 0.5) / len(places), place) for turn, place in enumerate(drawn)
            ]
        kept = sorted(place for _, place in sorted(places_by_turn)[:count])
        return self._of([self.rows[place] for place in kept])

    def sha256(self) -> str:
        """Return a hash of texts, labels and attributes, whatever file they stand in."""
        text = json.dumps([row.to_dict() for row in self.rows], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what they are, without the texts, as plain data."""
        return {
            "name": self.name,
            "source": self.source,
            "count": len(self),
            "classes": list(self.classes),
            "attributes": list(self.attributes),
            "groups": {named(group): len(places) for group, places in self.groups().items()},
            "sha256": self.sha256(),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        """Return one example, or some of them."""
        return self._of(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __repr__(self) -> str:
        lines = [f"Examples {self.name!r}: {len(self)} texts"]
        for group, places in self.groups().items():
            lines.append(f"  {len(places):>5}  {named(group):<24}{self.rows[places[0]].text!r:.60}")
        return "\n".join(lines)

    def _of(self, rows: Iterable[Example]) -> Examples:
        return Examples(rows, name=self.name, source=self.source)


def named(group: tuple[str, str | None]) -> str:
    """Return a group in words: `female, plural`."""
    label, attribute = group
    return label if attribute is None else f"{label}, {attribute}"


def _checked(rows: Iterable[Any]) -> Iterator[Example]:
    if isinstance(rows, str | Path | Mapping):
        raise PromptError(
            f"examples are a list, not {described(rows)}.\n"
            "A file of them: hw.Examples.read('examples.jsonl')."
        )
    number = -1
    for number, row in enumerate(rows):
        try:
            yield _as_example(row)
        except PromptError as error:
            raise PromptError(f"example {number}: {error}") from None
    if number < 0:
        raise PromptError(f"there are no examples.\nOne looks like this: {_EXAMPLE}")


def _as_example(row: Any) -> Example:
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise PromptError(f"{described(row)} is no example.\nOne looks like this: {_EXAMPLE}")
    for name in row:
        if name not in FIELDS:
            raise PromptError(
                f"unknown field {name!r}.{did_you_mean(str(name), FIELDS)} "
                f"An example has {', '.join(FIELDS)}."
            )
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"text is {described(text)}. Give the text to be classified.")
    spurious = row.get("spurious")
    return Example(
        text, _as_text("label", row.get("label")), None if spurious is None
        else _as_text("spurious", spurious),
    )  # fmt: skip


def _as_text(name: str, value: object) -> str:
    """Return a label or attribute as text; a whole number that a table made a fraction is one."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool | int):
        return str(value).lower()
    raise PromptError(
        f"{name} is {described(value)}, neither a text nor a whole number.\n"
        f"One looks like this: {_EXAMPLE}"
    )
