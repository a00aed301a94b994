"""Error bars: their coverage, what they say where exchangeability fails, and runs spent on them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import headwater as hw
from headwater.audits import Audit, AuditSample
from headwater.audits.conformal import Population, Promise, error_bars
from headwater.audits.error_bars import CHECKED, CONFORMAL, UNKNOWN, ErrorBars
from headwater.audits.population import population_of
from headwater.errors import ResultError
from planted import planted, sampled

TASKS = ("ioi", "greater-than", "agreement", "induction", "capital", "language", "gender")
REFERENCES = {
    "corrupted": hw.Corrupted(),
    "positional-mean": hw.PositionalMean(),
    "zero": hw.Zero(),
}


def heavy(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Effects with heavy tails, estimates half their size with errors in proportion."""
    draw = np.random.default_rng(seed)
    exact = draw.standard_t(2, count)
    return 0.5 * exact * np.exp(0.5 * draw.normal(size=count)) + 0.05 * draw.normal(
        size=count
    ), exact


def of(estimate: np.ndarray, drawn: list[int], exact: np.ndarray, **options) -> Population:
    """One stratum of gates with these components drawn."""
    known = {column: float(exact[column]) for column in drawn}
    count = len(estimate)
    options = {
        "kinds": ["gate"] * count,
        "layers": [None] * count,
        "strata": [range(count)],
    } | options
    return Population([f"c{i}" for i in range(count)], estimate=estimate, drawn=known, known=known,
                      **options)  # fmt: skip


def audited(estimate: np.ndarray, exact: np.ndarray, **options) -> tuple[hw.GatedFunction, Audit]:
    function = planted(estimate, exact)
    return function, hw.attribute(function, estimator=hw.Gradient()).audit(**options)


def inside(bars: ErrorBars, exact: dict[str, float]) -> list[bool]:
    """Whether each interval that was not checked holds the exact effect."""
    return [
        row.low - 1e-12 <= exact[row.name] <= row.high + 1e-12
        for row in bars.rows
        if row.how == CONFORMAL
    ]


@pytest.mark.parametrize(
    ("confidence", "sure", "need"), [(0.9, 0.9, 22), (0.9, 0.95, 29), (0.95, 0.95, 59)]
)
def test_the_fewest_checks_for_most_draws_are_those_of_wilks(confidence, sure, need):
    """1 - confidence^n is the chance that n errors reach into the largest tenth (Wilks, 1941)."""
    promise = Promise(confidence, sure)
    assert promise.fewest == need
    assert 1 - confidence**need >= sure > 1 - confidence ** (need - 1)
    assert promise.rank(need) == need


@pytest.mark.parametrize("count", [22, 40, 77, 300])
def test_the_rank_for_most_draws_is_the_first_that_a_binomial_seldom_reaches(count):
    rank = Promise(0.9, 0.9).rank(count)

    def reached(least: int) -> Fraction:
        p = Fraction(9, 10)
        return sum(
            math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(least, count + 1)
        )

    assert reached(rank) <= Fraction(1, 10) < reached(rank - 1)


# --- one group, by hand ---------------------------------------------------------------------


@pytest.mark.parametrize(("confidence", "need"), [(0.9, 9), (0.95, 19), (0.8, 4), (0.5, 1)])
def test_the_fewest_checks_are_those_whose_largest_error_is_high_enough_a_rank(confidence, need):
    assert Promise(confidence).fewest == need
    assert math.ceil(round((need + 1) * confidence, 9)) <= need
    assert math.ceil(round(need * confidence, 9)) > need - 1


def test_an_interval_is_the_ranked_error_around_the_estimate():
    """Errors 1 to 9 of ten estimates of 1, nothing checked elsewhere: slope 1, scale 1."""
    estimate, exact = np.ones(10), 1 + np.arange(10.0)
    bars = error_bars(of(estimate, list(range(1, 10)), exact), 0.9)
    assert bars["c0"].how == CONFORMAL
    assert (bars["c0"].low, bars["c0"].high) == (1 - 9, 1 + 9)
    # rank ceil(10 * 0.8) = 8 of the errors 1, 2, ..., 9
    bars = error_bars(of(estimate, list(range(1, 10)), exact), 0.8)
    assert (bars["c0"].low, bars["c0"].high) == (1 - 8, 1 + 8)


