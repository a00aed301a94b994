"""Sums over a corpus, jumps between layers and closeness to both ends: closed forms, slow twins."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from headwater.errors import UnknownOptionError
from headwater.lenses.intervals import stretched
from headwater.lenses.questions import close, jumps
from headwater.lenses.statistics import columns
from headwater.lenses.tally import Tally
from headwater.lenses.tally.moments import Moments
from headwater.lenses.tally.replicates import REPLICATES, Replicates, weights_of
from headwater.lenses.tally.sketch import BINS, Sketch
from headwater.zoo.truths import lens_flip
from lens_tally_cases import measured, plan
from shape_checks import unchecked

VOCAB = 16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts_of(count: int, length: int = 6, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count, length), generator=generator).tolist()


def random_tally(count: int = 12, layers: int = 3, **options) -> tuple[Tally, list]:
    tally, parts, prompts = Tally(plan(layers, **options)), [], prompts_of(count)
    rows = len(plan(layers, **options).rows)
    for first in range(0, count, 4):
        batch = prompts[first : first + 4]
        logits = 2 * drawn(sum(map(len, batch)), rows, VOCAB, seed=first)
        parts.append(measured(logits, batch, first=first))
        tally.add(parts[-1])
    return tally, parts


def flipping(repeats: int = 3) -> Tally:
    """The rows of the zoo's model that turns at one layer, read at several prompts."""
    logits = lens_flip.LensFlip().lens()
    tally = Tally(plan(lens_flip.LAYERS))
    # the input row's token is the wrong one, as it is read there
    prompts = [[lens_flip.WRONG, lens_flip.WRONG] for _ in range(repeats)]
    tally.add(measured(logits.expand(2 * repeats, -1, -1), prompts))
    return tally


# --- sums --------------------------------------------------------------------------------------


def test_moments_in_batches_are_those_of_the_whole():
    values = 1e6 + drawn(3, 40, 2)
    values[0, 5, 1], values[1, 7, 0], values[1, 8, 0] = torch.nan, torch.inf, -torch.inf
    moments = Moments.empty(3, 2)
    for first, end in ((0, 1), (1, 17), (17, 40)):
        moments.add(values[:, first:end])
    known = np.where(np.isfinite(values.numpy()), values.numpy(), np.nan)
    assert np.allclose(moments.means(), np.nanmean(known, axis=1), rtol=1e-14)
    # deviations about 1e6: digits lost are those of the numbers themselves
    assert np.allclose(moments.deviations(), np.nanstd(known, axis=1, ddof=1), rtol=1e-9)
    assert moments.count.tolist() == [[40, 39], [38, 40], [40, 40]]


def test_moments_of_no_number_are_none():
    moments = Moments.empty(1, 1)
    moments.add(torch.full((1, 3, 1), torch.nan, dtype=torch.float64))
    assert moments.means().isnan().all()
    assert moments.deviations().isnan().all()


SHARES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.999, 1.0)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_a_quantile_is_within_one_percent(spread, sign):
    signs = sign if sign else drawn(1, 5001, 1, seed=1).sign()
    values = (spread * drawn(1, 5001, 1)).exp() * signs
    sketch = Sketch.empty(1, 1)
    sketch.add(values)
    for share in SHARES:
        exact = np.quantile(values.numpy(), share, method="inverted_cdf")
        assert float(sketch.quantile(share, 0)) == pytest.approx(exact, rel=0.01 * (1 + 1e-9))


def test_zero_infinity_and_nan_have_their_place_in_a_quantile():
    values = torch.tensor([torch.nan, -torch.inf, -2.0, 0.0, 1e-9, 1.0, torch.inf, torch.inf])
    sketch = Sketch.empty(1, 1)
    sketch.add(values.double().view(1, -1, 1))
    found = [
        float(sketch.quantile(share, 0)) for share in (0, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1)
    ]
    assert found == pytest.approx([-math.inf, -2, 0, 0, 1, math.inf, math.inf], rel=0.01)
    assert int(sketch.infinite(0)) == 3


def test_a_quantile_is_of_the_statistic_that_is_asked_for():
    values = drawn(2, 301, 3)
    sketch = Sketch.empty(2, 3)
    sketch.add(values)
    for statistic in range(2):
        exact = np.quantile(values[statistic].numpy(), 0.3, axis=0, method="inverted_cdf")
        found = sketch.quantile(0.3, statistic)
        assert found.tolist() == pytest.approx(exact.tolist(), rel=0.0101)


