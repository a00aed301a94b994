"""Response curves: against closed forms and full gated runs, saved, drawn, and opened in a page."""

from __future__ import annotations

import gc
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch

import chromium
import headwater as hw
import page_cases as cases
from headwater import page
from headwater.attribution.curve import Curve
from headwater.errors import ModelGoneError, ResultError, UnknownComponentError, UnknownOptionError
from headwater.gates import GatedFunction
from headwater.page.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from headwater.page.curve import svg as drawn
from headwater.zoo.truths.saturation import GAPS, SATURATED_SOFTMAX
from tiny_tasks import gated, model, task

HOSTILE = "</svg><script>document.title='owned'</script>\"'"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of(fn, names=("a",), batch: int = 1, **options: Any) -> hw.Attribution:
    function = GatedFunction(fn, names, batch=batch, dtype=torch.float64)
    scores = hw.attribute(function, estimator=hw.Gradient(**options))
    scores.kept = function  # results hold their model weakly
    return scores


# --- the numbers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saturated() -> Curve:
    function = SATURATED_SOFTMAX.function()
    return hw.attribute(function).curve("query", points=9, steps=5)


def test_values_are_the_closed_form_at_every_gate(saturated):
    for row, s in zip(saturated.values.tolist(), GAPS, strict=True):
        expected = [sigmoid((2 * k / 8 - 1) * s) for k in range(9)]
        assert row == pytest.approx(expected, abs=1e-14)


def test_the_tangent_is_the_slope_and_the_chord_the_exact_effect(saturated):
    slopes = [2 * s * sigmoid(s) * sigmoid(-s) for s in GAPS]
    assert saturated.tangent.tolist() == pytest.approx(slopes, abs=1e-12)
    effects = [math.tanh(s / 2) for s in GAPS]
    assert saturated.chord.tolist() == pytest.approx(effects, abs=1e-14)


def test_slopes_are_taken_at_gauss_legendre_points_and_sum_to_the_integrated_gradient(saturated):
    points, weights = np.polynomial.legendre.leggauss(5)
    gates = (points + 1) / 2
    assert sorted(saturated.nodes.tolist()) == pytest.approx(sorted(gates), abs=1e-15)
    for integral, s in zip(saturated.integral.tolist(), GAPS, strict=True):
        slope = 2 * s / (4 * np.cosh((2 * gates - 1) * s / 2) ** 2)
        assert integral == pytest.approx(float(weights @ slope) / 2, abs=1e-12)


def test_at_the_corrupted_end_other_gates_are_closed_and_the_tangent_is_taken_at_zero():
    scores = of(
        lambda m: m[..., 0] ** 3 + 2 * m[..., 0] + 10 * m.prod(-1), ("a", "b"), at="corrupted"
    )
    curve = scores.curve("a", points=3)
    assert curve.rest == 0.0
    assert curve.values[0].tolist() == pytest.approx([0.0, 0.125 + 1.0, 3.0])
    assert curve.tangent.tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("name", ["a0.h1", "a1.h3<q>", "m0"])
def test_of_a_model_every_number_is_that_of_full_runs_pair_by_pair(name):
    wrapped, three = model("Llama"), task(7, 4, 6)  # three batches of one prompt, out of order
    components = hw.heads() + hw.queries() + hw.mlps()
    scores = hw.attribute(wrapped, three, components, progress=False, batch_size=1)
    curve = scores.curve(name, points=5, steps=3, progress=False)
    function = gated(wrapped, three, components)
    column = function.names.index(name)
    m = function.gates(5)
    m[..., column] = torch.linspace(0, 1, 5, dtype=m.dtype)[:, None]
    order = list(function.pairs)
    with torch.no_grad():
        expected = function(m)
    assert torch.allclose(curve.values[order], expected.T, atol=1e-12, rtol=0)
    assert torch.allclose(curve.tangent, scores[name], atol=1e-12, rtol=0)
    exact = hw.Exact().scores(function)[:, column]
    assert torch.allclose(curve.chord[order], exact, atol=1e-12, rtol=0)
    h = 1e-5
    m = function.gates(6)
    m[..., column] = torch.cat([curve.nodes - h, curve.nodes + h])[:, None]
    with torch.no_grad():
        below, above = function(m).unflatten(0, (2, 3))
    slopes = ((above - below) / (2 * h)).T
    assert torch.allclose(curve.slopes[order], slopes, atol=1e-7, rtol=1e-7)


