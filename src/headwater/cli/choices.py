"""Words typed on the command line, turned into objects; a misspelt word is answered."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from headwater.components import SELECTORS, Selection
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.estimators import ESTIMATORS, Estimator
from headwater.prompts import Task
from headwater.references import REFERENCES, Mean, Reference, Resample
from headwater.zoo import task as embedded_task


def components(words: str, layers: str | None, positions: str | None) -> Selection:
    """Return the selection that `heads,mlps` with `--layers` and `--positions` means."""
    selection: Selection | None = None
    for word in words.replace("+", ",").split(","):
        word = word.strip()
        make = _known(word, SELECTORS, "component kind")
        options: dict[str, Any] = {}
        if layers is not None and word != "tokens":
            options["layers"] = _numbers(layers, "--layers")
        if positions is not None:
            options["positions"] = _positions(positions)
        part = make(**options)
        selection = part if selection is None else selection + part
    assert selection is not None
    return selection


def estimator(words: str, at: str = "clean") -> Estimator:
    """Return the estimator of a dashed name, such as `ig` or `ig:path=inputs:steps=10`.

    Args:
        words: The name, then its options, each after a colon.
        at: The end of the path, for the estimators that have one.
    """
    word, *options = words.split(":")
    kind = _known(word, ESTIMATORS, "estimator")
    if at not in ("clean", "corrupted"):
        raise UnknownOptionError(
            f"--at {at!r} is unknown.{did_you_mean(at, ('clean', 'corrupted'))}\n"
            "Write --at clean or --at corrupted."
        )
    known = {field.name: field for field in fields(kind)}
    if at != "clean" and "at" not in known:
        having = [
            name for name, one in ESTIMATORS.items() if any(f.name == "at" for f in fields(one))
        ]
        raise UnknownOptionError(
            f"--at {at}: {word} has no end to choose.\nThese have: {', '.join(having)}."
        )
    given: dict[str, Any] = {"at": at} if "at" in known else {}
    for option in options:
        name, equals, value = option.partition("=")
        name = name.replace("-", "_")
        if name not in known or not equals:
            listed = ", ".join(f"{one}=" for one in known) or "none"
            raise UnknownOptionError(
                f"{word} has no option {option!r}.{did_you_mean(name, known)}\n"
                f"Write {word}:name=value; its options: {listed}."
            )
        given[name] = _value(word, known[name], value)
    return kind(**given)


def estimators(words: str) -> dict[str, Estimator]:
    """Return the estimators of a comma-separated list, by what was typed."""
    typed = [word.strip() for word in words.split(",")]
    twice = [word for word in typed if typed.count(word) > 1]
    if twice:
        raise UnknownOptionError(f"--estimators names {twice[0]!r} twice.")
    return {word: estimator(word) for word in typed}


def _value(word: str, option: Field[Any], text: str) -> Any:
    """Return a typed option as the number, truth value or text that its field takes."""
    truths: dict[str, Any] = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if text.lower() in truths:
        return truths[text.lower()]
    for kind, name in ((int, "a whole number"), (float, "a number")):
        if kind.__name__ not in str(option.type):
            continue
        try:
            return kind(text)
        except ValueError:
            if "float" in str(option.type) and kind is int:
                continue
            if "str" not in str(option.type) and "Literal" not in str(option.type):
                raise UnknownOptionError(f"{word}: {option.name}={text!r} is not {name}.") from None
    return text


def reference(word: str, over: str | None, seed: int, draws: int = 1) -> Reference:
    """Return the reference of a dashed name.

    Args:
        word: The name.
        over: For means: `corrupted`, `clean`, or a file of prompts.
        seed: For resampling.
        draws: For resampling: donors a pair.
    """
    kind = _known(word, REFERENCES, "reference")
    if over is not None and not issubclass(kind, Mean):
        raise UnknownOptionError(
            f"--over goes with --reference mean or positional-mean, not with {word!r}."
        )
    if draws != 1 and not issubclass(kind, Resample):
        raise UnknownOptionError(f"--draws goes with --reference resample, not with {word!r}.")
    if issubclass(kind, Resample):
        return kind(seed=seed, draws=draws)
    if over is None:
        return kind()
    if over not in ("corrupted", "clean") and not Path(over).is_file():
        raise UnknownOptionError(
            f"--over {over!r} is neither corrupted or clean nor a file."
            f"{did_you_mean(over, ('corrupted', 'clean'))}\n"
            "A file has one prompt a line: .txt, or .jsonl."
        )
    return kind(over=over if over in ("corrupted", "clean") else Path(over))


def task(word: str, metric: str | None, pairs: int | None) -> Task:
    """Return an embedded task, or the pairs of a file."""
    looks_like_file = "/" in word or Path(word).suffix in (".jsonl", ".json", ".csv")
    if looks_like_file or Path(word).is_file():
        found = Task.read(word, metric=metric)
    else:
        found = embedded_task(word)
        if metric is not None:
            found = found.with_metric(metric)
    return found if pairs is None else found[:pairs]


def _known(word: str, known: dict[str, Any], what: str) -> Any:
    if word not in known:
        raise UnknownOptionError(
            f"no {what} {word!r}.{did_you_mean(word, known)} Known: {', '.join(known)}."
        )
    return known[word]


def _positions(text: str) -> Any:
    if text in ("all", "each"):
        return text
    if text[:1].isalpha():
        raise UnknownOptionError(
            f"--positions {text!r} is unknown.{did_you_mean(text, ('all', 'each'))}\n"
            "Write all, each, or numbers such as 0,-1."
        )
    return _numbers(text, "--positions")


def _numbers(text: str, option: str) -> list[int]:
    """Return the integers of `0,2,5-7` (ranges only between numbers, so `-1` is minus one)."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (
            part.strip().partition("-") if part.strip()[:1] != "-" else (part, "", "")
        )
        try:
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise UnknownOptionError(
                f"{option} {text!r}: {part.strip()!r} is not a number.\n"
                "Write for example 0,2 or 0-5."
            ) from None
    return numbers
