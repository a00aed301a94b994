"""What a ground-truth model is: a gated function beside the numbers it must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from headwater.attribution import Attribution, attribute
from headwater.components import Selection
from headwater.errors import HeadwaterError
from headwater.estimators import Estimator
from headwater.gates import GatedFunction, GatedTask
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Corrupted

if TYPE_CHECKING:
    from headwater.zoo.truths.comparison import Comparison

Expected = Mapping[Estimator, Float[Tensor, "batch component"]]
"""Scores worked out by hand, for each estimator."""


@dataclass(frozen=True, eq=False)
class Fact:
    """A quantity that no estimator scores: its closed form, and a way to measure it."""

    name: str
    expected: Float[Tensor, "..."]
    """From the formula."""
    measure: Callable[[], Float[Tensor, "..."]] = field(repr=False)
    """Runs the model, with plain torch."""


@dataclass(frozen=True, eq=False)
class Truth:
    """A model whose scores are known in closed form, for every estimator.

    `expected` is computed from formulas that stand beside the model; nothing in it comes from
    running the model.

    Example:
        >>> from headwater.zoo.truths import truth
        >>> truth("and").names
        ('a', 'b')
    """

    name: str
    shows: str
    """What it is good for, in a sentence."""
    formulas: tuple[str, ...]
    """The model and its closed forms, as they are read."""
    names: tuple[str, ...]
    """The components, in gate order."""
    build: Callable[[], GatedFunction] = field(repr=False)
    expected: Expected = field(repr=False)
    refused: Mapping[Estimator, type[HeadwaterError]] = field(default_factory=dict, repr=False)
    """Estimators for which the model has no answer, and the error that says so."""
    facts: tuple[Fact, ...] = field(default=(), repr=False)
    examples: tuple[str, ...] = ("",)
    """What the examples of the batch are called."""

    def function(self) -> GatedFunction:
        """Return the model as a fresh gated function, in float64."""
        return self.build()

    def attribute(self, estimator: Estimator) -> Attribution:
        """Return the scores an estimator gives, computed as for any model.

        Raises:
            HeadwaterError: If the estimator cannot run on this model; says why.
        """
        return attribute(self.function(), estimator=estimator)

    def compare(self, *estimators: Estimator) -> Comparison:
        """Run estimators, and compare with the closed forms and the exact effects.

        Args:
            estimators: Which; by default all that have a closed form here, and one of each other
                kind that the library has.

        Returns:
            Prints as a table; `.to_dict()` holds every number.
        """
        from headwater.zoo.truths.comparison import compare  # it needs this module

        return compare(self, estimators or None)


@dataclass(frozen=True, eq=False)
class ModelTruth(Truth):
    """A truth that is a language model with prompts: it goes through all of `hw.attribute`."""

    model: Callable[[], Model] = field(kw_only=True, repr=False)
    task: Callable[[], Task] = field(kw_only=True, repr=False)
    components: Selection = field(kw_only=True)
    """What `expected` has scores for."""

    def attribute(self, estimator: Estimator) -> Attribution:
        """Return the scores of `hw.attribute(model, task, components, estimator)`.

        Raises:
            HeadwaterError: If the estimator cannot run on this model; says why.
        """
        return attribute(self.model(), self.task(), self.components, estimator, progress=False)


def gated(model: Model, task: Task, components: Selection) -> GatedFunction:
    """Return the gated function of a task that fits in one batch, against corrupted prompts."""
    ((_, function),) = GatedTask(model, task, components, Corrupted())
    return function
