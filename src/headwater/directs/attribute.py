"""Take a logit apart into what each part of the model writes toward it.

Costs one forward a prompt, and one vector-Jacobian product a layer whose heads or neurons are
asked for. Nothing else in the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.checks import refuse_arguments, refuse_modes
from headwater.attribution.manifest import describe_model, versions
from headwater.components import Selection
from headwater.directs.asked import batches_of, task_of
from headwater.directs.capture import Capture, captured
from headwater.directs.metric import LogitMetric
from headwater.directs.parts import Part, Plan
from headwater.directs.readout import Readout, proven_ending
from headwater.directs.result import LogitAttribution
from headwater.directs.sums import direction_of, summed
from headwater.endings import Ending
from headwater.models import Model
from headwater.prompts import Task


def attribute_logit(
    model: Model,
    prompts: str | Sequence[str] | Task,
    answer: Any = None,
    *,
    against: Any = None,
    position: int = -1,
    components: Selection | None = None,
    audit: bool = False,
    sample: int = 32,
    batch_size: int = 32,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LogitAttribution:
    """Take a token's logit apart into what each part of the model writes toward it.

    The residual that enters the final norm is a sum of writes. With the norm's scale frozen at
    that residual, a write `c` contributes `w . (gain * P(c)) / s` to the logit, where `w` is the
    token's row of the unembedding (of a difference of logits, the difference of rows). The
    contributions, with rows for biases and for the model's own rounding, sum to the logit exactly.
    The method is direct logit attribution (Elhage et al. 2021, Wang et al. 2022).

    Args:
        model: From `hw.load` or `hw.wrap`.
        prompts: A prompt, a list of prompts, or a task, of which clean prompts, answers and wrong
            answers are taken.
        answer: The token: a text or an id; of several prompts one for all or a list with one a
            prompt.
        against: The token whose logit is subtracted, likewise; None for the logit itself.
        position: Which token's prediction is taken apart, counted from the first or, negative,
            from the last.
        components: What gets rows of its own: heads, neurons, channels or whole sublayers, in
            chosen layers. Every other sublayer is one row. By default all sublayers are whole.
        audit: Whether to compare with exact direct and total effects at once: `found.audit()`.
        sample: Components whose total effects the audit checks.
        batch_size: Most prompts in one forward.
        dtype: Compute in this dtype, on a converted copy of the model.
        device: Compute on this device, on a copy.
        seed: Of the audit's sample.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        Contributions [prompt, part], with names.

    Raises:
        UnsupportedModelError: If the model has no adapter or lacks a selected component, if a norm
            has a form that cannot be frozen, or the parts miss the model's own logit.
        GateError: If something was selected that writes nothing of its own to the residual.
        NestedComponentsError: If one selected component lies inside another.
        PromptError: If a prompt, an answer or the position cannot be used.
        ModelStateError: If dropout, autocast or inference mode is active.

    Example:
        >>> import headwater as hw
        >>> found = hw.attribute_logit(hw.load("tiny"), "Mary and John went to the", "store")
        >>> found.names[:3]
        ('input', 'a0', 'm0')
    """
    refuse_arguments(model=model)
    if components is not None:
        refuse_arguments(components=components)
    refuse_modes()
    task = task_of(prompts, answer, against, position)
    runner = model if dtype is None and device is None else model.to(dtype=dtype, device=device)
    with runner.frozen():
        taken = Decomposition(runner, task, components, batch_size)
        found = taken.collected()
    result = LogitAttribution(
        found.parts,
        found.scores,
        found.values,
        capped=found.capped,
        model=runner,
        owner=None if runner is model else runner,
        provenance={
            "model": describe_model(runner),
            "task": task.to_dict(),
            "against": taken.metric.against,
            "position": position,
            "components": taken.plan.selection.to_list(),
            "asked": list(taken.plan.table.names),
            "cap": taken.ending.cap,
            "versions": versions(),
        },
    )
    if audit:
        result.audit(sample, batch_size=batch_size, seed=seed, progress=progress)
    return result


class Taken(NamedTuple):
    """A logit taken apart."""

    parts: tuple[Part, ...]
    scores: Float[Tensor, "prompt part"]
    values: Float[Tensor, " prompt"]
    """What the parts sum to."""
    capped: Float[Tensor, " prompt"] | None
    """The same after a soft cap."""


class Decomposition:
    """Prompts of one model, ready to be taken apart batch by batch.

    Args:
        model: With its parameters frozen.
        task: Prompts, answers, and a `LogitMetric`.
        components: What gets rows of its own.
        batch_size: Most prompts in one forward.
    """

    def __init__(
        self, model: Model, task: Task, components: Selection | None, batch_size: int
    ) -> None:
        assert isinstance(task.metric, LogitMetric)
        self.model, self.task, self.metric = model, task, task.metric
        self.batches = batches_of(model, task, batch_size)
        self.readout = Readout.of(model)
        biases = bool(self.readout.norm.bias.any()), bool(self.readout.unembed.bias.any())
        self.plan = Plan(model, components, biases)
        self.ending = Ending()
        """What the model does to its logits; known once a batch has run."""

    def captures(self) -> Iterator[Capture]:
        """Run batch by batch; the first tells what the model does to its logits."""
        for place, batch in enumerate(self.batches):
            found = captured(self.model, batch, self.metric, self.plan.sites)
            if place == 0:
                raw = self.readout.unembedded(found.normed)
                self.ending = proven_ending(self.model, raw, found.logits)
            yield found

    def collected(self) -> Taken:
        """Return the rows, what they contribute, and what that sums to."""
        prompts, parts = len(self.task.pairs), self.plan.parts
        scores = torch.zeros(prompts, len(parts), dtype=torch.float64)
        values, capped = torch.zeros(2, prompts, dtype=torch.float64)
        for capture in self.captures():
            rows = list(capture.batch.pairs)
            own = self.metric.of(capture.logits.double(), capture.batch)
            before = own
            if self.ending.cap is not None:
                before = self.metric.of(self.readout.unembedded(capture.normed), capture.batch)
            direction = direction_of(self.readout, capture, self.metric, self.ending)
            shares = summed(self.plan, self.readout, capture, direction, before)
            scores[rows], values[rows], capped[rows] = shares.cpu(), before.cpu(), own.cpu()
        return Taken(parts, scores, values, None if self.ending.cap is None else capped)
