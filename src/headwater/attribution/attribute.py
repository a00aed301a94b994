"""Score every component of a model on a task: the main verb."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from headwater.attribution import folders
from headwater.attribution.checks import (
    refuse_arguments,
    refuse_exact,
    refuse_given,
    refuse_modes,
)
from headwater.attribution.collected import Collected
from headwater.attribution.manifest import Provenance, describe_model, planned
from headwater.attribution.result import Attribution
from headwater.attribution.scores import Scores
from headwater.components import Selection
from headwater.errors import NonFiniteError, UnknownOptionError
from headwater.estimators import Estimator, Gradient
from headwater.gates import Cost, GatedFunction, GatedTask
from headwater.metrics import Metric
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Task
from headwater.references import Corrupted, Reference


def attribute(
    model: Model | GatedFunction,
    task: Task | None = None,
    components: Selection | None = None,
    estimator: Estimator | None = None,
    *,
    reference: Reference | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    batch_size: int = 32,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
    tolerance: float | None = None,
    confidence: float = 0.9,
    budget: int | None = None,
) -> Attribution:
    """Estimate how much the metric falls when each component is switched off.

    The effect of component `i` is `f(1) - f(1 - e_i)`, where `f(m)` is the metric with gates `m`:
    positive means that the component supports the behavior.

    Args:
        model: A model from `hw.load` or `hw.wrap`, or any `hw.GatedFunction` (then `task`,
            `components` and `reference` are left out).
        task: Prompt pairs and metric.
        components: What to score, for example `hw.heads() + hw.mlps(layers=range(4))`.
        estimator: How to estimate; `hw.Exact()` is the definition, `hw.Gradient()` (the default)
            is cheaper and can be wrong: `.audit()` says how wrong.
        reference: What a closed component is set to; `hw.Corrupted()` by default.
        metric: Replaces the task's metric.
        batch_size: Most pairs in one forward.
        dtype: Compute in this dtype, on a converted copy of the model; `"float64"` is true
            float64, without the down-casts inside Hugging Face modules.
        device: Compute on this device, on a copy.
        seed: Seeds whatever draws random numbers while scoring.
        progress: True, False, or None to show a bar only on a terminal.
        out: Folder to save the result in; refused before anything is computed if it cannot take
            this run.
        tolerance: Half width, in units of the metric, that every error bar is to have at most:
            exact runs are spent on an audit and then on the widest, until all are short enough or
            `budget` ends. `scores.error_bars()` holds them. None: no error bars.
        confidence: Of the error bars.
        budget: Most exact runs for the error bars; None spends what it takes.

    Returns:
        One score a pair and component, with sizes, metric values, cost and provenance.

    Raises:
        UnsupportedModelError: If the model has no adapter, or lacks a selected component.
        ModelStateError: If dropout, autocast or inference mode is active.
        RunFolderError: If `out` cannot take this run.
        PromptError: If a gated function is given with a task, components or a reference.
        MissingFieldError: If the metric or reference needs a field that the task lacks.
        NonFiniteError: If a metric value or score is NaN or infinite.

    Example:
        >>> import headwater as hw
        >>> scores = hw.attribute(hw.load("tiny"), hw.task("ioi")[:8], hw.heads(), hw.Exact())
        >>> len(scores.top(3))
        3
    """
    estimator = Gradient() if estimator is None else estimator
    aim = None
    if tolerance is not None:
        refuse_exact(estimator)
        aim = _Aim(tolerance, confidence, budget, seed, progress)
    elif budget is not None:
        raise UnknownOptionError(
            "budget= is of the error bars that tolerance= asks for.\nAdd for example tolerance=0.1."
        )
    if isinstance(model, GatedFunction):
        refuse_arguments(estimator=estimator)
        refuse_given(
            "a gated function has its own: hw.attribute(function, estimator=hw.Gradient())",
            task=task,
            components=components,
            reference=reference,
            metric=metric,
            dtype=dtype,
            device=device,
        )
        result = _of_function(model, estimator, seed, out)
    else:
        refuse_arguments(
            model=model, task=task, components=components, estimator=estimator, reference=reference
        )
        assert task is not None
        assert components is not None
        refuse_modes()
        runner = model
        if dtype is not None or device is not None:
            runner = model.to(dtype=dtype, device=device)
        task = task if metric is None else task.with_metric(metric)
        reference = Corrupted() if reference is None else reference.anew()
        result = _of_model(
            runner,
            task,
            components,
            estimator,
            reference,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            out=out,
            owner=None if runner is model else runner,
        )
    if out is not None:
        result.save(out)
    if aim is not None:
        with result.kept_in(out):
            aim.tighten(result)
    return result


def _of_model(
    model: Model,
    task: Task,
    components: Selection,
    estimator: Estimator,
    reference: Reference,
    *,
    batch_size: int,
    seed: int,
    progress: bool | None,
    out: str | Path | None,
    owner: Model | None,
) -> Attribution:
    provenance = Provenance(
        model=describe_model(model),
        estimator=estimator.to_dict(),
        reference=reference.to_dict(),
        components=components.to_list(),
        batch_size=batch_size,
        seed=seed,
    )
    if out is not None:
        folders.claim(Path(out), planned(provenance, task))
    scores, reference = _score(
        model, task, components, estimator, reference, provenance, progress, out
    )
    return Attribution(
        scores=scores,
        provenance=provenance,
        task=task,
        model=model,
        owner=owner,
        reference=reference,
        selection=components,
    )


class _Aim:
    """How short error bars are to be, and what may be spent on them."""

    def __init__(
        self,
        tolerance: float,
        confidence: float,
        budget: int | None,
        seed: int,
        progress: bool | None,
    ) -> None:
        from headwater.audits import adaptive  # a peer on this floor that reads results

        adaptive.refuse_aim(tolerance, confidence, budget)
        self.tighten = partial(
            adaptive.tighten,
            tolerance=tolerance,
            confidence=confidence,
            budget=budget,
            seed=seed,
            progress=progress,
        )


def _score(
    model: Model,
    task: Task,
    components: Selection,
    estimator: Estimator,
    reference: Reference,
    provenance: Provenance,
    progress: bool | None,
    out: str | Path | None,
) -> tuple[Scores, Reference]:
    cost = Cost()
    started = time.perf_counter()
    with model.frozen(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(provenance.seed)
        gated = GatedTask(
            model, task, components, reference, batch_size=provenance.batch_size, cost=cost
        )
        if gated.reference is not reference:
            # only now that its prompts have been streamed is it known which they were
            provenance.reference = gated.reference.to_dict()
            if out is not None:
                folders.claim(Path(out), planned(provenance, task))
        collected = Collected(gated, dtype=torch.promote_types(model.dtype, torch.float))
        fitted = estimator.fitted(_Batches(gated, estimator), progress=progress)
        total = len(task.pairs) * gated.draws * (1 + fitted.forwards(gated.families()))
        title = f"{estimator.name} over {len(gated.table):,} components"
        with progress_bar(title, total, show=progress) as cost.listener:
            for batch, function in gated:
                estimator.check(function)
                function = function.at(estimator.end)
                if estimator.uses_slopes:
                    collected.note(function.doubt)
                collected.add(batch, function, fitted.estimate(function))
    cost.listener, cost.seconds = None, time.perf_counter() - started
    scores = replace(
        collected.scores(), magnitudes=estimator.magnitudes, off_values=gated.reference.tensors()
    )
    _refuse_non_finite(scores.values, gated.table.names)
    return scores, gated.reference


class _Batches:
    """Every batch as a gated function, made anew each time it is iterated over."""

    def __init__(self, gated: GatedTask, estimator: Estimator) -> None:
        self._gated, self._estimator = gated, estimator

    def __len__(self) -> int:
        return len(self._gated.batches) * self._gated.draws

    def __iter__(self) -> Iterator[GatedFunction]:
        for _, function in self._gated:
            self._estimator.check(function)
            yield function.at(self._estimator.end)


def _of_function(
    function: GatedFunction, estimator: Estimator, seed: int, out: str | Path | None
) -> Attribution:
    estimator.check(function)
    provenance = Provenance(
        model={"name": "gated function"},
        estimator=estimator.to_dict(),
        reference={"name": "the gated function's own"},
        components=[{"names": list(function.names)}],
        batch_size=function.batch,
        seed=seed,
    )
    if out is not None:
        folders.claim(Path(out), planned(provenance, None))
    seen = function.at(estimator.end)
    started = time.perf_counter()
    with seen.counting() as cost:
        found = estimator.fitted([seen]).estimate(seen)
        clean = seen.at("clean").value()
    cost.seconds = time.perf_counter() - started
    values = found.scores.detach()
    _refuse_non_finite(values, function.names)
    return Attribution(
        scores=Scores(
            components=tuple(function.names),
            values=values,
            clean=clean,
            corrupted=None,
            sizes=None,
            cost=cost,
            is_cut=False,
            tokens=(),
            errors=None if found.errors is None else found.errors.detach(),
            gaps=None if found.gaps is None else found.gaps.values.detach(),
            gap_names=() if found.gaps is None else found.gaps.names,
            notes=found.notes,
            exact=frozenset(found.exact),
            magnitudes=estimator.magnitudes,
            circuit=found.circuit,
        ),
        provenance=provenance,
        task=None,
        model=function,
        owner=function,
        reference=None,
    )


def _refuse_non_finite(scores: Tensor, names: Sequence[str]) -> None:
    bad: list[int] = (~torch.isfinite(scores)).any(0).nonzero().flatten().tolist()
    if bad:
        listed = ", ".join(names[i] for i in bad[:8])
        raise NonFiniteError(
            f"{len(bad)} of {len(names)} scores are NaN or infinite: {listed}"
            f"{' and others' if len(bad) > 8 else ''}.\nRun in a wider dtype: dtype='float32'."
        )
