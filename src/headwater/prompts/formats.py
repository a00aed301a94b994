"""The field's ways of writing down a pair, and how each becomes a `Pair`.

headwater          clean, corrupted, answer, wrong, label
feature-circuits   clean_prefix, patch_prefix, clean_answer, patch_answer, case
EAP-IG token ids   clean, corrupted, corrupted_hard, correct_idx, incorrect_idx
EAP-IG years       clean, corrupted, label: the answers are the two-digit years above the label
clusters           context, answer: what a model reads and the next token, no corrupted prompt
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.errors import AnswerError, PromptError
from headwater.prompts.pairs import (
    PAIR_FIELDS,
    Pair,
    checked_fields,
    described,
    refuse_unknown_fields,
)

Fields = Mapping[str, Any]

INDEX_COLUMNS = ("", "Unnamed: 0")
"""How a table's row number is called when it was saved without a name."""


@dataclass(frozen=True)
class Format:
    """A set of field names and what they mean."""

    name: str
    """As shown in error messages."""

    fields: tuple[str, ...]
    """Every name a row may have."""

    convert: Callable[[Fields], Fields]
    """From a row to the fields of `Pair`."""

    corrupted: tuple[str, ...]
    """The fields that can serve as the corrupted prompt, the usual one first."""

    metric: str | None = None
    """What this data is measured with, if not what `Task` would choose."""


def _feature_circuits(row: Fields) -> Fields:
    return {
        "clean": row.get("clean_prefix"),
        "corrupted": row.get("patch_prefix"),
        "answer": row.get("clean_answer"),
        "wrong": row.get("patch_answer"),
        "label": row.get("case"),
    }


def _token_ids(row: Fields) -> Fields:
    return {
        "clean": row.get("clean"),
        "corrupted": row.get("corrupted"),
        "answer": _token_id(row, "correct_idx"),
        "wrong": _token_id(row, "incorrect_idx"),
    }


def _token_id(row: Fields, name: str) -> Any:
    value = row.get(name)
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        raise AnswerError(f"{name} is {value!r}, not a token id.") from None


def _years(row: Fields) -> Fields:
    text = str(row.get("label"))
    if not (text.isascii() and text.isdigit() and len(text) <= 2):
        raise AnswerError(
            f"label is {text!r}, not a two-digit year. In a file of clean,corrupted,label the "
            "answers are the years above the label; otherwise add a column `answer`."
        )
    year = int(text)
    if year == 99:
        raise AnswerError("label is 99, and no two-digit year is above it. Leave the pair out.")
    return {
        "clean": row.get("clean"),
        "corrupted": row.get("corrupted"),
        "answer": [f"{above:02d}" for above in range(year + 1, 100)],
        "wrong": [f"{below:02d}" for below in range(year + 1)],
        "label": text,
    }


def _cluster_entry(row: Fields) -> Fields:
    if row.get("answer") is None:
        raise AnswerError(
            "the field 'answer' is missing or empty. Give the token that follows the context."
        )
    return {
        "clean": _joined(row.get("context")),
        "answer": row["answer"],
        "label": row.get("label"),
    }


def _joined(context: Any) -> str:
    """Return the prompt of a context: one text, or the texts of its tokens."""
    texts = [context] if isinstance(context, str) else context
    if not isinstance(texts, list | tuple):
        raise PromptError(f"context is {described(context)}, neither a text nor a list of texts.")
    stray = next((at for at, one in enumerate(texts) if not isinstance(one, str)), None)
    if stray is not None:
        raise PromptError(
            f"context[{stray}] is {described(texts[stray])}, not a text. "
            "Give the text of each token; they are joined."
        )
    text = "".join(texts)
    if not text.strip():
        raise PromptError(f"context is blank ({described(context)}). Give what the model reads.")
    _refuse_vocabulary(text)
    return text


def _refuse_vocabulary(text: str) -> None:
    """Raise if tokens were written as a vocabulary spells them; joined, they are no text."""
    symbol = next((one for one in "Ġ▁" if one in text), None)
    # Real text may hold these characters too, but it has a blank before some word.
    if symbol is not None and not re.search(r" \S", text):
        at = max(0, text.index(symbol) - 10)
        raise PromptError(
            f"context has {symbol!r} where blanks should be: {text[at : at + 30]!r}. A vocabulary "
            "spells its tokens so. Write the text of each: tokenizer.decode([token_id])."
        )