class Worked(TorchFunctionMode):
    """Adds up the numbers that all steps return."""

    numbers = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.numbers += found.numel()
        return found


def test_what_is_asked_of_one_statistic_costs_what_that_one_has():
    tally, _ = random_tally()
    assert len(tally.keys) > 20
    rows = len(tally.rows)
    for asked, size in (
        (tally.mean, rows),
        (tally.deviation, rows),
        (tally.count, rows),
        (tally.infinite, rows * BINS),
        (lambda key: tally.quantile(key, 0.5), rows * BINS),
        (tally.interval, rows * (REPLICATES + 1)),
    ):
        with Worked() as worked:
            asked("entropy")
        assert 0 < worked.numbers <= 10 * size  # a few steps, of one statistic each


def test_a_tally_s_statistics_are_those_of_all_positions():
    tally, parts = random_tally()
    every = [columns(part) for part in parts]
    for key in every[0]:
        values = torch.cat([one[key] for one in every]).numpy()
        assert np.allclose(tally.mean(key), np.nanmean(values, axis=0), rtol=1e-11, atol=1e-12)
        spread = np.nanstd(values, axis=0, ddof=1)
        assert np.allclose(tally.deviation(key), spread, rtol=1e-9, atol=1e-12)
        median = np.nanquantile(values, 0.5, axis=0, method="inverted_cdf")
        assert np.allclose(tally.quantile(key, 0.5), median, rtol=0.0101, atol=1e-6)
    assert tally.count("rank(next)").tolist() == [60] * 4  # 12 prompts of 6 tokens, none has a 7th
    logs = torch.cat([one["rank(input)"] for one in every]).log().mean(0)
    torch.testing.assert_close(tally.mean("log rank(input)"), logs)


def test_quantiles_of_ranks_below_25_are_the_ranks_themselves():
    tally, parts = random_tally()
    values = torch.cat([columns(part)["rank(input)"] for part in parts]).numpy()
    for share in SHARES:
        exact = np.quantile(values, share, axis=0, method="inverted_cdf")
        assert tally.quantile("rank(input)", share).tolist() == exact.tolist()


def test_replicates_weigh_whole_prompts():
    values, prompts = drawn(1, 9, 2), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    values[0, 4, 1] = torch.nan
    replicates = Replicates.empty(7, 1, 2)
    replicates.add(prompts[:5], values[:, :5])
    replicates.add(prompts[5:], values[:, 5:])
    weights = torch.stack([weights_of(7, prompt) for prompt in range(3)])
    for number in (0, 1, REPLICATES):
        for row in range(2):
            kept = [i for i in range(9) if not values[0, i, row].isnan()]
            total = sum(float(weights[prompts[i], number]) for i in kept)
            added = sum(float(weights[prompts[i], number] * values[0, i, row]) for i in kept)
            expected = added / total if total else math.nan
            found = float(replicates.means()[number, 0, row])
            assert found == pytest.approx(expected, nan_ok=True)


def test_a_prompt_s_weight_is_its_own_and_poisson():
    drawn_weights = torch.stack([weights_of(0, prompt)[1:] for prompt in range(400)])
    assert torch.equal(weights_of(3, 5), weights_of(3, 5))
    assert not torch.equal(weights_of(3, 5), weights_of(4, 5))
    assert weights_of(3, 5)[0] == 1
    for count in range(4):
        share = (drawn_weights == count).double().mean()
        assert float(share) == pytest.approx(math.exp(-1) / math.factorial(count), abs=0.006)


@pytest.mark.parametrize("prompts", [6, 40])
def test_an_interval_over_prompts_holds_as_often_as_it_says(prompts):
    generator = np.random.default_rng(prompts)
    held, trials = 0, 300
    for trial in range(trials):
        # positions of one prompt have a common part: positions alone would promise too much
        common = generator.normal(size=(prompts, 1))
        values = torch.from_numpy((common + 0.3 * generator.normal(size=(prompts, 10))).ravel())
        replicates = Replicates.empty(trial, 1, 1)
        replicates.add(torch.arange(prompts).repeat_interleave(10), values.view(1, -1, 1))
        means = replicates.means(0)[:, 0]
        low, high = stretched(means[0], means[1:], prompts)
        held += bool(low <= 0 <= high)
    # binomial: 95 % of 300 has a standard deviation of 1.3 %
    assert 0.905 <= held / trials <= 0.99