def test_checked_components_are_points_and_small_groups_are_unknown():
    bars = error_bars(of(np.ones(10), list(range(8)), np.arange(10.0)), 0.9)
    assert (bars["c3"].low, bars["c3"].high, bars["c3"].how) == (3.0, 3.0, CHECKED)
    assert (bars["c9"].low, bars["c9"].high, bars["c9"].how) == (None, None, UNKNOWN)
    assert bars.notes == (
        "|estimate| 1 to 1: 8 of 10 checked; an interval at 90 % needs 9. Raise sample=.",
    )
    assert bars.sentence == ("8 of 10 components were checked exactly; nothing can be said of 2.")


def test_the_slope_comes_from_other_groups_only():
    """Effects are three times the estimates in the first stratum, and wild in the second."""
    estimate = np.concatenate([np.arange(10, 20.0), np.ones(12)])
    exact = np.concatenate([3 * np.arange(10, 20.0), np.arange(12.0)])
    strata = [range(10), range(10, 22)]
    bars = error_bars(of(estimate, [*range(10), *range(10, 20)], exact, strata=strata), 0.9)
    assert (bars["c21"].low + bars["c21"].high) / 2 == pytest.approx(3.0)


def test_magnitudes_have_no_negative_ends():
    bars = error_bars(of(np.ones(11), list(range(10)), np.arange(11.0), magnitudes=True), 0.9)
    assert bars["c10"].low == 0.0
    assert "mean |effects|" in bars.sentence


def test_kinds_and_halves_of_the_layers_are_groups_of_their_own_where_enough_is_expected():
    count = 160
    kinds = ["head"] * 80 + ["mlp"] * 70 + ["query"] * 10
    layers = [column % 4 for column in range(count)]
    population = of(np.ones(count), list(range(0, count, 2)), np.zeros(count), kinds=kinds,
                    layers=layers)  # fmt: skip
    groups = {row.group for row in error_bars(population, 0.9).rows if row.group}
    # expected: 20 of the heads in each half, 17.5 of the MLPs, 5 queries; 18 are enough, and the
    # queries are not enough to be left alone
    assert {group.removeprefix("|estimate| 1 to 1 ") for group in groups} == {
        "head, layers before 2",
        "head, layers from 2 on",
        "other kinds",
    }


# --- coverage -------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_intervals_hold_as_often_as_they_say_over_draws_of_the_sample(confidence):
    held = []
    for seed in range(60):
        estimate, exact = heavy(seed)
        strata = [np.argsort(-np.abs(estimate)).tolist()]
        drawn = np.random.default_rng(seed).permutation(200)[:19].tolist()
        bars = error_bars(of(estimate, drawn, exact, strata=strata), confidence)
        held.append(np.mean(inside(bars, {f"c{i}": exact[i] for i in range(200)})))
    # 19 checked: the expected share is exactly the confidence, its spread over draws 7 to 9 points
    assert np.mean(held) == pytest.approx(confidence, abs=3 * 0.09 / math.sqrt(60))


def coverage_of_audits(estimate, exact, seeds, sample=32, confidence=0.9) -> list[float]:
    """The share of unchecked components inside their interval, for audits of several seeds."""
    effects = exact.scores.double().numpy()
    truth = dict(zip(estimate.names, effects.mean(0).tolist(), strict=True))
    strength, held = estimate.scores.double().mean(0).numpy(), []
    for seed in seeds:
        drawn = AuditSample.draw(strength, sample=sample, seed=seed)
        bars = sampled(estimate, effects, drawn).intervals(confidence)
        held.append(float(np.mean(inside(bars, truth))))
    return held


def both(model, task, components, reference):
    return [
        hw.attribute(model, task, components, estimator, reference=reference, progress=False)
        for estimator in (hw.Gradient(), hw.Exact())
    ]


