"""What an audit says of estimates whose quality is known by construction."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

import headwater as hw
from headwater.audits import Audit, audit_scores
from headwater.audits.words import Statistic, figure, size_words
from headwater.audits.words import verdict as verdict_of
from headwater.errors import MissingExtraError, NonFiniteError, ResultError

EFFECTS = [8.0, -7.0, 6.0, -5.0, 4.0, -3.0, 2.0, -1.0, 0.5, -0.25, 0.125, 0.0625]
NAMES = [f"m{i}" for i in range(len(EFFECTS))]


def audit(estimate: Sequence[float], exact: Sequence[float], **options) -> Audit:
    """Audit means over two pairs; the pairs differ, their means are as given."""
    apart = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    truth = torch.tensor(exact, dtype=torch.float64) + 0.1 * apart
    return audit_scores(
        options.pop("names", [f"m{i}" for i in range(len(exact))]),
        torch.tensor(estimate, dtype=torch.float64) + 0.2 * apart,
        lambda columns: truth[:, list(columns)],
        **options,
    )


def scaled(factor: float) -> list[float]:
    return [factor * value for value in EFFECTS]


def sampled(**options) -> Audit:
    """32 of 400 components, estimates 0.4 of the effects."""
    draw = np.random.default_rng(0)
    exact = draw.standard_t(2, 400)
    estimate = 0.4 * exact * np.exp(0.4 * draw.normal(size=400))
    return audit(estimate.tolist(), exact.tolist(), **options)


def test_a_full_check_is_said_in_one_sentence():
    assert audit(scaled(0.91), EFFECTS).sentence == (
        "12 of 12 components checked exactly: r 1.00, rho 1.00, slope 0.91 (the estimate is 9 % "
        "too small), relative error 0.09, recall at 10 1.00; no wrong sign among the top 10."
    )


def test_wrong_signs_among_the_top_are_named_strongest_first():
    estimate = scaled(1.0)
    estimate[2], estimate[8] = -6.0, -0.5
    result = audit(estimate, EFFECTS)
    assert result.wrong_signs == ("m2", "m8")
    assert result.sentence.endswith("; 2 wrong signs among the top 10: m2, m8.")


def test_a_wrong_sign_below_the_top_is_flagged_but_not_named_in_the_sentence():
    estimate = scaled(1.0)
    estimate[11] *= -1
    result = audit(estimate, EFFECTS)
    assert result.rows[11].flags == ("wrong sign",)
    assert result.sentence.endswith("; no wrong sign among the top 10.")


def test_a_sampled_check_says_its_make_up_and_gives_intervals():
    result = sampled()
    start = "32 of 400 components checked exactly (10 strongest, 11 middle, 11 tail): r "
    assert result.sentence.startswith(start)
    for name in ("r", "rho", "slope", "relative error", "sign agreement", "recall at 10"):
        statistic = result.statistic(name)
        assert statistic.low <= statistic.value <= statistic.high


def test_a_full_check_gives_no_intervals():
    figures = audit(scaled(0.9), EFFECTS).figures
    assert all(statistic.low is None and statistic.high is None for statistic in figures)


def test_the_same_seed_gives_the_same_audit():
    assert sampled(seed=4) == sampled(seed=4)


def test_only_the_sampled_columns_are_run_exactly_and_at_once():
    asked = []

    def exact(columns):
        asked.append(list(columns))
        return torch.ones(1, len(columns))

    audit_scores([f"m{i}" for i in range(100)], torch.rand(1, 100), exact, sample=20)
    assert [len(columns) for columns in asked] == [20]


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (0.91, "the estimate is 9 % too small"),
        (1.3, "the estimate is 30 % too large"),
        (0.41, "the estimate is about 2.4 times too small"),
        (2.2, "the estimate is about 2.2 times too large"),
        (1.01, "the estimate has the right size"),
        (0.001, "the estimate is more than 100 times too small"),
        (-0.5, "the estimate points the wrong way"),
        (0.0, "the estimate sees no effect"),
    ],
)
def test_a_slope_is_said_in_words(slope: float, words: str):
    assert size_words(slope) == words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.97, "0.97"), (1.0, "1.00"), (0.99996, "0.999"), (0.0012, "0.001"), (2650.0, "2,650"),
     (0.0, "0.00"), (-0.9999, "-0.999"), (24.0, "24")],
)  # fmt: skip
def test_a_figure_never_reads_as_one_or_zero_when_it_is_not(value: float, shown: str):
    assert figure(value) == shown


def test_a_right_estimate_is_trusted_in_ranking_and_size():
    assert audit(scaled(0.91), EFFECTS).verdict == (
        "Trust the ranking and the size (to about 9 %)."
    )


def test_an_estimate_of_the_wrong_size_is_trusted_in_ranking_only():
    assert audit(scaled(0.4), EFFECTS).verdict == "Trust the ranking, not the size."


def test_wrong_signs_take_the_trust_in_signs_away():
    estimate = scaled(1.0)
    estimate[7] *= -1
    assert audit(estimate, EFFECTS).verdict == (
        "Trust the ranking and the size (to about 14 %); do not trust single signs."
    )


def test_an_opposite_estimate_is_not_trusted():
    assert audit(scaled(-1.0), EFFECTS).verdict == (
        "Do not trust this estimate: use hw.Exact(), or another estimator or reference."
    )


def test_a_verdict_on_a_sample_names_it_and_what_it_cannot_exclude():
    result = sampled()
    figures = [
        Statistic("r", 0.99, 0.95, 1.0, ""),
        Statistic("relative error", 0.03, 0.02, 0.15, ""),
        Statistic("sign agreement", 1.0, 1.0, 1.0, ""),
    ]
    assert verdict_of(result.counts, figures, ()) == (
        "As far as the 32 checked tell, trust the ranking and the size (to about 3 %). Strong "
        "effects that the estimate does not see may be among those not checked: "
        "hw.verify(scores, theta=...) looks for them."
    )


def test_sizes_that_the_interval_leaves_open_are_not_trusted():
    draw = np.random.default_rng(1)
    exact = draw.standard_t(2, 400)
    result = audit((0.97 * exact).tolist(), exact.tolist(), sample=32)
    error = result.statistic("relative error")
    assert error.value < 0.2 < error.high
    start = "As far as the 32 checked tell, trust the ranking; the size is open."
    assert result.verdict.startswith(start)
    assert f"the relative error may be as high as {figure(error.high)}" in result.verdict


def test_no_trust_no_hint_at_what_is_unseen():
    draw = np.random.default_rng(1)
    exact = draw.standard_t(2, 400)
    verdict = audit((-exact).tolist(), exact.tolist()).verdict
    assert verdict == (
        "As far as the 32 checked tell, do not trust this estimate: use hw.Exact(), or another "
        "estimator or reference."
    )


def test_a_verdict_that_the_interval_leaves_open_says_so():
    draw = np.random.default_rng(1)
    exact = draw.standard_t(2, 400)
    estimate = exact * np.exp(0.2 * draw.normal(size=400))
    verdict = audit(estimate.tolist(), exact.tolist(), sample=16).verdict
    assert "The sample leaves this open (" in verdict
    assert "): a larger sample= decides. Strong effects" in verdict


def test_too_small_a_sample_gives_no_verdict_and_no_intervals():
    result = sampled(sample=3)
    assert result.verdict == "Too few checks for a verdict: raise sample=."
    assert result.statistic("slope").low is None
    assert "(1 strongest, 1 middle, 1 tail; too few for intervals)" in result.sentence


def test_a_sample_of_one_says_that_nothing_is_known_of_the_others():
    result = sampled(sample=1)
    assert result.sentence.startswith(
        "1 of 400 components checked exactly (the strongest; nothing is known of the others): "
        "r undefined"
    )
    assert result.recall.words == "unknown: the tail was not sampled; raise sample="


def test_recall_is_unknown_where_not_all_of_the_top_was_checked():
    recall = sampled(sample=12).recall
    assert recall.value is None
    assert recall.words == "unknown: the sample checks 4 of the 10 strongest; raise sample="


def test_recall_finds_a_strong_component_that_the_estimate_put_last():
    estimate = scaled(1.0)
    estimate[0] = 0.0
    assert audit(estimate, EFFECTS).recall.value == pytest.approx(0.9)


def test_recall_of_a_sample_allows_for_strong_components_it_did_not_see():
    recall = sampled(sample=32).recall
    assert recall.low <= 0.8 <= recall.high <= 1.0


def test_an_interval_stays_within_what_the_figure_can_be():
    draw = np.random.default_rng(3)
    exact = draw.normal(size=100)
    figures = audit((exact + 1e-6).tolist(), exact.tolist(), sample=50)
    assert figures.statistic("r").high == 1.0
    assert figures.statistic("sign agreement").high == 1.0
    assert figures.statistic("relative error").low >= 0.0


def test_what_a_tail_may_hide_is_bounded_without_assumptions():
    draw = np.random.default_rng(2)
    result = audit(draw.normal(size=2000).tolist(), np.ones(2000).tolist())
    hidden = result.statistic("hidden in the tail")
    tail = sum(1 for row in result.rows if row.stratum == "tail")
    assert tail == 11
    size = round(next(row.weight for row in result.rows if row.stratum == "tail") * tail)
    # 11 draws all miss a share s with probability (1 - s)^11, which is 0.05 at s = 0.2384.
    assert hidden.value == int(0.23840 * size)


def test_completeness_is_given_only_for_a_cut():
    whole = torch.tensor([10.0, 20.0])
    given = audit(scaled(1.0), EFFECTS, total=whole).statistic("completeness gap")
    assert given.value == pytest.approx(sum(EFFECTS) - 15.0)
    assert given.words == "the estimates sum to +4.44, the whole effect is +15"
    missing = audit(scaled(1.0), EFFECTS).statistic("completeness gap")
    assert (missing.value, missing.words.partition(":")[0]) == (None, "not a cut")


def test_effects_within_noise_are_flagged_and_counted_and_have_no_sign():
    estimate = scaled(1.0)
    estimate[11] *= -1
    result = audit(estimate, EFFECTS, noise_floor=0.2)
    assert [row.name for row in result.rows if "within noise" in row.flags] == ["m10", "m11"]
    assert result.statistic("sign agreement").value == 1.0
    assert result.sentence.endswith("; 2 of 12 checked are within the noise floor 0.2.")


def test_effects_that_are_all_noise_leave_nothing_to_judge():
    result = audit(scaled(1.0), EFFECTS, noise_floor=100.0)
    assert result.verdict == (
        "Nothing to judge: every exact effect checked is within the noise floor."
    )


def test_an_estimate_off_by_more_than_two_is_flagged():
    estimate = scaled(1.0)
    estimate[3], estimate[4] = -11.0, 1.9
    result = audit(estimate, EFFECTS)
    flagged = {row.name for row in result.rows if row.flags == ("off by > 2x",)}
    assert flagged == {"m3", "m4"}


def test_the_worst_cases_are_named_by_the_size_of_their_error():
    estimate = scaled(1.0)
    estimate[3], estimate[9] = 0.0, 3.0
    assert audit(estimate, EFFECTS).worst == ("m3", "m9")


def test_equal_exact_effects_leave_the_correlation_undefined_in_words():
    result = audit(EFFECTS, [2.0] * 12)
    assert result.statistic("r").words == "undefined: all exact effects are equal"
    assert "r undefined, rho undefined, slope" in result.sentence


def test_equal_estimates_leave_the_correlation_undefined_in_words():
    assert audit([2.0] * 12, EFFECTS).statistic("rho").words == "undefined: all estimates are equal"


def test_zeros_everywhere_leave_nothing_to_judge():
    zeros = [0.0] * 12
    assert audit(zeros, zeros).verdict == "Nothing to judge: all exact effects are zero."


def test_an_estimate_of_zero_is_no_better_than_zero():
    assert audit([0.0] * 12, EFFECTS).verdict == (
        "Do not trust this estimate: it is no better than zero everywhere."
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "one component was checked"), (2, "two components always lie on a line")],
)
def test_one_or_two_components_have_no_correlation(count: int, words: str):
    result = audit(EFFECTS[:count], EFFECTS[:count])
    assert result.statistic("r").words == f"undefined: {words}"
    assert result.verdict == "Trust the size (to within 1 %)."


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("sample", [1, 2, 5, 11, 32])
@pytest.mark.parametrize("values", ["zeros", "ones", "mixed"])
def test_no_figure_is_ever_shown_as_nan(count: int, sample: int, values: str):
    exact = {"zeros": [0.0] * 12, "ones": [1.0] * 12, "mixed": EFFECTS}[values][:count]
    for estimate in (EFFECTS[:count], [0.0] * count):
        result = audit(estimate, exact, sample=sample, noise_floor=0.1)
        json.dumps(result.to_dict(), allow_nan=False)
        assert "nan" not in repr(result)


def test_estimates_that_are_not_finite_are_named():
    estimate = torch.ones(2, 12)
    estimate[1, 3] = float("nan")
    with pytest.raises(NonFiniteError) as error:
        audit_scores(NAMES, estimate, lambda columns: torch.ones(2, len(columns)))
    assert str(error.value) == (
        "the estimate is NaN or infinite at m3 (1 of 12 components).\n"
        "An audit of such numbers means nothing. Run in a wider dtype (dtype='float32'), or leave "
        "these components out."
    )


def test_exact_effects_that_are_not_finite_are_named():
    def exact(columns):
        values = torch.ones(2, len(columns))
        values[0, list(columns).index(5)] = float("inf")
        return values

    with pytest.raises(NonFiniteError, match="the exact effect is NaN or infinite at m5 "):
        audit_scores(NAMES, torch.rand(2, 12), exact)


def test_a_misshapen_exact_is_refused_with_both_shapes():
    with pytest.raises(ResultError, match=r"exact effects of shape \[3, 12\] for 2 pairs"):
        audit_scores(NAMES, torch.rand(2, 12), lambda columns: torch.ones(3, len(columns)))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_its_range_says_what_to_type(confidence: float):
    with pytest.raises(ResultError, match=r"Type confidence=0\.95\."):
        sampled(confidence=confidence)


def test_a_narrower_confidence_gives_narrower_intervals():
    wide, narrow = sampled(confidence=0.99).statistic("r"), sampled(confidence=0.5).statistic("r")
    assert narrow.high - narrow.low < wide.high - wide.low


def test_half_precision_scores_are_averaged_in_double():
    estimate = torch.full((400, 12), 0.1, dtype=torch.bfloat16)
    result = audit_scores(NAMES, estimate, lambda columns: estimate[:, list(columns)])
    assert result.rows[0].estimate == pytest.approx(float(torch.tensor(0.1).bfloat16()), rel=1e-12)


def test_an_audit_read_back_is_the_same():
    result = sampled().with_cost("12 forwards")
    assert Audit.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_data_that_are_no_audit_are_refused():
    with pytest.raises(ResultError, match="these data are not an audit: KeyError"):
        Audit.from_dict({"sentence": "hello"})


def test_an_unknown_statistic_is_answered_with_those_there_are():
    with pytest.raises(ResultError, match=r"no statistic 'pearson'\.\nIt has 'r', 'rho', 'slope'"):
        sampled().statistic("pearson")


def test_values_by_pair_are_kept_in_the_order_of_the_rows():
    result = sampled()
    assert result.pair_effects.mean(0).tolist() == pytest.approx([row.exact for row in result.rows])
    means = [row.estimate for row in result.rows]
    assert result.pair_estimates.mean(0).tolist() == pytest.approx(means)


def test_a_printed_audit_fits_one_screen():
    lines = repr(sampled(sample=200)).splitlines()
    assert len(lines) <= 30
    assert lines[0] == sampled(sample=200).sentence


def test_names_cannot_inject_into_html():
    names = ["<script>alert(1)</script>", *NAMES[1:]]
    shown = audit(scaled(-1.0), EFFECTS, names=names)._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_a_frame_has_one_row_a_checked_component():
    pytest.importorskip("pandas")
    frame = sampled().to_frame()
    assert list(frame.columns) == [
        "name", "stratum", "weight", "estimate", "exact", "error", "flags",
    ]  # fmt: skip
    assert len(frame) == 32


def test_a_frame_without_pandas_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError) as error:
        sampled().to_frame()
    assert "pip install 'headwater[pandas]'" in str(error.value)


# --- what was asked of error bars ---------------------------------------------------------------


def bent(tolerance: float, budget: int | None = None) -> hw.Attribution:
    """Forty gates that a gradient judges wrong in every other case, with error bars."""
    slope = torch.arange(1.0, 41, dtype=torch.float64) / 40
    bend = 0.5 * (torch.arange(40) % 2)

    def f(m: torch.Tensor) -> torch.Tensor:
        return (slope * m + bend * m * m).sum(-1)

    function = hw.GatedFunction(f, [f"c{i}" for i in range(40)], dtype=torch.float64)
    return hw.attribute(
        function, estimator=hw.Gradient(), tolerance=tolerance, budget=budget, confidence=0.8
    )


def test_a_later_audit_keeps_the_tolerance_that_was_asked_for():
    scores = bent(0.01)
    # a gradient at the clean end is off by the bend, so nothing short of every run is enough
    assert scores.checked.aim == (
        "error bars: every half width is at most 0.01 at 80 %, after 40 exact runs."
    )
    scores.audit(sample=12, progress=False)
    assert scores.checked.counts.checked == 40  # all is known, and a sample would say less
    # the runs are not lost, so the bars are as short as they were
    assert scores.checked.aim == (
        "error bars: every half width is at most 0.01 at 80 %, after 40 exact runs."
    )
    assert scores.checked.bars_at == 0.8
    assert scores.checked.aim in scores.said_of_truth()


def test_after_a_later_audit_it_is_said_how_many_bars_are_too_wide_now():
    scores = bent(0.01, budget=20)
    assert "the budget of 20 exact runs ended with 20 of 40 half widths above" in scores.checked.aim
    scores.audit(sample=30, progress=False)
    wide = [bar for bar in scores.checked.intervals(0.8).rows if bar.half_width > 0.01]
    known = len(scores.known())
    assert known > 20
    assert f"{known} exact runs leave {len(wide)} of 40 half widths" in scores.checked.aim


def test_what_was_asked_comes_back_from_plain_data_and_needs_the_scores_to_be_judged():
    scores = bent(0.01)
    again = Audit.from_dict(scores.checked.to_dict())
    assert again.asked == scores.checked.asked
    assert again.aim == ""
    assert again.of(scores).aim == scores.checked.aim
    assert scores.checked.aim in repr(scores.checked)


def test_flags_end_the_sentence_and_come_back_from_plain_data():
    flagged = replace(sampled(), flags="routing jump a0.h0")
    assert flagged.sentence == f"{sampled().sentence} Flags: routing jump a0.h0."
    assert Audit.from_dict(flagged.to_dict()) == flagged
