"""A file of judgments: what a person is shown of each feature, and what they decide.

    {"feature": "r1.f31", "judgment": "", "effect": 1.74, "contexts": ["The [[boys]] that"], ...}

Judgment is `ablate`, `keep`, or still empty, which keeps. A list of names alone is such a file,
too: one on each line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.coding import Coded
from headwater.components.names import parse_component
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import HeadwaterError, PairFileError, RunFolderError, did_you_mean
from headwater.feature_circuits.strongest import Around, strongest_in
from headwater.files import make_writable, write_text
from headwater.models import Model
from headwater.shifts.ablate import place_of
from headwater.shifts.examples import Examples
from headwater.shifts.judging import ABLATE, KEEP, Judged

CONTEXTS = 5
AROUND = 12
"""Most tokens shown on each side of the strongest."""
DIGITS = 4


def write_judgments(judged: Sequence[Judged], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write features to be judged, one a line.

    Args:
        judged: The features.
        path: The file.
        overwrite: Replace a file, which somebody may have filled in, instead of refusing.

    Raises:
        RunFolderError: If there is a file already, or it cannot be written.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    make_writable(path.parent)
    lines = (json.dumps(_rounded(one.to_dict()), ensure_ascii=False) for one in judged)
    write_text(path, "\n".join(lines) + "\n")
    return path


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file that somebody may have filled in.

    Raises:
        RunFolderError: If there is one.
    """
    if path.exists():
        raise RunFolderError(
            f"{path} is there already, and judgments in it would be lost.\n"
            "Choose another name, or delete it."
        )


def read_judgments(path: str | Path) -> list[Judged]:
    """Read a file of judgments, or of names alone, all of which are to be ablated.

    Args:
        path: JSON lines, or a text with a name on each line.

    Raises:
        PairFileError: If there is no such file, or a line of it says something else; names file
            and line.
    """
    path = Path(path)
    if not path.is_file():
        raise PairFileError(
            f"there is no file {path}.\nWrite one: headwater shift features --out {path}"
        )
    found: dict[str, Judged] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        one = _judged(line.strip(), where)
        if one.name in found:
            raise PairFileError(f"{where}: {one.name} stands there twice.\nKeep one of the lines.")
        found[one.name] = one
    return list(found.values())


def with_contexts(
    judged: Sequence[Judged],
    model: Model,
    dictionaries: Dictionaries,
    examples: Examples,
    *,
    count: int = CONTEXTS,
    batch_size: int = 32,
) -> list[Judged]:
    """Return features with the places in examples where each is strongest.

    Costs one forward an example; a text gives a feature one place at most.

    Args:
        judged: The features.
        model: The model.
        dictionaries: Whose features they are.
        examples: Where to look.
        count: Places of each.
        batch_size: Most texts in one forward.
    """
    wanted: dict[Coded, dict[int, str]] = {}
    for one in judged:
        site, index = place_of(one.name, dictionaries)
        place = Coded(site, dictionaries.reads(site), dictionaries[site])
        wanted.setdefault(place, {})[index] = one.name
    around = Around(count, AROUND, AROUND, skip=0, length=None, limit=None, batch_size=batch_size)
    with model.frozen():
        found, _, _ = strongest_in(model, wanted, examples.texts, around, progress=False)
    shown = {one.name: tuple(place.marked() for place in one.contexts) for one in found}
    return [replace(one, contexts=shown[one.name]) for one in judged]


def _judged(line: str, where: str) -> Judged:
    if not line.startswith("{"):
        return Judged(_name(line, where), judgment=ABLATE)
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PairFileError(f"{where}: not JSON ({error.msg}, column {error.colno}).") from None
    said = row.get("judgment", row.get("judgement", ""))
    words = (ABLATE, KEEP)
    said = said.strip().lower() if isinstance(said, str) else said
    if said not in (*words, ""):
        raise PairFileError(
            f"{where}: judgment is {said!r:.40}.{did_you_mean(str(said), words)}\n"
            'Write "ablate", "keep", or "" if it is not decided.'
        )
    name = _name(row.get("feature"), where)
    numbers = {key: row.get(key) for key in ("effect", "se", "on_label", "on_spurious")}
    contexts = tuple(map(str, row.get("contexts", ())))
    return Judged(name, judgment=said, contexts=contexts, note=str(row.get("note", "")), **numbers)


def _name(name: object, where: str) -> str:
    try:
        component = parse_component(name) if isinstance(name, str) else None
    except HeadwaterError:
        component = None
    if component is None or component.kind not in ("feature", "error"):
        raise PairFileError(
            f"{where}: {name!r:.40} is no feature.\n"
            'Write {"feature": "r2.f17", "judgment": "ablate"}, or the name alone.'
        )
    return component.name


def _rounded(data: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{one:.{DIGITS}g}") if isinstance(one, float) else one
        for key, one in data.items()
    }
