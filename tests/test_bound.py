"""Bounds on what was not checked: the subsets, Welch's test, its coverage, and where it fails."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import headwater as hw
from headwater.audits.bound import Bound
from headwater.audits.subsets import OUT, Pool
from headwater.audits.welch import Contrasts, contrasts
from headwater.components import refuse_nested
from headwater.components.nesting import nested_columns
from headwater.errors import ModelGoneError, NestedComponentsError, ResultError
from planted import checked, counted, planted, population

EARLY = {"layers": [0, 1]}
NESTED = (
    hw.attentions(**EARLY)
    + hw.heads(**EARLY)
    + hw.queries(**EARLY)
    + hw.keys(**EARLY)
    + hw.values(**EARLY)
    + hw.mlps(**EARLY)
)


@pytest.fixture(scope="module")
def tables():
    """Component tables with nested kinds, with and without grouped keys and values."""
    each = hw.heads(positions="each", layers=0) + hw.queries(positions=[0, 2], layers=0)
    each = each + hw.mlps(layers=1) + hw.neurons(layers=1)
    found = []
    for name in ("tiny", "tiny-gpt2"):
        anatomy = hw.load(name).anatomy()
        found += [NESTED.expand(anatomy, 5), each.expand(anatomy, 3)]
    return found


# --- which components are closed together ---------------------------------------------------


def refused_together(table, a: int, b: int) -> bool:
    moved = torch.zeros(1, len(table), dtype=torch.bool)
    moved[0, [a, b]] = True
    try:
        refuse_nested(table, moved)
    except NestedComponentsError:
        return True
    return False


@pytest.mark.parametrize("which", range(4))
def test_nested_columns_are_those_that_the_gates_refuse_to_move_together(tables, which):
    table, draw = tables[which], np.random.default_rng(0)
    found = nested_columns(table)
    assert found
    for a in draw.permutation(list(found))[:20].tolist():
        for b in draw.permutation(len(table))[:40].tolist() + list(found[a])[:10]:
            if a != b:
                names = table.names[a], table.names[b]
                assert refused_together(table, a, b) == (b in found[a]), names


@pytest.mark.parametrize("which", range(4))
def test_no_set_holds_two_nested_components(tables, which):
    table, draw = tables[which], np.random.default_rng(0)
    pool, members = Pool(len(table), table), range(len(table))
    for _ in range(12):
        for run in pool.deal(members, 4, draw).runs:
            moved = torch.zeros(1, len(table), dtype=torch.bool)
            moved[0, list(run)] = True
            refuse_nested(table, moved)  # raises if two are nested


def test_nested_components_take_turns_and_the_others_are_dealt_every_round(tables):
    table = tables[0]
    pool = Pool(len(table), table)
    assert pool.depth(range(len(table))) == 3  # attention, head, query
    rounds = [pool.deal(range(len(table)), 4, np.random.default_rng(1)) for _ in range(30)]
    times = sum((r.labels != OUT).astype(int) for r in rounds)
    partners = nested_columns(table)
    assert all(times[column] == 30 for column in range(len(table)) if column not in partners)
    assert times.min() >= 30 / 3 - 1


def test_each_component_is_closed_in_one_run_of_a_round_and_the_blocks_are_equally_likely():
    pool, draw = Pool(50, None), np.random.default_rng(0)
    counts = np.zeros((50, 5))
    for _ in range(400):
        dealt = pool.deal(range(50), 5, draw)
        assert (dealt.closed.sum(0) == 1).all()
        counts += dealt.closed.T
    # 80 expected in each cell, standard deviation 8: five of them in 250 cells is one in 7,000
    assert np.abs(counts - 80).max() < 40


# --- Welch's test ---------------------------------------------------------------------------


def test_contrasts_agree_with_welchs_formulas_written_out_for_each_component():
    draw = np.random.default_rng(0)
    closed = draw.random((30, 6)) < 0.4
    dealt = closed | (draw.random((30, 6)) < 0.8)
    values, control = draw.normal(size=(30, 1)), draw.normal(size=(6, 1))
    found = contrasts(closed, dealt, values, control)
    for n in range(6):
        residual = [values[s, 0] - sum(control[j, 0] for j in range(6) if closed[s, j])
                    for s in range(30)]  # fmt: skip
        inside = np.array([residual[s] for s in range(30) if closed[s, n]])
        outside = np.array([residual[s] for s in range(30) if dealt[s, n] and not closed[s, n]])
        a, b = inside.var(ddof=1) / len(inside), outside.var(ddof=1) / len(outside)
        pooled = (
            ((len(inside) - 1) * inside.var(ddof=1) + (len(outside) - 1) * outside.var(ddof=1))
            / (len(inside) + len(outside) - 2)
            * (1 / len(inside) + 1 / len(outside))
        )
        freedom = (a + b) ** 2 / (a**2 / (len(inside) - 1) + b**2 / (len(outside) - 1))
        assert found.size[n] == pytest.approx(abs(control[n, 0] + inside.mean() - outside.mean()))
        assert found.error[n] == pytest.approx(math.sqrt(max(a + b, pooled)))
        assert found.freedom[n] == math.floor(freedom)


def test_p_values_and_limits_are_those_of_students_t_with_one_and_two_degrees_of_freedom():
    size, error = np.array([0.2, 0.2]), np.array([0.1, 0.1])
    found = Contrasts(size, error, np.array([1, 2]), shift=np.zeros(2))
    # t = (0.4 - 0.2) / 0.1 = 2: closed forms of both distributions
    expected = [0.5 - math.atan(2) / math.pi, 0.5 - 2 / (2 * math.sqrt(2 + 4))]
    assert found.p_values(0.4) == pytest.approx(expected)
    # the 95 % quantiles are tan(0.45 pi) and 0.9 / sqrt(2 * 0.95 * 0.05)
    quantiles = np.array([math.tan(0.45 * math.pi), 0.9 / math.sqrt(2 * 0.95 * 0.05)])
    assert found.upper(0.05) == pytest.approx(0.2 + 0.1 * quantiles)


def test_a_component_that_hardly_any_run_closed_has_no_limit():
    closed = np.zeros((10, 2), dtype=bool)
    closed[:2, 0] = closed[:5, 1] = True
    found = contrasts(closed, np.ones_like(closed), np.arange(10.0)[:, None], np.zeros((2, 1)))
    assert np.isinf(found.upper(0.05)).tolist() == [True, False]
    assert found.p_values(1e9)[0] == 1.0


# --- the bound ------------------------------------------------------------------------------


STRONG = range(20)
"""The components of a planted population that the estimate shows, all checked here."""


def audited(estimate: np.ndarray, exact: np.ndarray, columns=STRONG, **options):
    function = planted(estimate, exact, **options)
    scores = hw.attribute(function, estimator=hw.Gradient())
    audit = checked(scores, exact, columns)
    return function, scores, audit  # the function is kept alive: scores hold it weakly


def bounds_of(seeds: int, hidden: list[int], size: float) -> list[tuple[Bound, float]]:
    """Bounds with the largest effect that was not checked, over populations and draws."""
    found = []
    for seed in range(seeds):
        estimate, exact = population(seed, hidden, size)
        _, _, audit = audited(estimate, exact)
        bound = audit.bound(seed=seed, progress=False)
        left = [int(row.name[1:]) for row in bound.rows]
        found.append((bound, float(np.abs(exact[left]).max())))
    return found


@pytest.mark.parametrize("hidden", [[150], [150, 170, 190]])
def test_at_95_percent_confidence_the_bound_covers_the_largest_missed_effect(hidden):
    found = bounds_of(200, hidden, 0.05)
    covered = np.mean([bound.smallest > largest for bound, largest in found])
    # Nominal 95 % or more; 200 draws know a share of 95 % to 1.5 points.
    assert covered >= 0.95 - 2 * 0.015, covered


def test_the_bound_is_of_use_when_little_is_missing():
    # 180 errors of 0.005 over 8 runs with a component and 48 without: standard error 0.0097. The
    # largest of 180 normal deviates is about 2.9, the quantile of 7 degrees of freedom 1.9.
    found = bounds_of(20, [], 0.0)
    assert np.median([bound.smallest for bound, _ in found]) < 0.0097 * (2.9 + 1.9) * 1.3
    assert all(bound.holds for bound, _ in found)


def test_effects_that_add_up_exactly_seldom_show_an_interaction():
    bounds = [bound for bound, _ in bounds_of(40, [150], 0.05)]
    assert all(bound.probes == 8 + 8 for bound in bounds)  # unions, and components closed alone
    # of components closed alone one seems to interact, by chance, in 10 % of the bounds
    seen = np.mean([bound.interaction > 1e-12 for bound in bounds])
    assert seen <= 0.1 + 2 * 0.047
    assert all(bound.additive for bound in bounds)


def opposite(seed: int):
    """Two sets that each work as one, of opposite sign: random sets of them cancel."""
    estimate, exact = population(seed)
    estimate[100:160] = exact[100:160] = 0.0
    function = planted(estimate, exact)
    additive = function.fn

    def fn(m: torch.Tensor) -> torch.Tensor:
        either = [1 - (1 - m[..., first : first + 30].prod(-1)) ** 2 for first in (100, 130)]
        return additive(m) + 0.3 * (either[0] - either[1])

    function.fn = fn
    scores = hw.attribute(function, estimator=hw.Gradient())
    return function, checked(scores, exact, STRONG)


def test_interactions_that_cancel_in_random_sets_are_seen_by_closing_components_alone():
    # none of 8 of the 180 is one of the 60 with a probability of 4 %
    claims = [opposite(seed)[1].bound(0.1, seed=seed, progress=False).holds for seed in range(30)]
    assert sum(claims) <= 3


@pytest.mark.parametrize("size", [0.05, 0.07, 0.09])
def test_an_interaction_below_theta_counts_in_every_limit(size):
    """Ten components lose `size` once together; with what each does alone they just reach 0.1."""
    for seed in range(20):
        estimate, exact = population(seed)
        exact[150:160], estimate[150:160] = 0.1025 - size, 0.0
        _, _, audit = audited(estimate, exact, together=[range(150, 160)], size=size)
        bound = audit.bound(0.1, seed=seed, progress=False)
        left = {row.name for row in bound.rows} & {f"c{i}" for i in range(150, 160)}
        assert not (bound.holds and left)


def test_a_planted_interaction_is_said_and_nothing_is_claimed():
    estimate, exact = population(0)
    said = 0
    for seed in range(20):
        _, _, audit = audited(estimate, exact, together=[range(150, 160)], size=0.2)
        bound = audit.bound(0.15, seed=seed, progress=False)
        said += not bound.holds and "effects do not add up here" in bound.sentence
    # each of 8 unions holds a part of ten components in both blocks with probability 0.7 or more
    assert said == 20


def test_a_hidden_component_above_theta_is_named_and_nothing_is_claimed():
    estimate, exact = population(3, [150], 0.3)
    _, _, audit = audited(estimate, exact)
    bound = audit.bound(0.1, progress=False)
    assert bound.rows[0].name == "c150"
    assert bound.rows[0].p_value > 0.99
    assert not bound.holds
    assert bound.sentence.startswith("Not bounded: 172 of 200 components were not checked")
    assert "c150" in bound.sentence


def test_the_bound_counts_its_runs_and_never_exceeds_what_was_asked():
    estimate, exact = population(0)
    function, _, audit = audited(estimate, exact)
    settings = counted(function)
    bound = audit.bound(subsets=80, progress=False)
    assert sum(settings) == bound.runs + 1  # and one at rest
    assert bound.runs == 80
    assert bound.checked == 20 + 8
    assert bound.to_dict()["bounded"] == "|mean effect|"


def test_mean_and_magnitude_are_bounded_apart():
    """Effects of +0.2 and -0.2 on halves of the pairs have mean 0 and mean size 0.2."""
    estimate, exact = population(1)
    estimate, exact = np.tile(estimate, (8, 1)), np.tile(exact, (8, 1))
    exact[:, 150] = [0.2, -0.2] * 4
    _, _, audit = audited(estimate, exact)
    audit = replace(audit, pair_effects=torch.tensor(exact[:, STRONG]))
    means, sizes = (
        audit.bound(0.1, subsets=160, magnitudes=m, progress=False) for m in (False, True)
    )
    assert means.holds
    assert "|mean effect|" in means.sentence
    assert not sizes.holds
    assert sizes.rows[0].name == "c150"
    assert sizes.rows[0].size == pytest.approx(0.2, abs=0.05)
    assert "mean |effect|" in sizes.sentence


def test_at_95_percent_confidence_the_bound_covers_mean_magnitudes():
    covered = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        estimate, _ = population(seed)
        estimate = np.tile(estimate, (6, 1))
        exact = estimate + draw.normal(0, 0.005, estimate.shape)
        exact[:, 150] = draw.choice([-0.05, 0.05], 6)
        _, _, audit = audited(estimate, exact)
        audit = replace(audit, pair_effects=torch.tensor(exact[:, STRONG]))
        bound = audit.bound(magnitudes=True, seed=seed, progress=False)
        covered.append(bound.smallest > np.abs(exact).mean(0)[20:].max())
    assert np.mean(covered) >= 0.95


def test_what_an_audit_of_everything_leaves_is_nothing():
    estimate, exact = population(0)
    _, _, audit = audited(estimate, exact, range(200))
    bound = audit.bound(0.05)
    assert bound.holds
    assert bound.sentence == ("All 200 components were checked exactly: nothing can be missing.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"theta": -0.1}, "theta=-0.1 is not above 0"),
        ({"theta": 0.0}, "theta=0.0 is not above 0"),
        ({"theta": math.nan}, "theta=nan is not above 0"),
        ({"confidence": 1.0}, "confidence=1.0 is not between 0 and 1"),
        ({"confidence": 0.0}, "confidence=0.0 is not between 0 and 1"),
        ({"subsets": 10}, "Type subsets=40 or more."),
    ],
)
def test_numbers_without_a_meaning_are_answered(options, said):
    _, _, audit = audited(*population(0))
    with pytest.raises(ResultError) as error:
        audit.bound(**options)
    assert said in str(error.value)


def test_an_audit_whose_scores_are_gone_says_to_keep_them():
    audit = audited(*population(0))[1].checked
    with pytest.raises(ModelGoneError, match=r"the scores of this audit are gone"):
        audit.bound(0.05)


def test_on_a_model_with_nested_components_subsets_run_and_bound_what_was_not_checked():
    model, task = hw.load("tiny"), hw.task("ioi")[:6]
    components = hw.heads() + hw.queries() + hw.keys() + hw.mlps()
    scores = hw.attribute(model, task, components, hw.Gradient(), progress=False)
    exact = hw.attribute(model, task, components, hw.Exact(), progress=False).mean().abs()
    bound = scores.audit(sample=32, progress=False).bound(progress=False)
    left = [scores.names.index(row.name) for row in bound.rows]
    assert len(left) == (len(scores.names) - 32) // 2  # the others were closed alone
    assert bound.smallest > float(exact[left].max())
    assert math.isfinite(bound.smallest)