HEADWATER = Format("headwater", PAIR_FIELDS, dict, ("corrupted",))
FEATURE_CIRCUITS = Format(
    "feature-circuits",
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case"),
    _feature_circuits,
    ("patch_prefix",),
)
TOKEN_IDS = Format(
    "EAP-IG token ids",
    ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"),
    _token_ids,
    ("corrupted", "corrupted_hard"),
)
YEARS = Format(
    "EAP-IG years", ("clean", "corrupted", "label"), _years, ("corrupted",), metric="prob-diff"
)
CLUSTERS = Format(
    "clusters", ("context", "answer", "document_idx", "label"), _cluster_entry, corrupted=()
)
"""`document_idx` says which document the context was cut from; no computation reads it."""

FORMATS = (HEADWATER, FEATURE_CIRCUITS, TOKEN_IDS, YEARS, CLUSTERS)


def recognize(names: Collection[str], *, table: bool = False) -> Format:
    """Return the format whose field names these are.

    Args:
        names: The fields of a row, or the columns of a table.
        table: Whether they head a CSV file; only there does a lone `label` mean a year.

    Raises:
        PromptError: If the fields are of no known format; the closest field is named.
    """
    named = set(names) - set(INDEX_COLUMNS)
    if named & {"clean_prefix", "patch_prefix"}:
        found = FEATURE_CIRCUITS
    elif named & {"correct_idx", "incorrect_idx"}:
        found = TOKEN_IDS
    elif "context" in named:
        found = CLUSTERS
    elif table and named == set(YEARS.fields):
        found = YEARS
    else:
        found = HEADWATER
    refuse_unknown_fields(dict.fromkeys(name for name in names if name in named), found.fields)
    prompt = found.fields[0]
    if not named:
        raise PromptError(
            f"there is no field at all; the fields are {', '.join(map(repr, found.fields))}. "
            f"Give the prompt under {prompt!r}."
        )
    if prompt not in named:
        raise PromptError(
            f"the field {prompt!r} is missing; the fields are {', '.join(map(repr, names))}. "
            f"Give the prompt under {prompt!r}."
        )
    return found


def to_pair(row: Fields, format: Format, *, corrupted: str | None = None, origin: str = "") -> Pair:
    """Return the pair that a row describes.

    Args:
        row: The fields; those that are None count as left out.
        format: What they mean.
        corrupted: The field to take the corrupted prompt from, if not the usual one.
        origin: Where the row was read, for error messages.

    Raises:
        PromptError: If `row` does not describe a pair.
    """
    named = {name: value for name, value in row.items() if name not in INDEX_COLUMNS}
    refuse_unknown_fields(named, format.fields)
    if corrupted is not None:
        if corrupted not in format.corrupted or corrupted not in named:
            offered = [repr(name) for name in format.corrupted if name in named]
            raise PromptError(
                f"no field {corrupted!r} to take corrupted prompts from. "
                f"There is: {', '.join(offered) or 'none'}."
            )
        named[format.corrupted[0]] = named[corrupted]
    given = {name: value for name, value in format.convert(named).items() if value is not None}
    if "clean" not in given:
        raise PromptError(
            f"the field {format.fields[0]!r} is missing or empty. Give the prompt there."
        )
    return Pair(**checked_fields(given), origin=origin)


def as_pair(row: Any) -> Pair:
    """Return `row` itself if it is a pair, else the pair its fields describe.

    Raises:
        PromptError: If it is neither a pair nor a mapping of a known format.
    """
    if isinstance(row, Pair):
        return row
    if isinstance(row, Mapping):
        return to_pair(row, recognize(row.keys()))
    raise PromptError(
        f"a pair is an hw.Pair or a mapping with {', '.join(map(repr, PAIR_FIELDS))}; "
        f"this is a {type(row).__name__}: {row!r:.60}."
    )
