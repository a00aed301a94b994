"""Audit a result: exact effects for a sample of its components, on the same gates.

Effects that were found before (by an audit, `hw.verify`, error bars) are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.flags import flag_words
from headwater.audits.again import estimator_of, model_of
from headwater.audits.compare import audit_scores
from headwater.audits.diagnosis import noted
from headwater.audits.estimands import about_estimand
from headwater.audits.interventions import Interventions, interventions
from headwater.audits.report import Audit
from headwater.gates import GatedFunction
from headwater.models import Model

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

NOISE_COMPONENTS = 3
"""Components, the strongest ones, on which the noise floor is measured."""


def audit(
    scores: Attribution,
    *,
    model: Model | GatedFunction | None = None,
    sample: int = 32,
    seed: int = 0,
    top: int = 10,
    confidence: float = 0.95,
    batch_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Audit:
    """Compare a sample of the scores with the exact effects they estimate.

    The sample is stratified over the top, middle and tail of the estimate. Each sampled component
    is switched off alone (or added alone, for estimates at the corrupted end) on every pair, with
    the reference of the estimate.

    Args:
        scores: The result of `hw.attribute`, or one read back from a folder.
        model: Needed when the result no longer has its model.
        sample: Components to check; at least as many as there are checks all of them. All are used
            where every exact effect is known already.
        seed: The same seed draws the same sample.
        top: How many of the strongest count as "the top" for signs and recall.
        confidence: Of the intervals.
        batch_size: Most pairs in a forward; by default as in the estimate.
        dtype: Dtype of the exact effects, on a converted copy; `"float64"` is true float64.
        device: Where to compute, on a copy.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        The audit; it also becomes `scores.checked`.

    Raises:
        ModelGoneError: If the model is gone and none was given.
        ResultError: If the model given is not the one the scores came from.
    """
    model = model_of(scores, model, "hw.audit(scores, model=function)")
    started, picked = time.perf_counter(), _picked(scores)
    with interventions(
        scores,
        model,
        batch_size=batch_size,
        progress=progress,
        dtype=dtype,
        device=device,
        hold=False,
    ) as exact:
        if len(exact.ledger.alone()) == len(scores.names) and sample > 0:
            sample = len(scores.names)  # all is known: a sample of it would say less
        floor = noise_floor(scores, exact)
        measuring = exact.cost.forwards / max(exact.cost.pairs, 1)
        checked = judged(
            scores, exact, floor, sample=sample, seed=seed, top=top, confidence=confidence
        )
    exact.cost.seconds = time.perf_counter() - started
    if isinstance(model, Model):
        noise = f"{measuring:.3g} of the forwards measured the noise floor"
        checked = checked.with_cost(f"{exact.cost}; {noise}")
    checked, before = replace(checked, before=picked), scores.checked
    if before is not None and before.asked is not None:
        # what is asked of error bars holds on; the runs of this audit are beyond their budget
        checked = replace(checked, asked=replace(before.asked, budget=None))
    scores.checked = checked.of(scores)
    return checked.of(scores, weakly=False)


def _picked(scores: Attribution) -> tuple[str, ...]:
    """Return the components whose effects are known, but not because an audit drew them."""
    drawn = set() if scores.checked is None else {row.name for row in scores.checked.rows}
    names = scores.names
    return tuple(names[c] for c in sorted(scores.ledger.alone()) if names[c] not in drawn)


def judged(
    scores: Attribution,
    exact: Interventions,
    floor: float | None,
    *,
    sample: int,
    seed: int,
    top: int,
    confidence: float,
    are_truth: bool = False,
) -> Audit:
    """Hold scores against exact runs, and say in words how far they are apart.

    Args:
        scores: The result.
        exact: The exact runs, at the end of its estimator.
        floor: The noise floor there; None if it is not known.
        sample: Components to check.
        seed: Of the sample.
        top: How many count as the strongest.
        confidence: Of the intervals.
        are_truth: Whether the scores are themselves the exact effects that `exact` knows.
    """
    estimator = estimator_of(scores)

    def effects(columns: Sequence[int]) -> Float[Tensor, "pair index"]:
        title = f"exact effects of {len(columns):,} components"
        lost = exact.runs([(column,) for column in columns], title)
        return torch.from_numpy(np.stack(list(lost.values()), 1))

    checked = audit_scores(
        scores.names,
        scores.scores,
        effects,
        sample=sample,
        seed=seed,
        top=top,
        confidence=confidence,
        noise_floor=floor,
        total=_whole_effect(scores, exact),
        magnitudes=estimator.magnitudes,
        gaps=scores.gap_sizes(),
    )
    if scores.is_exact:
        checked = _without_doubt(checked, again=not are_truth)
    else:
        checked = about_estimand(checked, estimator)
    return noted(checked, flag_words(scores))


def noise_floor(scores: Attribution, exact: Interventions) -> float | None:
    """Return how far rounding moves the mean metric, seen at the strongest components.

    None for a gated function: how it rounds is not known.
    """
    if exact.table is None:
        return None
    strongest = scores.mean().abs().argsort(descending=True)[:NOISE_COMPONENTS].tolist()
    return exact.noise_floor(strongest)


def _whole_effect(scores: Attribution, exact: Interventions) -> Float[Tensor, " pair"] | None:
    """Return f(1) - f(0) on each pair, all gates closed at once; None where it is no cut."""
    if not scores.parts.is_cut:
        return None
    everything = tuple(range(len(scores.names)))
    lost = exact.runs([everything], "the whole effect")
    return torch.from_numpy(lost[everything])


def _without_doubt(checked: Audit, *, again: bool) -> Audit:
    """Say of exact effects what an audit of them is: no doubt, at most the same runs once more."""
    counts = checked.counts
    said = f"{counts.checked:,} of {counts.components:,} exact effects"
    if again:
        largest = max((abs(row.error) for row in checked.rows), default=0.0)
        floor = "" if counts.noise_floor is None else f" (noise floor {counts.noise_floor:.2g})"
        said += f" run again: the largest difference is {largest:.2g}{floor}."
    else:
        said += ": the other estimates are held against them."
    return replace(
        checked,
        agreement=said,
        verdict="These are exact effects, by intervention: there is no estimate to doubt.",
        figures=tuple(replace(figure, low=None, high=None) for figure in checked.figures),
    )
