"""How much of the exact effects is on components of which an estimate sees next to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headwater.audits.intervals import intervals
from headwater.audits.population import population_of
from headwater.audits.report import Audit
from headwater.audits.sampling import AuditSample, Stratum
from headwater.audits.survey_result import BLIND, MissedShare, SurveyRow
from headwater.components import parse_component

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution

KINDS = ("head", "query", "key")
UNLIKELY = 0.05
"""More components may be blind than were found, as long as a sample shows so few of them with at
least this probability."""


@dataclass(frozen=True)
class Checked:
    """Two estimates of the same components on the same pairs, and exact effects of a sample."""

    plain: Attribution
    """Gradients."""
    fixed: Attribution
    """AtP*: the softmax computed."""
    audit: Audit
    """Of `plain`."""
    seed: int
    """Of the intervals."""

    @cached_property
    def estimates(self) -> dict[str, Float[np.ndarray, "pair component"]]:
        """Both estimates, by the estimator's name."""
        return {
            str(scores.provenance.estimator["name"]): scores.scores.double().cpu().numpy()
            for scores in (self.plain, self.fixed)
        }

    @cached_property
    def columns(self) -> list[int]:
        """The columns of the estimates that were checked, in the order of the audit's rows."""
        column_of = {name: column for column, name in enumerate(self.plain.names)}
        return [column_of[row.name] for row in self.audit.rows]

    @cached_property
    def sample(self) -> AuditSample:
        """The very sample that the audit drew; drawn again it could be another one."""
        population = population_of(self.plain, self.audit)
        names = dict.fromkeys(row.stratum for row in self.audit.rows)
        strata = (
            Stratum(name, tuple(members), tuple(c for c in members if c in population.drawn))
            # a sample of one has a stratum of which nothing was checked, and no name for it
            for name, members in zip(names, population.strata, strict=False)
        )
        return AuditSample(len(self.plain.names), tuple(strata))

    def rows(self, by_head: Mapping[str, float], heads_per_key: int) -> tuple[SurveyRow, ...]:
        """Return one row a checked component.

        Args:
            by_head: Share of saturated rows by head.
            heads_per_key: Heads that share one key.
        """
        return tuple(
            SurveyRow(
                name=row.name,
                kind=parse_component(row.name).kind,
                weight=row.weight,
                exact=row.exact,
                estimates={
                    name: float(values[:, column].mean()) for name, values in self.estimates.items()
                },
                saturated=_own_saturation(row.name, by_head, heads_per_key),
            )
            for row, column in zip(self.audit.rows, self.columns, strict=True)
        )

    def shares(self) -> tuple[MissedShare, ...]:
        """Return what each estimate does not see: of all components, then of each kind."""
        return tuple(
            self._share(estimator, kind) for estimator in self.estimates for kind in ("all", *KINDS)
        )

    def _share(self, estimator: str, kind: str) -> MissedShare:
        assert self.audit.pair_effects is not None
        exact = self.audit.pair_effects.double().numpy()
        checked = self.estimates[estimator][:, self.columns]
        weight = np.array([row.weight for row in self.audit.rows])
        wanted = [kind in ("all", parse_component(row.name).kind) for row in self.audit.rows]
        parts = [part[..., wanted] for part in (weight, checked, exact)]
        share = _known(missed_share(parts[0], parts[1].mean(0), parts[2].mean(0)))
        each = [np.broadcast_to(part, parts[2].shape).ravel() for part in parts]
        low = high = None
        if kind == "all" and share is not None and (span := self._interval(estimator)):
            low, high = max(0.0, min(span[0], share)), min(1.0, max(span[1], share))
        return MissedShare(
            estimator,
            kind,
            components=sum(wanted),
            share=share,
            low=low,
            high=high,
            by_prompt=_known(missed_share(*each)),
        )

    def _interval(self, estimator: str) -> tuple[float, float] | None:
        exact = dict(zip(self.columns, (row.exact for row in self.audit.rows), strict=True))
        known = np.array([exact[column] for column in self.sample.indices])
        estimate = self.estimates[estimator].mean(0)
        return share_interval(self.sample, estimate, known, self.seed)


def share_interval(
    sample: AuditSample,
    estimate: Float[np.ndarray, " component"],
    exact: Float[np.ndarray, " index"],
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return an interval for the share not seen of all components; None if too few were checked.

    That of `intervals`, whose upper end is moved up by what the sample cannot exclude: of each
    stratum as many more components may be blind as could have been missed, each with the largest
    effect that was found in the stratum. Larger effects than those it cannot foresee.

    Args:
        sample: What was checked.
        estimate: Of all components.
        exact: Of the checked ones, in the order of `sample.indices`.
        seed: Of the bootstraps.
    """
    span = intervals({"share": missed_share}, sample, estimate, exact, seed=seed)["share"]
    if span is None:
        return None
    size = np.abs(exact)
    blind = np.abs(estimate[list(sample.indices)]) < BLIND * size
    start, hidden = 0, 0.0
    for stratum in sample.strata:
        own = slice(start, start := start + len(stratum.checked))
        found = int(blind[own].sum())
        expected = found * (stratum.weight - 1)
        unseen = most_blind(len(stratum.members), len(stratum.checked), found) - found
        hidden += max(0.0, unseen - expected) * float(size[own].max())
    total = float(np.dot(sample.weights, size))
    return span[0], (span[1] * total + hidden) / (total + hidden)


def most_blind(members: int, checked: int, found: int) -> int:
    """Return how many of a stratum's members may be blind.

    The most of whom a sample without replacement would still show no more than `found` in one case
    of twenty: of a large stratum with none found about `3 / checked` of all (the rule of three).
    """
    least, most = found, members - checked + found
    while least < most:
        middle = (least + most + 1) // 2
        few = sum(
            math.comb(middle, k) * math.comb(members - middle, checked - k)
            for k in range(found + 1)
        )
        if few / math.comb(members, checked) >= UNLIKELY:
            least = middle
        else:
            most = middle - 1
    return least


def missed_share(
    weight: Float[np.ndarray, "*#batch component"],
    estimate: Float[np.ndarray, "*#batch component"],
    exact: Float[np.ndarray, "*#batch component"],
) -> Float[np.ndarray, "*batch"] | float:
    """Return the share of sum |exact| on components with |estimate| < 0.1 |exact|.

    Args:
        weight: How many components each stands for.
        estimate: Estimates.
        exact: Exact effects.
    """
    size = np.abs(exact) * weight
    blind = size * (np.abs(estimate) < BLIND * np.abs(exact))
    total = np.asarray(size.sum(-1))
    return np.divide(blind.sum(-1), total, out=np.full_like(total, np.nan), where=total > 0)


def _known(share: np.ndarray | float) -> float | None:
    value = float(share)
    return None if np.isnan(value) else value


def _own_saturation(name: str, by_head: Mapping[str, float], heads_per_key: int) -> float:
    """Return a head's share of saturated rows; of a shared key the mean over its heads."""
    component = parse_component(name)
    index = component.index or 0
    served = [index]
    if component.kind == "key":
        served = range(index * heads_per_key, (index + 1) * heads_per_key)
    own = [by_head[f"a{component.layer}.h{head}"] for head in served]
    return sum(own) / len(own)
