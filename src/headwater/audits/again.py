"""A result's model, estimator and gates once more, as it was scored with them.

Everything that runs the model for a result that is there already (audits, bounds, diagnoses,
curves) starts here, so that all of it sees the same prompts, components and off values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.components import Selection
from headwater.errors import ModelGoneError, ResultError
from headwater.estimators import ESTIMATORS, Estimator
from headwater.fingerprints import differing
from headwater.gates import Cost, GatedFunction, GatedTask
from headwater.models import Model
from headwater.references import reference_from_dict

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

DRIFT = 1000.0
"""Roundings by which the clean metric may differ from the scored one (batch shapes do)."""


def estimator_of(scores: Attribution) -> Estimator:
    """Return the estimator that made these scores."""
    return estimator_from(scores.provenance.estimator)


def estimator_from(data: Mapping[str, Any]) -> Estimator:
    """Return the estimator that `to_dict` described in a result."""
    options = dict(data)
    name = str(options.pop("name"))
    if name not in ESTIMATORS:
        raise ResultError(
            f"the scores came from an estimator {name!r} that headwater does not know, so what to "
            f"compare them with is not known.\nKnown: {', '.join(ESTIMATORS)}."
        )
    return ESTIMATORS[name](**options)


def model_of(
    scores: Attribution, model: Model | GatedFunction | None, advice: str
) -> Model | GatedFunction:
    """Return what a result was scored on: the model given, else its own.

    Args:
        scores: The result.
        model: The model again, where the result no longer has it.
        advice: What to type if the scores came from a gated function and a model was given.

    Raises:
        ModelGoneError: If the model is gone and none was given, or one of the wrong sort.
        ResultError: If the model given is not the one the scores came from.
    """
    model = scores.model if model is None else model
    if isinstance(model, GatedFunction):
        return model
    if scores.task is None:
        raise ModelGoneError(f"these scores came from a gated function; pass it: {advice}.")
    if model is not scores._owner:
        refuse_other_model(scores, model)
    return model


@contextmanager
def gated_again(
    scores: Attribution,
    model: Model,
    cost: Cost,
    *,
    selection: Selection | None = None,
    batch_size: int | None = None,
) -> Iterator[GatedTask]:
    """Yield a result's task with gates, as it was scored; the model is frozen meanwhile.

    Args:
        scores: The result of a model.
        model: That model.
        cost: Where passes are counted.
        selection: Other components than the scored ones.
        batch_size: Most pairs in a batch; by default as in the scores.
    """
    assert scores.task is not None
    with model.frozen():
        yield GatedTask(
            model,
            scores.task,
            selection or scores.selection(),
            scores.reference or reference_from_dict(scores.provenance.reference),
            batch_size=batch_size or scores.provenance.batch_size,
            cost=cost,
        )


def refuse_other_model(scores: Attribution, model: Model) -> None:
    """Refuse a model whose weights or configuration are not those the scores came from.

    Raises:
        ResultError: Naming what differs.
    """
    there = scores.provenance.model
    if found := differing(there, model.fingerprint()):
        raise ResultError(
            f"the scores came from {there['name']!r}; {model.name!r} differs from it in "
            f"{', '.join(found)}.\nLoad the model the scores came from, or attribute again."
        )


def refuse_other_numbers(
    scores: Attribution, pairs: Sequence[int], clean: Float[Tensor, " batch"]
) -> None:
    """Refuse to audit a model that gives other clean metrics than the scored one did.

    Hashes do not see hooks, switched adapters or edits through `.data`; the metric does.

    Raises:
        ResultError: Naming a pair with both values.
    """
    then = scores.parts.clean[list(pairs)].double()
    now = clean.detach().cpu().double()
    dtype = getattr(torch, str(scores.provenance.model["dtype"]))
    eps = max(torch.finfo(dtype).eps, torch.finfo(clean.dtype).eps)
    allowed = min(DRIFT * eps, 0.1) * float(scores.parts.clean.abs().max())
    drift = (now - then).abs()
    if bool((drift > allowed).any()):
        row = int(drift.argmax())
        raise ResultError(
            f"the clean metric of pair {pairs[row]} was {float(then[row]):.6g} when scored and is "
            f"{float(now[row]):.6g} now: this is not the model that was scored (an adapter "
            "switched, a hook added, weights edited, another dtype?).\n"
            "Attribute again, then audit."
        )
