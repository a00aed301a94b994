"""Exact effects: a write removed from the last residual, or the component ablated in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.components import Group
from headwater.directs.capture import Capture
from headwater.directs.parts import INSIDE, Plan, Write
from headwater.directs.readout import Readout
from headwater.directs.sums import Direction
from headwater.gates import GatedTask
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Task
from headwater.references import Zero

NUMBERS = 2**23
"""Most numbers in a block of removed writes."""


@torch.no_grad()
def direct_effects(
    plan: Plan, readout: Readout, capture: Capture, direction: Direction
) -> Float[Tensor, "row component"]:
    """Return what each component's number loses when its write alone is taken away.

    The final norm is computed anew without the write: one readout a component, no forward. In
    families that norm their writes, that norm is computed anew without the component too.

    Args:
        plan: The components, in the order of its table.
        readout: The final norm.
        capture: What the model computed.
        direction: What is read from the normed residual.
    """
    rows, vector = len(capture.residual), direction.vector
    whole = (readout.norm(capture.residual) * vector).sum(-1)
    found = whole.new_zeros(rows, len(plan.table))
    for write in plan.writes:
        for group in write.groups:
            for start, written in _written(write, group, capture):
                left = readout.norm(capture.residual[:, None] - written)
                effects = whole[:, None] - torch.einsum("rcd,rd->rc", left, vector)
                first = group.start + start
                found[:, first : first + effects.shape[1]] = effects
    return found


def _written(
    write: Write, group: Group, capture: Capture
) -> Iterator[tuple[int, Float[Tensor, "row component d_model"]]]:
    """Yield blocks of what components add to the residual, each with its first one's number."""
    scale = write.adapter.write_scale
    if group.kind not in INSIDE:
        yield 0, capture.values[write.site][:, None] * scale
        return
    inputs = capture.values[group.site].unflatten(1, (group.count, -1))
    size = inputs.shape[-1]
    projection, normed = write.projection(), write.norm.module is not None
    passed = projection(inputs.flatten(1))[:, None] if normed else None
    widest = max(write.adapter.d_model, projection.width)
    block = max(1, NUMBERS // (widest * max(len(inputs), size)))
    for start in range(0, group.count, block):
        stop = min(start + block, group.count)
        columns = projection.columns(start * size, stop * size)
        alone = torch.einsum(
            "rch,chd->rcd", inputs[:, start:stop], columns.unflatten(0, (-1, size))
        )
        if passed is not None:
            alone = write.norm(passed) - write.norm(passed - alone)
        yield start, alone * scale


class Ablations:
    """What the number loses when a component is set to zero at every position of the prompt.

    These are the effects of `hw.Exact()` with `reference=hw.Zero()`; none is computed twice.

    Args:
        model: The model.
        task: Prompts, and the number as its metric.
        plan: The components.
        batch_size: Most prompts in one forward.
        progress: True, False, or None to show a bar only on a terminal.
    """

    def __init__(
        self, model: Model, task: Task, plan: Plan, batch_size: int, progress: bool | None
    ) -> None:
        self._model, self._task, self._plan = model, task, plan
        self._batch_size, self._progress = batch_size, progress
        self.found: dict[int, Float[Tensor, " prompt"]] = {}
        """By column of the plan's table."""

    def __call__(self, columns: Sequence[int]) -> Float[Tensor, "prompt index"]:
        """Return total effects, one column a component."""
        missing = [column for column in columns if column not in self.found]
        if missing:
            self.found.update(zip(missing, self._effects(missing).T, strict=True))
        return torch.stack([self.found[column] for column in columns], 1)

    @torch.no_grad()
    def _effects(self, columns: Sequence[int]) -> Float[Tensor, "prompt index"]:
        prompts = len(self._task.pairs)
        found = torch.zeros(prompts, len(columns), dtype=torch.float64)
        gated = GatedTask(
            self._model, self._task, self._plan.selection, Zero(), batch_size=self._batch_size
        )
        with progress_bar(
            "total effects", prompts * (1 + len(columns)), show=self._progress
        ) as ran:
            gated.cost.listener = ran
            for batch, function in gated:
                effects = function.at("clean").effects(columns)
                found[list(batch.pairs)] = effects.T.double().cpu()
        return found