def test_of_one_prompt_there_is_no_interval():
    tally = Tally(plan(2))
    tally.add(measured(drawn(6, 3, VOCAB), prompts_of(1)))
    low, high = tally.interval("entropy")
    assert low.isnan().all()
    assert high.isnan().all()
    assert "One prompt: no interval." in repr(jumps(tally))
    assert "One prompt: no interval." in repr(close(tally))


def test_a_tally_is_what_its_state_says():
    tally, parts = random_tally(writes=True)
    again = Tally.restored(tally.rows, tally.keys, tally.state())
    for one in (tally, again):
        one.add(parts[0])
    state = tally.state()
    assert state.keys() == again.state().keys()
    for name, value in again.state().items():
        assert torch.equal(value.nan_to_num(-7), state[name].nan_to_num(-7)), name


def test_a_misspelt_statistic_is_answered_with_the_closest():
    tally, _ = random_tally()
    with pytest.raises(UnknownOptionError, match=r"no statistic 'entropi'. Closest: 'entropy'"):
        tally.mean("entropi")
    with pytest.raises(UnknownOptionError, match=r"js\(final\) was not computed"):
        tally.mean("js(final)")
    with pytest.raises(UnknownOptionError, match="a share is from 0 to 1"):
        tally.quantile("entropy", 50)


# --- jumps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("against", "direction", "before", "after"),
    [
        ("final", "ref||layer", lens_flip.FINAL_AGAINST_BEFORE, 0.0),
        ("final", "layer||ref", lens_flip.BEFORE_AGAINST_FINAL, 0.0),
        ("first", "ref||layer", 0.0, lens_flip.BEFORE_AGAINST_FINAL),
        ("first", "layer||ref", 0.0, lens_flip.FINAL_AGAINST_BEFORE),
    ],
)
def test_a_flip_is_all_of_the_change_and_at_its_layer(against, direction, before, after):
    (jump,) = jumps(flipping(), against, "kl", direction).jumps
    flip = lens_flip.FLIP
    expected = [before] * (flip + 1) + [after] * (lens_flip.LAYERS - flip)
    assert jump.curve == pytest.approx(expected, abs=1e-12)
    assert jump.at == (f"r{flip - 1}", f"r{flip}")
    assert jump.largest.value == pytest.approx(1)
    assert (jump.largest.low, jump.largest.high) == pytest.approx((1, 1))
    assert jump.first.value == pytest.approx(0, abs=1e-12)
    assert jump.same_at == 1


def test_ranks_are_of_the_answer_against_final_and_of_the_token_read_against_first():
    final, first = jumps(flipping(), of="rank").jumps
    # before: 14 tokens level with the answer, the wrong one above; after: the answer on top, and
    # the wrong token level with the 14
    assert final.curve == pytest.approx([math.log(9)] * 3 + [0] * 2)
    assert first.curve == pytest.approx([0] * 3 + [math.log(9)] * 2)
    assert final.direction is None


def slow_jump(curve):
    steps = [abs(after - before) for before, after in pairwise(curve)]
    total = sum(steps)
    return max(steps) / total, steps.index(max(steps)), steps[0] / total


def test_jumps_leave_out_single_writes_and_match_a_loop():
    tally, parts = random_tally(writes=True)
    found = jumps(tally)
    assert len(found.jumps) == 6
    whole = [n for n, row in enumerate(tally.rows) if row.kind != "write"]
    for jump in found.jumps:
        keys = {
            ("kl", "final", "ref||layer"): "kl(final||layer)",
            ("kl", "final", "layer||ref"): "kl(layer||final)",
            ("kl", "first", "ref||layer"): "kl(first||layer)",
            ("kl", "first", "layer||ref"): "kl(layer||first)",
            ("rank", "final", None): "rank(final)",
            ("rank", "first", None): "rank(input)",
        }
        values = torch.cat(
            [columns(one)[keys[jump.of, jump.against, jump.direction]] for one in parts]
        )
        values = values.log() if jump.of == "rank" else values
        curve = values.mean(0)[whole].tolist()
        share, at, first = slow_jump(curve)
        assert jump.rows == ("input", "r0", "r1", "r2")
        assert jump.curve == pytest.approx(curve, rel=1e-10, abs=1e-10)
        assert jump.largest.value == pytest.approx(share, rel=1e-9)
        assert jump.at == (jump.rows[at], jump.rows[at + 1])
        assert jump.first.value == pytest.approx(first, rel=1e-9)
        assert jump.largest.low <= share <= jump.largest.high


