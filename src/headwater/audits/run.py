"""Audit a result: exact effects for a sample of its components, on the same gates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.flags import flag_words
from headwater.audits.again import estimator_of, gated_again, model_of, refuse_other_numbers
from headwater.audits.compare import audit_scores
from headwater.audits.diagnosis import noted
from headwater.audits.estimands import about_estimand
from headwater.audits.report import Audit
from headwater.gates import Averages, Cost, End, GatedFunction, GatedTask
from headwater.models import Model
from headwater.progress import progress_bar

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
    if isinstance(model, GatedFunction):
        checked = _audit_function(scores, model, sample, seed, top, confidence)
    else:
        if dtype is not None or device is not None:
            model = model.to(dtype=dtype, device=device)
        checked = _audit_model(scores, model, sample, seed, top, confidence, batch_size, progress)
    if scores.is_exact:
        checked = _repeated(checked)
    else:
        checked = about_estimand(checked, estimator_of(scores))
    checked = noted(checked, flag_words(scores))
    scores.checked = checked.of(scores)
    return checked.of(scores, weakly=False)


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


def _audit_function(
    scores: Attribution,
    function: GatedFunction,
    sample: int,
    seed: int,
    top: int,
    confidence: float,
) -> Audit:
    end = estimator_of(scores).end
    moved = function.at(end)
    return audit_scores(
        scores.names,
        scores.scores,
        lambda columns: moved.effects(columns).T.to(scores.scores),
        sample=sample,
        seed=seed,
        top=top,
        confidence=confidence,
        magnitudes=estimator_of(scores).magnitudes,
        gaps=scores.gaps(),
    )


def _audit_model(
    scores: Attribution,
    model: Model,
    sample: int,
    seed: int,
    top: int,
    confidence: float,
    batch_size: int | None,
    progress: bool | None,
) -> Audit:
    cost = Cost()
    started = time.perf_counter()
    with gated_again(scores, model, cost, batch_size=batch_size) as gated:
        runner = _ExactRuns(gated, scores, progress)
        strongest = scores.mean().abs().argsort(descending=True)[:NOISE_COMPONENTS].tolist()
        before = cost.forwards
        floor = runner.noise_floor(strongest)
        spent = (cost.forwards - before) / max(cost.pairs, 1)
        checked = audit_scores(
            scores.names,
            scores.scores,
            runner.effects,
            sample=sample,
            seed=seed,
            top=top,
            confidence=confidence,
            noise_floor=floor,
            total=runner.total() if scores.parts.is_cut else None,
            magnitudes=estimator_of(scores).magnitudes,
            gaps=scores.gaps(),
        )
    cost.seconds = time.perf_counter() - started
    return checked.with_cost(f"{cost}; {spent:.3g} of the forwards measured the noise floor")


class _ExactRuns:
    """Exact effects over a whole task, in the order of its pairs."""

    def __init__(self, gated: GatedTask, scores: Attribution, progress: bool | None) -> None:
        self.gated, self.scores, self.progress = gated, scores, progress
        self.end: End = estimator_of(scores).end

    def effects(self, columns: Sequence[int]) -> Float[Tensor, "pair index"]:
        """Return the exact effect of each column on each pair."""
        pairs = len(self.gated.task.pairs)
        shares = self.gated.shares()
        total = pairs * self.gated.draws * (2 + sum(shares[column] for column in columns))
        effects = Averages(pairs)
        title = f"exact effects of {len(columns):,} components"
        with progress_bar(title, total, show=self.progress) as self.gated.cost.listener:
            for batch, function in self.gated:
                function = function.at(self.end)
                part = function.effects(columns).T
                refuse_other_numbers(self.scores, batch.pairs, function.clean_value())
                effects.add(batch, part)
        self.gated.cost.listener = None
        return effects.mean()

    def noise_floor(self, columns: Sequence[int]) -> float:
        """Return how far rounding moves the metric's mean over the first batch's pairs."""
        _, function = next(iter(self.gated))
        return float(function.at(self.end).noise(columns).mean())

    def total(self) -> Float[Tensor, " pair"]:
        """Return f(1) - f(0) on each pair: every gate closed at once."""
        total = Averages(len(self.gated.task.pairs))
        for batch, function in self.gated:
            closed = torch.zeros_like(function.gates())
            total.add(batch, function.value() - function(closed)[0])
        return total.mean()
