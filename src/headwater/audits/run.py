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
        sample: Components to check; at least as many as there are checks all of them.
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
    estimator, started = estimator_of(scores), time.perf_counter()
    with interventions(
        scores,
        model,
        batch_size=batch_size,
        progress=progress,
        dtype=dtype,
        device=device,
        hold=False,
    ) as exact:
        strongest = scores.mean().abs().argsort(descending=True)[:NOISE_COMPONENTS].tolist()
        floor = exact.noise_floor(strongest)
        measuring = exact.cost.forwards / max(exact.cost.pairs, 1)

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
            gaps=scores.gaps(),
        )
    exact.cost.seconds = time.perf_counter() - started
    if isinstance(model, Model):
        noise = f"{measuring:.3g} of the forwards measured the noise floor"
        checked = checked.with_cost(f"{exact.cost}; {noise}")
    checked = _repeated(checked) if scores.is_exact else about_estimand(checked, estimator)
    checked = noted(checked, flag_words(scores))
    scores.checked = checked.of(scores)
    return checked.of(scores, weakly=False)


def _whole_effect(scores: Attribution, exact: Interventions) -> Float[Tensor, " pair"] | None:
    """Return f(1) - f(0) on each pair, all gates closed at once; None where it is no cut."""
    if not scores.parts.is_cut:
        return None
    everything = tuple(range(len(scores.names)))
    lost = exact.runs([everything], "the whole effect")
    return torch.from_numpy(lost[everything])


def _repeated(checked: Audit) -> Audit:
    """Say of exact effects what an audit of them is: the same runs once more."""
    largest = max((abs(row.error) for row in checked.rows), default=0.0)
    counts = checked.counts
    floor = "" if counts.noise_floor is None else f" (noise floor {counts.noise_floor:.2g})"
    return replace(
        checked,
        sentence=f"{counts.checked:,} of {counts.components:,} exact effects run again: the "
        f"largest difference is {largest:.2g}{floor}.",
        verdict="These are exact effects, by intervention: there is no estimate to doubt.",
        figures=tuple(replace(figure, low=None, high=None) for figure in checked.figures),
    )
