"""Several estimators against the same exact effects: figures, costs, advice, page, command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import headwater as hw
from headwater.audits import Audit
from headwater.audits.advice import advice
from headwater.audits.comparison_folder import claim, run_folders
from headwater.audits.comparison_result import ComparedEstimator
from headwater.audits.diagnosis import Diagnosis, Finding
from headwater.audits.words import Counts, Statistic
from headwater.errors import ResultError, RunFolderError
from headwater.gates import End
from headwater.page.comparison import render_comparison
from tiny_tasks import model, task

ESTIMATORS = [hw.Gradient(), hw.AtPStar(), hw.IntegratedGradients(), hw.Exact()]


def comparison(**options) -> hw.Comparison:
    return hw.compare(
        hw.load("tiny"), hw.task("ioi")[:12], hw.heads() + hw.mlps(), ESTIMATORS, **options
    )


@pytest.mark.parametrize(
    ("parts", "is_cut"),
    [
        (hw.heads() + hw.mlps(), False),
        # the residual after a layer at every position: together all that later layers see
        (hw.residual(layers=[1], positions="each"), True),
    ],
    ids=["parts", "cut"],
)
def test_each_row_is_the_audit_of_that_estimator_alone(parts, is_cut):
    runner, pairs = hw.load("tiny"), hw.task("ioi")[:12]
    found = hw.compare(runner, pairs, parts, ESTIMATORS, progress=False)
    for estimator, row in zip(ESTIMATORS[:3], found.rows, strict=False):
        scores = hw.attribute(runner, pairs, parts, estimator)
        audit = scores.audit(sample=100)
        for name in ("r", "rho", "slope", "relative error", "completeness gap"):
            # the audit runs its effects in another batch shape
            assert row.figures[name] == pytest.approx(audit.statistic(name).value, abs=2e-4)
        assert row.figures["sign agreement"] == audit.statistic("sign agreement").value
        assert row.figures["recall"] == audit.recall.value
        assert row.verdict == audit.verdict
        assert found.runs[row.name].checked.counts.within_noise == audit.counts.within_noise
        assert row.forwards == scores.cost.forwards / 12
        assert row.backwards == scores.cost.backwards / 12
    # only of a cut the gradient knows what its scores should sum to
    assert (found.rows[0].figures["completeness gap"] is not None) == is_cut


def test_signs_of_effects_within_rounding_are_not_counted():
    # before the two prompts part their residuals are the same: closing one moves only rounding
    parts = hw.residual(layers=[1], positions="each")
    found = hw.compare(hw.load("tiny"), hw.task("ioi")[:12], parts, [hw.Gradient()], progress=False)
    counts = found.runs["gradient"].checked.counts
    assert counts.noise_floor > 0
    assert counts.within_noise > 0


def test_exact_effects_are_not_judged_by_themselves_and_can_still_be_run_again():
    found = comparison()
    exact = found.runs["exact"]
    assert exact.checked.sentence == (
        "20 of 20 exact effects: the other estimates are held against them."
    )
    assert "there is no estimate to doubt" in exact.checked.verdict
    assert exact.ledger.lost == {}
    again = exact.audit(sample=20, progress=False)
    assert again.sentence.startswith("20 of 20 exact effects run again: the largest difference is")
    assert len(exact.ledger.lost) == 20


def test_flags_stand_in_the_audit_of_a_compared_gradient():
    f = hw.GatedFunction(
        lambda m: m[..., 0] + (m[..., 0] > 0.3).to(m.dtype), ["router"], dtype=torch.float64
    )
    found = hw.compare(f, estimators=[hw.Gradient(), hw.Exact()])
    assert "Flags: routing jump router" in found.runs["gradient"].checked.sentence


def test_the_noise_floor_is_measured_once(monkeypatch):
    from headwater.audits.interventions import Interventions

    measured = []
    floor = Interventions.noise_floor

    def counted(self, columns):
        measured.append(columns)
        return floor(self, columns)

    monkeypatch.setattr(Interventions, "noise_floor", counted)
    comparison(progress=False)
    assert len(measured) == 1


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
    runner, pairs = hw.load("tiny"), hw.task("ioi")[:12]
    two = [hw.Gradient(), hw.IntegratedGradients(steps=2)]
    few = hw.compare(runner, pairs, hw.heads(), two, sample=8, progress=False)
    assert {name: len(run.checked.rows) for name, run in few.runs.items()} == {
        "gradient": 8,
        "ig": 8,
    }
    assert few.checked == 8
    assert "8 of 16 components, drawn for each estimator, checked exactly." in repr(few)


def test_with_exact_scores_at_hand_every_component_is_checked_whatever_the_sample():
    found = comparison(sample=3)
    assert found.components == found.checked == 20
    assert [len(run.checked.rows) for run in found.runs.values()] == [20, 20, 20, 20]
    assert "20 of 20 components checked exactly." in repr(found)


def test_where_only_one_end_has_exact_scores_it_says_what_was_checked_at_each():
    named = {"slopes": hw.Gradient(), "exact": hw.Exact(), "below": hw.Gradient(at="corrupted")}
    found = hw.compare(
        hw.load("tiny"), hw.task("ioi")[:4], hw.heads(), named, sample=5, progress=False
    )
    assert [row.checked for row in found.rows] == [16, 16, 5]
    assert found.checked == 5
    assert found.checked_words().startswith(
        "16 of 16 components at the clean end and 5 of 16 at the corrupted end checked exactly."
    )


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
        assert row.end == row.to_dict()["end"] == name


def test_the_end_has_a_column_where_not_all_rows_are_of_the_clean_one():
    f = hw.GatedFunction(lambda m: m.sum(-1), ["a", "b"], dtype=torch.float64)
    assert "end" not in hw.compare(f, estimators=[hw.Gradient(), hw.Exact()]).headings()
    named = {"slopes": hw.Gradient(), "below": hw.Gradient(at="corrupted")}
    found = hw.compare(f, estimators=named)
    assert found.headings()[0] == "end"
    assert [found.cells(row)[0] for row in found.rows] == ["clean", "corrupted"]
    assert re.search(r"^below +corrupted ", repr(found), re.MULTILINE)
    assert "each row is held against the exact effects of its own end" in repr(found)
    page = render_comparison(found._page_data())
    assert '<th scope="col" class="number">end</th>' in page
    assert '<td class="number">corrupted</td>' in page


# --- advice --------------------------------------------------------------------------------------


def row(
    name: str, passes: float, *, r: float, error: float, recall: float = 1.0, end: End = "clean"
):
    figures = {"r": r, "relative error": error, "recall": recall, "slope": 0.5}
    return ComparedEstimator(name, name, end, 20, passes, 0, 0.0, figures, "", "")


def audited(row: ComparedEstimator, counts: Counts, **spans: tuple[float, float]):
    """Scores with nothing missed, whose audit has the figures of a row."""
    figures = tuple(
        Statistic(name, value, *spans.get(name.replace(" ", "_"), (None, None)), "")
        for name, value in row.figures.items()
    )
    audit = Audit("", "", figures, counts, (), (), (), seed=0, confidence=0.95)
    return cast(hw.Attribution, SimpleNamespace(checked=audit))


def counts(checked: int, of: int = 20, *, intervals: bool = False) -> Counts:
    return Counts(of, checked, {"top": checked}, True, 10, 0, None, intervals)


def said(*rows: ComparedEstimator) -> str:
    return advice(rows, {one.name: audited(one, counts(20)) for one in rows}, 20)[0]


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


def test_each_end_has_its_own_advice():
    rows = (
        row("gradient", 4, r=0.95, error=0.1),
        row("exact", 100, r=1, error=0),
        row("below", 5, r=0.3, error=1.1, end="corrupted"),
    )
    text = advice(rows, {one.name: audited(one, counts(20)) for one in rows}, 20)
    assert text[0].startswith("At the clean end: Use gradient here: the cheapest whose sizes")
    assert text[1].startswith('At the corrupted end: Use hw.Exact(at="corrupted") here: no est')
    assert text[2].startswith("At the clean end: Exact effects of all 20 components cost 100")


def test_a_sample_is_said_first_with_its_interval_and_what_it_cannot_exclude():
    one = row("gradient", 4, r=0.88, error=0.48)
    runs = {"gradient": audited(one, counts(20, 1024, intervals=True), r=(0.53, 0.91))}
    assert advice([one], runs, 1024)[0] == (
        "As far as the 20 checked tell, use gradient here for the ranking (r 0.88 [0.53, 0.91]), "
        "not for sizes (relative error 0.48); for sizes use hw.Exact(). Strong effects that the "
        "estimate does not see may be among those not checked: "
        "hw.verify(scores, theta=...) looks for them."
    )


@pytest.mark.parametrize(("high", "sized"), [(0.19, True), (0.21, False)])
def test_sizes_are_right_only_if_the_whole_interval_says_so(high, sized):
    one = row("ig", 40, r=0.99, error=0.05)
    runs = {"ig": audited(one, counts(20, 1024, intervals=True), relative_error=(0.01, high))}
    text = advice([one], runs, 1024)[0]
    assert ("the cheapest whose sizes are right" in text) == sized
    assert ("not for sizes (relative error 0.05 [0.01, 0.21])" in text) != sized


@pytest.mark.parametrize("sample", [1, 2])
def test_one_or_two_checks_say_nothing_of_a_ranking(sample):
    few = hw.compare(
        hw.load("tiny"), hw.task("ioi")[:4], hw.heads(), [hw.Gradient()], sample=sample,
        progress=False,
    )  # fmt: skip
    assert few.advice[0] == (
        f"Too few checks to say which to use ({sample} of 16 components): raise sample=."
    )
    assert "ranks" not in " ".join(few.advice)


@pytest.mark.parametrize(
    ("numbers", "jumps_in", "said"),
    [
        (
            {"saturated_rows": 0.0, "computed": 1.0, "cancellation": 1.0},
            ("m0",),
            [
                "saturated attention, bent attention, cancellation, routing jumps (in 1 of 1): "
                "none found."
            ],
        ),
        # a state-space model has no attention that could saturate
        ({"cancellation": 1.0}, (), ["cancellation: none found."]),
        ({}, (), []),
    ],
)
def test_only_what_was_looked_for_is_called_not_found(numbers, jumps_in, said):
    one = row("gradient", 4, r=0.95, error=0.1)
    found = Diagnosis((Finding("m0", 1.0, 1.0, **numbers),), 1.0, None, jumps_in, 4, 0.01)
    _, *rest = advice([one], {"gradient": audited(one, counts(20))}, 20, found)
    assert rest == [f"Looked for what a gradient cannot see, {words}" for words in said]


def test_why_something_is_missed_is_said_of_the_end_and_method_that_missed_it():
    def step(m: torch.Tensor) -> torch.Tensor:
        return 0.05 * m[..., 0] + (m[..., 0] > 0.3).to(m.dtype)

    named = {
        "above": hw.Gradient(),
        "below": hw.Gradient(at="corrupted"),
        "both": hw.Trapezoid(),
        "exact": hw.Exact(),
    }
    found = hw.compare(hw.GatedFunction(step, ["m0"], dtype=torch.float64), estimators=named)
    said = {
        text.partition(" ")[0]: text.rpartition(" |exact|: ")[2]
        for text in found.advice
        if " misses " in text
    }
    # the jump was looked for along the gradient of the clean end
    assert said["above"].startswith("m0: routing jump")
    assert said["below"] == (
        "there is little slope to see at the corrupted end; confirm these with "
        'hw.Exact(at="corrupted").'
    )
    assert said["both"].startswith("it sees the slope at two points")


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


FLAT = hw.GatedFunction(lambda m: m.sum(-1), ["a", "b"], dtype=torch.float64)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ig:4", "ig-4", "IG-4"], ["ig-4", "ig-4-2", "IG-4-3"]),
        (["../../escaped", "/etc/x", "..", ""], ["escaped", "etc-x", "run", "run-2"]),
        (["comparison.json", "page.html"], ["comparison.json-2", "page.html-2"]),
        (["ig:steps=2", "atp-star"], ["ig-steps=2", "atp-star"]),
    ],
)
def test_run_folders_are_plain_and_never_the_same(names, expected):
    assert list(run_folders(names).values()) == expected
    assert list(run_folders(["x" * 500]).values()) == ["x" * 80]


def test_no_name_writes_outside_the_folder_and_the_file_says_which_run_is_which(tmp_path):
    named = {"../../escaped": hw.Gradient(), "ig:4": hw.Exact(), "ig-4": hw.Trapezoid()}
    folder = tmp_path / "one" / "two"
    hw.compare(FLAT, estimators=named, out=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    for name, estimator in named.items():
        saved = hw.Attribution.load(folder / runs[name]["folder"])
        assert saved.provenance.estimator["name"] == estimator.name


def test_another_comparison_is_refused_before_anything_is_computed(tmp_path):
    hw.compare(FLAT, estimators=[hw.Gradient(), hw.Exact()], out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def never(m: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the metric was run")

    blind = hw.GatedFunction(never, ["a", "b"], dtype=torch.float64)
    for other in ([hw.Gradient(), hw.Trapezoid()], [hw.Gradient(at="corrupted"), hw.Exact()]):
        with pytest.raises(RunFolderError, match="already holds another comparison"):
            hw.compare(blind, estimators=other, out=tmp_path)
    with pytest.raises(RunFolderError, match="already holds another comparison"):
        hw.compare(FLAT, estimators=[hw.Gradient()]).save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    hw.compare(FLAT, estimators=[hw.Gradient(), hw.Exact()], out=tmp_path)  # the same one


def test_the_same_estimators_on_another_task_are_refused_before_anything_is_computed(tmp_path):
    runner, two = model("Llama"), [hw.Gradient(), hw.Exact()]
    hw.compare(runner, task(5, 5), hw.heads(), two, out=tmp_path, progress=False)
    written = (tmp_path / "comparison.json").read_bytes()
    with pytest.raises(RunFolderError, match="already holds another run"):
        hw.compare(runner, task(6, 6), hw.heads(), two, out=tmp_path, progress=False)
    assert (tmp_path / "comparison.json").read_bytes() == written


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"no comparison but other files \(thesis.tex\)"):
        hw.compare(FLAT, estimators=[hw.Gradient()], out=tmp_path)
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunFolderError, match="not a comparison this release can read"):
        hw.compare(FLAT, estimators=[hw.Gradient()], out=tmp_path)


def test_the_folder_of_a_run_is_refused_before_anything_is_computed_and_when_overwriting(tmp_path):
    scores = hw.attribute(FLAT, estimator=hw.Gradient())
    scores.save(tmp_path)
    scores.page(tmp_path / "page.html")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def never(m: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the metric was run")

    blind = hw.GatedFunction(never, ["a", "b"], dtype=torch.float64)
    with pytest.raises(RunFolderError, match="holds a run, and a comparison takes a folder of"):
        hw.compare(blind, estimators=[hw.Gradient()], out=tmp_path)
    found = hw.compare(FLAT, estimators=[hw.Gradient()])
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds a run"):
            found.save(tmp_path, overwrite=overwrite)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwriting_leaves_no_run_of_the_comparison_before(tmp_path):
    hw.compare(FLAT, estimators=[hw.Gradient(), hw.Trapezoid()], out=tmp_path / "cmp")
    (tmp_path / "cmp" / "trapezoid" / "notes.txt").write_text("mine")
    found = hw.compare(FLAT, estimators=[hw.Gradient(), hw.Exact()])
    found.save(tmp_path / "cmp", overwrite=True)
    assert (tmp_path / "cmp" / "exact" / "run.json").is_file()
    left = [path.name for path in (tmp_path / "cmp" / "trapezoid").iterdir()]
    assert left == ["notes.txt"]


def test_overwriting_touches_nothing_outside_whatever_the_file_says(tmp_path):
    outside = tmp_path / "outside"
    hw.attribute(FLAT, estimator=hw.Gradient()).save(outside)
    there = {"../outside": {"folder": "../outside", "estimator": {"name": "gradient"}}}
    folder = Path(tmp_path / "cmp")
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"runs": there}))
    hw.compare(FLAT, estimators=[hw.Exact()]).save(folder, overwrite=True)
    assert (outside / "run.json").is_file()


def test_frames_have_one_row_an_estimator():
    pytest.importorskip("pandas")
    frame = comparison().to_frame()
    assert list(frame["name"]) == ["gradient", "atp-star", "ig", "exact"]
    assert "slope" in frame
    assert list(frame["end"]) == ["clean"] * 4


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


def test_what_a_killed_comparison_left_does_not_make_its_folder_foreign(tmp_path):
    (tmp_path / ".comparison.json.abc123").write_text("half")
    claim(tmp_path, {"gradient": {"name": "gradient"}})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"other files \(notes.txt\)"):
        claim(tmp_path, {"gradient": {"name": "gradient"}})
