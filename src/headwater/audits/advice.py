"""Which of the compared estimators to use here, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headwater.audits import words
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.report import Audit, AuditRow

if TYPE_CHECKING:
    from headwater.attribution import Attribution
    from headwater.audits.comparison_result import ComparedEstimator
    from headwater.gates import End

MISSED = 0.1
"""A score below this share of the exact effect has missed it."""
WORTH_NAMING = 0.1
"""Components with at least this share of the largest effect are named."""
NAMED = 3
"""Flagged components whose flags are spelled out."""


def advice(
    rows: Sequence[ComparedEstimator],
    runs: Mapping[str, Attribution],
    components: int,
    diagnosis: Diagnosis | None = None,
) -> tuple[str, ...]:
    """Return what to use at each end that was compared, then why the others fall short.

    Args:
        rows: The compared estimators.
        runs: Their audited scores, by name.
        components: How many were scored.
        diagnosis: Of the gradient at the clean end, if that was compared.

    Returns:
        Sentences, the recommendations first.
    """
    ends: dict[End, None] = {row.end: None for row in rows}
    first: list[str] = []
    last: list[str] = []
    for end in ends:
        there = [row for row in rows if row.end == end]
        exact = next((row for row in there if row.kind == "exact"), None)
        estimates = sorted((row for row in there if row.kind != "exact"), key=lambda r: r.passes)
        if not estimates:
            continue
        where = f"At the {end} end: " if len(ends) > 1 else ""
        audits = {row.name: _audit_of(runs[row.name]) for row in estimates}
        first.append(where + _judged(estimates, audits, exact, end))
        if exact is not None:
            last.append(
                f"{where}Exact effects of all {words.counted(components, 'component')} cost "
                f"{_cost(exact)}; they need no audit."
            )
    flags = {}
    if diagnosis is not None:
        flags = {found.name: found.flags for found in diagnosis.findings}
        first += _not_seen(diagnosis)
    for row in sorted((row for row in rows if row.kind != "exact"), key=lambda row: row.passes):
        first += _why(row, _audit_of(runs[row.name]), flags)
    return (*first, *last)


def _audit_of(scores: Attribution) -> Audit:
    assert scores.checked is not None
    return scores.checked


def _not_seen(diagnosis: Diagnosis) -> list[str]:
    """Return what a diagnosis flagged, else what it looked for: not all of it is everywhere."""
    if any(found.flags for found in diagnosis.findings):
        return [f"What a gradient cannot see here: {diagnosis.sentence}."]
    looked = []
    if any(found.saturated_rows is not None for found in diagnosis.findings):
        looked.append("saturated attention")
    if any(found.computed is not None for found in diagnosis.findings):
        looked.append("bent attention")
    if any(found.cancellation is not None for found in diagnosis.findings):
        looked.append("cancellation")
    if count := len(diagnosis.jumps_in):
        looked.append(f"routing jumps (in {count:,} of {len(diagnosis.findings):,})")
    if not looked:
        return []
    return [f"Looked for what a gradient cannot see, {', '.join(looked)}: none found."]


def _judged(
    estimates: Sequence[ComparedEstimator],
    audits: Mapping[str, Audit],
    exact: ComparedEstimator | None,
    end: End,
) -> str:
    """Return the recommendation, with what a sample leaves open where not all was checked."""
    counts = min((audits[row.name].counts for row in estimates), key=lambda one: one.checked)
    if not counts.suffice:
        return (
            f"Too few checks to say which to use ({counts.checked:,} of "
            f"{words.counted(counts.components, 'component')}): raise sample=."
        )
    said = _recommended(estimates, audits, exact, end)
    return said if counts.complete else f"{counts.so_far}{said[0].lower()}{said[1:]}"


def _recommended(
    estimates: Sequence[ComparedEstimator],
    audits: Mapping[str, Audit],
    exact: ComparedEstimator | None,
    end: End,
) -> str:
    sized = next((row for row in estimates if _is_sized(audits[row.name])), None)
    ranked = next((row for row in estimates if _is_ranked(audits[row.name])), None)
    if sized is not None:
        if exact is not None and exact.passes <= sized.passes:
            return (
                f"Use exact here: it costs no more ({_cost(exact)}) than {sized.name}, the "
                "cheapest estimate with the right sizes."
            )
        rest = ""
        if ranked is not None and ranked.passes < sized.passes:
            rest = f" For the ranking alone {ranked.name} is enough ({_cost(ranked)})."
        return (
            f"Use {sized.name} here: the cheapest whose sizes are right "
            f"({audits[sized.name].statistic('relative error').brief}), at {_cost(sized)}.{rest}"
            f"{audits[sized.name].counts.unseen}"
        )
    if exact is not None and ranked is not None and exact.passes <= ranked.passes:
        return (
            f"Use exact here: it costs no more ({_cost(exact)}) than {ranked.name}, the cheapest "
            "estimate that ranks these components."
        )
    if ranked is not None:
        audit = audits[ranked.name]
        r, error = audit.statistic("r"), audit.statistic("relative error")
        ranking = "" if audit.counts.complete else f" ({r.brief})"
        size = "" if error.value is None else f" ({error.brief})"
        return (
            f"Use {ranked.name} here for the ranking{ranking}, not for sizes{size}; "
            f"for sizes use {_exact(end)}.{audit.counts.unseen}"
        )
    return f"Use {_exact(end)} here: no estimate that was compared ranks these components well."


def _is_sized(audit: Audit) -> bool:
    return audit.statistic("relative error").most <= words.GOOD_ERROR


def _is_ranked(audit: Audit) -> bool:
    r, recall = audit.statistic("r").value, audit.recall.value
    enough = recall is None or recall >= words.GOOD_RECALL
    return r is not None and r >= words.GOOD_CORRELATION and enough


def _why(row: ComparedEstimator, audit: Audit, flags: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return what an estimator missed, with the reason where a diagnosis or its kind shows it."""
    checked = audit.rows
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
        whole = "all |exact|" if audit.counts.complete else "the |exact| checked"
        said.append(
            f"{row.name} misses {names} (score below a tenth of the effect), {share:.0f} % of "
            f"{whole}: {_reason(row, missed, flags)}."
        )
    if row.note:
        said.append(f"{row.name}: {row.note}")
    return said


