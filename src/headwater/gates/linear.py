"""What a gated function offers beyond `f(m)` to first-order methods that look inside one run.

Data only: how a model gets there is `gates.replay`, what is made of it is an estimator's business.
A closed form can offer the same by returning a `Linearized` from `GatedFunction.linearized`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

ATTENTION = "attention rows"
"""Capability: attention scores with a query or key at its off value, and slopes of the pattern."""
DROPS = "layer drops"
"""Capability: slopes with what one layer writes held constant."""


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """One layer's attention in the clean run."""

    pattern: Float[Tensor, "batch head query key"]
    scores: Float[Tensor, "batch head query key"]
    """What the softmax made the pattern from."""
    sinks: Tensor | None
    """Logits of sinks, broadcastable to [batch, head, query, 1]; they take share, give nothing."""


@dataclass(frozen=True, eq=False)
class Replaced:
    """The same attention with the queries, or the keys, of some components at their off value."""

    columns: slice
    """The components' gates: head by head, or position by position and then head by head."""
    kind: Literal["query", "key"]
    layer: int
    scores: Float[Tensor, "batch head query key"]
    """For queries every row as it is when its query is replaced; for keys every column as it is
    when its key is."""
    places: Int[Tensor, "batch place"] | None
    """Positions of the components in the padded rows; None: each covers every position."""
    kv_heads: int
    """Key-value heads; each serves the heads of its group."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """Derivatives of the metric."""

    gates: Float[Tensor, "batch component"]
    patterns: Mapping[int, Float[Tensor, "batch head query key"]]
    """By layer, for the attention that holds components."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """One clean run, its derivatives, and what else was seen in it."""

    depth: int
    """Number of layers."""
    inside: Sequence[int | None]
    """For every component the layer whose write it is part of; None for the input of layer 0 and
    for a residual, which no layer's being dropped removes."""
    rows: Mapping[int, AttentionRows]
    """By layer, where queries or keys are components."""
    replaced: Sequence[Replaced]
    slopes: Slopes
    dropped: Callable[[int], Slopes]
    """From a layer to the slopes while all that it adds to the residual is held constant."""

    @property
    def survivals(self) -> list[int]:
        """For every component the number of layers whose being dropped leaves it in place."""
        return [self.depth - (layer is not None) for layer in self.inside]