def nodes() -> hw.components.Selection:
    return hw.heads() + hw.queries() + hw.keys() + hw.values() + hw.mlps()


def test_on_a_trained_model_nominal_90_percent_measures_88_to_95():
    model, held = hw.load("tiny"), []
    for task in TASKS:
        estimate, exact = both(model, hw.task(task)[:4], nodes(), hw.Corrupted())
        held += coverage_of_audits(estimate, exact, range(20))
    assert 0.88 <= np.mean(held) <= 0.95, np.mean(held)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2"])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("which", ["nodes", "neurons"])
def test_over_tasks_references_and_seeds_nominal_90_percent_measures_88_to_95(
    name, reference, which
):
    model, held = hw.load(name), []
    components = nodes() if which == "nodes" else hw.neurons()
    for task in TASKS:
        estimate, exact = both(model, hw.task(task)[:16], components, REFERENCES[reference])
        held += coverage_of_audits(estimate, exact, range(20))
    assert 0.88 <= np.mean(held) <= 0.95, np.mean(held)


# --- where exchangeability fails ------------------------------------------------------------


def dominated(seed: int) -> tuple[hw.GatedFunction, Audit, np.ndarray]:
    """One component whose effect is a hundred times the others' and whose estimate is theirs."""
    draw = np.random.default_rng(7)
    estimate = draw.normal(0, 0.05, 100)
    exact = estimate + draw.normal(0, 0.005, 100)
    exact[60] = 5.0
    function, audit = audited(estimate, exact, seed=seed, sample=40)
    return function, audit, exact


def test_a_dominant_component_that_was_drawn_is_named():
    said = drawn = 0
    for seed in range(30):
        _, audit, _ = dominated(seed)
        if any(row.name == "c60" for row in audit.rows):
            drawn += 1
            notes = " ".join(audit.intervals().doubts)
            said += "one component dominates. The error of c60 is" in notes
            said += "exchangeability is doubtful" in notes
    assert drawn > 3
    assert said == 2 * drawn


def test_effects_without_a_dominant_one_are_left_in_peace():
    estimate = np.random.default_rng(0).normal(size=100)
    exact = estimate + np.random.default_rng(1).uniform(-1, 1, size=100)
    assert all(not audited(estimate, exact, seed=s)[1].intervals().doubts for s in range(5))


def test_estimates_far_beyond_what_was_checked_are_named():
    estimate = np.concatenate([np.linspace(0.9, 1, 20), [50.0]])
    bars = error_bars(of(estimate, list(range(12)), estimate), 0.9)
    assert (
        "1 unchecked estimate is more than 3 times the strongest checked one (c20)"
        in (bars.doubts[0])
    )


# --- runs spent on error bars ---------------------------------------------------------------


def attributed(estimate, exact, **options) -> tuple[hw.GatedFunction, hw.Attribution]:
    function = planted(estimate, exact)
    return function, hw.attribute(function, estimator=hw.Gradient(), **options)


@pytest.mark.parametrize("tolerance", [0.3, 1.0])
def test_every_interval_is_below_the_tolerance(tolerance):
    _, scores = attributed(*heavy(0), tolerance=tolerance)
    bars = scores.error_bars()
    assert max(row.half_width for row in bars.rows) <= tolerance
    assert f"every half width is at most {tolerance:g} at 90 %" in scores.checked.aim
    checked = sum(row.how == CHECKED for row in bars.rows)
    assert f"after {checked} exact runs" in scores.checked.aim


def test_a_larger_tolerance_costs_fewer_runs():
    few, many = (attributed(*heavy(1), tolerance=tolerance)[1] for tolerance in (2.0, 0.2))
    assert len(few.known()) < len(many.known())


def test_a_budget_ends_it_and_it_says_what_is_left():
    _, scores = attributed(*heavy(0), tolerance=0.05, budget=60)
    assert len(scores.known()) == 60
    bars = scores.error_bars()
    wide = [row for row in bars.rows if row.half_width > 0.05]
    assert (
        f"the budget of 60 exact runs ended with {len(wide)} of 200 half widths above 0.05"
        in scores.checked.aim
    )


