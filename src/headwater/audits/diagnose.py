"""Compute a diagnosis: one clean run with its slopes a batch, and the gates of a few components.

Costs a forward and a backward a pair, half a backward a layer for the cancellation index, and for
each of a few components about two dozen forwards and forward-backwards on a few pairs for jumps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headwater.attribution.flags import output_saturation
from headwater.audits.again import estimator_of, gated_again, model_of, refuse_other_numbers
from headwater.audits.diagnosis import Diagnosis, Finding, flags_of, output_flag
from headwater.audits.jumps import Jump, find_jumps
from headwater.audits.known import known_effects, signed_estimates
from headwater.audits.run import NOISE_COMPONENTS
from headwater.audits.slopes_seen import Seen
from headwater.audits.words import name_list
from headwater.components import Selection, keys, queries
from headwater.errors import GateError
from headwater.estimators.gradient import refuse_stationary
from headwater.gates import Cost, GatedFunction
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.references import Mean, Reference, reference_from_dict

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

JUMP_COMPONENTS = 8
"""Components in which jumps are looked for."""
JUMP_PAIRS = 8
"""Most pairs on which they are."""
_ATTENDING = ("head", "query", "key")
GAP_NOISE = 3.0
"""Noise floors up to which a gap is rounding: it is a sum of values and slopes that all round."""
JUMP_SHARE = 0.01
"""Jumps up to this share of the whole effect are not looked for."""


def diagnose(
    scores: Attribution,
    *,
    model: Model | GatedFunction | None = None,
    jumps: int = JUMP_COMPONENTS,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Look for what makes first-order scores wrong: saturation, cancellation, jumps, rounding.

    Args:
        scores: The result of `hw.attribute` at the clean end, or one read back from a folder.
        model: Needed when the result no longer has its model.
        jumps: In how many components jumps are looked for; 0 skips that. Half are the strongest.
            The others are those whose exact effect, where known, is furthest from the score, and
            then any: a component that only jumps has no slope, so its score is near 0.
        batch_size: Most pairs in a forward; by default as in the scores.
        seed: Of the components drawn to look for jumps in.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        Numbers and flags for each component; they also become `scores.diagnosis`.

    Raises:
        GateError: If the scores were taken at the corrupted end.
        StationaryMetricError: If the metric's gradient is zero at the clean end by construction.
        ModelGoneError: If the model is gone and none was given.
        ResultError: If the model given is not the one the scores came from.
    """
    if estimator_of(scores).end != "clean":
        raise GateError(
            "these scores were taken at the corrupted end; a diagnosis looks at slopes in the "
            'clean run.\nScore with at="clean", then diagnose.'
        )
    model = model_of(scores, model, "scores.diagnose(model=function)")
    started = time.perf_counter()
    columns, drawn = _where_to_look(scores, jumps, seed)
    if isinstance(model, GatedFunction):
        function, floor, problem = model.at("clean"), None, []
        with function.counting() as cost:
            seen, found = _of_function(scores, function, columns)
    else:
        cost = Cost()
        seen, floor = _of_model(scores, model, batch_size, cost, progress)
        found, problem = _jumps_of_model(scores, model, columns, floor, cost)
    if found:
        problem = [*problem, *drawn]
    # batches are made ready more than once, for the same pairs
    cost.pairs, cost.seconds = len(scores.scores), time.perf_counter() - started
    return _made(scores, seen, floor, found, [*seen.notes, *problem], str(cost))


def strongest(scores: Attribution, count: int) -> list[int]:
    """Return the columns of the strongest components, by the score or an exact effect if known."""
    strength = scores.mean().abs().tolist()
    for column, one in known_effects(scores, scores.checked, scores.parts.magnitudes).items():
        strength[column] = max(strength[column], one.size)
    return sorted(range(len(strength)), key=lambda i: -strength[i])[: max(count, 0)]


