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


def test_the_standard_error_of_a_mean_is_the_spread_over_root_pairs():
    values = gaussian(30, [0.0, 2.0, -1.0])
    found = resampled(values)
    assert found.se == pytest.approx(values.std(0).numpy() / math.sqrt(30), rel=1e-12)
    assert found.scores == pytest.approx(values.mean(0).numpy(), abs=1e-14)


@pytest.mark.parametrize("confidence", [0.4, 0.95])
def test_the_interval_of_two_pairs_is_cauchy_s(confidence):
    found = resampled(torch.tensor([[0.0], [1.0]], dtype=torch.float64), confidence=confidence)
    # Student's t of one degree of freedom has the quantile function tan(pi (p - 1/2))
    reach = math.tan(math.pi * confidence / 2) / 2
    assert found.se[0] == 0.5
    assert found.low[0] == pytest.approx(0.5 - reach, rel=1e-9)
    assert found.high[0] == pytest.approx(0.5 + reach, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_scores_have_no_error_at_all(dtype):
    found = resampled(torch.tensor([[0.1, -7.3, 1e-9]], dtype=dtype).repeat(13, 1))
    assert found.se.tolist() == [0.0, 0.0, 0.0]
    assert found.low.tolist() == found.high.tolist() == found.scores.tolist()


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 30])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(pairs, confidence):
    trials = 2000
    values = gaussian(pairs, [0.7] * trials, seed=1)  # each column is an experiment of its own
    found = resampled(values, resamples=2, confidence=confidence)
    covered = float(((found.low <= 0.7) & (found.high >= 0.7)).mean())
    error = 3 * math.sqrt(confidence * (1 - confidence) / trials)
    assert confidence - error < covered < confidence + error
    # the mean of s is c4 sigma
    c4 = math.sqrt(2 / (pairs - 1)) * math.gamma(pairs / 2) / math.gamma((pairs - 1) / 2)
    assert found.se.mean() * math.sqrt(pairs) == pytest.approx(c4, abs=0.05)


def test_the_whole_bootstrap_equals_a_slow_one_over_the_same_draws():
    pairs, resamples, top = 7, 40, 2
    values = gaussian(pairs, [0.5, -0.6, 0.4, 0.0, 0.45], seed=3)
    found = resampled(values, resamples=resamples, top=top, confidence=0.9)
    generator = np.random.Generator(np.random.PCG64([0, 2]))
    drawn = generator.multinomial(pairs, [1 / pairs] * pairs, size=resamples)
    ranks, overlaps, same = [], [], torch.zeros(5)
    whole = values.mean(0)
    best = set(values.mean(0).abs().topk(top).indices.tolist())
    for counts, chi2 in zip(drawn, generator.chisquare(pairs - 1, size=resamples), strict=True):
        stretch = math.sqrt(pairs / chi2)
        picked = [pair for pair, count in enumerate(counts) for _ in range(count)]
        assert len(picked) == pairs
        mean = whole + stretch * (values[picked].mean(0) - whole)
        order = mean.abs().argsort(descending=True).tolist()
        same += mean.sign() == whole.sign()
        ranks.append([order.index(i) + 1 for i in range(5)])
        chosen = set(order[:top])
        overlaps.append(len(best & chosen) / len(best | chosen))
    places = torch.tensor(ranks).sort(0).values
    # 5 % of 40 resamples lie outside at each end
    assert found.rank_low.tolist() == places[2].tolist()
    assert found.rank_high.tolist() == places[-3].tolist()
    often = Counter(i for row in ranks for i, rank in enumerate(row) if rank <= top)
    assert found.in_top.tolist() == [often[i] / resamples for i in range(5)]
    assert found.sign.tolist() == pytest.approx((same / resamples).tolist())
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
    assert first.sign.tolist() != other.sign.tolist()


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
    two = torch.tensor([[3.0, 1.0, -1.0, 0.0, 0.0], [3.0, 2.0, -2.0, 0.0, 0.0]])
    values = two.repeat(20, 1)
    found = resampled(values)
    assert [found.ranks(i) for i in range(5)] == ["1", "2-3", "2-3", "4-5", "4-5"]


def test_ranks_beyond_sixteen_bits_are_whole():
    count = 2**16 + 3
    values = torch.arange(count, 0, -1, dtype=torch.float32).repeat(2, 1)
    found = resampled(values, resamples=2)
    assert found.rank_low.tolist() == found.rank_high.tolist() == list(range(1, count + 1))


def rank_coverage(pairs: int, means: list[float], trials: int = 40) -> tuple[float, float]:
    """How often intervals hold the true rank: of all components, and of the strongest ten."""
    order = np.argsort(np.argsort(-np.array(means))) + 1
    every, strongest = [], []
    for seed in range(trials):
        found = resampled(gaussian(pairs, means, seed=seed), resamples=400)
        holds = (found.rank_low <= order) & (order <= found.rank_high)
        every.append(holds.mean())
        strongest.append(holds[np.argsort(-np.abs(found.scores))[:10]].mean())
    return float(np.mean(every)), float(np.mean(strongest))


@pytest.mark.parametrize("pairs", [4, 8, 50])
def test_rank_intervals_cover_the_true_rank_of_components_that_differ(pairs):
    every, strongest = rank_coverage(pairs, [2 + 0.3 * i for i in range(20)])
    assert min(every, strongest) > 0.92


