"""The numbers of one attribution, before anything is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from headwater.components import Component, ComponentTable
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

    @property
    def names(self) -> tuple[str, ...]:
        """The components' names, in the order of the score columns."""
        if isinstance(self.components, ComponentTable):
            return self.components.names
        return tuple(c if isinstance(c, str) else c.name for c in self.components)
