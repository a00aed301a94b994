"""Every estimator gives its closed form on every ground-truth model, and the zoo says how wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.cli import main
from headwater.errors import UnknownTruthError
from headwater.estimators import (
    ESTIMATORS,
    AtPStar,
    Estimator,
    IntegratedGradients,
    SecondOrder,
    Shapley,
)
from headwater.zoo.truths import TRUTHS, ModelTruth, compare, truth
from headwater.zoo.truths.induction import COMPONENTS, induction_model, induction_task
from headwater.zoo.truths.verdicts import merged, verdict, verdict_of, words

GATES = [name for name, one in TRUTHS.items() if not isinstance(one, ModelTruth)]
MODELS = [name for name in TRUTHS if name not in GATES]


def entries(of: str) -> list:
    """Every truth with every estimator that has an entry there."""
    return [
        pytest.param(name, estimator, id=f"{name}-{estimator}")
        for name, one in TRUTHS.items()
        for estimator in getattr(one, of)
    ]


def row(name: str, estimator: Estimator, example: int = 0) -> list[float]:
    return truth(name).attribute(estimator).scores[example].tolist()


# --- the closed forms ------------------------------------------------------------


@pytest.mark.parametrize(("name", "estimator"), entries("expected"))
def test_an_estimator_gives_its_closed_form(name, estimator):
    found, expected = truth(name).attribute(estimator).scores, truth(name).expected[estimator]
    allowed = getattr(estimator, "tolerance", None) or 1e-9
    assert_close(found, expected, rtol=1e-9, atol=allowed)


@pytest.mark.parametrize(("name", "estimator"), entries("refused"))
def test_an_estimator_without_an_answer_is_refused(name, estimator):
    with pytest.raises(truth(name).refused[estimator]):
        truth(name).attribute(estimator)


@pytest.mark.parametrize(
    ("name", "fact"),
    [pytest.param(name, f, id=f"{name}-{f.name}") for name, t in TRUTHS.items() for f in t.facts],
)
def test_a_fact_is_measured_as_its_closed_form(name, fact):
    assert_close(fact.measure(), fact.expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_truth_says_what_its_function_holds(name):
    one, function = truth(name), truth(name).function()
    assert one.name == name
    assert tuple(function.names) == one.names
    assert function.batch == len(one.examples)
    assert function.dtype == torch.float64
    for scores in one.expected.values():
        assert scores.shape == (len(one.examples), len(one.names))


@pytest.mark.parametrize("name", TRUTHS)
def test_exact_and_gradient_are_known_for_every_truth(name):
    assert {hw.Exact(), hw.Gradient()} <= set(truth(name).expected)


# --- the figures of the literature and of earlier measurements ----------------------------------


def test_a_saturated_query_scores_a_thousandth_and_midpoints_miss_or_overshoot():
    ten = truth("saturated-softmax").examples.index("s = 10")
    figures = {
        hw.Exact(): 0.99991,
        hw.Gradient(): 9.08e-4,
        IntegratedGradients("component", "midpoint", 5): 1.144,
        IntegratedGradients("component", "midpoint", 10): 0.9979,
        IntegratedGradients("component", "midpoint", 20): 0.99991,
        AtPStar(grad_drop=False): 0.99991,
    }
    for estimator, figure in figures.items():
        assert row("saturated-softmax", estimator, ten) == [pytest.approx(figure, rel=5e-4)]


def test_cancellation_hides_from_the_gradient_and_grad_drop_finds_it_too_large():
    two = truth("cancellation").examples.index("D = 2")
    assert row("cancellation", hw.Gradient(), two) == [0.0]
    assert row("cancellation", hw.Exact(), two) == [pytest.approx(1.0360, abs=5e-5)]
    assert row("cancellation", AtPStar(), two) == [2.0]


@pytest.mark.parametrize(
    ("name", "share"), [("induction", 0.0188), ("induction-unsaturated", 1.209)]
)
def test_the_gradient_of_an_induction_head_is_this_share_of_its_effect(name, share):
    by_name = dict(zip(truth(name).names, row(name, hw.Gradient()), strict=True))
    exact = dict(zip(truth(name).names, row(name, hw.Exact()), strict=True))
    for component in ("a0.h0@2", "a1.h0<k>@2"):
        assert by_name[component] / exact[component] == pytest.approx(share, abs=5e-4)


def test_the_lens_flips_with_these_divergences():
    facts = {fact.name: fact.measure().tolist() for fact in truth("lens-flip").facts}
    assert facts["KL(final || layer)"] == pytest.approx([2.98419] * 3 + [0] * 2, abs=5e-6)
    assert facts["KL(layer || final)"] == pytest.approx([3.113404] * 3 + [0] * 2, abs=5e-7)
    assert facts["rank of the answer"] == [1, 1, 1, 0, 0]


def test_a_norm_makes_gradients_of_opposite_sign_that_sum_to_zero():
    assert row("rms-norm", hw.Gradient()) == pytest.approx([0.134164, -0.134164], abs=5e-7)
    assert row("rms-norm", hw.Exact()) == pytest.approx([1.341641, -0.072573], abs=5e-7)


def test_four_or_eight_midpoints_miss_a_step_that_twenty_or_a_tolerance_find():
    for steps, score in ((4, 0.0), (8, 0.0), (20, 1.0)):
        found = row("sharp-step", IntegratedGradients("component", "midpoint", steps))
        assert found == pytest.approx([score], abs=1e-12)
    adaptive = IntegratedGradients("component", "midpoint", 8, tolerance=0.01)
    assert row("sharp-step", adaptive) == pytest.approx([1.0], abs=0.01)


def test_features_in_superposition_score_twice_their_value_and_once_their_interference():
    v, w, c = 0.8, 0.6, math.cos(2 * math.pi / 5)
    assert row("superposition", hw.Exact(), 1)[:2] == pytest.approx([v + w * c - c, w * c])
    assert row("superposition", hw.Gradient(), 1)[:2] == pytest.approx([2 * v + w * c, w * c])


def test_functions_that_are_switched_off_score_exactly_nothing():
    for name in ("gated-functions", "gated-functions-biases"):
        for estimator in (hw.Exact(), hw.Gradient()):
            assert row(name, estimator, 0)[1] == row(name, estimator, 0)[3] == 0.0


def test_edges_between_different_features_go_through_the_mlp_and_are_not_all_zero():
    by_name = {fact.name: fact.measure() for fact in truth("dictionary-edges").facts}
    through, beside = (
        by_name["their part through the MLP"],
        by_name["their part through the skip path"],
    )
    off_diagonal = through - through.diag().diag()
    assert sorted(off_diagonal.flatten().round(decimals=12).tolist()) == [-1.5, *[0] * 7, 1.8]
    assert_close(beside, beside.diag().diag())
    assert_close(by_name["edges [to, from]"], through + beside)


def test_the_sum_of_all_probabilities_is_refused_as_the_metric_of_a_model():
    task = induction_task().with_metric(hw.metric(lambda logits, batch: logits.softmax(-1).sum(-1)))
    with pytest.raises(hw.HeadwaterError) as refused:
        hw.attribute(induction_model(8.0), task, hw.heads())
    assert type(refused.value).__name__ == "ConstantMetricError"


# --- induction is a model like any other --------------------------------------------------------


@pytest.fixture(scope="module")
def induction() -> hw.Model:
    return induction_model(8.0)


def by_name(scores: hw.Attribution) -> dict[str, float]:
    return dict(zip(scores.names, scores.mean().tolist(), strict=True))


def difference() -> float:
    """The closed form g (a - r) for b = 8, n = 7, g = 5."""
    return 5 * (math.exp(8) - 1) / (math.exp(8) + 6)


def test_the_hand_set_model_proves_itself(induction):
    assert induction.refusal is None
    assert type(induction.module).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("components", "carrier"),
    [
        (hw.tokens(), "input@1"),
        (hw.heads(layers=0, positions="each"), "a0.h0@2"),
        (hw.values(layers=0, positions="each"), "a0.h0<v>@1"),
        (hw.keys(positions="each"), "a1.h0<k>@2"),
        (hw.heads(layers=1, positions="each"), "a1.h0@6"),
        (hw.residual(layers=0), "r0@2"),
        (hw.heads(layers=0), "a0.h0"),
        (hw.keys(layers=1), "a1.h0<k>"),
        (hw.attentions(layers=[1]), "a1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_each_kind_one_component_carries_everything(induction, components, carrier):
    effects = by_name(hw.attribute(induction, induction_task(), components, hw.Exact()))
    assert effects.pop(carrier) == pytest.approx(difference(), rel=1e-12)
    assert all(abs(effect) < 1e-12 for effect in effects.values())


def test_behind_the_softmax_the_gradient_is_exact(induction):
    components = hw.heads(layers=1, positions="each")
    gradient = hw.attribute(induction, induction_task(), components, hw.Gradient())
    assert by_name(gradient)["a1.h0@6"] == pytest.approx(difference(), rel=1e-12)


def test_an_audit_of_the_saturated_gradient_finds_how_small_it_is(induction):
    scores = hw.attribute(induction, induction_task(), COMPONENTS, hw.Gradient())
    audit = scores.audit(sample=28)
    (slope,) = (figure.value for figure in audit.figures if figure.name == "slope")
    assert slope == pytest.approx(0.01875, abs=5e-5)


# --- the comparison ------------------------------------------------------------


@pytest.mark.parametrize("name", GATES)
def test_every_kind_of_estimator_is_shown_with_scores_or_the_reason(name):
    comparison = truth(name).compare()
    assert comparison.agrees
    shown = {result.estimator.name: result for result in comparison.results}
    assert set(shown) == set(ESTIMATORS)
    for result in comparison.results:
        cells = len(truth(name).names) * len(truth(name).examples)
        assert len(result.cells) == (0 if result.refusal else cells)
    json.dumps(comparison.to_dict())


def test_a_comparison_prints_who_is_right_and_who_is_not():
    printed = repr(truth("saturated-softmax").compare(hw.Gradient(), hw.Exact()))
    assert "1,101 times too small" in printed
    assert "closed form" not in printed  # it would say which number is not
    lines = [line.split() for line in printed.splitlines()]
    assert ["gradient", "s", "=", "2", "query", "0.42", "0.7616", "0.5514"] in [
        line[:8] for line in lines
    ]


def test_a_score_that_is_not_its_closed_form_is_told():
    wrong = {hw.Gradient(): torch.ones(1, 2, dtype=torch.float64) * 7}
    comparison = compare(dataclasses.replace(truth("and"), expected=wrong), [hw.Gradient()])
    assert not comparison.agrees
    assert "NOT its closed form, 7" in repr(comparison)
    assert "Not every number is its closed form" in repr(comparison)


def test_an_answer_where_a_refusal_was_foreseen_is_told():
    odd = dataclasses.replace(truth("and"), expected={}, refused={hw.Exact(): hw.HeadwaterError})
    assert not compare(odd, [hw.Exact()]).agrees


def test_a_refusal_where_a_closed_form_stands_is_told():
    known: dict[Estimator, Tensor] = {AtPStar(): torch.zeros(1, 2, dtype=torch.float64)}
    comparison = compare(dataclasses.replace(truth("and"), expected=known), [AtPStar()])
    assert not comparison.agrees


def test_a_fact_that_is_not_so_is_told():
    one = truth("rms-norm")
    fact = dataclasses.replace(one.facts[0], expected=torch.ones((), dtype=torch.float64))
    assert not compare(dataclasses.replace(one, facts=(fact,)), [hw.Exact()]).agrees


@pytest.mark.parametrize(
    ("score", "exact", "said"),
    [
        (1.005, 1.0, "right"),
        (0.0, 0.0, "right"),
        (0.2, 0.0, "should be 0"),
        (0.0, 1.0, "blind"),
        (1e-3, 1.0, "1,000 times too small"),
        (26.0, 2.0, "13 times too large"),
        (-1.0, 1.0, "wrong sign"),
        (-3.0, 1.0, "wrong sign, 3 times too large"),
        (-0.1, 1.0, "wrong sign, 10 times too small"),
        (0.95, 1.0, "5.0 % too small"),
        (-1.05, -1.0, "5.0 % too large"),
    ],
)
def test_a_verdict_says_how_far_a_score_is_off(score, exact, said):
    assert verdict(score, exact, scale=1.0) == said


def test_a_magnitude_is_judged_without_its_sign_and_a_mask_not_as_an_effect():
    (mask,) = (kind() for word, kind in ESTIMATORS.items() if word == "trained-mask")
    assert verdict_of(AtPStar(), -2.0, 2.0, 2.0) == "right"
    assert verdict_of(hw.Gradient(), -2.0, 2.0, 2.0) == "wrong sign"
    assert [verdict_of(mask, score, 3.0, 3.0) for score in (0.99, -0.99, 0.01)] == [
        "kept",
        "kept",
        "closed",
    ]
    f = hw.GatedFunction(lambda m: m.sum(-1), ["a"])
    assert verdict_of(hw.TrainedMask(steps=1).fitted([f]), 0.99, 3.0, 3.0) == "kept"


def test_estimators_are_named_in_words_and_as_python():
    assert str(hw.Gradient()) == "Gradient()"
    assert str(hw.Exact(at="corrupted")) == "Exact(at='corrupted')"
    assert str(AtPStar(grad_drop=False)) == "AtPStar(grad_drop=False)"
    joint = [IntegratedGradients("joint", "midpoint", steps) for steps in (5, 8)]
    assert words(joint[1]) == ("ig", "joint", "midpoint", "8")
    assert merged([words(one) for one in joint]) == ["ig joint midpoint 5, 8"]
    assert words(AtPStar(grad_drop=False)) == ("atp-star", "without grad drop")
    assert words(Shapley(permutations=32)) == ("shapley", "permutations 32")
    assert words(SecondOrder("exact")) == ("second-order", "exact")


# --- the command line ------------------------------------------------------------


def run(monkeypatch, capsys, *typed: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["headwater", "zoo", *typed])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_the_command_shows_one_model_in_full(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "and")
    assert code == 0
    assert "f = a b" in out
    assert "2 times too small" in out
    assert "refused: atp-star: MissingCapabilityError" in out


def test_the_command_lists_all_models_with_the_worst_ratio_of_each_estimator(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    # gradient, second order, atp-star fixes, atp-star, own path, family, trapezoid, shapley
    assert rows["linear"] == ["right", "right", "-", "-", *["right"] * 4]
    assert rows["or"][-3:] == ["phantom"] * 3
    assert rows["induction"][:4] == ["0.0188", "0.0935", "0.0188", "0"]
    assert rows["cancellation"][3] == "13.2"
    assert "Every number with a closed form is its closed form." in out


def test_the_command_prints_every_number_as_json(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "linear", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["agrees"] is True
    gradient = next(r for r in found["results"] if r["label"] == "Gradient()")
    assert [cell["score"] for cell in gradient["scores"]] == [3.0, -1.0, 0.25, 0.0]


def test_the_command_fails_if_a_number_is_not_its_closed_form(monkeypatch, capsys):
    wrong = {hw.Gradient(): torch.ones(1, 2, dtype=torch.float64) * 7}
    monkeypatch.setitem(TRUTHS, "and", dataclasses.replace(truth("and"), expected=wrong))
    code, out, _ = run(monkeypatch, capsys, "and")
    assert code == 1
    assert "NOT its closed form" in out


def test_an_unknown_model_is_answered_with_the_closest(monkeypatch, capsys):
    with pytest.raises(UnknownTruthError) as refused:
        truth("satrated-softmax")
    assert "Closest: 'saturated-softmax'" in str(refused.value)
    code, _, err = run(monkeypatch, capsys, "inducton")
    assert code == 2
    assert "Closest: 'induction'" in err
