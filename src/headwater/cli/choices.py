"""Words typed on the command line, turned into objects; a misspelt word is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from headwater.components import SELECTORS, Choice, Selection
from headwater.components.selection import as_positions
from headwater.dictionaries.collection import Dictionaries
from headwater.dictionary_loading import EMBEDDED
from headwater.errors import UnknownModelError, UnknownOptionError, did_you_mean
from headwater.estimators import ESTIMATORS, Estimator
from headwater.loading import embedded_names
from headwater.metrics import METRICS, Metric, logprob, prob, resolve_metric
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import REFERENCES, Mean, Reference, Resample, Tangent
from headwater.zoo import task as embedded_task

FEATURES = "features"
"""The kind that needs dictionaries: no selector makes it from words alone."""


def components(
    words: str, layers: str | None, positions: str | None, *, features: bool = False
) -> Selection:
    """Return the selection that `heads,mlps` with `--layers` and `--positions` means.

    Args:
        words: Kinds, separated by commas.
        layers: `0,2` or `0-5`.
        positions: `all`, `each`, or numbers.
        features: Whether the command takes features; `coded` gives them their dictionaries.
    """
    parts: list[Choice] = []
    for word in words.replace("+", ",").split(","):
        word = word.strip()
        if word == FEATURES and not features:
            raise UnknownOptionError(
                "features are scored by headwater attribute --dictionaries, and by headwater "
                "features."
            )
        options: dict[str, Any] = {}
        if layers is not None and word != "tokens":
            options["layers"] = numbers(layers, "--layers")
        if positions is not None:
            options["positions"] = _positions(positions)
        if word == FEATURES:
            parts.append(_features(**options))
            continue
        known = SELECTORS | ({FEATURES: None} if features else {})
        parts += _known(word, known, "component kind")(**options).choices
    return Selection(tuple(parts))


def _features(layers: list[int] | None = None, positions: Any = "all") -> Choice:
    """Return the choice of features whose dictionaries are still to come."""
    chosen = None if layers is None else tuple(layers)
    return Choice("feature", chosen, as_positions(positions))


def selected_dictionaries(
    sources: Sequence[str] | None, parts: Selection, model: str
) -> Dictionaries | str | None:
    """Return what was typed for dictionaries, read if it is on disk; None without features.

    Args:
        sources: `embedded`, which is the default, or files or folders.
        parts: What is selected.
        model: The name of the model, which is not loaded yet.
    """
    if any(choice.kind == "feature" for choice in parts.choices):
        return dictionaries(sources, model)
    if sources:
        raise UnknownOptionError(
            "--dictionaries goes with features, and none are selected.\n"
            "Type -c features --dictionaries ..."
        )
    return None


def dictionaries(sources: Sequence[str] | None, model: str) -> Dictionaries | str:
    """Return what was typed for dictionaries, read if it is on disk.

    Args:
        sources: `embedded`, which is the default, or files or folders, with `=SITE` if need be.
        model: The name of the model, which is not loaded yet.
    """
    if sources and list(sources) != [EMBEDDED]:
        if EMBEDDED in sources:
            raise UnknownOptionError(
                "--dictionaries embedded stands for all that ship with a model.\n"
                "Name it alone, or the folders that you want."
            )
        words = [_placed(word) for word in sources]
        placed = dict(words)
        if len(placed) < len(words):
            raise UnknownOptionError(
                f"--dictionaries names one path twice: {' '.join(sources)}.\n"
                "A dictionary stands at one site."
            )
        sites = {str(path): place for path, place in placed.items() if place is not None}
        return Dictionaries.read(list(placed), sites=sites)
    if model not in embedded_names():
        raise UnknownOptionError(
            f"no dictionaries ship for the model {model!r}, only for embedded ones.\n"
            "Say where some are: --dictionaries FOLDER."
        )
    return EMBEDDED


def model_again(moved: str | None, made: Mapping[str, Any], device: str | None = None) -> Model:
    """Return the model that a result came from, in its number type.

    Args:
        moved: Where it is now, if that was typed.
        made: What the result says of it: `name`, `dtype`.
        device: Where to.
    """
    import headwater as hw

    try:
        return hw.load(moved or made["name"], device=device, dtype=made["dtype"])
    except UnknownModelError as error:
        if moved is not None:
            raise
        raise UnknownModelError(
            f"{error}\nThe result was made with it; say where it is now: --model FOLDER."
        ) from None


def _placed(word: str) -> tuple[Path, str | tuple[str, str] | None]:
    """Return the path of `FOLDER`, `FOLDER=SITE` or `FOLDER=READ:WRITTEN`, and the place."""
    path, equals, place = word.rpartition("=")
    if not equals or Path(word).exists():
        return Path(word).resolve(), None  # audits may be asked for elsewhere
    read, colon, written = place.partition(":")
    return Path(path).resolve(), (read, written) if colon else place


def coded(parts: Selection, found: Dictionaries) -> Selection:
    """Return a selection whose features have their dictionaries."""
    return Selection(
        tuple(
            replace(choice, dictionaries=found) if choice.kind == "feature" else choice
            for choice in parts.choices
        )
    )


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
    types = get_type_hints(kind)
    known = {field.name: types[field.name] for field in fields(kind)}
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
        if name not in known:
            listed = ", ".join(f"{one}=" for one in known) or "none"
            raise UnknownOptionError(
                f"{word} has no option {name!r}.{did_you_mean(name, known)}\n"
                f"Write {word}:name=value; its options: {listed}."
            )
        if not equals:
            raise UnknownOptionError(
                f"{word}: option {name!r} has no value.\n"
                f"Write {word}:{name}=value{_such_as(known[name])}."
            )
        given[name] = _value(f"{word}: {name}", known[name], value)
    if at != "clean" and given["at"] != at:
        raise UnknownOptionError(f"--at {at} contradicts {words}.\nLeave one of the two out.")
    return kind(**given)


def estimators(words: str) -> dict[str, Estimator]:
    """Return the estimators of a comma-separated list, by what was typed."""
    typed = [word.strip() for word in words.split(",")]
    twice = [word for word in typed if typed.count(word) > 1]
    if twice:
        raise UnknownOptionError(f"--estimators names {twice[0]!r} twice.")
    return {word: estimator(word) for word in typed}


TRUTHS = {"true": True, "yes": True, "on": True, "1": True}
TRUTHS |= {"false": False, "no": False, "off": False, "0": False}
READ = {int: "a whole number", float: "a number", str: "text"}
"""Types that read what was typed, in words; all others know the words they take."""


def _value(option: str, kind: Any, text: str) -> Any:
    """Return a typed option as the type of its field takes it.

    Args:
        option: Estimator and option, for the refusal.
        kind: The field's type; of a union, the first that takes the text.
        text: What was typed.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    known = {word: value for one in kinds for word, value in _words(one).items()}
    if text.lower() in known:
        return known[text.lower()]
    readers = [one for one in kinds if one in READ]
    for read in readers:
        with suppress(ValueError):
            return read(text)
    wanted = [READ[one] for one in readers]
    if known:
        wanted.append(("one of " if len(known) > 1 else "") + ", ".join(known))
    raise UnknownOptionError(
        f"{option}={text!r} is not {' or '.join(wanted)}.{did_you_mean(text, known)}"
    )


