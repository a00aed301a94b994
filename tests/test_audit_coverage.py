"""The stated intervals contain the figures of a full exact run as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.audits import statistics
from headwater.audits.intervals import intervals
from headwater.audits.sampling import AuditSample

SEEDS = 200
TOP = 10


def heads(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """144 effects with heavy tails; estimates half the size, one in thirty of the wrong sign."""
    return _population(draw, draw.standard_t(2, 144), slope=0.4, spread=0.5, wrong=1 / 30)


def neurons(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """1,536 effects over five orders of magnitude, estimates too small."""
    sizes = np.exp(draw.normal(0, 2, 1536)) * draw.choice([-1, 1], 1536, p=[0.3, 0.7])
    return _population(draw, sizes, slope=0.4, spread=0.5, wrong=1 / 30)


def small_model(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """68 effects, nearly right estimates: a rare error is the whole error."""
    return _population(draw, draw.standard_t(3, 68), slope=0.95, spread=0.2, wrong=1 / 30)


def unrelated(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """400 effects the estimate hardly follows."""
    return _population(draw, draw.standard_t(2, 400), slope=0.7, spread=1.2, wrong=1 / 4)


def _population(
    draw: np.random.Generator, exact: np.ndarray, slope: float, spread: float, wrong: float
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates in proportion to the effects, each with a factor, few wrong, and a little noise."""
    count = len(exact)
    sign = np.where(draw.random(count) < wrong, -1, 1)
    noise = 0.1 * np.median(np.abs(exact)) * draw.normal(size=count)
    return slope * sign * exact * np.exp(spread * draw.normal(size=count)) + noise, exact


def measures(first: int):
    """The figures of an audit; `recall` needs the strongest estimates in front."""

    def recall(weight: np.ndarray, estimate: np.ndarray, exact: np.ndarray) -> np.ndarray:
        return statistics.recall(weight, exact, np.arange(exact.shape[-1]) < first, first)

    return {
        "r": statistics.pearson,
        "rho": statistics.spearman,
        "slope": statistics.slope,
        "relative error": statistics.relative_error,
        "sign agreement": statistics.sign_agreement,
        "recall": recall,
    }


def coverage(population, sample: int, seeds: int, replicates: int = 150) -> dict[str, float]:
    """The share of seeds in which each interval contains the figure of the full population.

    A new population for each seed, so that no single odd one decides.
    """
    hits = dict.fromkeys(measures(TOP), 0)
    for seed in range(seeds):
        estimate, exact = population(np.random.default_rng(seed))
        drawn = AuditSample.draw(estimate, sample=sample, seed=seed, top=TOP)
        columns = list(drawn.indices)
        spans = intervals(
            measures(TOP), drawn, estimate, exact[columns], seed=seed, replicates=replicates
        )
        order = np.argsort(-np.abs(estimate), kind="stable")
        for name, measure in measures(TOP).items():
            value = float(measure(np.array(drawn.weights), estimate[columns], exact[columns]))
            full = float(measure(np.ones(len(exact)), estimate[order], exact[order]))
            low, high = spans[name]
            # The audit widens an interval to its own value.
            hits[name] += min(low, value) - 1e-9 <= full <= max(high, value) + 1e-9
    return {name: count / seeds for name, count in hits.items()}


@pytest.mark.parametrize("population", [heads, neurons, small_model])
def test_intervals_of_95_percent_contain_the_full_run_in_at_least_90_percent(population):
    covered = coverage(population, sample=32, seeds=SEEDS)
    # 200 seeds know a share of 95 % to 1.5 points, so 90 % is more than three of those away.
    assert min(covered.values()) >= 0.90, covered


@pytest.mark.slow
@pytest.mark.parametrize("population", [heads, neurons, small_model, unrelated])
@pytest.mark.parametrize("sample", [20, 32, 64])
def test_smaller_and_larger_samples_cover_as_well(population, sample: int):
    covered = coverage(population, sample=sample, seeds=SEEDS)
    assert min(covered.values()) >= 0.88, covered
