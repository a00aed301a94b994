"""The audit of a decomposed logit: the prompts run again, writes removed, components ablated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from headwater.attribution.checks import refuse_modes
from headwater.attribution.manifest import describe_model
from headwater.components import Selection
from headwater.directs.attribute import Decomposition
from headwater.directs.audit import LogitAudit, audited
from headwater.directs.metric import LogitMetric
from headwater.directs.removed import Ablations, direct_effects
from headwater.directs.sums import direction_of
from headwater.errors import ResultError
from headwater.models import Model
from headwater.prompts import Task

if TYPE_CHECKING:
    from headwater.directs.result import LogitAttribution


def check(
    found: LogitAttribution,
    model: Model,
    *,
    sample: int,
    batch_size: int,
    seed: int,
    progress: bool | None,
) -> LogitAudit:
    """Compare a result's contributions with exact direct and total effects.

    Args:
        found: The result.
        model: The one it came from.
        sample: Components whose total effects are checked.
        batch_size: Most prompts in one forward.
        seed: Of the sample.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        ResultError: If the model is another one.
    """
    refuse_modes()
    said = found.provenance
    _refuse_other(said["model"], model)
    metric = LogitMetric(against=said["against"], position=said["position"])
    saved = said["task"]
    task = Task(saved["pairs"], metric, name=saved["name"], source=saved["source"])
    with model.frozen():
        taken = Decomposition(model, task, Selection.from_list(said["components"]), batch_size)
        direct = torch.zeros(len(task.pairs), len(taken.plan.table), dtype=torch.float64)
        for capture in taken.captures():
            direction = direction_of(taken.readout, capture, metric, taken.ending)
            effects = direct_effects(taken.plan, taken.readout, capture, direction)
            direct[list(capture.batch.pairs)] = effects.cpu()
        capped = task.with_metric(replace(metric, cap=taken.ending.cap))
        ablations = Ablations(model, capped, taken.plan, batch_size, progress)
        frozen = torch.stack([found[name] for name in found.asked], 1)
        return audited(
            found.asked,
            frozen,
            direct,
            ablations,
            # the model rounds an ablated run as it rounds this one
            noise=float(found.rounding.abs().mean()),
            sample=sample,
            seed=seed,
        )


def _refuse_other(expected: dict[str, str], model: Model) -> None:
    given = describe_model(model)
    for key in ("weights_hash", "config_hash", "dtype"):
        if given.get(key) != expected.get(key):
            raise ResultError(
                f"the result came from {expected.get('name')!r} with {key} {expected.get(key)}; "
                f"this model has {given.get(key)}.\nGive the model it came from, in its dtype."
            )
