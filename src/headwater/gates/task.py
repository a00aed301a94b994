"""A whole task with gates: batches, components and off values made ready once, run batch by batch.

Estimates and audits both iterate over this, so they see the same prompts, gates and references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from headwater.components import KINDS, ComponentTable, Selection
from headwater.errors import GateError, UnalignedPromptsError
from headwater.gates.families import Family, families_of
from headwater.gates.function import Cost
from headwater.gates.model import ModelGates
from headwater.metrics import refuse_constant
from headwater.models import Model
from headwater.prompts import Batch, Task
from headwater.references import Reference

TOKENS = {"cpu": 2048, "cuda": 65536}
"""Most tokens in one stacked run, by device type; beyond this stacking no longer pays."""


def most_tokens(model: Model) -> int:
    """Return the most tokens in one stacked run of a model, where it is."""
    return TOKENS.get(model.device.type, TOKENS["cpu"])


class GatedTask:
    """Iterate over a task's batches as gated functions: one a batch and draw of off values.

    A pair that is drawn for several times comes as often; average with `Averages`.

    Args:
        model: The model; parameters should be frozen while it is used.
        task: Pairs and metric.
        selection: The components to gate.
        reference: Their off values.
        batch_size: Most pairs in a batch.
        cost: Where forwards and backwards are counted.

    Raises:
        UnsupportedModelError: If the model has no adapter, or lacks a selected kind.
        ConstantMetricError: If the metric does not depend on the logits.
        GateError: If a metric reads no position that the selection can reach.
        UnalignedPromptsError: If `positions="each"` meets prompts of several lengths.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        selection: Selection,
        reference: Reference,
        *,
        batch_size: int = 32,
        cost: Cost | None = None,
    ) -> None:
        adapter = model.anatomy()
        self.model, self.task = model, task
        self.cost = Cost() if cost is None else cost
        self.batches: Sequence[Batch] = task.batches(
            model.tokenizer,
            batch_size=batch_size,
            device=model.device,
            pad=adapter.pads,
            align=reference.aligned,
        )
        self.length = self._length(selection)
        self.table: ComponentTable = selection.expand(adapter, self.length)
        if not len(self.table):
            raise GateError("the selection holds no component. Write for example hw.heads().")
        self._refuse_constant(adapter.vocab)
        places = list(dict.fromkeys(group.place for group in self.table.groups))
        self.off = reference.prepare(model, task, self.batches, places)
        self.reference = reference.keeping(self.off)
        self.cost.pairs += len(task.pairs)
        self.cost.ran(self.off.prepared)

    def __iter__(self) -> Iterator[tuple[Batch, ModelGates]]:
        tokens = most_tokens(self.model)
        for batch in self.batches:
            for draw in range(self.off.draws):
                off = self.off(batch, draw)
                self.cost.ran(off.forwards)
                yield (
                    batch,
                    ModelGates(
                        self.model,
                        batch,
                        self.task.metric,
                        self.table,
                        off,
                        corrupted_run=self.reference.corrupted_run,
                        tokens=tokens,
                        cost=self.cost,
                        doubt=self.reference.doubt(self.model.anatomy()),
                    ),
                )

    @property
    def draws(self) -> int:
        """How many off values each pair has."""
        return self.off.draws

    @property
    def is_cut(self) -> bool:
        """Whether every path from prompt to logits crosses exactly one component."""
        # what stands behind the prompt is part of the run, but no position reaches it
        ended = any(batch.ending is not None for batch in self.batches)
        return self.table.is_cut(None if ended else self.length)

    def families(self) -> tuple[Family, ...]:
        """Return the components that are closed together, as every batch has them."""
        return families_of(self.table, self.model.anatomy().n_layers)

    def shares(self) -> list[float]:
        """Return for each component the share of a forward that one exact effect costs."""
        shares = [1.0] * len(self.table)
        for family in self.families():
            for column in family.columns:
                shares[column] = family.share
        return shares

    def _length(self, selection: Selection) -> int | None:
        lengths = sorted({int(n) for batch in self.batches for n in batch.prompt_lengths()})
        if len(lengths) == 1:
            return lengths[0]
        if selection.needs_length:
            each = next(choice for choice in selection.choices if choice.positions == "each")
            raise UnalignedPromptsError(
                f'positions="each" needs prompts of one length, but this task has lengths '
                f"{', '.join(map(str, lengths[:8]))}{' and more' if len(lengths) > 8 else ''}: "
                "position 5 would be another word in each.\n"
                f'Write hw.{KINDS[each.kind].plural}(positions="all"), or a list such as [0, -1], '
                "or split the task by length."
            )
        return None

    def _refuse_constant(self, vocab: int) -> None:
        batch = self.batches[0]
        read = batch.read if isinstance(batch.read, int) else len(batch.read)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(len(batch.pairs), read, vocab, generator=generator)
        logits = logits.to(self.model.device)
        metric = self.task.metric
        if "clean_logits" in metric.needs:
            batch = batch.with_clean_logits(logits.roll(1, -1))
        refuse_constant(metric, logits, batch)
