"""Node effects from any estimator: whatever `attribute` can score, in the layout of a circuit."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headwater.attribution.attribute import attribute
from headwater.components import features
from headwater.estimators import Estimator
from headwater.feature_circuits.effects import Aggregation, SiteEffects
from headwater.feature_circuits.runs import Runs
from headwater.sites import Site


def from_attribution(
    runs: Runs,
    measured: Mapping[Site, SiteEffects],
    estimator: Estimator,
    aggregation: Aggregation,
    *,
    seed: int,
    progress: bool | None,
) -> dict[Site, SiteEffects]:
    """Return node effects by an estimator that scores gates.

    Args:
        runs: The clean runs.
        measured: First-order effects, whose exact changes of whole sites are kept.
        estimator: Any.
        aggregation: Over positions.
        seed: For `attribute`.
        progress: For `attribute`.
    """
    scores = attribute(
        runs.model,
        runs.task,
        features(runs.nodes.dictionaries, positions="all" if aggregation == "sum" else "each"),
        estimator,
        reference=runs.reference,
        batch_size=runs.batch_size,
        seed=seed,
        progress=progress,
    )
    runs.cost.forwards += scores.parts.cost.forwards
    runs.cost.backwards += scores.parts.cost.backwards
    found: dict[Site, SiteEffects] = {}
    start = 0
    for node in runs.nodes:
        mean, parts, errors = measured[node.site].mean, [], []
        for count in (node.features, 1):
            values = scores.parts.values[:, start : start + len(mean) * count].double()
            start += values.shape[1]
            parts.append(values.mean(0).view(len(mean), count))
            spread = (values - values.mean(0)).square().sum(0) / max(1, len(values) - 1)
            errors.append((spread / len(values)).sqrt().view(len(mean), count))
        whole = torch.cat(parts, 1)
        found[node.site] = SiteEffects(
            mean=whole,
            se=torch.cat(errors, 1) if len(scores.parts.values) > 1 else None,
            largest=whole.abs(),
            exact=measured[node.site].exact,
            fit=measured[node.site].fit,
        )
    return found
