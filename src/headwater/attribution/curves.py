"""Compute response curves: one gate at a time, from open to closed, on every pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headwater.attribution.curve import Curve
from headwater.audits.again import estimator_of, gated_again, model_of, refuse_other_numbers
from headwater.errors import (
    NonFiniteError,
    UnknownComponentError,
    UnknownOptionError,
    did_you_mean,
)
from headwater.estimators.quadrature import Rule
from headwater.gates import Cost, GatedFunction, Move
from headwater.models import Model
from headwater.progress import progress_bar

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


def curves_of(
    scores: Attribution,
    names: Sequence[str],
    *,
    points: int = 33,
    steps: int = 8,
    model: Model | GatedFunction | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> list[Curve]:
    """Return the response curves of components, each gate alone.

    Costs about half a forward a point and pair for each component, and half a forward-backward a
    step.

    Args:
        scores: The result whose model, task, metric and reference are used.
        names: Components of it.
        points: Gate values at which the metric is taken, both ends among them.
        steps: Gauss-Legendre points at which slopes are taken.
        model: Needed when the result no longer has its model.
        batch_size: Most pairs in a forward; by default as in the scores.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        UnknownComponentError: If a component was not scored.
        UnknownOptionError: If points or steps are too few.
        ModelGoneError: If the model is gone and none was given.
        NonFiniteError: If the metric or a slope is NaN or infinite on the way.
        ResultError: If the model given is not the one the scores came from.
    """
    if points < 2 or steps < 1:
        raise UnknownOptionError(
            f"points={points}, steps={steps}: a curve needs at least both ends and one slope.\n"
            "Type points=33, steps=8."
        )
    columns = [_column(scores, name) for name in names]
    rule = Rule.of("gauss", steps)
    plan = _Plan(columns, torch.linspace(0, 1, points).tolist(), rule)
    model = model_of(scores, model, "scores.curve(name, model=function)")
    end = estimator_of(scores).end
    if isinstance(model, GatedFunction):
        function = model.at(end)
        with function.counting():
            plan.add(range(len(scores.scores)), function)
        return plan.curves(scores, len(scores.scores))
    cost = Cost()
    with gated_again(scores, model, cost, batch_size=batch_size) as gated:
        shares = gated.shares()
        each = sum(shares[column] for column in columns) * (points + steps)
        title = f"response curves of {len(columns):,} components"
        with progress_bar(title, len(scores.scores) * (2 + each), show=progress) as cost.listener:
            for batch, function in gated:
                refuse_other_numbers(scores, batch.pairs, function.clean_value())
                plan.add(batch.pairs, function.at(end))
        cost.listener = None
    return plan.curves(scores, len(scores.scores))


def _column(scores: Attribution, name: str) -> int:
    if name not in scores.names:
        raise UnknownComponentError(
            f"no component {name!r} among the {len(scores.names)} scored here."
            f"{did_you_mean(name, scores.names)}\nAll names: `scores.names`."
        )
    return scores.names.index(name)


class _Plan:
    """The same gate values of the same components on batch after batch."""

    def __init__(self, columns: Sequence[int], gates: Sequence[float], rule: Rule) -> None:
        self.columns, self.gates, self.rule = columns, gates, rule
        self.base = 1.0
        self._rows: list[int] = []
        self._parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {c: [] for c in columns}

    def add(self, rows: Sequence[int], function: GatedFunction) -> None:
        """Run one batch."""
        self.base = function.base
        self._rows += rows
        at_gates = [Move((c,), abs(self.base - g)) for c in self.columns for g in self.gates]
        values = function.moved(at_gates).unflatten(0, (len(self.columns), -1))
        # the first slope is taken at rest
        places = [0.0, *(abs(self.base - point) for point in self.rule.points)]
        slopes = function.slopes([Move((c,), place) for c in self.columns for place in places])
        for i, column in enumerate(self.columns):
            own = slopes[i * len(places) : (i + 1) * len(places)]
            taken = torch.stack([slope.gradient[:, 0] for slope in own], 1).double().cpu()
            self._parts[column].append((values[i].T.double().cpu(), taken[:, 0], taken[:, 1:]))

    def curves(self, scores: Attribution, pairs: int) -> list[Curve]:
        """Return one curve a component, its rows in the order of the pairs."""
        metric = "f" if scores.task is None else scores.task.metric.name
        curves = []
        for column in self.columns:
            values, tangent, slopes = (
                self._by_pair(torch.cat(part), pairs)
                for part in zip(*self._parts[column], strict=True)
            )
            if not all(bool(part.isfinite().all()) for part in (values, tangent, slopes)):
                raise NonFiniteError(
                    f"the metric or its slope is NaN or infinite on the way of "
                    f"{scores.names[column]} from open to closed.\n"
                    "Run in a wider dtype (dtype='float32'), or leave this component out."
                )
            curves.append(
                Curve(
                    name=scores.names[column],
                    metric=metric,
                    rest=self.base,
                    gates=torch.tensor(self.gates, dtype=torch.float64),
                    values=values,
                    tangent=tangent,
                    nodes=torch.tensor(self.rule.points, dtype=torch.float64),
                    weights=torch.tensor(self.rule.weights, dtype=torch.float64),
                    slopes=slopes,
                )
            )
        return curves

    def _by_pair(self, rows: Tensor, pairs: int) -> Tensor:
        """Return rows in the order of the pairs, averaged over the draws of their off values."""
        total = rows.new_zeros(pairs, *rows.shape[1:])
        total.index_add_(0, torch.tensor(self._rows), rows)
        return total * (pairs / len(rows))
