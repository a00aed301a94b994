"""One row of a task: a clean prompt, what it is compared with, and the tokens that answer it.

Knows texts only; no tokenizer comes in here. Tokens are the business of `encoding`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, TypeAlias

from headwater.errors import AnswerError, PromptError, did_you_mean

Answer: TypeAlias = str | int
"""A text, or a token id."""

Answers: TypeAlias = Answer | Sequence[Answer]
"""One answer or several; several are pooled by the metric (see `headwater.metrics`)."""


@dataclass(frozen=True, init=False)
class Pair:
    """A clean prompt and, where the question needs them, its corrupted twin and its answers."""

    clean: str
    """The prompt in which the behavior is present."""

    corrupted: str | None
    """The prompt that lacks it; token for token as long as `clean`."""

    answer: tuple[Answer, ...]
    """The right continuations: texts with the blank that precedes them, or token ids."""

    wrong: tuple[Answer, ...]
    """The continuations that `logit_diff` and `prob_diff` subtract."""

    label: str
    """A free tag, for example the grammatical case; no computation reads it."""

    origin: str = field(compare=False, repr=False)
    """Where the pair was read, for error messages: `pairs.jsonl, line 4`."""

    def __init__(
        self,
        clean: str,
        corrupted: str | None = None,
        answer: Answers = (),
        wrong: Answers = (),
        label: str = "",
        *,
        origin: str = "",
    ) -> None:
        """Check the texts and store each side's answers as a tuple.

        Raises:
            PromptError: If a text is no text, is empty, or the two prompts are the same.
            AnswerError: If an answer is neither text nor token id, or also stands under `wrong`.
        """
        given = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
        for name, value in checked_fields({**given, "label": label}).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "origin", origin)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, those left out omitted."""
        data: dict[str, Any] = {"clean": self.clean}
        if self.corrupted is not None:
            data["corrupted"] = self.corrupted
        for name, values in (("answer", self.answer), ("wrong", self.wrong)):
            if values:
                data[name] = list(values)
        if self.label:
            data["label"] = self.label
        return data


PAIR_FIELDS = tuple(one.name for one in fields(Pair) if one.name != "origin")
"""The names a row of pairs may have."""


def checked_fields(row: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of a pair, checked, with its answers as tuples.

    Args:
        row: Values of any type under names of `PAIR_FIELDS`, `clean` among them.

    Raises:
        PromptError: If a text is no text, is blank, or the two prompts are the same.
        AnswerError: If an answer is neither text nor token id, or also stands under `wrong`.
    """
    checked: dict[str, Any] = dict(row)
    for name in ("clean", "corrupted"):
        if name == "clean" or row.get(name) is not None:
            _check_prompt(name, row[name])
    if row["clean"] == row.get("corrupted"):
        raise PromptError(
            f"clean and corrupted are the same text, {row['clean']!r}, so every effect would be 0. "
            "Change the word that carries the behavior, or leave corrupted out."
        )
    label = row.get("label", "")
    if not isinstance(label, str):
        raise PromptError(f"label is {described(label)}, not a text.")
    _refuse_half_characters("label", label, PromptError)
    for name in ("answer", "wrong"):
        checked[name] = as_answers(row.get(name), name)
    wrong = set(checked["wrong"])
    shared = [repr(value) for value in checked["answer"] if value in wrong]
    if shared:
        raise AnswerError(
            f"{', '.join(shared)} is both an answer and wrong, so the two cancel. "
            "Give it on one side only."
        )
    return checked


def as_answers(value: object, name: str = "answer") -> tuple[Answer, ...]:
    """Return one answer or several as a tuple of texts and token ids.

    Args:
        value: A text, a token id, or a sequence of these; None and empty mean none.
        name: The field to name in an error.

    Raises:
        AnswerError: If something is neither text nor integer, is empty, or is given twice.
    """
    if value is None:
        return ()
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    answers = tuple(_as_answer(one, name) for one in listed)
    if len(set(answers)) < len(answers):
        repeated = sorted({repr(one) for one in answers if answers.count(one) > 1})
        raise AnswerError(f"{name} has {', '.join(repeated)} more than once. Give each once.")
    return answers


def refuse_unknown_fields(row: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise if `row` has a field outside `known`, with the closest known name."""
    for name in row:
        if name not in known:
            raise PromptError(
                f"unknown field {name!r}.{did_you_mean(str(name), known)} "
                f"The fields are {_names(known)}."
            )


def _as_answer(value: object, name: str) -> Answer:
    if isinstance(value, str):
        if not value:
            raise AnswerError(f"{name} is an empty text. Give the text that follows the prompt.")
        _refuse_half_characters(name, value, AnswerError)
        return value
    if isinstance(value, bool):
        raise AnswerError(f"{name} is {described(value)}, neither a text nor a token id.")
    try:
        return index(value)  # pyright: ignore[reportArgumentType] # accepts NumPy integers too
    except TypeError:
        raise AnswerError(f"{name} is {described(value)}, neither a text nor a token id.") from None


def _check_prompt(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise PromptError(f"{name} is {described(value)}, not a text.")
    if not value.strip():
        raise PromptError(f"{name} is blank ({value!r}). Give the text of the prompt.")
    _refuse_half_characters(name, value, PromptError)


def _refuse_half_characters(name: str, text: str, error: type[PromptError]) -> None:
    # JSON may spell half of a surrogate pair; no tokenizer takes it, and no file in UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError as found:
        raise error(
            f"{name} has {text[found.start]!r} at character {found.start}, half of a surrogate "
            f"pair and no character: {described(text)}. Remove it, or write the whole character."
        ) from None


def described(value: object) -> str:
    """Return a value and its type as error messages show them: `3 (int)`."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