def moving(sizes) -> Tally:
    """Prompts whose rows move away from the input by these steps, in turn."""
    tally = Tally(plan(len(sizes)))
    prompts = [[1, 2, 3, 4]] * 30
    path = torch.tensor([0.0, *np.cumsum(sizes)], dtype=torch.float64)
    direction = torch.nn.functional.one_hot(torch.tensor(0), VOCAB).double()
    logits = path[:, None] * direction + 0.001 * drawn(120, 1, VOCAB)
    tally.add(measured(logits + 0.01 * drawn(120, len(path), 1, seed=2) * direction, prompts))
    return tally


def test_the_first_step_is_said_to_remain_and_to_be_smaller_against_the_input():
    # KL(final || layer) falls by more at first than KL(first || layer) rises
    text = repr(jumps(moving([4.0, 1.0, 1.0]), of="kl", direction="ref||layer"))
    assert "against the input the jump at input -> r0 remains" in text
    sentence = jumps(moving([4.0, 1.0, 1.0]), of="kl", direction="ref||layer").sentences()[0]
    assert " and is smaller: " in sentence


def test_the_first_step_is_said_not_to_remain_where_it_is_less_than_an_even_one():
    sentence = jumps(moving([0.1, 3.0, 3.0]), of="kl", direction="ref||layer").sentences()[0]
    assert "does not remain" in sentence


@pytest.mark.parametrize("prompts", [3, 6])
def test_the_interval_of_a_first_step_over_few_prompts_holds_as_often_as_it_says(prompts):
    generator, held, trials = np.random.default_rng(prompts), 0, 150
    ids = [[1, 2]] * prompts
    said = measured(drawn(2 * prompts, 3, VOCAB), ids)
    for trial in range(trials):
        # KL(first || layer) of each prompt: 5 + noise at r0
        distance = 5 + torch.from_numpy(generator.normal(size=prompts)).repeat_interleave(2)
        kl = said.kl.clone()
        kl[:, 0, 1] = distance
        tally = Tally(plan(2, seed=trial))
        tally.add(replace(said, kl=kl))
        (jump,) = jumps(tally, "first", "kl", "ref||layer").jumps
        held += jump.first_size.low <= 5 <= jump.first_size.high
    # binomial: 95 % of 150 has a standard deviation of 1.8 %; percentiles alone hold 75 and 87 %
    assert held / trials >= 0.9


def test_a_largest_share_is_a_share_and_lies_in_its_own_interval():
    for seed in range(20):
        tally = Tally(plan(3, seed=seed))
        tally.add(measured(2 * drawn(12, 4, VOCAB, seed=seed), prompts_of(4, 3, seed)))
        for jump in jumps(tally).jumps:
            for one in (jump.largest, jump.first):
                assert 0 <= one.low <= one.value <= one.high <= 1
            assert jump.first_size.low >= 0


def test_of_one_step_no_verdict_is_given():
    tally = Tally(plan(1))
    tally.add(measured(drawn(12, 2, VOCAB), prompts_of(2)))
    found = jumps(tally)
    assert found.sentences() == [
        "input -> r0 is the only step that was read: it is all of the change, so whether there is "
        "a jump cannot be told."
    ]
    assert "remain" not in repr(found)
    assert "Even steps" not in repr(found)


def test_of_a_curve_that_does_not_move_no_verdict_is_given():
    tally = Tally(plan(2))
    tally.add(measured(drawn(12, 1, VOCAB).expand(-1, 3, -1), prompts_of(2)))
    assert jumps(tally, of="rank").sentences() == [
        "log rank(input): the curve does not move, so it has no jump."
    ]


def test_an_unknown_reference_is_refused():
    message = r"against='frist' is unknown. Closest: 'first'"
    with unchecked(), pytest.raises(UnknownOptionError, match=message):
        jumps(flipping(), against="frist")  # pyright: ignore[reportArgumentType]


# --- closeness ---------------------------------------------------------------------------------


