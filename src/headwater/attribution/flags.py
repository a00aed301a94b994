"""Flags of a result: what its diagnosis found, and a saturated output, which the metric shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.audits.diagnosis import OUTPUT, output_flag
from headwater.audits.saturation import SATURATED

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

PROBABILITIES = ("prob", "prob-diff", "logprob")
"""Metrics that read the output softmax at the answer, whose slope is p (1 - p) or 1 - p."""


def output_saturation(result: Attribution) -> float:
    """Return the share of pairs whose answer has p > 0.99 in the clean run, by the metric itself.

    0 for metrics of logits, and for scores that take no slope in the clean run.
    """
    task, estimator = result.task, result.provenance.estimator
    if task is None or task.metric.name not in PROBABILITIES or estimator["name"] == "exact":
        return 0.0
    if estimator.get("at") == "corrupted":
        return 0.0
    clean = result.parts.clean.double()
    answer = clean.exp() if task.metric.name == "logprob" else clean
    return float((answer > SATURATED).double().mean())


def flags_by_name(result: Attribution) -> dict[str, tuple[str, ...]]:
    """Return the flags of each component that has some, beyond those of the audit."""
    diagnosis = result.extras.diagnosis
    found = {} if diagnosis is None else {f.name: f.flags for f in diagnosis.findings if f.flags}
    said = output_flag(output_saturation(result))
    if said and not (diagnosis is not None and diagnosis.flagged(OUTPUT)):
        found = {name: (*found.get(name, ()), said) for name in result.names}
    return found


def output_warning(result: Attribution) -> str:
    """Return what a saturated output means for these scores; empty if it is not saturated."""
    share = output_saturation(result)
    if share == 0 or result.task is None:
        return ""
    return (
        f"{OUTPUT}: the answer has p > {SATURATED} in {100 * share:.0f} % of pairs, where the "
        f"slope of {result.task.metric.name} is nearly 0 whatever a component does. Use "
        "hw.logit_diff() or hw.Exact()."
    )


def flag_words(result: Attribution) -> str:
    """Return the flags for the end of the audit's sentence; empty if nobody has looked."""
    diagnosis, share = result.extras.diagnosis, output_saturation(result)
    output = f"{OUTPUT} in {100 * share:.0f} % of pairs" if share else ""
    if diagnosis is None:
        return output
    found = diagnosis.sentence
    if diagnosis.flagged(OUTPUT):
        return found
    return f"{output}; {found}" if output and not found.startswith("none") else output or found