def test_curves_are_made_of_the_strongest_by_score_or_by_the_exact_effect_an_audit_found():
    # c has no slope at the clean end, and the largest effect
    scores = of(lambda m: 3 * m[..., 0] + m[..., 1] - 9 * (1 - m[..., 2]) ** 2, ("a", "b", "c"))
    assert [curve.name for curve in scores.add_curves(2)] == ["a", "b"]
    scores.audit(sample=3)
    assert [curve.name for curve in scores.add_curves(2)] == ["c", "a"]
    assert list(scores.extras.curves) == ["a", "b", "c"]


# --- refused -------------------------------------------------------------------------------------


def test_a_component_that_was_not_scored_is_refused_with_the_closest():
    with pytest.raises(UnknownComponentError, match=r"no component 'a.h0' .* Closest: 'a.h1'"):
        of(lambda m: m.sum(-1), ("a.h1", "b")).curve("a.h0")


@pytest.mark.parametrize("numbers", [{"points": 1}, {"steps": 0}])
def test_too_few_points_are_refused(numbers):
    with pytest.raises(UnknownOptionError, match="Type points=33, steps=8"):
        of(lambda m: m.sum(-1)).curve("a", **numbers)


def test_a_result_whose_function_is_gone_says_so():
    scores = hw.attribute(GatedFunction(lambda m: m.sum(-1), ["a"]))
    scores._owner = None
    gc.collect()
    with pytest.raises(ModelGoneError):
        scores.curve("a")


# --- kept and shown ------------------------------------------------------------------------------


def test_curves_are_saved_and_read_back_whole(tmp_path):
    scores = of(lambda m: torch.sin(3 * m[..., 0] * torch.tensor([1.0, 2.0])), batch=2)
    assert scores.add_curves(0) == []
    with pytest.raises(ResultError, match=r"add_curves\(-1\): there is no such number"):
        scores.add_curves(-1)
    (curve,) = scores.add_curves(1, points=7)
    scores.save(tmp_path / "run")
    again = hw.Attribution.load(tmp_path / "run").extras.curves["a"]
    assert again.to_dict() == curve.to_dict()


def test_data_that_are_no_curve_are_refused():
    with pytest.raises(ResultError, match=r"these data are not a curve.*\n.*scores\.curve\(name\)"):
        Curve.from_dict({"name": "a"})


def test_the_text_plot_of_a_line_is_its_chord_and_tangent_and_the_readings_agree():
    text = repr(of(lambda m: 3 * m[..., 0] - 1).curve("a"))
    rows = [line.partition("|")[2] for line in text.splitlines() if "|" in line]
    assert {mark for row in rows for mark in row} == {" ", "*", "o"}
    for column in range(len(rows[0])):
        assert sum(row[column] != " " for row in rows) == 1
    assert "(AtP) +3, chord (exact) +3, 8 slopes along the way (IG) +3" in text


def test_a_flat_curve_is_drawn_too():
    curve = of(lambda m: 0 * m[..., 0] + 2).curve("a")
    assert "*" in repr(curve)
    assert "NaN" not in drawn(curve.summary())


