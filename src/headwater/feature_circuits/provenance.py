"""What decides a circuit: everything that was asked, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwater.attribution.manifest import describe_model, versions
from headwater.dictionaries.collection import Dictionaries
from headwater.estimators import Estimator
from headwater.feature_circuits.choice import NodeRule
from headwater.feature_circuits.edges import EdgeRule
from headwater.feature_circuits.effects import Aggregation
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Reference


@dataclass(frozen=True)
class Asked:
    """The options of `feature_circuit`."""

    rule: NodeRule
    edge_threshold: float
    estimator: Estimator
    reference: Reference
    aggregation: Aggregation
    edge_rule: EdgeRule
    batch_size: int
    seed: int
    sites: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "node_threshold": self.rule.threshold,
            "nodes": self.rule.top,
            "mask": self.rule.mask,
            "edge_threshold": self.edge_threshold,
            "estimator": self.estimator.to_dict(),
            "reference": self.reference.to_dict(),
            "aggregation": self.aggregation,
            "slope": self.edge_rule.slope,
            "edge_slope": "clean" if self.edge_rule.clean else "nodes",
            "edges": "subtracted" if self.edge_rule.subtract else "direct",
            "steepest": self.edge_rule.steepest,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "sites": None if self.sites is None else list(self.sites),
        }


def described(model: Model, task: Task, dictionaries: Dictionaries, asked: Asked) -> dict[str, Any]:
    """Return everything that decides a circuit, and the versions of what computes it."""
    return {
        "model": describe_model(model),
        "task": task.to_dict(),
        "dictionaries": dictionaries.to_list(),
        **asked.to_dict(),
        "versions": versions(),
    }