def test_among_equals_the_ranks_of_the_strongest_are_too_narrow_and_the_sentence_says_so():
    means = [2 + 1e-4 * i for i in range(100)]
    _, strongest = rank_coverage(50, means)
    assert 0.4 < strongest < 0.7
    assert resampled(gaussian(50, means)).sentence.endswith(
        "not stable: below 0.8 (arXiv 2510.00845), and ranks of the strongest may lie outside "
        "their intervals"
    )


# --- magnitudes --------------------------------------------------------------------------------


def test_magnitudes_are_averaged_and_ranked_by_size_and_their_sign_is_told_apart():
    values = torch.tensor([[4.0, 1.0], [-2.0, 1.0], [-3.0, 1.0]], dtype=torch.float64)
    plain, sizes = resampled(values), resampled(values, magnitudes=True, resamples=20_000)
    assert plain.scores.tolist() == pytest.approx([-1 / 3, 1.0])
    assert sizes.scores.tolist() == pytest.approx([-3.0, 1.0])
    # the sizes 4, 2, 3 have the mean 3 and the variance 1
    assert sizes.se[0] == pytest.approx(1 / math.sqrt(3), rel=1e-12)
    reach = 4.302652730 / math.sqrt(3)  # Student's quantile of two degrees of freedom
    assert (sizes.low[0], sizes.high[0]) == pytest.approx((-3 - reach, -3 + reach), rel=1e-9)
    # a mean stretched around -1/3 is below 0 if the three drawn sum to -1 or less: no 4 among them
    # (8 of 27 draws), or one with -2 and -3 (6), or one with -3 twice (3). With -2 twice (3) they
    # sum to 0, and are below it where the stretch sqrt(3 / chi2) is below 1: exp(-3 / 2)
    share = (17 + 3 * math.exp(-1.5)) / 27
    assert sizes.sign[0] == pytest.approx(share, abs=4 * math.sqrt(0.25 / 20_000))
    assert sizes.sign[1] == 1


def test_the_interval_of_a_magnitude_ends_at_zero_on_its_own_side():
    values = torch.tensor([[4.0, -4.0], [-2.0, 2.0]], dtype=torch.float64)
    found = resampled(values, magnitudes=True)
    reach = math.tan(0.475 * math.pi)  # of 3 with a standard error of 1
    assert found.low.tolist() == pytest.approx([0, -3 - reach])
    assert found.high.tolist() == pytest.approx([3 + reach, 0])


def test_a_sign_that_is_as_good_as_drawn_does_not_widen_the_size():
    values = gaussian(30, [0.0] * 500)
    found = resampled(values, magnitudes=True, resamples=100)
    # |x| of a standard normal has the mean sqrt(2 / pi) and the variance 1 - 2 / pi
    assert found.se.mean() == pytest.approx(math.sqrt((1 - 2 / math.pi) / 30), rel=0.03)
    sizes = np.stack([np.abs(found.low), np.abs(found.high)])
    inside = (sizes.min(0) <= math.sqrt(2 / math.pi)) & (math.sqrt(2 / math.pi) <= sizes.max(0))
    assert inside.mean() > 0.92
    assert found.sign.min() < 0.6


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
    assert "; not stable: below 0.8 (arXiv 2510.00845)" in found.sentence


def test_the_overlap_of_two_that_swap_places_is_known():
    # pair A scores only the first, pair B only the second: in a resample one of them is stronger
    # (or both tie, if each pair is drawn once), while over both pairs the first is
    values = torch.tensor([[1.1, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = resampled(values, resamples=20_000, top=1)
    # A alone and both once: the first is the top (3/4). B alone, stretched by s around both: 1.1
    # (1 - s) / 2 against (1 + s) / 2, so the second unless s > 21; s = sqrt(2 / chi2) is above 21
    # where a standard normal is within sqrt(2) / 21
    first = 0.75 + 0.25 * math.erf(1 / 21)
    assert found.stability.jaccard == pytest.approx(first, abs=0.01)
    assert found.in_top.tolist() == pytest.approx([first, 1 - first], abs=0.01)


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


@pytest.mark.parametrize("pairs", [2, 3, 7])
def test_few_pairs_are_said_to_say_little(pairs):
    found = resampled(gaussian(pairs, [9.0, 5.0, 0.1], spread=0.1), top=1)
    assert found.sentence.endswith(f"; {pairs} pairs say little about other pairs")
    found = resampled(gaussian(pairs, [9.0, 5.0, 0.1], spread=0.1))
    assert found.sentence.endswith(f"; {pairs} pairs say little about other pairs")


def test_pairs_that_repeat_others_are_counted():
    values = gaussian(4, [9.0, 5.0, 0.1]).repeat(50, 1)
    values = values + 1e-9 * gaussian(200, [0.0] * 3, seed=1)  # as other batches round
    found = resampled(values, top=1)
    assert (found.pairs, found.different) == (200, 4)
    assert found.sentence.endswith(
        "; only 4 of 200 pairs differ in their scores: where the others repeat prompts, errors are "
        "too small"
    )
    alone = resampled(gaussian(200, [9.0, 5.0, 0.1]), top=1)
    assert alone.different == 200
    assert "differ in their scores" not in alone.sentence


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
