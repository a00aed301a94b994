"""The bootstrap over pairs: closed forms, slow twins, and how often intervals hold."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

import headwater as hw
from headwater.attribution import Attribution
from headwater.attribution.bootstrap import STABLE, Bootstrap, bootstrap, table_resamples
from headwater.errors import ResultError


def names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def resampled(values: Tensor, **options) -> Bootstrap:
    return bootstrap(values, names(values.shape[1]), **options)


def gaussian(pairs: int, means: list[float], seed: int = 0, spread: float = 1.0) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((pairs, len(means)))
    return torch.from_numpy(spread * noise + np.array(means))


def of_function(values: Tensor) -> Attribution:
    """A result whose score of component i on each pair is `values[pair, i]`."""
    function = hw.GatedFunction(
        lambda m: (m * values).sum(-1), names(values.shape[1]), batch=len(values)
    )
    return hw.attribute(function, estimator=hw.Exact())


# --- standard errors and intervals -------------------------------------------------------------


def test_the_standard_error_of_a_mean_tends_to_spread_over_root_pairs():
    values = gaussian(30, [0.0, 2.0, -1.0])
    found = resampled(values, resamples=40_000)
    expected = values.std(0, correction=0).numpy() / math.sqrt(30)
    # the standard deviation of n draws has itself the relative error 1 / sqrt(2 n)
    assert found.se == pytest.approx(expected, rel=5 / math.sqrt(2 * 40_000))
    assert found.scores == pytest.approx(values.mean(0).numpy(), abs=1e-14)


def test_two_pairs_are_drawn_as_the_binomial_distribution_says():
    found = resampled(torch.tensor([[0.0], [1.0]]), resamples=20_000, confidence=0.4)
    # the mean is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert found.se[0] == pytest.approx(math.sqrt(1 / 8), rel=0.02)
    assert (found.low[0], found.high[0]) == (0.5, 0.5)
    wide = resampled(torch.tensor([[0.0], [1.0]]), resamples=20_000, confidence=0.6)
    assert (wide.low[0], wide.high[0]) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_scores_have_no_error_at_all(dtype):
    found = resampled(torch.tensor([[0.1, -7.3, 1e-9]], dtype=dtype).repeat(13, 1))
    assert found.se.tolist() == [0.0, 0.0, 0.0]
    assert found.low.tolist() == found.high.tolist() == found.scores.tolist()


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(confidence):
    trials = 400
    values = gaussian(60, [0.7] * trials, seed=1)  # each column is an experiment of its own
    found = resampled(values, resamples=999, confidence=confidence)
    covered = float(((found.low <= 0.7) & (found.high >= 0.7)).mean())
    # all columns share their resamples, which does not touch coverage; percentile intervals of 60
    # Gaussian pairs are narrower than Student's by about 2 %
    error = 3 * math.sqrt(confidence * (1 - confidence) / trials)
    assert confidence - 0.015 - error < covered < confidence + error


def test_the_whole_bootstrap_equals_a_slow_one_over_the_same_draws():
    pairs, resamples, top = 7, 40, 2
    values = gaussian(pairs, [0.5, -0.6, 0.4, 0.0, 0.45], seed=3)
    found = resampled(values, resamples=resamples, top=top, confidence=0.9)
    generator = np.random.Generator(np.random.PCG64([0, 2]))
    drawn = generator.multinomial(pairs, [1 / pairs] * pairs, size=resamples)
    means, ranks, overlaps = [], [], []
    best = set(values.mean(0).abs().topk(top).indices.tolist())
    for counts in drawn:
        picked = [pair for pair, count in enumerate(counts) for _ in range(count)]
        assert len(picked) == pairs
        mean = values[picked].mean(0)
        order = mean.abs().argsort(descending=True).tolist()
        means.append(mean)
        ranks.append([order.index(i) + 1 for i in range(5)])
        chosen = set(order[:top])
        overlaps.append(len(best & chosen) / len(best | chosen))
    slow = torch.stack(means)
    assert found.se == pytest.approx(slow.std(0).numpy(), rel=1e-12)
    ordered, places = slow.sort(0).values, torch.tensor(ranks).sort(0).values
    # 5 % of 40 resamples lie outside at each end
    assert found.low == pytest.approx(ordered[2].numpy(), abs=1e-14)
    assert found.high == pytest.approx(ordered[-3].numpy(), abs=1e-14)
    assert found.rank_low.tolist() == places[2].tolist()
    assert found.rank_high.tolist() == places[-3].tolist()
    often = Counter(i for row in ranks for i, rank in enumerate(row) if rank <= top)
    assert found.in_top.tolist() == [often[i] / resamples for i in range(5)]
    assert found.stability.jaccard == pytest.approx(sum(overlaps) / resamples)
    assert found.stability.low == sorted(overlaps)[2]
    assert found.stability.high == sorted(overlaps)[-3]


def test_chunks_change_nothing(monkeypatch):
    values = gaussian(9, [0.1 * i for i in range(17)], seed=4)
    whole = resampled(values, resamples=50, top=3)
    monkeypatch.setattr("headwater.attribution.bootstrap.CHUNK", 60)
    parts = resampled(values, resamples=50, top=3)
    assert parts.se == pytest.approx(whole.se, rel=1e-12)
    assert parts.low == pytest.approx(whole.low, abs=1e-14)
    for name in ("rank_low", "rank_high", "in_top"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    assert parts.stability == whole.stability


def test_the_same_seed_draws_the_same_resamples():
    values = gaussian(9, [0.1, 0.2, 0.3])
    first, again, other = (resampled(values, seed=seed) for seed in (5, 5, 6))
    assert first.to_dict() == again.to_dict()
    assert first.se.tolist() != other.se.tolist()


# --- ranks -------------------------------------------------------------------------------------


def test_planted_gaps_give_ranks_without_an_interval():
    # neighbors are 1 apart, which is 100 standard errors
    values = gaussian(100, [-5.0, 1.0, 4.0, -2.0, 3.0], spread=0.1)
    found = resampled(values)
    assert [found.ranks(i) for i in range(5)] == ["1", "5", "2", "4", "3"]


def test_two_components_that_nothing_tells_apart_share_both_ranks():
    draw = random.Random(0)
    swapped = [draw.choice([(1.0, 1.2), (1.2, 1.0)]) for _ in range(40)]
    values = torch.tensor([[*pair, 0.1] for pair in swapped])
    found = resampled(values)
    assert [found.ranks(i) for i in range(3)] == ["1-2", "1-2", "3"]


def test_components_that_tie_share_the_ranks_they_take_up():
    values = torch.tensor([[3.0, 1.0, -1.0, 0.0, 0.0], [3.0, 2.0, -2.0, 0.0, 0.0]])
    found = resampled(values)
    assert [found.ranks(i) for i in range(5)] == ["1", "2-3", "2-3", "4-5", "4-5"]


def test_ranks_beyond_sixteen_bits_are_whole():
    count = 2**16 + 3
    values = torch.arange(count, 0, -1, dtype=torch.float32).repeat(2, 1)
    found = resampled(values, resamples=2)
    assert found.rank_low.tolist() == found.rank_high.tolist() == list(range(1, count + 1))


# --- magnitudes --------------------------------------------------------------------------------


def test_magnitudes_are_averaged_without_their_signs_and_ranked_by_size():
    values = torch.tensor([[4.0, 1.0], [-2.0, 1.0], [-3.0, 1.0]], dtype=torch.float64)
    plain, sizes = resampled(values), resampled(values, magnitudes=True)
    assert plain.scores.tolist() == pytest.approx([-1 / 3, 1.0])
    assert sizes.scores.tolist() == pytest.approx([-3.0, 1.0])
    assert (sizes.ranks(0), sizes.ranks(1)) == ("1", "2")
    # a resample of three pairs has the size's mean and, apart from it, the sign of the mean
    generator = np.random.Generator(np.random.PCG64([0, 2]))
    drawn = torch.from_numpy(generator.multinomial(3, [1 / 3] * 3, size=1000)).double()
    mean, size = drawn @ values[:, 0] / 3, drawn @ values[:, 0].abs() / 3
    signed = torch.where(mean < 0, -size, size)
    assert sizes.se[0] == pytest.approx(float(signed.std()), rel=1e-12)


def test_a_result_of_magnitudes_is_resampled_as_magnitudes():
    chosen, task = hw.load("tiny"), hw.task("ioi")[:6]
    scores = hw.attribute(chosen, task, hw.heads(), hw.AtPStar())
    found = scores.bootstrap(200)
    assert found.scores == pytest.approx(scores.mean().numpy(), rel=1e-6)
    sizes = scores.scores.abs().mean(0)
    assert np.abs(found.scores) == pytest.approx(sizes.numpy(), rel=1e-6)


# --- stability ---------------------------------------------------------------------------------


def test_huge_gaps_make_the_top_the_same_in_every_resample():
    values = gaussian(50, [9.0, -8.0, 7.0, 0.1, 0.2, 0.3], spread=0.1)
    found = resampled(values, top=3)
    assert (found.stability.jaccard, found.stability.low, found.stability.high) == (1, 1, 1)
    assert found.in_top.tolist() == [1, 1, 1, 0, 0, 0]
    assert found.sentence == "top 3 over resampled pairs: Jaccard 1.00 [1.00, 1.00]"


def test_a_top_of_noise_is_called_unstable():
    found = resampled(gaussian(20, [0.0] * 200), top=10)
    assert found.stability.jaccard < STABLE
    assert found.sentence.endswith("; not stable: below 0.8 (arXiv 2510.00845)")


def test_the_overlap_of_two_that_swap_places_is_known():
    # pair A scores only the first, pair B only the second: in a resample one of them is stronger
    # (or both tie, if each pair is drawn once), while over both pairs the first is
    values = torch.tensor([[1.1, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = resampled(values, resamples=20_000, top=1)
    # A alone and both once: the first is the top (3/4); B alone: the second (1/4)
    assert found.stability.jaccard == pytest.approx(0.75, abs=0.01)
    assert found.in_top.tolist() == pytest.approx([0.75, 0.25], abs=0.01)


def test_components_that_are_always_zero_are_never_in_the_top():
    values = torch.zeros(12, 30)
    values[:, :2] = gaussian(12, [5.0, 4.0]).float()
    found = resampled(values, top=10)
    assert found.stability.jaccard == 1.0
    assert found.in_top.tolist() == [1.0, 1.0] + [0.0] * 28


def test_a_top_that_holds_everything_says_so():
    found = resampled(gaussian(10, [1.0, 2.0, 3.0]))
    assert found.stability is None
    assert found.sentence == (
        "all 3 components are the top 10: the ranks say how stable their order is"
    )


def test_where_no_score_is_other_than_zero_there_is_no_top():
    found = resampled(torch.zeros(12, 30))
    assert found.stability is None
    assert found.to_dict()["stability"] is None
    assert found.sentence == (
        "no component has a score other than 0: there is no top whose stability to tell"
    )


def test_pairs_that_agree_say_nothing_of_stability():
    found = resampled(torch.arange(30.0).repeat(12, 1))
    assert found.sentence == (
        "no resample changes any score: pairs that agree say nothing of how stable the top 10 is"
    )


def test_few_resamples_are_said_to_be_few():
    found = resampled(gaussian(50, [9.0, 5.0, 0.1], spread=0.1), resamples=20, top=1)
    assert found.sentence.endswith("; 20 resamples are too few to tell")


# --- in tables ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scores() -> Attribution:
    return hw.attribute(hw.load("tiny"), hw.task("ioi")[:20], hw.heads() + hw.mlps())


def test_rows_carry_the_standard_error_and_the_rank_interval(scores):
    found = scores.bootstrap()
    for column, row in enumerate(scores.rows()):
        assert row.se == found.se[column]
        assert row.ranks == found.ranks(column)
    assert scores.bootstrap() is found  # computed once


def test_every_table_shows_them(scores):
    first = scores.top(1)[0]
    shown = repr(scores)
    assert shown.splitlines()[2].split() == ["component", "score", "se", "ranks", "exact", "size"]
    assert shown.splitlines()[3].split()[2:4] == [f"{first.se:.2g}", first.ranks]
    assert scores.stability() in shown
    assert max(map(len, shown.splitlines())) <= 100
    frame = scores.to_frame()
    assert frame["se"].tolist() == [row.se for row in scores.rows()]
    assert frame["ranks"].tolist() == [row.ranks for row in scores.rows()]
    data = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert data["components"][0]["ranks"] == scores.rows()[0].ranks
    assert data["stability"] == scores.stability()
    page = scores.page_data()
    assert page["components"][0]["se"] == scores.rows()[0].se
    assert any("Jaccard" in sentence for sentence in page["headline"])


def test_a_saved_result_shows_the_same_errors_and_ranks(scores, tmp_path):
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert repr(back) == repr(scores)


def test_one_pair_has_a_dash_and_words():
    alone = of_function(torch.tensor([[3.0, -1.0]]))
    assert [(row.se, row.ranks) for row in alone.rows()] == [(None, None)] * 2
    assert repr(alone).splitlines()[3].split() == ["c0", "+3", "-", "-", "+3"]
    assert "one pair: no standard errors and no rank intervals" in repr(alone)
    with pytest.raises(ResultError) as refused:
        alone.bootstrap()
    assert str(refused.value) == (
        "a bootstrap over 1 pair: there is nothing to draw from, so no standard error and no "
        "ranks.\nAttribute more pairs."
    )


def test_a_mask_that_all_pairs_share_has_a_dash_and_words():
    values = torch.tensor([[3.0, -1.0], [2.0, -2.0]])
    function = hw.GatedFunction(lambda m: (m * values).sum(-1), names(2), batch=2)
    mask = hw.attribute(function, estimator=hw.TrainedMask(steps=5))
    assert bool((mask.scores == mask.scores[0]).all())
    assert [(row.se, row.ranks) for row in mask.rows()] == [(None, None)] * 2
    assert repr(mask).splitlines()[3].split()[2:4] == ["-", "-"]
    assert mask.stability() == (
        "one mask, trained on all pairs together: no standard errors and no rank intervals. Train "
        "on other pairs, or with another seed, to see what stays"
    )


def test_tables_of_many_components_rest_on_fewer_resamples():
    assert [table_resamples(count) for count in (20, 10_000, 40_000, 10**6)] == [
        1000,
        1000,
        250,
        100,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "resamples=1 gives no spread.\nType resamples=1000."),
        ({"confidence": 1.0}, "confidence=1.0 is not between 0 and 1.\nType confidence=0.95."),
        ({"top": 0}, "top=0 is no top.\nType top=10."),
    ],
)
def test_an_option_out_of_range_is_refused(scores, options, message):
    with pytest.raises(ResultError) as refused:
        scores.bootstrap(**options)
    assert str(refused.value) == message


def test_the_printed_bootstrap_fits_one_screen(scores):
    lines = repr(scores.bootstrap()).splitlines()
    assert lines[0] == ("Bootstrap of 20 components over 20 pairs: 1,000 resamples, 95 % intervals")
    assert len(lines) == 13
    assert max(map(len, lines)) <= 100
