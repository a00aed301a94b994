"""The page in a real browser: drawn, clicked, walked by keyboard, attacked, without scripts."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import pytest

import chromium
import page_cases as cases
from headwater import page

if chromium.executable() is None:
    if os.environ.get("CI") == "true":
        raise RuntimeError("CI runs the page's browser tests, but there is no chromium on PATH")
    pytest.skip("no chromium on PATH: the page is not tested in a browser", allow_module_level=True)

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"

Show = Callable[..., chromium.Page]


@pytest.fixture
def show(opened: Show) -> Show:
    """Write a page and open it; afterwards nothing may have gone wrong or gone out."""

    def open_page(data: dict[str, Any], **how: Any) -> chromium.Page:
        return opened(page.write, data, **how)

    return open_page


@pytest.fixture
def small() -> dict[str, Any]:
    return cases.audited(cases.transformer(4, 4), 20)


def chosen(tab: chromium.Page) -> list[list[str]]:
    """The names chosen in heat map, scatter plot and table."""
    places = (".map [aria-selected=true]", "#scatter [aria-selected=true]", "tr[aria-current]")
    return [
        tab.run(f"[...document.querySelectorAll('{place}')].map(e => e.dataset.name)")
        for place in places
    ]


def test_every_component_is_in_the_map_the_scatter_and_the_table(show, small):
    tab = show(small)
    names = sorted(row["name"] for row in small["components"])
    for place in (".map .cell", "#scatter [data-name]", "tbody tr[data-name]"):
        found = tab.run(f"[...document.querySelectorAll('{place}')].map(e => e.dataset.name)")
        assert sorted(found) == names


def test_a_click_on_a_scatter_point_chooses_it_everywhere(show, small):
    tab = show(small)
    name = max(small["components"], key=lambda row: row["score"])["name"]
    tab.click(f'#scatter [data-name="{name}"]')
    assert chosen(tab) == [[name], [name], [name]]
    assert tab.text("#chosen b") == name


def test_a_second_click_or_escape_lets_go(show, small):
    tab = show(small)
    tab.click('.cell[data-name="a1.h2"]')
    tab.click('.cell[data-name="a1.h2"]')
    assert chosen(tab) == [[], [], []]
    tab.click('.cell[data-name="a1.h2"]')
    tab.press("Escape")  # closes the tooltip
    tab.press("Escape")
    assert chosen(tab) == [[], [], []]


def test_arrows_move_in_the_heat_map_and_enter_chooses(show, small):
    tab = show(small)
    tab.focus('.cell[data-name="a1.h1"]')
    for key, name in [("ArrowRight", "a1.h2"), ("ArrowDown", "a2.h2"), ("ArrowLeft", "a2.h1"),
                      ("ArrowUp", "a1.h1"), ("End", "m1"), ("ArrowRight", "m1"),
                      ("ArrowLeft", "a1.h3"), ("Home", "a1.h0")]:  # fmt: skip
        tab.press(key)
        assert tab.run("document.activeElement.dataset.name") == name
    tab.press("Enter")
    assert chosen(tab) == [["a1.h0"]] * 3


def test_the_heat_map_is_one_tab_stop(show, small):
    tab = show(small)
    assert tab.count(".map [tabindex='0']") == 1
    tab.focus('.cell[data-name="a1.h1"]')
    assert tab.count(".map [tabindex='0']") == 1


def test_arrows_step_over_components_that_were_not_scored(show):
    rows = [cases.component(f"a0.h{head}", "head", 0, head, 1.0) for head in (0, 1, 3)]
    rows += [cases.component(f"a1.h{head}", "head", 1, head, 1.0) for head in (0, 2, 3)]
    tab = show(cases.page(rows))
    tab.focus('.cell[data-name="a0.h1"]')
    tab.press("ArrowRight")
    assert tab.run("document.activeElement.dataset.name") == "a0.h3"


def test_the_scatter_is_walked_by_arrows_in_the_order_of_the_axes(show, small):
    tab = show(small)
    tab.focus("#scatter .picture")
    walked = []
    for _ in small["components"]:
        tab.press("ArrowLeft")
    for _ in small["components"]:
        active = "document.querySelector('#scatter .picture').getAttribute('aria-activedescendant')"
        walked.append(tab.run(f"document.getElementById({active}).dataset.name"))
        tab.press("ArrowRight")
    assert walked == [row["name"] for row in sorted(small["components"], key=lambda r: r["exact"])]
    tab.press("Enter")
    assert chosen(tab)[1] == walked[-1:]


def test_hover_shows_name_score_exact_error_size_and_flags(show, small):
    small["components"][5] |= {
        "score": 0.5, "exact": 0.75, "spread": 0.125, "size": 0.3, "flags": ["a flag"],
    }  # fmt: skip
    tab = show(small)
    tab.hover(f'.cell[data-name="{small["components"][5]["name"]}"]')
    assert tab.run("document.getElementById('tip').hidden") is False
    shown = tab.texts("#tip dt"), tab.texts("#tip dd")
    assert dict(zip(*shown, strict=True)) == {
        "estimate": "0.500 (spread 0.125)",
        "exact": "0.750",
        "error": "\u22120.250",
        "size of change": "0.300",
        "flags": "a flag",
    }


def test_headings_sort_both_ways_and_say_so(show, small):
    tab = show(small)
    tab.click("th[data-key=score] button")
    down = tab.run("[...document.querySelectorAll('tbody tr[data-name]')].map(e => e.dataset.name)")
    ranked = sorted(small["components"], key=lambda row: -row["score"])
    assert down == [row["name"] for row in ranked]
    assert tab.run("document.querySelector('th[data-key=score]').ariaSort") == "descending"
    tab.click("th[data-key=score] button")
    up = tab.run("[...document.querySelectorAll('tbody tr[data-name]')].map(e => e.dataset.name)")
    assert up == down[::-1]
    assert tab.count("th[aria-sort]") == 1


def test_names_sort_by_number_not_by_spelling(show):
    rows = [cases.component(f"m{layer}", "mlp", layer, None, 1.0) for layer in (10, 2, 1)]
    tab = show(cases.page(rows))
    tab.click("th[data-key=name] button")
    assert tab.texts("tbody button.name") == ["m1", "m2", "m10"]


def test_the_filter_narrows_the_table_and_the_count_says_so(show, small):
    tab = show(small)
    tab.focus("#filters input[type=search]")
    for key in "a3.":
        tab.press(key)
    assert sorted(tab.texts("tbody button.name")) == ["a3.h0", "a3.h1", "a3.h2", "a3.h3"]
    assert tab.text("#count") == "Showing 4 of 4 that match (20 in this page)."


def test_long_tables_show_a_part_and_say_of_how_many(show):
    rows = cases.neurons(4, 1250)
    data = cases.page(rows, shown={"components": 5000, "of": 36864})
    tab = show(data)
    assert tab.text("#count") == (
        "Showing 25 of 5,000. This page holds the strongest and the checked ones of 36,864 scored."
    )
    tab.click("#more-components button")
    assert tab.count("tbody tr[data-name]") == 225
    assert tab.count(".strip .dot") == 5000


def features(sites: int, count: int) -> list[dict[str, Any]]:
    """Features and errors of some sites, beside three heads."""
    labels = ["input", *(f"{letter}{layer}" for layer in range(sites) for letter in "amr")][:sites]
    found = [
        cases.component(f"{label}.f{n}", "feature", place // 3, n, (n % 7 - 2) / (place + 1))
        for place, label in enumerate(labels)
        for n in range(count)
    ]
    found += [
        cases.component(f"{label}.error", "error", place // 3, None, 3.0 - place)
        for place, label in enumerate(labels)
    ]
    return found + [cases.component(f"a0.h{n}", "head", 0, n, 0.5) for n in range(3)]


def test_features_have_a_strip_a_site_and_no_cell_in_the_grids(show):
    data = cases.page(features(13, 300))
    tab = show(data)
    assert tab.count(".strip") == 1
    assert tab.text(".strip h2") == "Features by site"
    assert tab.count(".strip .dot") == 13 * 301
    assert tab.count(".strip .dot.error") == 13
    rows = tab.run(
        "[...document.querySelectorAll('.strip text[text-anchor=end]:not(.named)')]"
        ".map(e => e.textContent)"
    )
    assert rows == ["input", *(f"{letter}{n}" for n in range(4) for letter in "amr")]
    cells = tab.run("[...document.querySelectorAll('.map .cell')].map(e => e.dataset.name)")
    assert cells == ["a0.h0", "a0.h1", "a0.h2"]
    tab.click('.strip [data-name="m2.error"]')
    assert tab.text("#chosen b") == "m2.error"


def test_dots_of_a_feature_strip_lie_in_the_row_of_their_site(show):
    tab = show(cases.page(features(4, 30)))
    rows = {}
    for name, y in tab.run(
        "[...document.querySelectorAll('.strip .dot')].map(e => "
        "[e.dataset.name, e.cy.baseVal.value])"
    ):
        rows.setdefault(name.split(".")[0], []).append(y)
    assert list(rows) == ["input", "a0", "m0", "r0"]
    for one, other in itertools.pairwise(rows.values()):
        assert max(one) < min(other)


def test_a_chosen_component_outside_the_shown_rows_comes_first(show):
    tab = show(cases.audited(cases.transformer(12, 12), 156))
    last = tab.run(
        "[...document.querySelectorAll('.cell')].map(e => e.dataset.name)"
        ".filter(n => !document.querySelector(`tbody tr[data-name='${n}']`))[0]"
    )
    tab.click(f'.cell[data-name="{last}"]')
    assert tab.texts("tbody tr:first-child button.name") == [last]
    assert tab.text("#count") == "Showing 25 of 156, and the chosen one first."


def test_the_worst_components_can_be_chosen_by_name(show, small):
    tab = show(small)
    tab.click(".worst button")
    assert chosen(tab) == [[small["worst"][0]]] * 3


def test_the_switch_shows_exact_effects_and_marks_what_was_not_checked(show):
    data = cases.audited(cases.transformer(4, 4), 8)
    tab = show(data)
    tab.click("#value-exact + label")
    unchecked = sorted(row["name"] for row in data["components"] if row["exact"] is None)
    marked = tab.run("[...document.querySelectorAll('.cell.unknown')].map(e => e.dataset.name)")
    assert sorted(marked) == unchecked
    assert tab.text(".legend .title") == "exact effect, in logit-diff; hatched: not checked"


def test_color_is_symmetric_about_zero(show):
    rows = [cases.component(f"m{layer}", "mlp", layer, None, score)
            for layer, score in enumerate((2.0, -2.0, 1.0, -1.0, 0.0))]  # fmt: skip
    tab = show(cases.page(rows))
    shares = "[...document.querySelectorAll('.cell')].map(e => e.style.getPropertyValue('--share'))"
    assert tab.run(shares) == ["100.0%", "100.0%", "50.0%", "50.0%", "0.0%"]
    assert tab.texts(".ticks span") == ["\u22122.0", "\u22121.0", "0.0", "1.0", "2.0"]
    tab.click("#scale-root + label")
    assert tab.run(shares) == ["100.0%", "100.0%", "70.7%", "70.7%", "0.0%"]
    assert tab.texts(".ticks span") == ["\u22122.0", "\u22120.5", "0.0", "0.5", "2.0"]


def test_points_of_a_perfect_estimate_lie_on_the_identity_line(show):
    rows = cases.transformer(2, 2)
    for row in rows:
        row["exact"], row["stratum"] = row["score"], "top"
    tab = show(cases.page(rows, statistics=[cases.stat("slope", 1.0, None, None, "")]))
    for scale in ("linear", "root"):
        tab.click(f"#scale-{scale} + label")
        line, *points = tab.run(
            "[document.querySelector('.identity').getAttribute('points').split(' ')"
            ".map(p => p.split(',').map(Number)), "
            "...[...document.querySelectorAll('#scatter .point[data-name]')]"
            ".map(e => e.getAttribute('transform').match(/[-.0-9]+/g).map(Number))]"
        )
        (x0, y0), _, (x1, y1) = line
        for x, y in points:
            assert math.isclose(y, y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs_tol=0.3)


def test_without_an_audit_the_page_says_how_to_get_one(show):
    tab = show(cases.page(cases.transformer(4, 4)))
    assert "headwater audit RUN" in tab.text(".absent")
    assert tab.count("#scatter .picture") == 0
    assert tab.count("th[data-key=exact]") == 0


def test_exact_scores_are_not_said_to_need_an_audit(show):
    tab = show(cases.page(cases.transformer(2, 2), estimator="Exact(at='clean')"))
    assert tab.text(".absent").startswith("Nothing to compare.")


def test_one_component_is_a_page(show):
    tab = show(cases.audited([cases.component("m0", "mlp", 0, None, 0.0)], 1))
    assert tab.count(".cell") == tab.count("tbody tr[data-name]") == 1


def test_no_component_and_no_pair_is_a_page(show):
    tab = show(cases.page([], pairs=[], pairs_shown={"shown": 0, "of": 0}))
    assert tab.text("#count") == "Showing 0 of 0."
    assert tab.text("#prompt-count") == "This result holds no prompts."


def test_positions_make_a_grid_of_components_by_positions(show):
    tab = show(cases.audited(cases.by_position(2, 2, 15), 12))
    assert tab.texts(".map [role=rowheader]") == [
        "a0.h0", "a0.h1", "a1.h0", "a1.h1", "m0", "m1",
    ]  # fmt: skip
    assert tab.count(".cell") == 6 * 15
    assert tab.texts(".turned")[:3] == ["Then", " ,", " Mary"]


def test_numbers_that_are_not_finite_read_n_a(show):
    rows = cases.transformer(2, 2)
    rows[0]["score"] = math.nan
    rows[1]["exact"] = math.inf
    rows[2]["exact"] = 0.5
    tab = show(cases.page(rows))
    assert tab.text('.cell[data-name="a0.h0"]') == "n/a"
    row = tab.run("document.querySelector('tbody tr[data-name=\"a0.h1\"]').innerText.split(/\\s+/)")
    assert row.count("n/a") == 2  # exact and error
    assert tab.count("#scatter .point[data-name]") == 1


def test_hostile_tokens_are_shown_as_they_are_and_make_no_element(show):
    data = cases.page([cases.component(HOSTILE, "mlp", 0, None, 1.0)], title=HOSTILE)
    data["pairs"] = [cases.pair(0) | {"clean": [HOSTILE], "corrupted": None, "wrong": []}]
    tab = show(data)
    assert tab.text(".chip") == HOSTILE
    assert tab.text("h1") == HOSTILE
    assert tab.texts("tbody button.name") == [HOSTILE]
    assert tab.count("img") == 0
    assert tab.run("document.title") == HOSTILE


def test_tokens_that_differ_are_marked_and_empty_lists_leave_no_trace(show):
    data = cases.page(cases.transformer(1, 1))
    data["pairs"] = [cases.pair(0) | {"wrong": []}]
    tab = show(data)
    assert tab.texts("mark.chip") == [" John", " Anna"]
    assert tab.texts(".answers .term") == ["answer"]


def test_unicode_and_right_to_left_tokens_keep_their_order(show):
    tokens = ["שלום", " عالم", "\u202eevil", "🦉", "\n", "e\u0301"]
    data = cases.page(cases.transformer(1, 1))
    data["pairs"] = [cases.pair(0) | {"clean": tokens, "corrupted": None}]
    tab = show(data)
    lefts = tab.run("[...document.querySelectorAll('.chips .chip')].map(e => e.offsetLeft)")
    assert lefts == sorted(lefts)
    assert tab.texts(".chips .chip") == [*tokens[:4], "\u21b5", tokens[5]]


@pytest.mark.parametrize("width", [400, 900, 1400])
@pytest.mark.parametrize("kind", ["heads", "many heads", "positions", "neurons"])
def test_nothing_is_wider_than_the_window(show, width, kind):
    rows = {
        "heads": lambda: cases.transformer(12, 12),
        "many heads": lambda: cases.transformer(32, 32),
        "positions": lambda: cases.by_position(4, 4, 15),
        "neurons": lambda: cases.transformer(2, 2) + cases.neurons(2, 100),
    }[kind]()
    tab = show(cases.audited(rows, 12), width=width)
    assert tab.run("document.documentElement.scrollWidth") <= width


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color, under) => {
    canvas.fillStyle = `rgb(${under.join(' ')})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => c.map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) =>
    e ? rgb(getComputedStyle(e).backgroundColor, ground(e.parentElement)) : [255, 255, 255];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const weak = [];
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.checkVisibility() || e.closest('script,style,:disabled')) continue;
    const style = getComputedStyle(e);
    const color = e.namespaceURI.includes('svg') ? style.fill : style.color;
    if (color === 'rgba(0, 0, 0, 0)') continue;
    const under = ground(e);
    const [a, b] = [light(rgb(color, under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) weak.push(`${node.data.slice(0, 30)} ${e.className} ${ratio.toFixed(2)}`);
  }
  return weak;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_four_and_a_half(show, small, dark):
    small["warnings"] = ["The tail was not sampled."]
    tab = show(small, dark=dark)
    tab.focus(".cell")
    tab.press("Enter")
    assert tab.run(CONTRAST) == []


def test_without_scripts_the_strongest_components_and_the_audit_can_be_read(show, small):
    tab = show(small, scripts=False)
    text = tab.text("main")
    assert "The 20 strongest of 20 components." in text
    assert "Pearson correlation of estimate and exact effect" in text
    assert "Then , Mary and John went" in text
    assert tab.run("document.querySelector('#components').checkVisibility()") is False


def test_the_notebook_frame_runs_the_page(browser, tmp_path, small):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{page.fragment(small)}", encoding="utf-8")
    tab = browser.open(path)
    tab.run("document.querySelector('details').open = true")
    tab.run(
        "new Promise(done => { const frame = document.querySelector('iframe');"
        " frame.onload = done; frame.srcdoc += ' '; })"
    )
    assert tab.in_frames("document.querySelectorAll('.cell').length") == [20]
    assert tab.errors == []
    assert tab.requests == [path.as_uri()]
    tab.close()
