"""The estimator that picks one: what it picks and says, and that scores are the picked ones."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import headwater as hw
from headwater.errors import MissingCapabilityError, UnknownOptionError
from headwater.gates import Family, GatedTask
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
    # 80 neurons in two layers: 1 + 40 + 20 forwards exactly, 3 + 4 * 8 for 8 probes
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


def test_where_nothing_can_be_differentiated_twice_neurons_keep_their_gradient(monkeypatch):
    def refuse(*_):
        raise MissingCapabilityError("no second derivative")

    monkeypatch.setattr(hw.SecondOrder, "estimate", refuse)
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


def test_a_budget_too_small_for_anything_is_refused():
    with pytest.raises(UnknownOptionError, match="the cheapest estimate takes 4 passes"):
        hw.Auto(budget=3)


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
