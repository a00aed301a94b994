"""The numbers of one attribution while it runs: batch by batch, kept in the order of the pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.scores import SHOWN_PAIRS, Scores, ShownPrompt
from headwater.estimators import Estimate
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.gates import Averages, GatedTask, ModelGates
from headwater.models import Model
from headwater.prompts import Batch


class Collected:
    """Scores, metric values, sizes and tokens of the batches so far, averaged over draws.

    Args:
        gated: The task that is scored.
        dtype: Of every number kept.
    """

    def __init__(self, gated: GatedTask, dtype: torch.dtype) -> None:
        self.gated, self.dtype = gated, dtype
        self._by_pair: dict[str, Averages] = {}
        self._sizes = torch.zeros(len(gated.table), dtype=dtype)
        self._tokens: dict[int, ShownPrompt] = {}
        self._gap_names: tuple[str, ...] = ()
        self._notes: dict[str, None] = {}  # an ordered set
        self._circuit: TrainedCircuit | None = None
        self._exact: set[int] | None = None

    def add(self, batch: Batch, function: ModelGates, estimate: Estimate) -> None:
        """Take in one batch."""
        self._put("scores", batch, estimate.scores)
        self._put("clean", batch, function.clean_value())
        self._put("corrupted", batch, function.corrupted_value())
        self._put("errors", batch, estimate.errors)
        if estimate.gaps is not None:
            self._put("gaps", batch, estimate.gaps.values)
            self._gap_names = estimate.gaps.names
        self._notes |= dict.fromkeys(estimate.notes)
        self._circuit = estimate.circuit
        exact = set(estimate.exact)
        self._exact = exact if self._exact is None else self._exact & exact
        count = self._count * self.gated.draws
        self._sizes += function.relative_sizes().sum(0).to(self._sizes) / count
        self._tokens |= _shown_tokens(self.gated.model, batch)

    def note(self, sentence: str) -> None:
        """Keep a sentence that a reader must know; nothing if it is empty or known already."""
        if sentence:
            self._notes[sentence] = None

    def scores(self) -> Scores:
        """Return the numbers of all batches."""
        return Scores(
            components=self.gated.table,
            values=self._by_pair["scores"].mean(),
            clean=self._by_pair["clean"].mean(),
            corrupted=self._mean("corrupted"),
            sizes=self._sizes,
            cost=self.gated.cost,
            is_cut=self.gated.is_cut,
            tokens=tuple(self._tokens[pair] for pair in sorted(self._tokens)),
            errors=self._errors(),
            gaps=self._mean("gaps"),
            gap_names=self._gap_names,
            notes=tuple(self._notes),
            circuit=self._circuit,
            exact=frozenset(self._exact or ()),
        )

    @property
    def _count(self) -> int:
        return len(self.gated.task.pairs)

    def _put(self, name: str, batch: Batch, values: Tensor | None) -> None:
        if values is not None:
            self._by_pair.setdefault(name, Averages(self._count, self.dtype)).add(batch, values)

    def _mean(self, name: str) -> Tensor | None:
        return self._by_pair[name].mean() if name in self._by_pair else None

    def _errors(self) -> Tensor | None:
        """Return the standard error of each score: over draws of off values, and the estimator's.

        An estimator draws the same random numbers for a pair at every draw of its off values, so
        its own errors do not average out over them.
        """
        own, over_draws = self._mean("errors"), self._by_pair["scores"].standard_error()
        if own is None or over_draws is None:
            return over_draws if own is None else own
        return torch.hypot(own, over_draws)


def _shown_tokens(model: Model, batch: Batch) -> dict[int, ShownPrompt]:
    """The tokens of the pairs a page shows, kept so that it can be written without a tokenizer."""
    clean = batch.tokens(model.tokenizer)
    corrupted = None if batch.corrupted is None else batch.tokens(model.tokenizer, "corrupted")
    return {
        pair: {"clean": clean[row], "corrupted": None if corrupted is None else corrupted[row]}
        for row, pair in enumerate(batch.pairs)
        if pair < SHOWN_PAIRS
    }
