"""What clean runs showed of each component's slope: gradients, saturated rows, dropped layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwater.audits.saturation import counted_rows, missed, row_share, saturated_rows
from headwater.components import ComponentTable
from headwater.estimators import Gradient
from headwater.estimators.attention_fix import Fixed
from headwater.gates import ATTENTION, DROPS, GatedFunction, Linearized


class Seen:
    """Sums over the pairs seen so far.

    Args:
        names: The components of the scores, the first ones of the table.
        table: All components with gates; None for a gated function.
    """

    def __init__(self, names: Sequence[str], table: ComponentTable | None) -> None:
        self.names, self.table = names, table
        self.pairs = 0
        self.notes: list[str] = []
        count = len(names) if table is None else len(table)
        self._gradient, self._magnitude, self._uncancelled = torch.zeros(
            3, count, dtype=torch.float64
        )
        self._missed, self._softened, self._computed = torch.zeros(3, count, dtype=torch.float64)
        self._rows = torch.zeros(2, count, dtype=torch.float64)  # saturated, counted
        self._attention, self._unsloped = torch.zeros(2, count, dtype=torch.bool)
        self._drops = False

    def add(self, function: GatedFunction) -> None:
        """Take in one batch, at its clean end."""
        offered = function.capabilities
        attention, drops = ATTENTION in offered, DROPS in offered
        self._say_once(attention, drops)
        self.pairs += function.batch
        if not (attention or drops):
            self._add_gradient(Gradient().scores(function))
            return
        linear = function.linearized(attention=attention, drops=drops)
        self._add_gradient(linear.slopes.gates)
        for part in linear.replaced:
            self._add_rows(linear, part)
        if drops and linear.depth > 1:
            self._drops = True
            self._add_dropped(linear)

    def of(self, column: int) -> dict[str, Any]:
        """Return the numbers of one component, under the names of a `Finding`'s fields."""
        own = self._attention_columns(column)
        inside = bool(own) and own != [column]
        counted = float(self._rows[1, own].sum()) if own else 0.0
        sloped = bool(own) and not bool(self._unsloped[own].any())
        kept = float(self._uncancelled[column]) / self.pairs
        plain = float(self._magnitude[column]) / self.pairs
        return {
            "gradient": float(self._gradient[column]) / self.pairs,
            "saturated_rows": float(self._rows[0, own].sum()) / counted if counted else None,
            "missed": float(self._missed[own].sum()) / self.pairs if sloped else None,
            "inside": inside,
            "softened": float(self._softened[own].sum()) / self.pairs if sloped else None,
            "computed": float(self._computed[column]) / self.pairs
            if sloped and not inside
            else None,
            "cancellation": _ratio(kept, plain) if self._drops else None,
            "uncancelled": kept if self._drops else None,
        }

    def _add_gradient(self, gradient: Tensor) -> None:
        gradient = gradient.double().cpu()
        self._gradient += gradient.sum(0)
        self._magnitude += gradient.abs().sum(0)

    def _add_rows(self, linear: Linearized, part: Any) -> None:
        rows = linear.rows[part.layer]
        counted, at = counted_rows(rows), saturated_rows(rows)
        self._rows[:, part.columns] += row_share(at, counted, part).cpu()
        self._attention[part.columns] = True
        slope = linear.slopes.patterns.get(part.layer)
        if slope is None:  # the rows are known, what a change of them does is not
            self._unsloped[part.columns] = True
            return
        self._missed[part.columns] += missed(rows, part, slope, at).double().sum(0).cpu()
        computed = Fixed(rows, part).effects(slope).double().cpu()
        self._softened[part.columns] += computed.abs().sum(0)
        self._computed[part.columns] += computed.sum(0)

    def _add_dropped(self, linear: Linearized) -> None:
        total = torch.zeros_like(self._gradient)
        for layer in range(linear.depth):
            total += linear.dropped(layer).gates.double().abs().sum(0).cpu()
        self._uncancelled += total / torch.tensor(linear.survivals, dtype=torch.float64)

    def _attention_columns(self, column: int) -> list[int]:
        """Return a query's or key's own column, and of a head those of its query and key."""
        if bool(self._attention[column]):
            return [column]
        if self.table is None or self.table[column].kind != "head":
            return []
        head = self.table[column]
        if head.position is not None:
            return []
        index = head.index or 0
        offset = {"query": index, "key": index // self.table.repeats}
        found = [
            group.start + offset[group.kind]
            for group in self.table.groups
            if group.kind in offset and group.site.layer == head.layer and group.positions is None
        ]
        return [i for i in found if bool(self._attention[i])]

    def _say_once(self, attention: bool, drops: bool) -> None:
        if self.pairs:
            return
        if not attention:
            self.notes.append("saturated attention is not known: there are no attention rows here.")
        if not drops:
            self.notes.append("cancellation is not known: no layer can be held constant here.")
        if self.table is not None and any(
            group.kind == "head" and group.positions is not None for group in self.table.groups
        ):
            self.notes.append(
                "saturated attention is not looked at for heads at single positions: score their "
                "queries, hw.queries(positions=...)."
            )


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return math.inf if above > 0 else 1.0
    return above / below
