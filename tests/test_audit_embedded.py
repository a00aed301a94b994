"""On the embedded model, sampled audits agree with the full exact run within their intervals."""

from __future__ import annotations

import pytest

import headwater as hw
from headwater.audits import Audit, audit_scores

SEEDS = 40
PAIRS = 6


@pytest.fixture(scope="module", params=["ioi", "agreement"])
def run(request: pytest.FixtureRequest):
    """Estimates and exact effects of every neuron."""
    model, task = hw.load("tiny"), hw.task(request.param)[:PAIRS]
    return [
        hw.attribute(model, task, hw.neurons(), estimator, progress=False)
        for estimator in (hw.Gradient(), hw.Exact())
    ]


def audited(run, **options) -> Audit:
    estimate, exact = run
    return audit_scores(
        estimate.names, estimate.scores, lambda columns: exact.scores[:, list(columns)], **options
    )


def test_a_sampled_audit_agrees_with_the_full_exact_run_within_its_intervals(run):
    full = audited(run, sample=len(run[0].names))
    assert full.counts.complete
    hits: dict[str, list[bool]] = {}
    for seed in range(SEEDS):
        for statistic in audited(run, sample=32, seed=seed).figures:
            if statistic.low is not None:
                truth = full.statistic(statistic.name).value
                inside = statistic.low - 1e-9 <= truth <= statistic.high + 1e-9
                hits.setdefault(statistic.name, []).append(inside)
    assert len(hits) == 6
    # Of 40 intervals that hold 95 % of the time, 34 or more do in 997 of 1,000 such tests.
    assert all(sum(inside) >= 34 for inside in hits.values()), hits