@pytest.mark.parametrize("tolerance", [math.inf, 2.0, 1.0])
def test_intervals_after_spending_runs_hold_as_often_as_they_say(tolerance):
    """Also of the samples that left most unchecked because they gave short intervals."""
    held = []
    for seed in range(25):
        estimate, exact = heavy(seed, 400)
        _, scores = attributed(estimate, exact, tolerance=tolerance, seed=seed)
        bars = scores.error_bars()
        assert max(row.half_width for row in bars.rows) <= tolerance
        held += inside(bars, {f"c{i}": exact[i] for i in range(400)})
    # in 90 % of draws 90 % or more
    assert np.mean(held) >= 0.9, np.mean(held)


def test_a_later_audit_does_not_take_picked_components_for_drawn_ones():
    estimate, exact = heavy(3, 400)
    function, scores = attributed(estimate, exact, tolerance=1.0, seed=3)
    picked = {row.name for row in scores.rows() if row.stratum == "asked"}
    assert picked
    audit = hw.audit(scores, model=function, sample=80, seed=4, progress=False)
    assert set(audit.before) >= picked
    bars = audit.intervals(0.9)
    assert all(bars[name].how == CHECKED for name in picked)
    drawn = population_of(scores, audit).drawn
    assert not {scores.names[column] for column in drawn} & set(audit.before)


def test_a_group_that_would_be_checked_for_the_most_part_is_checked_as_a_whole():
    """All intervals of a group are as wide as their estimates are large: no few are left."""
    _, scores = attributed(*heavy(1, 400), tolerance=0.15)
    left = [row for row in scores.error_bars().rows if row.how == CONFORMAL]
    for group in {row.group for row in left}:
        beside = [row for row in left if row.group == group]
        assert len(beside) >= 20


def test_rows_show_the_exact_effects_that_error_bars_asked_for_and_a_folder_keeps_them(tmp_path):
    model = hw.load("tiny")
    scores = hw.attribute(
        model,
        hw.task("ioi")[:4],
        hw.neurons(layers=0),
        tolerance=0.02,
        out=tmp_path,
        progress=False,
    )
    asked = {row.name: row.exact for row in scores.rows() if row.stratum == "asked"}
    assert asked
    again = hw.Attribution.load(tmp_path)
    assert again.checked.aim == scores.checked.aim
    assert again.error_bars().rows == scores.error_bars().rows
    assert {row.name: row.exact for row in again.rows() if row.stratum == "asked"} == asked
    exact = hw.attribute(model, scores.task, hw.neurons(layers=0), hw.Exact(), progress=False)
    for name, effect in asked.items():
        assert effect == pytest.approx(float(exact[name].mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0 is not above 0"),
        ({"tolerance": -1.0}, "tolerance=-1.0 is not above 0"),
        ({"tolerance": 0.1, "confidence": 1.0}, "confidence=1.0 is not between 0 and 1"),
        ({"tolerance": 0.1, "budget": 0}, "budget=0: error bars take at least one exact run"),
    ],
)
def test_aims_without_a_meaning_are_answered_before_anything_runs(options, said):
    function = planted(*heavy(0))
    with pytest.raises(ResultError) as error:
        hw.attribute(function, estimator=hw.Gradient(), **options)
    assert said in str(error.value)
    assert function.cost.forwards == 0


def test_exact_effects_have_no_error_bars_to_tighten():
    with pytest.raises(ResultError, match="exact effects have no error bars"):
        hw.attribute(planted(*heavy(0)), estimator=hw.Exact(), tolerance=0.1)


def test_a_confidence_without_a_meaning_is_answered():
    _, audit = audited(*heavy(0))
    with pytest.raises(ResultError, match=r"confidence=0\.0 is not between 0 and 1"):
        audit.intervals(0.0)


def test_a_misspelt_name_is_answered_with_the_closest():
    _, audit = audited(*heavy(0))
    with pytest.raises(ResultError, match="no component 'c2OO' among these 200"):
        audit.intervals()["c2OO"]