def slow_close(parts, key_final, key_first, threshold, row):
    both = first_only = final_only = ends = apart = count = 0
    for part in parts:
        values = columns(part)
        for position in range(len(part.prompt)):
            count += 1
            final = float(values[key_final][position, row]) <= threshold
            first = float(values[key_first][position, row]) <= threshold
            distances = [float(part.kl[position, 0, -1]), float(part.kl[position, -1, 0])]
            near = min(distances) <= threshold
            both += final and first
            first_only += first and not final
            final_only += final and not first
            ends += near
            apart += final and first and not near
    return [number / count for number in (both, first_only, final_only, ends, apart)]


@pytest.mark.parametrize("direction", ["ref||layer", "layer||ref"])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_shares_of_close_positions_are_those_of_a_loop(direction, threshold):
    tally, parts = random_tally()
    names = [f"kl({end}||layer)" if direction == "ref||layer" else f"kl(layer||{end})"
             for end in ("final", "first")]  # fmt: skip
    for row, share in enumerate(close(tally).of(direction, threshold)):
        found = (share.both, share.first_only, share.final_only, share.ends, share.both_apart)
        expected = slow_close(parts, *names, threshold, row)
        assert [one.value for one in found] == pytest.approx(expected)


def between_ends(middle: float) -> Tally:
    """Three rows: p, a mixture, q. Mixtures are close to both, and p and q are far apart."""
    p = torch.full((VOCAB,), 1e-9, dtype=torch.float64)
    q = p.clone()
    p[0], q[1] = 1, 1
    mixed = middle * p + (1 - middle) * q
    logits = torch.stack([p, mixed, q]).log().expand(8, -1, -1)
    tally = Tally(plan(2))
    tally.add(measured(logits, [[0, 1], [0, 1], [0, 1], [0, 1]]))
    return tally


def test_a_mixture_is_close_to_both_one_way_though_the_ends_are_far_apart():
    found = close(between_ends(0.5))
    (_, inner, _) = found.of("ref||layer", 1.0)  # KL(p || (p + q) / 2) = ln 2
    assert inner.both.value == inner.both_apart.value == 1
    assert inner.ends.value == 0
    (_, inner, _) = found.of("ref||layer", 0.5)
    assert inner.both.value == 0
    (_, inner, _) = found.of("layer||ref", 2.0)  # the other way round it is as far as the ends
    assert inner.both.value == 0
    assert "1 of 1 inner rows is within 1 nat of both first and final" in found.sentences()[0]


def test_where_the_ends_are_close_themselves_this_is_said():
    tally = Tally(plan(2))
    tally.add(measured(drawn(1, 1, VOCAB).expand(8, 3, -1), [[0, 1]] * 4))
    (_, inner, _) = close(tally).of("ref||layer", 0.1)
    assert (inner.both.value, inner.ends.value, inner.both_apart.value) == (1, 1, 0)


def test_where_no_position_is_close_to_both_just_that_is_said():
    assert close(between_ends(0.5)).sentences()[1] == (
        "By KL(layer||first) and KL(layer||final), no inner row is within 1 nat of both first and "
        "final at any position."
    )


def test_how_near_the_nearest_row_comes_is_said():
    assert close(between_ends(0.5)).sentences()[0] == (
        "By KL(first||layer) and KL(final||layer), 1 of 1 inner rows is within 1 nat of both first "
        "and final at more than half of the positions; at r0, the nearest, it is 100 % of "
        "positions; first and final never are that close themselves."
    )


def test_shares_and_their_ends_are_from_0_to_1():
    for seed in range(5):
        tally = Tally(plan(2, seed=seed))
        tally.add(measured(drawn(12, 3, VOCAB, seed=seed), prompts_of(2, seed=seed)))
        for one in close(tally).shares:
            for share in (one.both, one.both_apart, one.first_only, one.final_only, one.ends):
                assert 0 <= share.low <= share.value <= share.high <= 1


def test_closeness_by_an_uncomputed_measure_is_refused():
    with pytest.raises(UnknownOptionError, match=r"js\(final\) was not computed"):
        close(between_ends(0.5), "js")


def test_questions_are_plain_data_and_rows():
    tally, _ = random_tally()
    for found in (jumps(tally), close(tally)):
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["sentences"] == found.sentences()
        assert len({tuple(row) for row in found.rows()}) == 1
