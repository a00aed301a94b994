"""What is known exactly of a result's components: from its audit, or because it is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headwater.audits.again import estimator_of
from headwater.audits.report import Audit

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


@dataclass(frozen=True)
class Known:
    """The exact effect of one component."""

    size: float
    """|mean effect| or mean |effect|, whichever is asked for."""
    signed: float
    """The size with the sign of the mean effect."""

    @classmethod
    def of(cls, effect: Float[np.ndarray, " pair"], magnitudes: bool) -> Known:
        """Return what is known from the exact effect on every pair."""
        mean = float(effect.mean())
        size = float(np.abs(effect).mean()) if magnitudes else abs(mean)
        return cls(size, -size if mean < 0 else size)


def known_effects(
    scores: Attribution, audit: Audit | None, magnitudes: bool, *, chosen: bool = True
) -> dict[int, Known]:
    """Return what is known without another run, by column.

    Args:
        scores: The result.
        audit: Its audit, if there is one.
        magnitudes: Whether sizes are mean |effect| instead of |mean effect|. An audit that was made
            in another dtype and read from a folder keeps one of the two, the one its scores
            estimate; the other is then not known.
        chosen: Whether what `hw.verify` picked by what it saw of other runs is among them.
    """
    values = scores.scores.double().cpu().numpy()
    exact = {
        column: Known.of(values[:, column], magnitudes) for column in sorted(scores.parts.exact)
    }
    if scores.is_exact:
        return exact
    alone = scores.ledger.alone(chosen=chosen)
    known = exact | {column: Known.of(lost, magnitudes) for column, lost in alone.items()}
    if audit is None:
        return known
    column_of = {name: column for column, name in enumerate(scores.names)}
    if magnitudes == estimator_of(scores).magnitudes:
        for row in audit.rows:
            known[column_of[row.name]] = Known(abs(row.exact), row.exact)
    if audit.pair_effects is not None:
        effects = audit.pair_effects.double().numpy()
        for place, row in enumerate(audit.rows):
            known[column_of[row.name]] = Known.of(effects[:, place], magnitudes)
    return known


def signed_estimates(scores: Attribution, magnitudes: bool) -> Float[np.ndarray, " component"]:
    """Return the estimate of each component: the mean, or the mean size with the mean's sign."""
    values = scores.scores.double().cpu().numpy()
    mean = values.mean(0)
    return np.where(mean < 0, -1.0, 1.0) * np.abs(values).mean(0) if magnitudes else mean
