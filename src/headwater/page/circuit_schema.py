"""What the page of a feature circuit shows, as plain dicts.

Nodes stand in the order of a forward pass. Edges name nodes by their number; the number after the
last node is the metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from headwater.page.tables import TableData

Column = Literal["attention", "mixer", "MLP", "residual"]


class CircuitSite(TypedDict):
    """A place in the model where nodes are."""

    label: str
    """What the names of its nodes begin with: `m3`."""
    layer: int | None
    """None before the first layer."""
    column: Column
    """Where it stands in its layer."""


class CircuitNode(TypedDict):
    """A feature, an error or a whole site."""

    name: str
    kind: Literal["feature", "error", "site"]
    site: int
    """Number of its site."""
    index: int | None
    position: int | None
    effect: float
    se: float | None
    incoming: float | None
    """From all kept nodes; None where nothing lies before it."""
    below: float | None
    """From nodes that were not kept."""
    unexplained: float | None
    orphan: bool
    exact: float | None
    """By intervention, where it was checked."""
    annotation: str


class CircuitEdge(TypedDict):
    """What of a node's effect comes directly from another."""

    source: int
    target: int
    weight: float
    exact: float | None


class ContextRow(TypedDict):
    """A feature's strongest token in a prompt, with the tokens around it."""

    tokens: Sequence[str]
    activations: Sequence[float]
    strongest: int
    """Which of the tokens it is."""
    prompt: int


class FeatureRow(TypedDict):
    """What a feature does in a corpus."""

    fires: int
    prompts: int
    contexts: Sequence[ContextRow]


class CorpusRow(TypedDict):
    """Where contexts come from."""

    source: str
    tokens: int
    prompts: int


class CircuitData(TypedDict):
    """Everything the page shows."""

    title: str
    heading: str
    sentences: Sequence[str]
    notes: Sequence[str]
    facts: Mapping[str, str]
    provenance: Mapping[str, str]
    metric: str
    clean: float
    """The metric of the clean prompts."""
    sites: Sequence[CircuitSite]
    """In the order of a forward pass."""
    nodes: Sequence[CircuitNode]
    edges: Sequence[CircuitEdge]
    """The largest first."""
    shown: Mapping[str, int]
    """`nodes` of `of_nodes`, `edges` of `of_edges`: what the page holds of the circuit."""
    prompts: Sequence[Sequence[str]]
    """The tokens of the first clean prompts."""
    pairs: int
    features: Mapping[str, FeatureRow]
    """By name without a position; empty without a corpus."""
    corpus: CorpusRow | None
    tables: Sequence[TableData]