def _reason(
    row: ComparedEstimator, missed: Sequence[AuditRow], flags: Mapping[str, tuple[str, ...]]
) -> str:
    confirm = f"confirm these with {_exact(row.end)}"
    if row.kind == "trapezoid":
        return f"it sees the slope at two points, with all components moved together; {confirm}"
    if row.kind != "gradient":
        return confirm
    clean = row.end == "clean"  # where it was diagnosed, and where other slopes are taken
    found = [f"{one.name}: {', '.join(flags[one.name])}" for one in missed if flags.get(one.name)]
    if clean and found:
        more = f"; and {len(found) - NAMED} more flagged" if len(found) > NAMED else ""
        return "; ".join(found[:NAMED]) + more
    if all("<q>" in one.name or "<k>" in one.name for one in missed):
        better = "hw.AtPStar() computes its rows again" if clean else confirm
        return f"queries and keys act through a softmax, which bends and saturates; {better}"
    better = "integrate along the path, hw.IntegratedGradients()" if clean else confirm
    return f"there is little slope to see at the {row.end} end; {better}"


def _exact(end: End) -> str:
    return "hw.Exact()" if end == "clean" else f'hw.Exact(at="{end}")'


def _cost(row: ComparedEstimator) -> str:
    passes = [f"{row.forwards:.3g} forward{'' if row.forwards == 1 else 's'}"]
    if row.backwards:
        passes.append(f"{row.backwards:.3g} backward{'' if row.backwards == 1 else 's'}")
    return f"{' and '.join(passes)} a pair"
