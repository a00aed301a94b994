"""Several estimators on one task, side by side, against the same exact effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.attribution import attribute
from headwater.audits import comparison_folder
from headwater.audits.advice import advice
from headwater.audits.comparison_result import FIGURES, ComparedEstimator
from headwater.audits.comparison_result import Comparison as Comparison
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.interventions import interventions
from headwater.audits.ledger import Ledger
from headwater.audits.report import Audit
from headwater.audits.run import judged, noise_floor
from headwater.components import Selection
from headwater.errors import ResultError
from headwater.estimators import Estimator, Gradient
from headwater.gates import GatedFunction
from headwater.metrics import Metric
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Reference

if TYPE_CHECKING:
    from headwater.attribution import Attribution


def compare(
    model: Model | GatedFunction,
    task: Task | None = None,
    components: Selection | None = None,
    estimators: Sequence[Estimator] | Mapping[str, Estimator] = (),
    *,
    reference: Reference | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    sample: int | None = None,
    diagnosis: bool = True,
    top: int = 10,
    confidence: float = 0.95,
    batch_size: int = 32,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> Comparison:
    """Score the same components with several estimators, and hold each against exact effects.

    Each is audited as `scores.audit` does, at its own end of the path.

    Args:
        model: A model, or any gated function (then `task`, `components`, `reference` are left out).
        task: Prompt pairs and metric.
        components: What to score.
        estimators: A list, or by the names that rows are to have.
        reference: What a closed component is set to; `hw.Corrupted()` by default.
        metric: Replaces the task's metric.
        sample: Components to check exactly, drawn for each estimator as its audit draws them; None
            checks all. No exact run is made twice. With `hw.Exact()` among the estimators its
            scores are the exact effects of its end, and all are checked there at no cost.
        diagnosis: Whether to look for what a gradient cannot see here, if it is compared: a
            forward and backward, half a backward a layer, and a few runs for jumps.
        top: How many count as the strongest.
        confidence: Of the audits' intervals.
        batch_size: Most pairs in one forward.
        dtype: Compute in this dtype, on a converted copy of the model.
        device: Compute on this device, on a copy.
        seed: Seeds samples and estimators.
        progress: True, False, or None to show bars only on a terminal.
        out: Folder to save the comparison in; refused before anything is computed if it cannot
            take this one.

    Returns:
        One row an estimator, and in words which to use here and why.

    Raises:
        ResultError: If no estimator is given, or one twice.
        RunFolderError: If `out` cannot take this comparison.
    """
    named = _named(estimators)
    places = comparison_folder.run_folders(named)
    if out is not None:
        comparison_folder.claim(Path(out), {name: one.to_dict() for name, one in named.items()})
    if isinstance(model, Model) and (dtype is not None or device is not None):
        model = model.to(dtype=dtype, device=device)
    runs = {
        name: attribute(
            model,
            task,
            components,
            estimator,
            reference=reference,
            metric=metric,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            out=None if out is None else Path(out) / places[name],
        )
        for name, estimator in named.items()
    }
    for end in {estimator.end: None for estimator in named.values()}:
        _audit(
            {name: runs[name] for name, estimator in named.items() if estimator.end == end},
            model,
            sample=sample,
            seed=seed,
            top=top,
            confidence=confidence,
            progress=progress,
        )
    found = _diagnosis(named, runs, model) if diagnosis else None
    rows = tuple(_row(name, named[name], scores) for name, scores in runs.items())
    first = next(iter(runs.values()))
    components_in_all = len(first.names)
    comparison = Comparison(
        title=f"{first.subject()}, reference {first.provenance.reference['name']}",
        rows=rows,
        advice=advice(rows, runs, components_in_all, found),
        components=components_in_all,
        top=min(top, components_in_all),
        runs=runs,
    )
    if out is not None:
        comparison.save(out)
    return comparison


def _audit(
    runs: Mapping[str, Attribution],
    model: Model | GatedFunction,
    *,
    sample: int | None,
    seed: int,
    top: int,
    confidence: float,
    progress: bool | None,
) -> None:
    """Audit the scores of one end against the same exact runs, each of them made once.

    The noise floor is measured once, too: it is one of the end, not of the estimate.
    """
    truth = next((scores for scores in runs.values() if scores.is_exact), None)
    first = truth or next(iter(runs.values()))
    count = len(first.names)
    # apart from the ledger of the scores that open it: exact scores are no runs of their own
    known = Ledger() if truth is None else _effects_of(truth)
    with interventions(first, model, progress=progress, ledger=known) as exact:
        floor = noise_floor(first, exact)
        for scores in runs.values():
            scores.checked = judged(
                scores,
                exact,
                floor,
                sample=count if sample is None or truth is not None else sample,
                seed=seed,
                top=top,
                confidence=confidence,
                are_truth=scores is truth,
            ).of(scores)
    for scores in runs.values():
        if scores is not truth:
            scores.ledger.merge(known)


def _effects_of(truth: Attribution) -> Ledger:
    """Return exact scores as the runs that they are."""
    values = truth.scores.double().cpu().numpy()
    return Ledger({(column,): values[:, column] for column in range(values.shape[1])})


def _diagnosis(
    named: Mapping[str, Estimator],
    runs: Mapping[str, Attribution],
    model: Model | GatedFunction,
) -> Diagnosis | None:
    """Diagnose the gradient, if it was compared."""
    first = next((name for name, one in named.items() if one == Gradient()), None)
    return None if first is None else runs[first].diagnose(model=model, progress=False)


def _named(estimators: Sequence[Estimator] | Mapping[str, Estimator]) -> dict[str, Estimator]:
    if isinstance(estimators, Mapping):
        named = dict(estimators)
    else:
        names = [estimator.name for estimator in estimators]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ResultError(
                f"{names.count(twice[0])} estimators are called {twice[0]!r}, so their rows could "
                "not be told apart.\nName them: "
                'estimators={"ig 4": hw.IntegratedGradients(steps=4), ...}.'
            )
        named = dict(zip(names, estimators, strict=True))
    if not named:
        raise ResultError(
            "no estimator to compare.\nType estimators=[hw.Gradient(), hw.AtPStar(), hw.Exact()]."
        )
    return named


def _row(name: str, estimator: Estimator, scores: Attribution) -> ComparedEstimator:
    audit = scores.checked
    assert audit is not None
    cost, pairs = scores.cost, max(scores.cost.pairs, 1)
    return ComparedEstimator(
        name=name,
        kind=estimator.name,
        end=estimator.end,
        checked=audit.counts.checked,
        forwards=cost.forwards / pairs,
        backwards=cost.backwards / pairs,
        seconds=cost.seconds,
        figures={one: _figure(audit, one) for one in FIGURES},
        estimand=estimator.estimand,
        verdict=audit.verdict,
        note=" ".join(scores.parts.notes[:3]),
    )


def _figure(audit: Audit, name: str) -> float | None:
    found = audit.recall if name == "recall" else audit.statistic(name)
    return found.value