def _such_as(kind: Any) -> str:
    """Return the words a type takes, as the end of a sentence; empty for types that read."""
    known = _words(kind)
    return f", the value one of {', '.join(known)}" if known else ""


def _words(kind: Any) -> dict[str, Any]:
    """Return what a type takes by the word typed for it; nothing for types that read."""
    if get_origin(kind) is Literal:
        return {str(word): word for word in get_args(kind)}
    return {bool: TRUTHS, NoneType: {"none": None}}.get(kind, {})


def reference(word: str, over: str | None, seed: int, draws: int = 1) -> Reference:
    """Return the reference of a dashed name.

    Args:
        word: The name; `tangent:at=mean` for a tangent that touches elsewhere than at zero.
        over: For means: `corrupted`, `clean`, or a file of prompts.
        seed: For resampling.
        draws: For resampling: donors a pair.
    """
    word, _, option = word.partition(":")
    kind = _known(word, REFERENCES, "reference")
    if option:
        return _tangent(word, option, over, draws)
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


def _tangent(word: str, option: str, over: str | None, draws: int) -> Reference:
    """Return the tangent that touches at zero, at the mean, or at a number."""
    name, _, point = option.partition("=")
    if word != Tangent.name or name != "at" or not point:
        raise UnknownOptionError(
            f"--reference {word}:{option} is unknown: only tangent has an option.\n"
            "Write tangent:at=zero, tangent:at=mean, or a number such as tangent:at=1."
        )
    if over is not None or draws != 1:
        raise UnknownOptionError("--over and --draws do not go with --reference tangent.")
    with suppress(ValueError):
        return Tangent(at=float(point))
    return Tangent(at=point)  # type: ignore[arg-type]


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


def metric(words: str | None) -> Metric | None:
    """Return the metric of `prob:Mary`: a dashed name, and for two of them the answer to follow."""
    if words is None:
        return None
    name, colon, answer = words.partition(":")
    known = {one: kind for one, kind in METRICS.items() if issubclass(kind, prob | logprob)}
    if not colon:
        return resolve_metric(name)
    if name in known and answer:
        return known[name](answer)
    _known(name, METRICS, "metric")
    raise UnknownOptionError(
        f"--metric {words!r}: {'the answer is missing' if name in known else 'has no answer'}.\n"
        f"Write {' or '.join(f'{one}:WORD' for one in known)}; for the others --answer and --wrong."
    )


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
    return numbers(text, "--positions")


def numbers(text: str, option: str) -> list[int]:
    """Return the integers of `0,2,5-7` (ranges only between numbers, so `-1` is minus one)."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (
            part.strip().partition("-") if part.strip()[:1] != "-" else (part, "", "")
        )
        try:
            ends = int(first), int(last if dash else first)
        except ValueError:
            raise UnknownOptionError(
                f"{option} {text!r}: {part.strip()!r} is not a number.\n"
                "Write for example 0,2 or 0-5."
            ) from None
        if ends[0] > ends[1]:
            raise UnknownOptionError(
                f"{option} {text!r}: the range {part.strip()} is reversed.\n"
                f"Write {ends[1]}-{ends[0]}."
            )
        numbers += range(ends[0], ends[1] + 1)
    return numbers
