"""What an audit was drawn from, read back from its rows: the strata of all components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwater.audits.again import estimator_of
from headwater.audits.conformal import Population
from headwater.audits.known import Known
from headwater.audits.report import Audit
from headwater.errors import ResultError

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


def population_of(scores: Attribution, audit: Audit) -> Population:
    """Return the strata that `audit` was drawn from, with what it found in each.

    The strata are stretches of the order of |estimate|; a row's weight says how many components of
    its stratum each checked one stands for.

    Raises:
        ResultError: If the audit is not one of these scores.
    """
    magnitudes = estimator_of(scores).magnitudes
    values = scores.scores.double()
    estimate = (values.abs() if magnitudes else values).mean(0).cpu().numpy()
    column_of = {name: column for column, name in enumerate(scores.names)}
    if any(row.name not in column_of for row in audit.rows) or audit.counts.components != len(
        scores.names
    ):
        raise ResultError(
            f"this audit is of {audit.counts.components:,} components, the scores hold "
            f"{len(scores.names):,}.\nAudit these scores: scores.audit()."
        )
    effect = {row.name: abs(row.exact) if magnitudes else row.exact for row in audit.rows}
    drawn = {column_of[name]: value for name, value in effect.items()}
    alone = {column: Known.of(lost, magnitudes) for column, lost in scores.ledger.alone().items()}
    also = {column: one.size if magnitudes else one.signed for column, one in alone.items()}
    # what the estimator found exactly, or somebody picked, says nothing of the errors of the others
    own = scores.parts.exact | {column_of[name] for name in audit.before}
    mean = scores.mean().double().tolist()
    also |= {c: abs(mean[c]) if magnitudes else mean[c] for c in scores.parts.exact}
    strata = [[c for c in stratum if c not in own] for stratum in _strata(estimate, audit)]
    components = scores.parts.components
    return Population(
        names=scores.names,
        kinds=["gate" if isinstance(c, str) else c.kind for c in components],
        layers=[None if isinstance(c, str) else c.layer for c in components],
        estimate=estimate,
        strata=[stratum for stratum in strata if stratum],
        drawn={column: effect for column, effect in drawn.items() if column not in own},
        known=also | drawn,
        magnitudes=magnitudes,
    )


def _strata(estimate: np.ndarray, audit: Audit) -> list[list[int]]:
    """Cut the order of |estimate| where the audit's sample did."""
    order = np.argsort(-np.abs(estimate), kind="stable").tolist()
    sizes: dict[str, float] = {}
    for row in audit.rows:
        sizes[row.stratum] = sizes.get(row.stratum, 0.0) + row.weight
    strata, start = [], 0
    for size in sizes.values():
        strata.append(order[start : start + round(size)])
        start += round(size)
    if start < len(order):  # a sample of one covers only the strongest
        strata.append(order[start:])
    return strata
