"""What a circuit holds, as plain records: nodes, edges, and its sites."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

NodeKind = Literal["feature", "error", "site"]


@dataclass(frozen=True)
class Node:
    """One feature, error or whole site of a circuit. Numbers are means over pairs."""

    name: str
    """`m3.f77`, `m3.error`, `m3`; with `@5` for a position."""
    kind: NodeKind
    site: str
    index: int | None
    """The feature's number in its dictionary."""
    position: int | None
    effect: float
    """What the metric loses when it is put at its reference, as estimated; of `hw.TrainedMask` the
    trained gate."""
    se: float | None
    """Standard error of that over pairs; None for a single pair."""
    incoming: float | None
    """Sum of the edges from all kept nodes, before the edge threshold; None if nothing lies before
    it."""
    below: float | None
    """What flows in from nodes that are not kept."""
    unexplained: float | None
    """What neither is: effect minus everything that flows in. Zero for residuals with secant
    slopes, but for decoder biases where the reference is zero; elsewhere the curvature of attention
    and MLP between the two runs."""
    orphan: bool
    """Nothing at all flows in, though the node changes and has an effect, and something lies before
    it."""

    @property
    def total(self) -> float | None:
        """What `incoming`, `below` and `unexplained` add up to: the effect where it is a slope of
        the metric times the node's change; for other estimators the first-order effect."""
        if self.incoming is None or self.below is None or self.unexplained is None:
            return None
        return self.incoming + self.below + self.unexplained

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Edge:
    """A direct connection: what of the target's effect comes straight from the source."""

    source: str
    target: str
    """A node's name, or `logits`."""
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class SiteSummary:
    """One site of a circuit: how well its nodes' effects add up, and what its slopes were."""

    site: str
    label: str
    kind: str
    """The dictionary's kind; `whole` without one."""
    features: int
    kept: int
    """Nodes of the circuit."""
    effects: float
    """Sum of the effects of all its nodes, kept or not."""
    exact: float
    """What the metric loses when the whole site is at its reference: what they should add up to."""
    steepest: float
    """The largest secant slope used."""
    replaced: int
    """Activations whose secant was too steep, so that the clean run's slope took its place."""
    active: int
    """Activations that differ from their reference."""
    explained: float | None
    """Explained variance of the dictionary on the task's clean prompts; None without one."""
    active_features: float | None
    """Active features at a token, on average."""

    @property
    def gap(self) -> float:
        """`effects - exact`."""
        return self.effects - self.exact

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "gap": self.gap}
