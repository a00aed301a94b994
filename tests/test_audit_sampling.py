"""The audit's sample: stratified, random within strata, the same for the same seed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from headwater.audits import AuditSample
from headwater.errors import ResultError

HEAVY = np.random.default_rng(0).standard_t(2, 1536)


def test_the_top_is_checked_with_certainty_and_the_rest_is_split():
    sample = AuditSample.draw(HEAVY, sample=32, top=10)
    assert [sample.checked(name) for name in ("top", "middle", "tail")] == [10, 11, 11]
    assert set(sample.indices[:10]) == set(np.argsort(-np.abs(HEAVY))[:10].tolist())


def test_strata_follow_the_strength_of_the_estimate_not_its_sign():
    top, middle, tail = AuditSample.draw(HEAVY, sample=32).strata
    strength = [np.abs(HEAVY[list(stratum.members)]) for stratum in (top, middle, tail)]
    assert strength[0].min() >= strength[1].max() >= strength[1].min() >= strength[2].max()


def test_every_component_is_in_exactly_one_stratum():
    sample = AuditSample.draw(HEAVY, sample=32)
    members = [column for stratum in sample.strata for column in stratum.members]
    assert sorted(members) == list(range(len(HEAVY)))


def test_weights_count_every_component_once():
    sample = AuditSample.draw(HEAVY, sample=32)
    assert sum(sample.weights) == pytest.approx(len(HEAVY))
    assert sample.weights[:10] == (1.0,) * 10


def test_a_weighted_sum_is_unbiased():
    population = np.random.default_rng(1).exponential(size=60)
    estimates = []
    for seed in range(500):
        sample = AuditSample.draw(HEAVY[:60], sample=20, seed=seed)
        values = population[list(sample.indices)] * np.array(sample.weights)
        estimates.append(values.sum())
    standard_error = np.std(estimates) / np.sqrt(len(estimates))
    # Four standard errors: one false alarm in 16,000 seeds.
    assert abs(np.mean(estimates) - population.sum()) < 4 * standard_error


def test_the_same_seed_draws_the_same_sample():
    assert AuditSample.draw(HEAVY, seed=3) == AuditSample.draw(HEAVY, seed=3)


def test_another_seed_draws_another_sample_with_the_same_top():
    one, other = AuditSample.draw(HEAVY, seed=3), AuditSample.draw(HEAVY, seed=4)
    assert one.strata[0] == other.strata[0]
    assert one.strata[1].checked != other.strata[1].checked


def test_the_draw_ignores_and_leaves_alone_global_random_states():
    torch.manual_seed(0)
    random.seed(0)
    before = AuditSample.draw(HEAVY, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    random.seed(99)
    assert AuditSample.draw(HEAVY, seed=3) == before
    torch.set_rng_state(state)
    AuditSample.draw(HEAVY, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sample", [20, 21, 1000])
def test_a_sample_as_large_as_the_population_checks_everything(sample: int):
    drawn = AuditSample.draw(HEAVY[:20], sample=sample)
    assert drawn.complete
    assert sorted(drawn.indices) == list(range(20))
    assert set(drawn.weights) == {1.0}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 12, 17, 40, 200])
@pytest.mark.parametrize("sample", [1, 2, 3, 4, 8, 9, 15, 16, 32])
@pytest.mark.parametrize("top", [1, 10])
def test_exactly_the_asked_number_is_drawn(count: int, sample: int, top: int):
    drawn = AuditSample.draw(HEAVY[:count], sample=sample, top=top)
    assert len(set(drawn.indices)) == min(count, sample)
    assert all(0 < len(s.checked) <= len(s.members) for s in drawn.strata)
    assert not drawn.covers or sum(drawn.weights) == pytest.approx(count)


def test_a_sample_smaller_than_three_strata_leaves_the_middle_out():
    assert [s.name for s in AuditSample.draw(HEAVY, sample=2).strata] == ["top", "tail"]


def test_a_sample_of_one_covers_only_the_strongest():
    drawn = AuditSample.draw(HEAVY, sample=1)
    assert drawn.indices == (int(np.abs(HEAVY).argmax()),)
    assert not drawn.covers


def test_a_small_sample_gives_up_some_of_the_top_to_see_the_rest():
    drawn = AuditSample.draw(HEAVY, sample=12, top=10)
    assert [drawn.checked(name) for name in ("top", "middle", "tail")] == [4, 4, 4]


def test_estimates_that_are_all_equal_are_sampled_by_order():
    drawn = AuditSample.draw(np.zeros(100), sample=32)
    assert drawn.indices[:10] == tuple(range(10))
    assert sum(drawn.weights) == pytest.approx(100)


@pytest.mark.parametrize("sample", [0, -3])
def test_a_sample_below_one_says_what_to_type(sample: int):
    with pytest.raises(ResultError) as error:
        AuditSample.draw(HEAVY, sample=sample)
    assert str(error.value) == (
        f"sample={sample}: an audit checks at least one component.\n"
        "Type sample=32, or more for narrower intervals."
    )


def test_a_top_below_one_says_what_to_type():
    with pytest.raises(ResultError, match=r"^top=0: the top has at least one component\."):
        AuditSample.draw(HEAVY, top=0)


def test_no_components_are_refused():
    with pytest.raises(ResultError, match="no components to audit"):
        AuditSample.draw(np.zeros(0))