class Shapes(HTMLParser):
    """Elements of a document with their attributes, and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.found if attributes.get("class") == name]


def test_the_picture_has_the_curve_from_edge_to_edge_and_larger_values_higher():
    shapes = Shapes(drawn(of(lambda m: m[..., 0] ** 2).curve("a", points=5).summary()))
    points = [tuple(map(float, p.split(","))) for p in shapes.of("response")[0]["points"].split()]
    across, down = zip(*points, strict=True)
    width = WIDTH - LEFT - RIGHT
    assert across == pytest.approx([LEFT + width * k / 4 for k in range(5)], abs=0.06)
    assert list(down) == sorted(down, reverse=True)
    rise = [(down[0] - y) / (down[0] - down[-1]) for y in down]
    assert rise == pytest.approx([0, 1 / 16, 4 / 16, 9 / 16, 1], abs=2e-3)
    assert min(down) >= TOP
    assert max(down) <= HEIGHT - BOTTOM


def test_slopes_are_drawn_as_steep_as_the_curve():
    text = drawn(of(lambda m: 5 * m[..., 0]).curve("a").summary())
    first, last = re.search(r'class="chord" d="M([\d.,]+)L([\d.,]+)"', text).groups()
    (x0, y0), (x1, y1) = (map(float, at.split(",")) for at in (first, last))
    steep = (y1 - y0) / (x1 - x0)
    nodes = re.findall(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"/><circle', text)
    assert len(nodes) == 8
    for node in nodes:
        x, y, to_x, to_y = map(float, node)
        assert (to_y - y) / (to_x - x) == pytest.approx(steep, abs=0.02)


def test_every_point_says_its_numbers_when_pointed_at():
    shapes = Shapes(drawn(of(lambda m: 4 * m[..., 0]).curve("a", points=3).summary()))
    for said in (
        "gate 0: f 0",
        "gate 0.5: f 2.00",
        "gate 1: f 4.00",
        "tangent at gate 1: AtP 4.00",
    ):
        assert said in shapes.text


def summary(name: str = "a0.h1", **changes: Any) -> dict[str, Any]:
    return of(lambda m: m[..., 0] ** 2).curve("a").summary() | {"name": name} | changes


def test_hostile_names_add_no_element_to_a_curve(tmp_path):
    def tags(name: str) -> list[str]:
        data = summary(name, metric=name)
        text = page.figure(data) + page.write_curve(data, tmp_path / "c.html").read_text()
        return [tag for tag, _ in Shapes(text).found]

    assert tags(HOSTILE) == tags("harmless")


def test_the_page_of_one_curve_loads_nothing_and_runs_nothing(tmp_path):
    path = of(lambda m: m[..., 0] ** 2).curve("a").page(tmp_path / "deep" / "curve.html")
    text = path.read_text()
    assert "http" not in text
    assert "<script" not in text
    assert "default-src 'none'; style-src 'sha256-" in text


def test_a_notebook_shows_the_curve_without_style_sheet_or_script():
    text = of(lambda m: m[..., 0] ** 2).curve("a")._repr_html_()
    assert "<svg" in text
    assert not re.search(r"<(script|style|link)|style=", text)


def with_curves(*names: str) -> dict[str, Any]:
    data = cases.audited(cases.transformer(4, 4), 20)
    return data | {"curves": [summary(name) for name in names]}


def test_a_page_holds_its_curves_and_one_without_has_no_such_section():
    assert page.render(with_curves("a1.h2", "m0")).count("<figure class=") == 2
    assert 'id="curves"' not in page.render(with_curves())


# --- in a browser --------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium.executable() is None, reason="no chromium on PATH")


def shown(tab: chromium.Page) -> list[str]:
    return tab.run(
        "[...document.querySelectorAll('[data-curve]')].filter(e => e.checkVisibility())"
        ".map(e => e.dataset.curve)"
    )


@needs_chromium
def test_a_click_on_a_scatter_point_with_a_curve_opens_it_in_view(browser, tmp_path):
    tab = browser.open(page.write(with_curves("a1.h2", "m0"), tmp_path / "page.html"), height=500)
    assert shown(tab) == ["a1.h2"]
    ringed = "[...document.querySelectorAll('#scatter .point.curved[data-name]')]"
    assert sorted(tab.run(f"{ringed}.map(e => e.dataset.name)")) == ["a1.h2", "m0"]
    tab.click('#scatter [data-name="m0"]')
    assert shown(tab) == ["m0"]
    top = tab.run("document.querySelector('[data-curve=m0]').getBoundingClientRect().top")
    assert 0 <= top < 500
    tab.click('#scatter [data-name="a0.h0"]')  # has none: what was open stays
    assert shown(tab) == ["m0"]
    tab.click('#curves [data-pick="a1.h2"]')
    assert shown(tab) == ["a1.h2"]
    assert tab.errors == []
    tab.close()


@needs_chromium
def test_without_scripts_every_curve_can_be_read(browser, tmp_path):
    path = page.write(with_curves("a1.h2", "m0"), tmp_path / "page.html")
    tab = browser.open(path, scripts=False)
    assert tab.count("[data-curve]:not([hidden])") == 2
    tab.close()


# --- the command line ----------------------------------------------------------------------------


def test_the_audit_command_makes_curves_and_flags_and_the_page_has_them(tmp_path, monkeypatch):
    from headwater.cli import main

    def run(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["headwater", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None)

    folder = tmp_path / "run"
    run("attribute", "-m", "tiny", "-t", "ioi", "--pairs", 4, "-o", folder, "--no-progress")
    run("audit", folder, "--sample", 8, "--diagnose", "--curves", 2, "--no-progress")
    scores = hw.Attribution.load(folder)
    assert scores.diagnosis is not None
    assert len(scores.extras.curves) == 2
    assert "Flags: " in scores.checked.sentence
    run("page", folder)
    assert (folder / "page.html").read_text().count("data-curve=") == 2
