"""Several estimators against the same exact effects: figures, costs, advice, page, command."""

from __future__ import annotations

import json
import re

import pytest
import torch

import headwater as hw
from headwater.audits.advice import advice
from headwater.audits.comparison import ComparedEstimator
from headwater.errors import ResultError
from headwater.page.comparison import render_comparison
from tiny_tasks import model, task

ESTIMATORS = [hw.Gradient(), hw.AtPStar(), hw.IntegratedGradients(), hw.Exact()]


def comparison(**options) -> hw.Comparison:
    return hw.compare(
        hw.load("tiny"), hw.task("ioi")[:12], hw.heads() + hw.mlps(), ESTIMATORS, **options
    )


def test_each_row_is_the_audit_of_that_estimator_alone():
    runner, pairs, parts = hw.load("tiny"), hw.task("ioi")[:12], hw.heads() + hw.mlps()
    found = comparison()
    for estimator, row in zip(ESTIMATORS[:3], found.rows, strict=False):
        scores = hw.attribute(runner, pairs, parts, estimator)
        audit = scores.audit(sample=100)
        for name in ("r", "rho", "slope", "relative error", "completeness gap"):
            # the audit runs its effects in another batch shape
            assert row.figures[name] == pytest.approx(audit.statistic(name).value, abs=2e-4)
        assert row.figures["recall"] == audit.recall.value
        assert row.forwards == scores.cost.forwards / 12
        assert row.backwards == scores.cost.backwards / 12


