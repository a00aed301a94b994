"""Which of the compared estimators to use here, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headwater.audits import words
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.report import AuditRow

if TYPE_CHECKING:
    from headwater.attribution import Attribution
    from headwater.audits.comparison import ComparedEstimator

MISSED = 0.1
"""A score below this share of the exact effect has missed it."""
WORTH_NAMING = 0.1
"""Components with at least this share of the largest effect are named."""
NAMED = 3
"""Flagged components whose flags are spelled out."""
FIRST_ORDER = ("gradient", "trapezoid")
"""Estimators that see one or two points of the path."""


def advice(
    rows: Sequence[ComparedEstimator],
    runs: Mapping[str, Attribution],
    components: int,
    diagnosis: Diagnosis | None = None,
) -> tuple[str, ...]:
    """Return what to use, then why the others fall short.

    Args:
        rows: The compared estimators.
        runs: Their audited scores, by name.
        components: How many were scored.
        diagnosis: Of the gradient, if that was compared.

    Returns:
        Sentences, the recommendation first.
    """
    exact = next((row for row in rows if row.kind == "exact"), None)
    estimates = sorted((row for row in rows if row is not exact), key=lambda row: row.passes)
    said = [_recommended(estimates, exact)] if estimates else []
    flags = {}
    if diagnosis is not None:
        flags = {found.name: found.flags for found in diagnosis.findings}
        said.append(_not_seen(diagnosis))
    for row in estimates:
        checked = runs[row.name].checked
        assert checked is not None
        said += _why(row, checked.rows, flags)
    if exact is not None and estimates:
        said.append(
            f"Exact effects of all {components:,} components cost {_cost(exact)}; they need no "
            "audit."
        )
    return tuple(said)


def _not_seen(diagnosis: Diagnosis) -> str:
    if any(found.flags for found in diagnosis.findings):
        return f"What a gradient cannot see here: {diagnosis.sentence}."
    looked = f" (jumps in the {len(diagnosis.jumps_in):,} strongest)" if diagnosis.jumps_in else ""
    return (
        "Looked for what a gradient cannot see, saturated attention, cancellation, routing "
        f"jumps{looked}: none found."
    )


def _recommended(estimates: Sequence[ComparedEstimator], exact: ComparedEstimator | None) -> str:
    sized = next((row for row in estimates if _is_sized(row)), None)
    ranked = next((row for row in estimates if _is_ranked(row)), None)
    if sized is not None:
        if exact is not None and exact.passes <= sized.passes:
            return (
                f"Use exact here: it costs no more ({_cost(exact)}) than {sized.name}, the "
                "cheapest estimate with the right sizes."
            )
        error = sized.figures["relative error"]
        assert error is not None
        rest = ""
        if ranked is not None and ranked.passes < sized.passes:
            rest = f" For the ranking alone {ranked.name} is enough ({_cost(ranked)})."
        return (
            f"Use {sized.name} here: the cheapest whose sizes are right (relative error "
            f"{words.figure(error)}), at {_cost(sized)}.{rest}"
        )
    if exact is not None and ranked is not None and exact.passes <= ranked.passes:
        return (
            f"Use exact here: it costs no more ({_cost(exact)}) than {ranked.name}, the cheapest "
            "estimate that ranks these components."
        )
    if ranked is not None:
        error = ranked.figures["relative error"]
        size = "" if error is None else f" (relative error {words.figure(error)})"
        return (
            f"Use {ranked.name} here for the ranking, not for sizes{size}; "
            "for sizes use hw.Exact()."
        )
    return "Use hw.Exact() here: no estimate that was compared ranks these components well."


def _is_sized(row: ComparedEstimator) -> bool:
    error = row.figures["relative error"]
    return error is not None and error <= words.GOOD_ERROR


def _is_ranked(row: ComparedEstimator) -> bool:
    r, recall = row.figures["r"], row.figures["recall"]
    enough = recall is None or recall >= words.GOOD_RECALL
    return r is not None and r >= words.GOOD_CORRELATION and enough


def _why(
    row: ComparedEstimator, checked: Sequence[AuditRow], flags: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Return what an estimator missed, with the reason where a diagnosis or its kind shows it."""
    largest = max((abs(one.exact) for one in checked), default=0.0)
    total = sum(abs(one.exact) for one in checked)
    missed = [
        one
        for one in checked
        if abs(one.estimate) < MISSED * abs(one.exact) and abs(one.exact) > WORTH_NAMING * largest
    ]
    said = []
    if missed:
        share = 100 * sum(abs(one.exact) for one in missed) / total
        names = words.name_list([one.name for one in missed])
        said.append(
            f"{row.name} misses {names} (score below a tenth of the effect), {share:.0f} % of all "
            f"|exact|: {_reason(row, missed, flags)}."
        )
    if row.note:
        said.append(f"{row.name}: {row.note}")
    return said


def _reason(
    row: ComparedEstimator, missed: Sequence[AuditRow], flags: Mapping[str, tuple[str, ...]]
) -> str:
    if row.kind not in FIRST_ORDER:
        return "confirm these with hw.Exact()"
    found = [f"{one.name}: {', '.join(flags[one.name])}" for one in missed if flags.get(one.name)]
    if found:
        more = f"; and {len(found) - NAMED} more flagged" if len(found) > NAMED else ""
        return "; ".join(found[:NAMED]) + more
    if all("<q>" in one.name or "<k>" in one.name for one in missed):
        return (
            "queries and keys act through a softmax, which bends and saturates; hw.AtPStar() "
            "computes its rows again"
        )
    return (
        "there is little slope to see at the clean end; integrate along the path, "
        "hw.IntegratedGradients()"
    )


def _cost(row: ComparedEstimator) -> str:
    passes = [f"{row.forwards:.3g} forward{'' if row.forwards == 1 else 's'}"]
    if row.backwards:
        passes.append(f"{row.backwards:.3g} backward{'' if row.backwards == 1 else 's'}")
    return f"{' and '.join(passes)} a pair"
