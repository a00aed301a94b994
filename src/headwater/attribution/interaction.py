"""How much two components matter together beyond what each does alone, by intervention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.checks import refuse_arguments, refuse_given, refuse_modes
from headwater.attribution.result import Attribution
from headwater.audits.again import gated_again, model_of, refuse_other_numbers
from headwater.components import Selection
from headwater.errors import GateError, UnknownComponentError, did_you_mean
from headwater.gates import Averages, Cost, GatedFunction, GatedTask, Move
from headwater.metrics import Metric
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Corrupted, Reference


@dataclass(frozen=True, eq=False)
class Interaction:
    """The interaction of two components on every pair, and the three effects it is made of.

    Every number is exact, by intervention.
    """

    a: str
    b: str
    values: Float[Tensor, " pair"]
    """`f(1) - f(1 - e_a) - f(1 - e_b) + f(1 - e_a - e_b)` on each pair."""
    effect_a: Float[Tensor, " pair"]
    """`f(1) - f(1 - e_a)`: a alone."""
    effect_b: Float[Tensor, " pair"]
    """`f(1) - f(1 - e_b)`: b alone."""
    effect_both: Float[Tensor, " pair"]
    """`f(1) - f(1 - e_a - e_b)`: both together."""

    @property
    def mean(self) -> float:
        """Mean over pairs. Above 0: they work together; below 0: each does the other's work."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over pairs; None for one pair."""
        count = len(self.values)
        return None if count < 2 else float(self.values.std()) / math.sqrt(count)

    def __repr__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2g}"
        kind = "they work together" if self.mean > 0 else "they stand in for each other"
        return (
            f"Interaction of {self.a} and {self.b}: {self.mean:+.4g}{error} over "
            f"{len(self.values)} pairs{f' ({kind})' if self.mean else ''}\n"
            f"alone {float(self.effect_a.mean()):+.4g} and {float(self.effect_b.mean()):+.4g}, "
            f"together {float(self.effect_both.mean()):+.4g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the means as plain data."""
        return {
            "a": self.a,
            "b": self.b,
            "mean": self.mean,
            "standard_error": self.standard_error,
            "effect_a": float(self.effect_a.mean()),
            "effect_b": float(self.effect_b.mean()),
            "effect_both": float(self.effect_both.mean()),
            "pairs": len(self.values),
        }


def interaction(
    model: Model | GatedFunction | Attribution,
    task: Task | None = None,
    a: str = "",
    b: str = "",
    *,
    reference: Reference | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    batch_size: int = 32,
) -> Interaction:
    """Measure by intervention how much two components matter together beyond each alone.

    The interaction is `f(1) - f(1 - e_a) - f(1 - e_b) + f(1 - e_a - e_b)`: the effect of a minus
    its effect with b closed. Of two components that are both needed (AND) it is positive, of two
    that replace each other (OR) negative, and 0 where effects add up. Costs four forwards a pair.

    Args:
        model: A model, a gated function, or the result of `hw.attribute`: then its model, task,
            metric, reference and batch size are used.
        task: Prompt pairs and metric; only for a model.
        a: A component's name, such as `"a3.h5"`; a feature's, `"m3.f77"`, only of a result.
        b: Another's.
        reference: What a closed component is set to; `hw.Corrupted()` by default.
        metric: Replaces the task's metric; a gated function has its own.
        batch_size: Most pairs in one forward.

    Returns:
        The interaction on each pair, its mean and standard error, and the effects.

    Raises:
        UnknownComponentError: If there is no such component.
        NestedComponentsError: If one lies inside the other.
        GateError: If a and b are the same component, or one is a feature and no result is given.
        ModelGoneError: If a result's model is no longer there; give model, task and reference.
        ResultError: If a result's model has changed since.

    Example:
        >>> import headwater as hw
        >>> found = hw.interaction(hw.load("tiny"), hw.task("ioi")[:8], "a0.h0", "a3.h1")
        >>> len(found.values)
        8
    """
    if a == b:
        said = f"a={a!r} and b={b!r} are" if a else "a and b are missing:"
        raise GateError(
            f"{said} not two components.\n"
            'Name two, for example hw.interaction(model, task, "a0.h1", "m2").'
        )
    if isinstance(model, Attribution):
        refuse_given(_OWN, task=task, reference=reference, metric=metric)
        return _of_result(model, a, b)
    if isinstance(model, GatedFunction):
        refuse_given(_OWN, task=task, reference=reference, metric=metric)
        return _of_function(model, a, b)
    refuse_arguments(model=model, task=task, reference=reference)
    assert task is not None
    refuse_modes()
    task = task if metric is None else task.with_metric(metric)
    reference = Corrupted() if reference is None else reference.anew()
    with model.frozen():
        both = Selection(()).holding((a, b))
        gated = GatedTask(model, task, both, reference, batch_size=batch_size)
        return _of_task(gated, a, b)


_OWN = (
    "a result or a gated function has its own.\n"
    'Write hw.interaction(scores, a="a0.h1", b="m2"), or give the model instead'
)


def _of_result(scores: Attribution, a: str, b: str) -> Interaction:
    """Use a result's model, if it still is the one that was scored."""
    model = model_of(scores, None, "hw.interaction(function, a=..., b=...)")
    if isinstance(model, GatedFunction):
        return _of_function(model, a, b)
    both = scores.selection().holding((a, b))
    with gated_again(scores, model, Cost(), selection=both) as gated:
        return _of_task(gated, a, b, scores)


def _of_function(function: GatedFunction, a: str, b: str) -> Interaction:
    function = function.at("clean")
    with function.counting():
        return _made(a, b, _settings(function, function.names, a, b))


def _of_task(gated: GatedTask, a: str, b: str, scores: Attribution | None = None) -> Interaction:
    values = Averages(len(gated.task.pairs))
    for batch, function in gated:
        if scores is not None:
            refuse_other_numbers(scores, batch.pairs, function.clean_value())
        values.add(batch, _settings(function, gated.table.names, a, b).T)
    return _made(a, b, values.mean().T)


def _made(a: str, b: str, values: Float[Tensor, "four pair"]) -> Interaction:
    whole, without_a, without_b, without_both = values
    return Interaction(
        a,
        b,
        values=whole - without_a - without_b + without_both,
        effect_a=whole - without_a,
        effect_b=whole - without_b,
        effect_both=whole - without_both,
    )


def _settings(
    function: GatedFunction, names: Sequence[str], a: str, b: str
) -> Float[Tensor, "four batch"]:
    """Return the metric with nothing, a, b and both closed."""
    columns = []
    for name in (a, b):
        if name not in names:
            raise UnknownComponentError(
                f"no component {name!r} here.{did_you_mean(name, names)}\n"
                f"There are {len(names):,}, from {names[0]} to {names[-1]}."
            )
        columns.append(list(names).index(name))
    first, second = columns
    moves = [Move((first,), 1.0), Move((second,), 1.0), Move((first, second), 1.0)]
    return torch.cat([function.value()[None], function.moved(moves)])
