"""The audit's figures: weighted ones equal plain ones on the population written out in full."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.audits import statistics
from headwater.audits.intervals import (
    completions,
    intervals,
    rescaled_weights,
    student_inside,
    student_quantile,
)
from headwater.audits.sampling import AuditSample

DRAW = np.random.default_rng(0)
ESTIMATE = DRAW.normal(size=12)
EXACT = 0.5 * ESTIMATE + DRAW.normal(size=12)
EXACT[:3] = 0.0
WEIGHT = DRAW.integers(1, 5, size=12).astype(float)
ONES = np.ones(12)


def written_out(values: np.ndarray) -> np.ndarray:
    """The population in which each component occurs as often as its weight says."""
    return np.repeat(values, WEIGHT.astype(int))


def plain_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks by counting; equal values share the mean of theirs."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def plain_recall(estimate: np.ndarray, exact: np.ndarray, most: int) -> float:
    """The overlap of the two sets of strongest; no ties."""
    estimated = set(np.argsort(-np.abs(estimate))[:most].tolist())
    return len(estimated & set(np.argsort(-np.abs(exact))[:most].tolist())) / most


def test_weighted_pearson_is_that_of_the_population_written_out():
    plain = np.corrcoef(written_out(ESTIMATE), written_out(EXACT))[0, 1]
    assert statistics.pearson(WEIGHT, ESTIMATE, EXACT) == pytest.approx(plain)


def test_weighted_spearman_is_that_of_the_population_written_out_with_ties():
    ranks = plain_ranks(written_out(ESTIMATE)), plain_ranks(written_out(EXACT))
    plain = np.corrcoef(*ranks)[0, 1]
    assert statistics.spearman(WEIGHT, ESTIMATE, EXACT) == pytest.approx(plain)


def test_weighted_slope_is_that_of_the_population_written_out():
    x, y = written_out(ESTIMATE), written_out(EXACT)
    assert statistics.slope(WEIGHT, ESTIMATE, EXACT) == pytest.approx((x @ y) / (y @ y))


def test_weighted_relative_error_is_that_of_the_population_written_out():
    x, y = written_out(ESTIMATE), written_out(EXACT)
    plain = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert statistics.relative_error(WEIGHT, ESTIMATE, EXACT) == pytest.approx(plain)


def test_sign_agreement_counts_only_effects_above_the_floor():
    x, y = written_out(ESTIMATE), written_out(EXACT)
    counted = np.abs(y) > 0.4
    plain = (np.sign(x) == np.sign(y))[counted].mean()
    value = statistics.sign_agreement(WEIGHT, ESTIMATE, EXACT, floor=0.4)
    assert value == pytest.approx(plain)


@pytest.mark.parametrize("seed", range(20))
def test_recall_is_the_overlap_of_the_two_sets_of_strongest(seed: int):
    draw = np.random.default_rng(seed)
    estimate, exact = draw.normal(size=30), draw.normal(size=30)
    chosen = np.isin(np.arange(30), np.argsort(-np.abs(estimate))[:10])
    value = statistics.recall(np.ones(30), exact, chosen, 10)
    assert value == pytest.approx(plain_recall(estimate, exact, 10))


def test_a_missed_component_counts_in_recall_as_often_as_its_weight():
    exact = np.array([4.0, 3.0, 2.0, 1.0, 3.5])
    chosen = np.array([True, True, True, True, False])
    # One stronger one that stands for itself pushes the fourth out; for two, the third as well.
    assert statistics.recall(np.array([1, 1, 1, 1, 1.0]), exact, chosen, 4) == pytest.approx(3 / 4)
    assert statistics.recall(np.array([1, 1, 1, 1, 2.0]), exact, chosen, 4) == pytest.approx(2 / 4)


@pytest.mark.parametrize("measure", [statistics.pearson, statistics.spearman])
def test_a_correlation_without_spread_is_undefined(measure):
    assert np.isnan(measure(ONES, ESTIMATE, np.full(12, 2.0)))


@pytest.mark.parametrize(
    "measure", [statistics.slope, statistics.relative_error, statistics.sign_agreement]
)
def test_figures_relative_to_no_effect_are_undefined(measure):
    assert np.isnan(measure(ONES, ESTIMATE, np.zeros(12)))


def test_replicates_in_one_call_equal_replicates_one_by_one():
    weights = DRAW.exponential(size=(5, 12))
    for measure in (statistics.pearson, statistics.spearman, statistics.slope):
        together = measure(weights, ESTIMATE, EXACT)
        alone = [float(measure(weight, ESTIMATE, EXACT)) for weight in weights]
        assert together == pytest.approx(alone)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042)]
)
def test_quantiles_of_student_t_are_those_of_the_tables(freedom: int, quantile: float):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-4)


def test_student_t_with_one_degree_of_freedom_is_cauchy():
    assert student_inside(1.0, 1) == pytest.approx(0.5)


SAMPLE = AuditSample.draw(np.random.default_rng(5).standard_t(2, 200), sample=32)


def test_rescaled_weights_have_the_mean_and_variance_of_sampling_without_replacement():
    weights = rescaled_weights(SAMPLE, 20_000, np.random.default_rng(0))
    assert weights.min() >= 0
    values = np.random.default_rng(1).normal(size=32)
    start, variance = 0, 0.0
    for stratum in SAMPLE.strata:
        n, members = len(stratum.checked), len(stratum.members)
        spread = values[start : start + n].var(ddof=1)
        variance += members**2 * (1 - n / members) * spread / n
        start += n
    totals = weights @ values
    assert weights.mean(0) == pytest.approx(np.array(SAMPLE.weights), rel=0.03)
    # 20,000 replicates know a variance to 1 %; three times that.
    assert totals.var() == pytest.approx(variance, rel=0.03)


def test_components_checked_with_certainty_keep_their_weight_in_every_replicate():
    weights = rescaled_weights(SAMPLE, 50, np.random.default_rng(0))
    assert (weights[:, :10] == 1.0).all()


def test_a_completed_population_keeps_what_was_checked_and_counts_every_component():
    estimate = np.random.default_rng(5).standard_t(2, 3000)
    sample = AuditSample.draw(estimate, sample=32)
    exact = np.random.default_rng(6).normal(size=32)
    parts = list(completions(sample, estimate, exact, 40, np.random.default_rng(0)))
    assert sum(len(effects) for _, _, effects in parts) == 40
    for weight, filled, effects in parts:
        assert weight.sum() == pytest.approx(3000)
        assert (effects[:, :32] == exact).all()
        assert effects.shape[1] == len(filled) == len(weight)


def test_a_full_check_has_no_interval():
    sample = AuditSample.draw(ESTIMATE, sample=12)
    exact = EXACT[list(sample.indices)]
    spans = intervals({"slope": statistics.slope}, sample, ESTIMATE, exact)
    assert spans == {"slope": None}


def test_a_stratum_with_one_check_leaves_no_interval():
    sample = AuditSample.draw(ESTIMATE, sample=3)
    exact = EXACT[list(sample.indices)]
    spans = intervals({"slope": statistics.slope}, sample, ESTIMATE, exact)
    assert spans == {"slope": None}
