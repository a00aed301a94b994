"""Rare and common input tokens along the rows: planted persistence, planted base rates."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from headwater.errors import UnknownOptionError
from headwater.lenses.intervals import Figure
from headwater.lenses.questions import rarity
from headwater.lenses.questions.frequency import quantile_bins
from headwater.lenses.questions.resampling import means, spearman
from headwater.lenses.tally import Bounds, Tally
from headwater.lenses.tally.types import recurring
from lens_tally_cases import measured, plan

VOCAB, LAYERS, PROMPTS, LENGTH = 60, 2, 60, 20
WEIGHTS = 1 / torch.arange(1, VOCAB + 1, dtype=torch.float64)
"""How often each token occurs: token 0 most."""


def corpus(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = WEIGHTS.expand(PROMPTS, -1).multinomial(LENGTH, replacement=True, generator=generator)
    return drawn.tolist()


def tallied(*, base: float, kept: torch.Tensor, prompts=None, seed: int = 0, **options) -> Tally:
    """Rows that give common tokens `base` more, and the token just read `kept[token]` more."""
    prompts = corpus(seed) if prompts is None else prompts
    tally = Tally(plan(LAYERS), **options)
    generator = torch.Generator().manual_seed(seed + 1)
    for first in range(0, len(prompts), 20):
        batch = prompts[first : first + 20]
        tokens = torch.tensor([token for prompt in batch for token in prompt])
        noise = torch.randn(len(tokens), LAYERS + 1, VOCAB, generator=generator).double()
        logits = noise + base * WEIGHTS.log()
        own = torch.nn.functional.one_hot(tokens, VOCAB).double()
        logits[:, 0] += 30 * own  # the input row names the token
        logits[:, 1:] += (kept[tokens, None] * own)[:, None]
        tally.add(measured(logits, batch, first=first))
    return tally


RARE_ONLY = torch.where(torch.arange(VOCAB) >= 30, 3.0, 0.0).double()
NOTHING = torch.zeros(VOCAB, dtype=torch.float64)


# --- the planted answers -----------------------------------------------------------------------


def test_tokens_kept_only_if_rare_are_found_though_the_naive_correlation_says_the_opposite():
    found = rarity(tallied(base=1.5, kept=RARE_ONLY))
    common, rare = found.of()[0], found.of()[-1]
    assert common.excess.low < 0 < common.excess.high
    assert rare.excess.low > 0.3
    whole = next(one for one in found.correlations if (one.group, one.row) == ("all", "r1"))
    assert whole.excess.high < 0
    assert whole.own.value < 0  # commoner tokens have the lower rank, as if they were kept
    assert "the rarer an input token, the more it is preserved" in repr(found)


def test_a_base_rate_alone_is_no_persistence_though_the_naive_correlation_sees_one():
    found = rarity(tallied(base=1.5, kept=NOTHING))
    whole = next(one for one in found.correlations if (one.group, one.row) == ("all", "r1"))
    assert whole.excess.low < 0 < whole.excess.high
    assert whole.own.high < -0.5
    assert whole.control.high < -0.5
    assert "no dependence of preservation on rarity can be told" in repr(found)


def test_intervals_of_a_base_rate_alone_cover_no_excess_about_as_often_as_they_say():
    held = 0
    for seed in range(12):
        bins = rarity(tallied(base=1.5, kept=NOTHING, seed=10 * seed)).of()
        held += sum(one.excess.low < 0 < one.excess.high for one in bins)
    # 60 intervals at 95 %: fewer than 50 has probability 1e-4
    assert held >= 50


def test_common_tokens_kept_are_said_to_be():
    kept = torch.where(torch.arange(VOCAB) < 8, 4.0, 0.0).double()
    found = rarity(tallied(base=0.0, kept=kept))
    assert "the commoner an input token, the more it is preserved" in repr(found)


# --- a slow twin -------------------------------------------------------------------------------


def slow(prompts, logits, kept_rank, kept_kl):
    """Every number of every type by loops: own ranks, ranks elsewhere, rows survived."""
    said = measured(logits, prompts)
    strict, ties, targets = said.strict.numpy(), said.ties.numpy(), said.targets.tolist()
    found = {}
    position = 0
    for prompt in prompts:
        for place, token in enumerate(prompt):
            ranks = strict[position] + ties[position] / 2
            group = "recurs" if token in prompt[place + 1 :] else "once"
            one = found.setdefault(token, {"recurs": [], "once": [], "control": []})
            to_first, from_first = said.kl[position, :, 0].tolist(), said.kl[position, 0].tolist()
            one[group].append((ranks[:, 0], from_first, to_first))
            for column in range(3, len(targets[position])):
                other = targets[position][column]
                if other != token:
                    known = found.setdefault(other, {"recurs": [], "once": [], "control": []})
                    known["control"].append(ranks[:, column])
            position += 1

    def survived(values, bound):
        rows = 0
        for value in values:
            if value > bound:
                break
            rows += 1
        return rows

    table = {}
    for token, one in found.items():
        for group in ("all", "recurs", "once"):
            own = one["recurs"] + one["once"] if group == "all" else one[group]
            if own and one["control"]:
                log_own = np.mean([np.log(ranks) for ranks, _, _ in own], axis=0)
                log_control = np.mean([np.log(ranks) for ranks in one["control"]], axis=0)
                table[token, group] = {
                    "own": log_own,
                    "control": log_control,
                    "excess": log_control - log_own,
                    "depth": np.mean([survived(ranks, kept_rank) for ranks, _, _ in own]),
                    "depth_ref": np.mean([survived(kl, kept_kl) for _, kl, _ in own]),
                    "depth_layer": np.mean([survived(kl, kept_kl) for _, _, kl in own]),
                    "depth_control": np.mean([survived(r, kept_rank) for r in one["control"]]),
                    "kl_ref": np.mean([kl for _, kl, _ in own], axis=0),
                    "kl_layer": np.mean([kl for _, _, kl in own], axis=0),
                }
    return table


@pytest.mark.parametrize("group", ["all", "recurs", "once"])
def test_every_number_is_the_slow_twin_s(group):
    prompts = corpus()[:8]
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(8 * LENGTH, LAYERS + 1, VOCAB, generator=generator).double()
    logits[:, :, ::7] = logits[:, :, :1]  # ties
    tally = Tally(plan(LAYERS), Bounds(rank=20, kl=2.5))
    tally.add(measured(logits, prompts))
    table = slow(prompts, logits, 20, 2.5)
    found = rarity(tally, bins=1)
    types = [token for token, which in table if which == group]

    def over_types(name):
        return np.mean([table[token, group][name] for token in types], axis=0)

    (depth,) = [one for one in found.depths if one.group == group]
    assert depth.own.value == pytest.approx(over_types("depth"), rel=1e-12)
    assert depth.control.value == pytest.approx(over_types("depth_control"), rel=1e-12)
    assert depth.ref.value == pytest.approx(over_types("depth_ref"), rel=1e-12)
    assert depth.layer.value == pytest.approx(over_types("depth_layer"), rel=1e-12)
    for row, name in enumerate(found.names):
        (one,) = found.of(group, name)
        assert one.types == len(types)
        assert one.own.value == pytest.approx(math.exp(over_types("own")[row]), rel=1e-12)
        assert one.control.value == pytest.approx(math.exp(over_types("control")[row]), rel=1e-12)
        assert one.excess.value == pytest.approx(over_types("excess")[row], rel=1e-10, abs=1e-12)
        assert one.ratio.value == pytest.approx(math.exp(over_types("excess")[row]), rel=1e-10)
        assert one.kl_ref == pytest.approx(over_types("kl_ref")[row], rel=1e-10, abs=1e-12)
        assert one.kl_layer == pytest.approx(over_types("kl_layer")[row], rel=1e-10, abs=1e-12)


def test_bins_and_correlations_do_not_depend_on_how_prompts_are_batched():
    prompts = corpus()[:6]
    logits = torch.randn(6 * LENGTH, LAYERS + 1, VOCAB, generator=torch.Generator().manual_seed(1))
    # controls come from the batch, so only what needs none can agree
    whole, parts = Tally(plan(LAYERS)), Tally(plan(LAYERS))
    whole.add(measured(logits, prompts))
    for number in range(6):
        place = slice(number * LENGTH, (number + 1) * LENGTH)
        parts.add(measured(logits[place], prompts[number : number + 1], first=number))
    for tally in (whole, parts):
        order = np.argsort(tally.types.tokens)
        tally.sorted = tally.types.of("log_rank")[order]
    torch.testing.assert_close(whole.sorted, parts.sorted, rtol=1e-12, atol=1e-12)


def test_a_token_recurs_if_it_occurs_again_in_its_own_prompt():
    prompts = [[5, 3, 5, 5], [3, 4], [4, 4]]
    tokens = torch.tensor([token for one in prompts for token in one])
    place = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1])
    found = recurring(tokens, place).tolist()
    assert found == [True, False, True, False, False, False, True, False]


# --- frequencies -------------------------------------------------------------------------------


def lowest_and_highest(found):
    return [(one.lowest, one.highest) for one in found.of()]


def test_counts_of_the_corpus_are_those_of_the_tokens_read():
    prompts = corpus()
    tally = tallied(base=0.0, kept=NOTHING, prompts=prompts)
    counts = torch.bincount(torch.tensor(prompts).flatten(), minlength=VOCAB)
    assert lowest_and_highest(rarity(tally)) == lowest_and_highest(rarity(tally, counts))
    by_id = dict(enumerate(counts.tolist()))
    assert lowest_and_highest(rarity(tally, by_id)) == lowest_and_highest(rarity(tally, counts))
    words = {token: f" w{token}" for token in range(VOCAB)}
    by_text = {f" w{token}": count for token, count in by_id.items()}
    named = rarity(tally, by_text, vocabulary=words)
    assert lowest_and_highest(named) == lowest_and_highest(rarity(tally, counts))


def test_the_tokenizer_s_order_is_said_to_be_a_proxy():
    found = rarity(tallied(base=1.5, kept=RARE_ONLY), "tokenizer")
    assert "only roughly" in repr(found)
    assert found.of()[-1].excess.low > 0.3  # high ids are rare here


def test_tokens_without_a_count_are_counted_as_none_and_said():
    tally = tallied(base=0.0, kept=NOTHING)
    found = rarity(tally, {0: 100, 1: 50})
    types = len(tally.types.tokens)
    assert found.note == f"{types - 2} of {types} tokens read have no count: 0."
    assert found.of()[-1].lowest == 0


def test_bins_of_tokens_without_a_count_are_told_as_counts_and_the_tokenizers_as_ids():
    tally = tallied(base=0.0, kept=NOTHING)
    assert rarity(tally, {0: 100, 1: 50}).of()[-1].span == "0 to 0"
    found = rarity(tally, "tokenizer").of()[-1]
    assert found.span == f"ids {-found.highest:.0f} to {-found.lowest:.0f}"
    assert 0 < -found.highest < -found.lowest < VOCAB


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("corpsu", "counts='corpsu' is unknown. Closest: 'corpus'."),
        (torch.ones(3), "counts of shape [3]: token 59 was read"),
        (-torch.ones(VOCAB), "needs a count that is not negative"),
        ({"nobody": 3.0}, "counts= has no token that was read: 'nobody' is none."),
        ({0: -1.0}, "counts= has a negative count."),
    ],
)
def test_counts_that_cannot_be_used_are_refused(counts, message):
    prompts = [list(range(VOCAB))]
    with pytest.raises(UnknownOptionError) as refused:
        rarity(tallied(base=0.0, kept=NOTHING, prompts=prompts), counts)
    assert message in str(refused.value)


def test_of_few_types_it_is_said_that_they_are_too_few_and_nothing_else():
    found = rarity(tallied(base=0.0, kept=NOTHING, prompts=[[1, 2, 3, 1, 4], [5, 1, 2, 2, 6]]))
    assert found.sentences() == [
        "6 token types with a base rate: too few to tell whether rare ones are preserved more "
        "(8 at least)."
    ]


def test_of_few_types_that_recur_it_is_said_that_they_are_too_few():
    prompts = [[*range(12), 0, 1], [*range(12), 12, 13]]
    found = rarity(tallied(base=0.0, kept=NOTHING, prompts=prompts))
    assert "Where the token occurs again later in the prompt: 2 token types, too few to tell." in (
        found.sentences()
    )
    assert found.sentences()[-1].startswith("Where the token does not occur again: Spearman of")
    none = rarity(tallied(base=0.0, kept=NOTHING, prompts=[list(range(12)), list(range(3, 15))]))
    assert "Where the token occurs again later in the prompt: 0 token types, too few to tell." in (
        none.sentences()
    )


def test_types_of_one_frequency_have_no_rare_ones():
    found = rarity(tallied(base=0.0, kept=NOTHING, prompts=[list(range(12))]))
    assert found.sentences() == [
        "All 12 token types are equally frequent (counts in what was read), so it cannot be told "
        "whether rare ones are preserved more."
    ]


def test_of_one_bin_no_ends_are_told_apart():
    said = " ".join(rarity(tallied(base=1.5, kept=RARE_ONLY), bins=1).sentences())
    assert "Token types rank x" in said
    assert "commonest types" not in said


def test_without_controls_there_is_no_answer():
    tally = tallied(base=0.0, kept=NOTHING, prompts=[[7]])
    with pytest.raises(UnknownOptionError, match="no base rate to compare with"):
        rarity(tally)


def test_types_of_one_frequency_share_a_bin():
    values = np.array([1.0, 1, 1, 1, 1, 1, 2, 3, 9, 10])
    bins = quantile_bins(values, 5)
    assert sorted(index for one in bins for index in one.tolist()) == list(range(10))
    assert any(set(range(6)) <= set(one.tolist()) for one in bins)
    assert values[bins[0]].min() > values[bins[-1]].max()


def test_quantiles_of_distinct_frequencies_are_of_one_size():
    bins = quantile_bins(np.arange(50.0), 5)
    assert [one.tolist() for one in bins] == [list(range(n, n + 10)) for n in (40, 30, 20, 10, 0)]


# --- intervals ---------------------------------------------------------------------------------


def slow_spearman(x, y):
    def ranks(values):
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2
            for value in values
        ]

    return np.corrcoef(ranks(x), ranks(y))[0, 1]


def test_spearman_has_mid_ranks_for_ties():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 40).astype(float), generator.normal(size=40).round(1)
    found = spearman(x, {"y": y, "x": x}, 0)
    assert found["y"].value == pytest.approx(slow_spearman(x, y), abs=1e-12)
    assert found["x"].value == pytest.approx(1, abs=1e-12)


def test_resampled_correlations_are_those_of_the_types_drawn():
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, 9, 30).astype(float), generator.normal(size=30)
    weights = np.random.Generator(np.random.PCG64([5, 30])).multinomial(30, [1 / 30] * 30, 1000)
    repeated = [(np.repeat(x, one.astype(int)), np.repeat(y, one.astype(int))) for one in weights]
    drawn = torch.tensor([slow_spearman(*one) for one in repeated], dtype=torch.float64)
    found = spearman(x, {"y": y}, 5)["y"]
    expected = Figure.of(slow_spearman(x, y), drawn, 30)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_over_types_is_that_of_the_mean_s_spread():
    values = np.random.default_rng(2).normal(size=500)
    (found,) = means(values[:, None], 0)
    reach = 1.96 * values.std() / math.sqrt(500)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.1)  # 800 resamples


def test_rarity_is_plain_data_and_rows():
    found = rarity(tallied(base=1.5, kept=RARE_ONLY))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["sentences"] == found.sentences()
    rows = list(found.rows())
    assert len(rows) == len(found.bins) == 3 * 5 * (LAYERS + 1)
    assert rows[0]["ratio"] == pytest.approx(math.exp(rows[0]["excess"]))