def _where_to_look(scores: Attribution, count: int, seed: int) -> tuple[list[int], list[str]]:
    """Return the columns in which jumps are looked for, and in words how they were chosen."""
    names, count = scores.names, max(count, 0)
    if count >= len(names):
        return list(range(len(names))), []
    strong = strongest(scores, count - count // 2)
    magnitudes = scores.parts.magnitudes
    known = known_effects(scores, scores.checked, magnitudes)
    estimate = signed_estimates(scores, magnitudes)
    off = {column: abs(one.signed - estimate[column]) for column, one in known.items()}
    tolerance = _jump_tolerance(scores)
    wrong = [c for c in sorted(off, key=lambda c: -off[c]) if off[c] > tolerance]
    wrong = [column for column in wrong if column not in strong][: count // 2]
    taken = {*strong, *wrong}
    rest = [column for column in range(len(names)) if column not in taken]
    others = random.Random(seed).sample(rest, count - len(taken))
    chosen = [
        f"{words} ({name_list([names[column] for column in columns])})"
        for words, columns in (
            (f"the {len(strong)} strongest", strong),
            (f"the {len(wrong)} furthest from their exact effect", wrong),
            (f"{len(others)} drawn at random", others),
        )
        if columns
    ]
    said = f"jumps were looked for in {', '.join(chosen)}; jumps={len(names)} looks in all."
    return [*strong, *wrong, *others], [said]


def _of_function(
    scores: Attribution, function: GatedFunction, columns: list[int]
) -> tuple[Seen, dict[int, Jump]]:
    refuse_stationary(function, "clean")
    seen = Seen(function.names, None)
    seen.add(function)
    return seen, find_jumps(function, columns, _jump_tolerance(scores)) if columns else {}


def _of_model(
    scores: Attribution, model: Model, batch_size: int | None, cost: Cost, progress: bool | None
) -> tuple[Seen, float]:
    own = scores.selection()
    floor = None
    selection, note = _with_queries_and_keys(scores, model, own)
    with gated_again(scores, model, cost, selection=selection, batch_size=batch_size) as gated:
        seen = Seen(gated.table.names[: len(scores.names)], gated.table)
        seen.notes += [note] if note else []
        total = len(scores.scores) * 2
        with progress_bar("slopes in the clean run", total, show=progress) as cost.listener:
            for batch, function in gated:
                refuse_stationary(function, "clean")
                refuse_other_numbers(scores, batch.pairs, function.clean_value())
                if floor is None:
                    floor = float(function.noise(strongest(scores, NOISE_COMPONENTS)).mean())
                seen.add(function)
        cost.listener = None
    assert floor is not None
    return seen, floor


def _with_queries_and_keys(
    scores: Attribution, model: Model, own: Selection
) -> tuple[Selection, str]:
    """Add the queries and keys of every scored head; if that cannot be done, say why."""
    adapter = model.anatomy()
    groups = [g for g in own.expand(adapter, _any_length(own)).groups if g.positions is None]
    layers = {kind: {g.site.layer for g in groups if g.kind == kind} for kind in _ATTENDING}
    if not layers["head"]:
        return own, ""
    if "attn.q" in adapter.missing:
        return own, (
            f"saturated attention is not known for heads: {adapter.family.name} offers no "
            f"queries ({adapter.missing['attn.q']})."
        )
    reference: Reference = scores.reference or reference_from_dict(scores.provenance.reference)
    if isinstance(reference, Mean) and not reference.positional:
        return own, (
            "saturated attention is not known for heads: a mean over positions is no query. Use "
            "reference=hw.PositionalMean()."
        )
    for kind, select in (("query", queries), ("key", keys)):
        lacking = sorted(n for n in layers["head"] - layers[kind] if n is not None)
        own = own + select(layers=lacking) if lacking else own
    return own, ""


def _any_length(selection: Selection) -> int | None:
    """A length to expand a selection with, to see its kinds and layers; which is all the same."""
    return 1 if selection.needs_length else None


def _jumps_of_model(
    scores: Attribution, model: Model, columns: list[int], floor: float, cost: Cost
) -> tuple[dict[int, Jump], list[str]]:
    tolerance = _jump_tolerance(scores)
    if not columns:
        return {}, []
    if floor >= tolerance:
        return {}, [
            f"jumps were not looked for: rounding moves the metric by {floor:.2g}, more than the "
            f"{tolerance:.2g} that counts. Score in a wider dtype: dtype='float32' or 'float64'."
        ]
    with gated_again(scores, model, cost, batch_size=JUMP_PAIRS) as gated:
        _, function = next(iter(gated))
        return find_jumps(function, columns, tolerance, GAP_NOISE * floor), []


def _jump_tolerance(scores: Attribution) -> float:
    whole = scores.parts.whole_effect
    return JUMP_SHARE * (whole if whole > 0 else float(scores.mean().abs().max()) or 1.0)


def _made(
    scores: Attribution,
    seen: Seen,
    floor: float | None,
    jumps: dict[int, Jump],
    notes: Sequence[str],
    cost: str,
) -> Diagnosis:
    whole, tolerance = scores.parts.whole_effect, _jump_tolerance(scores)
    mean = scores.mean().double().tolist()
    output = output_flag(output_saturation(scores))
    findings = []
    for column, name in enumerate(scores.names):
        jump = jumps.get(column)
        numbers = seen.of(column)
        found = Finding(
            name,
            score=mean[column],
            jump=None if jump is None or not jump.decided else jump.size,
            jump_at=None if jump is None or not jump.decided else jump.gate,
            **numbers,
        )
        flags = flags_of(found, whole, floor, tolerance)
        findings.append(replace(found, flags=(*flags, output) if output else flags))
    undecided = [scores.names[column] for column, jump in jumps.items() if not jump.decided]
    if undecided:
        notes = [
            *notes,
            f"whether the metric jumps is undecided for {', '.join(undecided)}: its slopes close "
            "on no piece that was tried.",
        ]
    return Diagnosis(
        findings=tuple(findings),
        whole=whole,
        noise_floor=floor,
        jumps_in=tuple(scores.names[column] for column in jumps),
        jump_pairs=min(JUMP_PAIRS, len(scores.scores)) if jumps else 0,
        jump_tolerance=tolerance,
        notes=tuple(notes),
        cost=cost,
    )
