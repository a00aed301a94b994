"""The estimator that picks one: what it picks and says, and that scores are the picked ones."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import headwater as hw
from headwater.errors import MissingCapabilityError, UnknownOptionError
from headwater.estimators import auto
from headwater.estimators.quadrature import Rule
from headwater.gates import Family, GatedTask
from shape_checks import unchecked
from tiny_tasks import gated, model, task


def notes(components, *, budget: float, reference=None) -> list[str]:
    found = hw.Auto(budget=budget).estimate(
        gated(model("Llama"), task(6, 6), components, reference)
    )
    return list(found.notes)


def test_exact_effects_are_taken_where_they_fit():
    components = hw.heads() + hw.mlps()
    picked = hw.attribute(model("Llama"), task(6, 6), components, hw.Auto())
    exact = hw.attribute(model("Llama"), task(6, 6), components, hw.Exact())
    assert_close(picked.scores, exact.scores, rtol=1e-9, atol=1e-12)
    assert picked.parts.notes[0].startswith("heads scored by hw.Exact(): exact effects cost 7 ")


def test_neurons_get_the_second_order():
    # 80 neurons in two layers: 1 + 40 + 20 forwards exactly, 5 + 4 * 8 for 8 probes
    assert notes(hw.neurons(), budget=40) == [
        "neurons scored by hw.SecondOrder(probes=8): exact effects would cost 61 forwards a pair."
    ]
    (said,) = notes(hw.neurons(), budget=30)
    assert said.startswith("neurons scored by hw.Gradient(): exact effects would cost 61")


def test_many_queries_are_integrated_family_by_family():
    # 6 positions, 4 heads, 2 layers: 1 + 24 + 12 forwards exactly, 1 + 1.5 * 13 along the families
    assert notes(hw.queries(positions="each"), budget=30) == [
        "queries scored by hw.IntegratedGradients(steps=4): exact effects would cost 37 forwards "
        "a pair."
    ]


def test_heads_may_go_along_the_inputs_where_families_are_too_dear():
    runner = hw.load("tiny")
    ((_, function),) = GatedTask(
        runner, hw.task("ioi")[:2], hw.heads(positions="each"), hw.Corrupted()
    )
    (said,) = hw.Auto(budget=33).estimate(function).notes
    assert said.startswith("heads scored by hw.IntegratedGradients(path='inputs'")


def test_a_correction_that_outweighs_the_gradient_is_not_trusted():
    # 200 gates with slope 0.01 and curvature 1 each at the clean end: no parabola of use
    def f(m: torch.Tensor) -> torch.Tensor:
        closed = 1 - m
        return (-0.01 * closed - 0.5 * closed.square() * (-50 * closed).exp()).sum(-1)

    families = (Family("neurons", tuple(range(200)), "neuron"),)
    function = hw.GatedFunction(
        f, [f"m0.n{i}" for i in range(200)], families=families, dtype=torch.float64
    )
    found = hw.Auto(budget=70).estimate(function)
    (said,) = found.notes
    assert said.startswith("neurons scored by hw.Gradient()")
    assert "would correct the gradient by 50.0 times its size" in said
    assert_close(found.scores, torch.full((1, 200), 0.01, dtype=torch.float64))


def curved(slopes: list[float], curvatures: list[float]) -> hw.GatedFunction:
    """200 neurons on some examples: `slope m + curvature (1 - m)^2 / 2` each, summed."""
    slope, curvature = (torch.tensor(x, dtype=torch.float64)[:, None] for x in (slopes, curvatures))
    return hw.GatedFunction(
        lambda m: (slope * m + curvature * (1 - m).square() / 2).sum(-1),
        [f"m0.n{i}" for i in range(200)],
        batch=len(slopes),
        families=(Family("neurons", tuple(range(200)), "neuron"),),
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    ("slopes", "curvatures", "trusted"),
    [
        # the mean correction is -2 / 2 or -3 / 2, the mean slope 1
        ([1.5, 0.5], [1.0, 3.0], True),
        ([1.5, 0.5], [0.0, 6.0], False),
    ],
)
def test_the_second_order_is_judged_over_all_batches_and_not_in_each(slopes, curvatures, trusted):
    apart = [curved([s], [c]) for s, c in zip(slopes, curvatures, strict=True)]
    fitted = hw.Auto(budget=70).fitted(apart)
    found = [fitted.estimate(one) for one in apart]
    whole = hw.Auto(budget=70).estimate(curved(slopes, curvatures))
    assert whole.notes == found[0].notes == found[1].notes
    assert_close(torch.cat([one.scores for one in found]), whole.scores)
    # the effect of closing a gate is slope - curvature / 2
    scores = [s - c / 2 if trusted else s for s, c in zip(slopes, curvatures, strict=True)]
    assert_close(whole.scores, torch.tensor(scores, dtype=torch.float64)[:, None].expand(2, 200))
    assert (whole.errors is not None) == trusted


def test_scores_do_not_depend_on_how_the_pairs_are_batched(monkeypatch):
    monkeypatch.setattr(auto, "LARGEST_CORRECTION", 0.5)
    runner, pairs = model("Llama"), task(*[6] * 5, *[5] * 5, seed=1)
    first = hw.attribute(runner, pairs, hw.neurons(), hw.Gradient()).scores
    second = hw.attribute(runner, pairs, hw.neurons(), hw.SecondOrder(probes=8)).scores
    shares = (second - first).norm(dim=1) / first.norm(dim=1)
    assert shares.min() < 0.5 < shares.max()  # alone they would be judged apart
    found = [
        hw.attribute(runner, pairs, hw.neurons(), hw.Auto(budget=40), batch_size=size)
        for size in (16, 4, 1)
    ]
    for other in found[1:]:
        assert_close(other.scores, found[0].scores, rtol=1e-9, atol=1e-12)
        assert other.parts.notes == found[0].parts.notes
        assert_close(other.parts.errors, found[0].parts.errors, rtol=1e-9, atol=1e-12)
    assert len(found[0].parts.notes) == 1


def test_what_judging_computed_is_not_computed_again():
    runner, pairs = model("Llama"), task(6, 6, 6)
    cost = hw.attribute(runner, pairs, hw.neurons(), hw.Auto(budget=40), batch_size=2).cost
    # a gradient and two backwards for each of 8 probes, once
    assert cost.backwards / 3 == 1 + 2 * 8
    # picking runs the reference of the first batch; judging the reference and the gates at rest;
    # the result the reference and the clean prompts
    assert cost.forwards == 2 + 3 * (2 + 2)


def test_each_draw_of_off_values_keeps_its_own_second_order():
    runner, pairs, neurons = model("Llama"), task(6, 6, 6, 5, 5, 5), hw.neurons()
    reference = hw.Resample(draws=2)
    picked = hw.attribute(
        runner, pairs, neurons, hw.Auto(40), reference=reference, metric=hw.kl, batch_size=2
    )
    alone = hw.attribute(
        runner, pairs, neurons, hw.SecondOrder(probes=8), reference=reference, metric=hw.kl
    )
    assert_close(picked.scores, alone.scores, rtol=1e-9, atol=1e-12)
    assert_close(picked.parts.errors, alone.parts.errors, rtol=1e-9, atol=1e-12)


def test_where_the_gradient_is_zero_by_construction_the_curvature_is_believed():
    runner, pairs = model("Llama"), task(6, 6, metric=hw.kl)
    picked = hw.attribute(runner, pairs, hw.neurons(), hw.Auto(budget=40))
    alone = hw.attribute(runner, pairs, hw.neurons(), hw.SecondOrder(probes=8))
    assert_close(picked.scores, alone.scores, rtol=1e-9, atol=1e-12)
    assert picked.parts.notes[0].startswith("neurons scored by hw.SecondOrder(probes=8)")
    # and stands for the gradient and AtP* where these would be next, for every kind
    for components in (hw.neurons(), hw.queries(positions="each"), hw.heads(positions="each")):
        (said,) = hw.attribute(runner, pairs, components, hw.Auto(budget=5)).parts.notes
        assert " scored by hw.SecondOrder(probes=8): " in said
        assert "a gradient is 0 by construction" in said


def test_without_second_derivatives_and_gradients_families_are_integrated(monkeypatch):
    def refuse(*_):
        raise MissingCapabilityError("no second derivative")

    monkeypatch.setattr(hw.SecondOrder, "parabola", refuse)
    pairs = task(6, 6, metric=hw.kl)
    (said,) = hw.attribute(model("Llama"), pairs, hw.neurons(), hw.Auto(40)).parts.notes
    assert said.startswith("neurons scored by hw.IntegratedGradients(steps=4)")


def test_a_gradient_that_happens_to_be_zero_does_not_condemn_the_curvature():
    found = hw.Auto(budget=70).estimate(curved([0.0], [-2.0]))
    assert found.notes[0].startswith("neurons scored by hw.SecondOrder()")
    assert_close(found.scores, torch.ones(1, 200, dtype=torch.float64))


def test_errors_and_gaps_of_what_was_picked_are_kept():
    # exactly the neurons cost 61 forwards, the queries of 14 positions 85
    runner, pairs = model("Llama"), task(14, 14, seed=1)
    components = hw.neurons() + hw.mlps() + hw.queries(positions="each")
    found = hw.attribute(runner, pairs, components, hw.Auto(budget=112))
    second = hw.attribute(runner, pairs, hw.neurons(), hw.SecondOrder(probes=8))
    queries = hw.attribute(
        runner, pairs, hw.queries(positions="each"), hw.IntegratedGradients(steps=8)
    )
    assert found.parts.errors is not None
    assert second.parts.errors is not None
    for column, part in enumerate(found.parts.components):
        error = found.parts.errors[:, column]
        if part.kind == "neuron":
            place = second.names.index(part.name)
            assert_close(error, second.parts.errors[:, place], rtol=1e-9, atol=1e-12)
        else:
            assert not error.any()
    assert found.parts.gap_names == ("queries of layer 0", "queries of layer 1")
    assert_close(found.parts.gaps, queries.parts.gaps, rtol=1e-9, atol=1e-12)


def test_gaps_of_one_name_are_told_apart_by_kind():
    def f(m: torch.Tensor) -> torch.Tensor:
        return m[..., :20].sum(-1) - m[..., 20:].prod(-1)

    families = (
        Family("all", tuple(range(20)), "head"),
        Family("all", tuple(range(20, 40)), "mlp"),
        Family("others", (40,), "value"),
    )
    names = [str(i) for i in range(41)]
    function = hw.GatedFunction(f, names, families=families, dtype=torch.float64)
    gaps = hw.Auto(budget=50).estimate(function).gaps
    assert gaps is not None
    assert gaps.names == ("heads: all", "mlps: all")
    # mlps: the sum of the slopes is -20 (1 - t)^19, of which Gauss misses a little with 4 points
    points = Rule.of("gauss", 4)
    missed = sum(
        -20 * w * (1 - t) ** 19 for t, w in zip(points.points, points.weights, strict=True)
    )
    assert_close(gaps.values, torch.tensor([[0.0, missed + 1]], dtype=torch.float64))


def test_families_need_not_stand_in_the_order_of_the_gates():
    families = (Family("second", (1,)), Family("first", (0,)))
    weights = torch.tensor([3.0, -1.0], dtype=torch.float64)
    function = hw.GatedFunction(
        lambda m: (m * weights).sum(-1), ["a", "b"], families=families, dtype=torch.float64
    )
    assert_close(hw.Auto().estimate(function).scores[0], weights)


def test_where_nothing_can_be_differentiated_twice_neurons_keep_their_gradient(monkeypatch):
    def refuse(*_):
        raise MissingCapabilityError("no second derivative")

    monkeypatch.setattr(hw.SecondOrder, "parabola", refuse)
    (said,) = notes(hw.neurons(), budget=40)
    assert said.startswith("neurons scored by hw.Gradient()")
    assert "hw.SecondOrder() cannot run here" in said


def test_queries_that_are_too_many_get_the_query_fix():
    said = notes(hw.queries(positions="each"), budget=5)
    assert said[0].startswith("queries scored by hw.AtPStar(grad_drop=False)")


def test_kinds_are_scored_apart_and_put_together():
    components = hw.neurons() + hw.queries() + hw.mlps()
    runner, pairs = model("Llama"), task(6, 6)
    together = hw.attribute(runner, pairs, components, hw.Auto(budget=120))
    for part, estimator in (
        (hw.neurons(), hw.SecondOrder(probes=8)),
        (hw.queries(), hw.Exact()),
        (hw.mlps(), hw.Exact()),
    ):
        alone = hw.attribute(runner, pairs, part, estimator)
        columns = [together.names.index(name) for name in alone.names]
        assert_close(together.scores[:, columns], alone.scores, rtol=1e-9, atol=1e-12)


def test_a_zero_reference_in_a_pre_norm_model_is_doubted_wherever_slopes_are_used():
    (exact,) = notes(hw.neurons(), budget=13, reference=hw.Zero())
    assert exact.startswith("neurons scored by hw.Exact(): slopes say little here")
    dear = notes(hw.neurons(), budget=12, reference=hw.Zero())
    assert any(note.startswith("reference zero in a pre-norm model") for note in dear)


@pytest.mark.parametrize(
    ("estimator", "warned"),
    [
        (hw.Gradient(), True),
        (hw.AtPStar(), True),
        (hw.IntegratedGradients(), True),
        (hw.Exact(), False),
    ],
)
def test_the_warning_comes_with_slopes_only(estimator, warned):
    scores = hw.attribute(model("Llama"), task(6, 6), hw.heads(), estimator, reference=hw.Zero())
    said = any("reference zero in a pre-norm model" in text for text in scores.warnings())
    assert said == warned


def test_a_post_norm_model_and_other_references_are_not_warned_of():
    for family, reference in (("OLMo 2", hw.Zero()), ("Llama", hw.Corrupted())):
        scores = hw.attribute(
            model(family), task(6, 6), hw.heads(), hw.Gradient(), reference=reference
        )
        assert not any("pre-norm" in text for text in scores.warnings())


def test_a_closed_form_is_scored_too():
    f = hw.GatedFunction(lambda m: m[..., 0] * m[..., 1], ["a", "b"], dtype=torch.float64)
    scores = hw.attribute(f, estimator=hw.Auto())
    assert scores.scores[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("budget", [3, "100", True, float("nan")])
def test_a_budget_that_is_no_number_or_too_small_for_anything_is_refused(budget):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.Auto(budget=budget)
    assert str(refused.value) == (
        f"budget={budget!r} is no number from 4 on: the cheapest estimate takes 4 passes a pair.\n"
        "Type budget=100, or hw.Gradient()."
    )


def test_what_was_scored_exactly_is_known_to_be_exact(tmp_path):
    runner, pairs = model("Llama"), task(6, 6)
    mixed = hw.attribute(runner, pairs, hw.neurons() + hw.mlps(), hw.Auto(budget=75))
    known = {row.name for row in mixed.rows() if row.exact is not None}
    assert known == {"m0", "m1"}
    assert not mixed.is_exact
    whole = hw.attribute(runner, pairs, hw.mlps(), hw.Auto())
    assert whole.is_exact
    assert "not audited" not in repr(whole)
    whole.save(tmp_path / "run")
    assert hw.Attribution.load(tmp_path / "run").is_exact
    assert whole.audit().verdict.startswith("These are exact effects")
