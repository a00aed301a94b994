"""What results and refusals say speaks Python; this says what to type on the command line.

A sentence of a result is written anew (`typed`). A refusal stays as it is, for it may be quoted and
looked up, and gets a line that says how its Python is typed (`typed_words`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

CALL = re.compile(r"(?:\b(?:reference|estimator|metric)=)?hw\.(\w+)\(((?:[^()]|\([^()]*\))*)\)")
GIVEN = re.compile(r"""\b([a-z_]+)=(?:["']([^"']*)["']|(\d[\d.e-]*\d|\d)|(?=[\s.,:;)]|$))""")
ANSWER = re.compile(r"""["']([^"']*)["']""")
"""A metric's answer, given as it is."""
OPTIONS = {
    *("sample", "theta", "budget", "confidence", "tolerance", "seed", "top", "batch_size"),
    *("dtype", "device", "tested", "max_tokens", "draws", "over", "metric"),
    *("answer", "wrong"),
}
"""Arguments that are options of a command."""
ROWS = re.compile(r"more in (?:\w*\.)?(?:rows|findings)\b")
ALL = re.compile(r"scores\.(?:to_frame|error_bars)\(\)")
"""Tables that only `--json` prints."""


def typed(said: str, chosen: Iterable[str] = (), sample: str = "--sample") -> str:
    """Return a sentence of a result with its Python written as it is typed.

    Args:
        said: The sentence.
        chosen: Estimators it may be about, as they are typed: their options come first.
        sample: What `sample=` is called.
    """
    chosen = tuple(chosen)
    said = ALL.sub("--json", ROWS.sub("more; --json has all", said))
    said = CALL.sub(lambda call: _typed(call[1], call[2]) or call[0], said)
    said = GIVEN.sub(lambda given: _option(given, chosen) or given[0], said)
    return said.replace("--sample", sample)


def typed_words(refusal: str, chosen: Iterable[str] = ()) -> str:
    """Return how the Python in a refusal is typed; empty if there is nothing to type.

    Args:
        refusal: The message.
        chosen: Words of the command line: options of an estimator among them come first.
    """
    chosen = tuple(chosen)
    calls = {call[0]: _typed(call[1], call[2]) for call in CALL.finditer(refusal)}
    # only what comes after the first line is advice
    _, _, advice = CALL.sub("", refusal).partition("\n")
    given = {one[0]: _option(one, chosen) for one in GIVEN.finditer(advice)}
    said = [f"{python} is {typed}" for python, typed in (calls | given).items() if typed]
    return f"On the command line: {'; '.join(said)}." if said else ""


def spelled(options: Mapping[str, Any]) -> str:
    """Return options as they are typed; what is None is left out, a list is typed again and again.

    Args:
        options: By name: `--model`.
    """
    words = [
        (name, str(one))
        for name, value in options.items()
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]
    return shlex.join(word for pair in words for word in pair)


def _option(given: re.Match[str], chosen: Iterable[str]) -> str:
    """Return how `name=value` is typed: as an option of a chosen estimator, else of a command."""
    from headwater.estimators import ESTIMATORS

    name, value = given[1], given[2] or given[3] or ""
    for word in (part.partition(":")[0] for words in chosen for part in words.split(",")):
        if word in ESTIMATORS and name in {field.name for field in fields(ESTIMATORS[word])}:
            return f"{word}:{name}={value}"
    return f"--{name.replace('_', '-')}{value and f' {value}'}" if name in OPTIONS else ""


def _typed(name: str, arguments: str) -> str:
    """Return the option that chooses an estimator, reference, kind or metric by its name."""
    from headwater.components import SELECTORS  # only a refusal takes the time to import them
    from headwater.estimators import ESTIMATORS
    from headwater.metrics import METRICS
    from headwater.references import REFERENCES

    if name == "verify":
        return "headwater verify RUN --theta ..."
    if layers := re.fullmatch(r"layers=range\((\d+)\)", arguments):
        return f"--layers 0-{int(layers[1]) - 1}"
    options = [(one[1], one[2] or one[3]) for one in GIVEN.finditer(arguments)]
    for known, written, joined in (
        (ESTIMATORS, "-e {}", ":{}={}"),
        # the point of a tangent belongs to it; --at is the end of a run
        (REFERENCES, "-r {}", ":{}={}" if name == "Tangent" else " --{} {}"),
        (METRICS, "--metric {}", ""),
        (SELECTORS, "-c {}", ""),
    ):
        for word, made in known.items():
            if made.__name__ == name:
                given = "".join(joined.format(*option) for option in options)
                answer = ANSWER.fullmatch(arguments) if known is METRICS else None
                return written.format(word) + (f":{answer[1]}" if answer else "") + given
    return ""
