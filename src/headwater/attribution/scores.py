"""The numbers of one attribution, before anything is said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.components import Component, ComponentTable
from headwater.errors import ResultError
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.gates import Cost

SHOWN_PAIRS = 24
"""Prompt pairs kept as tokens, to be shown in full."""

ShownPrompt = dict[str, list[str] | None]
"""The tokens of a pair: `clean` and `corrupted`."""


@dataclass(frozen=True)
class Scores:
    """The numbers of one attribution."""

    components: Sequence[Component | str]
    """Components of a model, or the bare names of a gated function."""
    values: Float[Tensor, "pair component"]
    clean: Float[Tensor, " pair"]
    """The metric of each clean prompt."""
    corrupted: Float[Tensor, " pair"] | None
    """The metric of each corrupted prompt, where the reference ran them."""
    sizes: Float[Tensor, " component"] | None
    """Mean over pairs of |x - reference| / |residual|."""
    cost: Cost
    is_cut: bool
    """Whether every path from prompt to logits crosses exactly one component."""
    tokens: tuple[ShownPrompt, ...]
    """Tokens of the first pairs."""
    errors: Float[Tensor, "pair component"] | None = None
    """Standard error of each score, from estimators that draw at random."""
    gaps: Float[Tensor, "pair sum"] | None = None
    """Sums of scores minus the exact changes that they should sum to, from estimators that have
    such sums."""
    gap_names: tuple[str, ...] = ()
    """What is summed."""
    notes: tuple[str, ...] = ()
    """What the estimator says of its scores, in sentences."""
    exact: frozenset[int] = frozenset()
    """Columns whose scores are exact effects, by intervention."""
    magnitudes: bool = False
    """Whether scores are sizes of effects with a sign attached."""
    off_values: Mapping[str, Tensor] = field(default_factory=dict)
    """What the reference kept of prompts that were streamed: the mean at each site."""
    circuit: TrainedCircuit | None = None
    """The subset kept, from estimators that choose one."""

    def mean(self) -> Float[Tensor, " component"]:
        """Return each component's score over all pairs; of magnitudes their mean, signed."""
        mean = self.values.mean(0)
        if not self.magnitudes:
            return mean
        size = self.values.abs().mean(0)
        return torch.where(mean < 0, -size, size)

    def mean_errors(self) -> Float[Tensor, " component"]:
        """Return the standard error of each mean score; every pair has draws of its own.

        Raises:
            ResultError: If the estimator drew nothing at random.
        """
        if self.errors is None:
            raise ResultError(
                "these scores have no standard errors: their estimator draws nothing at random.\n"
                "For the spread over pairs see `scores.rows()`."
            )
        return self.errors.square().sum(0).sqrt() / len(self.errors)

    def gap_sizes(self) -> Float[Tensor, "pair sum"] | None:
        """Return how far each sum of scores misses its exact change, pair by pair.

        None where the estimator knows no sum. Sizes: gaps of opposite sign do not cancel.
        """
        return None if self.gaps is None else self.gaps.double().abs()

    @property
    def whole_effect(self) -> float:
        """How far corruption moves the metric, else the size of the metric; mean over pairs."""
        whole = self.clean if self.corrupted is None else self.clean - self.corrupted
        return float(whole.abs().mean())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The components' names, in the order of the score columns."""
        if isinstance(self.components, ComponentTable):
            return self.components.names
        return tuple(c if isinstance(c, str) else c.name for c in self.components)