def test_exact_against_itself_is_perfect_and_no_effect_is_run_twice():
    found = comparison()
    exact = found.rows[3]
    assert exact.figures["r"] == pytest.approx(1)
    assert exact.figures["relative error"] == 0
    calls = 0

    def f(m: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += m.shape[0]
        return (m * torch.tensor([3.0, 2.0, 1.0])).sum(-1)

    g = hw.GatedFunction(f, ["a", "b", "c"])
    hw.compare(g, estimators=[hw.Gradient(), hw.Exact()], diagnosis=False)
    with_exact, calls = calls, 0
    hw.attribute(g, estimator=hw.Gradient())
    hw.attribute(g, estimator=hw.Exact())
    assert with_exact == calls


def test_effects_are_shared_between_estimators():
    calls = 0

    def f(m: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += m.shape[0]
        return (m * torch.tensor([3.0, 2.0, 1.0])).sum(-1)

    g = hw.GatedFunction(f, ["a", "b", "c"])
    hw.compare(g, estimators=[hw.Gradient()], diagnosis=False)
    one, calls = calls, 0
    hw.attribute(g, estimator=hw.Gradient())
    alone, calls = calls, 0
    both = {"first": hw.Gradient(), "second": hw.Gradient()}
    hw.compare(g, estimators=both, diagnosis=False)
    assert calls == one + alone  # the second costs its scores, no exact runs


def test_a_sample_checks_only_some_components():
    found = comparison(sample=8)
    assert found.components == 20
    assert found.checked == 20  # exact scores are at hand, so every one is known
    few = hw.compare(hw.load("tiny"), hw.task("ioi")[:12], hw.heads(), [hw.Gradient()], sample=8)
    assert few.checked == 8
    assert "8 of 16 components checked exactly" in repr(few)


def test_the_title_and_every_row_are_printed():
    text = repr(comparison())
    assert text.startswith("Comparison of 4 estimators: ioi on tiny, reference corrupted")
    for name in ("gradient", "atp-star", "ig", "exact"):
        assert re.search(rf"^{name} ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("estimators", "said"),
    [
        ([], "no estimator to compare"),
        ([hw.Gradient(), hw.Gradient(at="corrupted")], "2 estimators are called 'gradient'"),
    ],
)
def test_none_or_two_of_one_name_are_refused(estimators, said):
    with pytest.raises(ResultError, match=said):
        hw.compare(model("Llama"), task(5), hw.heads(), estimators)


def test_estimators_are_held_against_the_end_they_are_of():
    named = {"clean": hw.Gradient(), "corrupted": hw.Gradient(at="corrupted")}
    found = hw.compare(model("Llama"), task(6, 6), hw.heads(), named)
    for name, row in zip(named, found.rows, strict=True):
        exact = hw.attribute(model("Llama"), task(6, 6), hw.heads(), hw.Exact(at=name)).mean()
        score = hw.attribute(model("Llama"), task(6, 6), hw.heads(), named[name]).mean()
        slope = float((score * exact).sum() / (exact * exact).sum())
        assert row.figures["slope"] == pytest.approx(slope)


# --- advice --------------------------------------------------------------------------------------


def row(name: str, passes: float, *, r: float, error: float, recall: float = 1.0):
    figures = {"r": r, "relative error": error, "recall": recall, "slope": 0.5}
    return ComparedEstimator(name, name, passes, 0, 0.0, figures, "", "")


class Audited:
    """Scores with nothing missed."""

    class checked:
        rows = ()


def said(*rows: ComparedEstimator) -> str:
    return advice(rows, {one.name: Audited for one in rows}, 20)[0]


def test_the_cheapest_with_the_right_sizes_is_recommended():
    text = said(
        row("gradient", 4, r=0.95, error=0.6),
        row("ig", 40, r=0.99, error=0.05),
        row("exact", 100, r=1, error=0),
    )
    assert text.startswith("Use ig here: the cheapest whose sizes are right (relative error 0.05)")
    assert text.endswith("For the ranking alone gradient is enough (4 forwards a pair).")


def test_exact_is_recommended_where_it_costs_no_more():
    text = said(row("ig", 40, r=0.99, error=0.05), row("exact", 30, r=1, error=0))
    assert text.startswith("Use exact here: it costs no more (30 forwards")


def test_a_ranking_is_called_a_ranking():
    text = said(row("gradient", 4, r=0.95, error=0.6), row("exact", 100, r=1, error=0))
    assert text.startswith(
        "Use gradient here for the ranking, not for sizes (relative error 0.60); for sizes use"
    )


def test_where_nothing_ranks_exact_is_left():
    text = said(row("gradient", 4, r=0.3, error=1.1))
    assert text.startswith("Use hw.Exact() here: no estimate that was compared ranks")


def test_what_a_gradient_misses_is_named_with_the_reason():
    def f(m: torch.Tensor) -> torch.Tensor:
        return torch.tanh(20 * (m[..., 0] - 0.5)) + 0.1 * m[..., 1] + 0.1 * m[..., 2]

    found = hw.compare(
        hw.GatedFunction(f, ["a0.h0<q>", "m0", "m1"], dtype=torch.float64),
        estimators=[hw.Gradient(), hw.Exact()],
    )
    (missed,) = (text for text in found.advice if text.startswith("gradient misses"))
    assert missed.startswith("gradient misses a0.h0<q> (score below a tenth of the effect), 91 %")
    assert "softmax" in missed


# --- the page and the command ---------------------------------------------------------------------


def test_the_page_escapes_names_and_allows_no_script():
    hostile = "<script>alert(1)</script>"
    page = render_comparison(
        {
            "title": hostile,
            "advice": [hostile, hostile],
            "columns": ("r",),
            "caption": hostile,
            "estimators": [
                {
                    "name": hostile,
                    "cells": ("1", "2", hostile),
                    "estimand": hostile,
                    "verdict": hostile,
                    "points": [{"name": hostile, "kind": 'x"y', "estimate": 1.0, "exact": 2.0}],
                }
            ],
        }
    )
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("HTTP-EQUIV", "")


def test_a_saved_comparison_holds_every_run(tmp_path):
    found = comparison()
    found.save(tmp_path)
    found.page(tmp_path / "page.html")
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["name"] for one in data["rows"]] == ["gradient", "atp-star", "ig", "exact"]
    again = hw.Attribution.load(tmp_path / "ig")
    assert again.names == found.runs["ig"].names
    assert again.checked is not None
    page = (tmp_path / "page.html").read_text()
    assert page.count("<circle") == 4 * 20 + 2  # every component in every plot, and two samples


def test_frames_have_one_row_an_estimator():
    pytest.importorskip("pandas")
    frame = comparison().to_frame()
    assert list(frame["name"]) == ["gradient", "atp-star", "ig", "exact"]
    assert "slope" in frame


def test_a_diagnosis_says_what_a_gradient_cannot_see_and_can_be_left_out():
    f = hw.GatedFunction(
        lambda m: m[..., 0] + (m[..., 0] > 0.3).to(m.dtype), ["router"], dtype=torch.float64
    )
    estimators = [hw.Gradient(), hw.Exact()]
    said = hw.compare(f, estimators=estimators).advice
    assert any(text.startswith("What a gradient cannot see here: routing jump") for text in said)
    silent = hw.compare(f, estimators=estimators, diagnosis=False).advice
    assert not any("cannot see" in text for text in silent)


def test_a_cheaper_exact_run_beats_a_ranking():
    text = said(row("ig", 126, r=0.84, error=0.42), row("exact", 14, r=1, error=0))
    assert text.startswith(
        "Use exact here: it costs no more (14 forwards a pair) than ig, the "
        "cheapest estimate that ranks"
    )


def test_estimators_are_told_by_what_they_are_and_not_by_the_names_they_were_given():
    f = hw.GatedFunction(lambda m: m.sum(-1), ["a", "b"], dtype=torch.float64)
    named = {"slopes": hw.Gradient(), "the truth": hw.Exact()}
    said = hw.compare(f, estimators=named).advice
    assert said[0].startswith("Use exact here: it costs no more")
    assert said[-1].startswith("Exact effects of all 2 components cost")
