"""Refusals speak Python; this says what to type instead on the command line."""

from __future__ import annotations

import re

CALL = re.compile(r"hw\.(\w+)\(((?:[^()]|\([^()]*\))*)\)")
OPTION = re.compile(r"""(\w+)=(?:["']([^"']*)["']|(\d[\d.]*))""")


def typed_words(refusal: str) -> str:
    """Return how the Python calls in a refusal are typed; empty if there are none to type."""
    calls = {call[0]: _typed(call[1], call[2]) for call in CALL.finditer(refusal)}
    said = [f"{python} is {typed}" for python, typed in calls.items() if typed]
    return f"On the command line: {'; '.join(said)}." if said else ""


def _typed(name: str, arguments: str) -> str:
    """Return the option that chooses an estimator, reference, kind or metric by its name."""
    from headwater.components import SELECTORS  # only a refusal takes the time to import them
    from headwater.estimators import ESTIMATORS
    from headwater.metrics import METRICS
    from headwater.references import REFERENCES

    options = [(option, text or number) for option, text, number in OPTION.findall(arguments)]
    for known, written, joined in (
        (ESTIMATORS, "-e {}", ":{}={}"),
        (REFERENCES, "-r {}", " --{} {}"),
        (METRICS, "--metric {}", ""),
        (SELECTORS, "-c {}", ""),
    ):
        for word, made in known.items():
            if made.__name__ == name:
                given = "".join(joined.format(*option) for option in options)
                return written.format(word) + given
    return ""
