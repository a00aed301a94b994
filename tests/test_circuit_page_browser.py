"""The page of a feature circuit in a real browser: pointed at, held, filtered, walked, attacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import chromium
import circuit_page_cases as cases
from headwater.page.circuit import render_circuit, write_circuit
from headwater.page.notebook import folded
from test_page_browser import CONTRAST, HOSTILE

Show = Callable[..., chromium.Page]


@pytest.fixture
def show(opened: Show) -> Show:
    """Write a page and open it; afterwards nothing may have gone wrong or gone out."""

    def open_page(data: dict[str, Any] | None = None, **how: Any) -> chromium.Page:
        return opened(write_circuit, data or cases.page(), **how)

    return open_page


def names(tab: chromium.Page, selector: str = "#graph [data-name]") -> list[str]:
    return tab.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.dataset.name)"
    )


def chip(name: str) -> str:
    return f'#graph [data-name="{name}"]'


def panel(tab: chromium.Page) -> str:
    return tab.text("#panel h3, #panel h4")


def drawn(tab: chromium.Page, group: int) -> int:
    """Curves of all edges (1) or of the chosen node's (2), counted in what is drawn."""
    ends = tab.run(
        f"[...document.querySelectorAll('#graph .edges')][{group - 1}]"
        ".innerHTML.match(/M[^C]*C/g)?.length ?? 0"
    )
    said = tab.run(
        f"[...[...document.querySelectorAll('#graph .edges')][{group - 1}].children]"
        ".reduce((sum, e) => sum + Number(e.dataset.edges), 0)"
    )
    assert ends == said
    return ends


def slide(tab: chromium.Page, name: str, step: int) -> None:
    tab.run(
        f"(e => {{ e.value = {step}; e.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById('{name}'))"
    )
    tab.settle()


def find(tab: chromium.Page, text: str) -> None:
    tab.run(
        f"(e => {{ e.value = {json.dumps(text)}; e.dispatchEvent(new Event('input')); }})"
        "(document.getElementById('text'))"
    )
    tab.settle()


def busiest(data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The node with the most edges in, and its number."""
    count = [sum(edge["target"] == n for edge in data["edges"]) for n in range(len(data["nodes"]))]
    number = count.index(max(count))
    return number, data["nodes"][number]


def number_of(text: str) -> float:
    return float(text.replace("\u2212", "-").replace(",", ""))


def test_every_node_is_drawn_once_and_so_is_every_edge(show):
    data = cases.page()
    tab = show(data)
    assert sorted(names(tab)) == sorted([*(one["name"] for one in data["nodes"]), "logit-diff"])
    assert drawn(tab, 1) == len(data["edges"])
    assert tab.text("#count") == (
        f"{len(data['nodes'])} of {len(data['nodes'])} nodes, 80 of 80 edges drawn."
    )


def test_each_kind_of_node_has_a_shape_of_its_own(show):
    data = cases.page(4, 60, 100)
    tab = show(data)
    for node in data["nodes"]:
        shape = tab.run(f"document.querySelector('{chip(node['name'])} .body').tagName")
        corners = tab.run(
            f"document.querySelector('{chip(node['name'])} .body').getAttribute('rx')"
        )
        inner = tab.count(f"{chip(node['name'])} .inner")
        assert (shape, corners is not None, inner) == {
            "feature": ("rect", True, 0), "error": ("path", False, 0), "site": ("rect", False, 1),
        }[node["kind"]]  # fmt: skip
    assert {node["kind"] for node in data["nodes"]} == {"feature", "error", "site"}


def test_chips_are_larger_with_the_effect_and_colored_by_its_sign(show):
    data = cases.page(2, 20, 10)
    tab = show(data)
    sized = sorted(data["nodes"], key=lambda one: abs(one["effect"]))
    heights = [
        tab.run(f"document.querySelector('{chip(one['name'])} .body').getBBox().height")
        for one in sized
    ]
    assert heights == sorted(heights)
    assert heights[-1] > 1.3 * heights[0]
    negative = {one["name"] for one in data["nodes"] if one["effect"] < 0}
    assert set(names(tab, "#graph .node.negative")) == negative


def test_layers_go_from_bottom_to_top_and_sites_stand_in_their_columns(show):
    data = cases.page(3, 60, 40)
    tab = show(data)
    place = {
        one["name"]: tab.run(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
            f"(document.querySelector('{chip(one['name'])} .body').getBoundingClientRect())"
        )
        for one in data["nodes"]
    }
    for one in data["nodes"]:
        for other in data["nodes"]:
            if one["site"] < other["site"]:
                assert place[one["name"]][1] > place[other["name"]][1]
    columns = [
        {place[one["name"]][0] for one in data["nodes"] if
         data["sites"][one["site"]]["column"] == column}
        for column in ("attention", "MLP", "residual")
    ]  # fmt: skip
    assert max(columns[0]) < min(columns[1])
    assert max(columns[1]) < min(columns[2])
    assert tab.texts("#heads .column") == ["attention", "MLP", "residual"]
    assert tab.texts("#names .row")[-1] == "input"


@pytest.mark.parametrize("positions", [False, True])
def test_no_two_chips_lie_on_each_other(show, positions):
    tab = show(cases.page(3, 60, 40, positions=positions))
    boxes = tab.run(
        "[...document.querySelectorAll('#graph .node .body')].map(e => "
        "(b => [b.left, b.top, b.right, b.bottom])(e.getBoundingClientRect()))"
    )
    for at, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:at]:
            # strokes may touch
            apart = (left > other[2] - 3, right < other[0] + 3, top > other[3] - 3,
                     bottom < other[1] + 3)  # fmt: skip
            assert any(apart)


def test_a_click_holds_a_node_and_shows_its_account(show):
    data = cases.page()
    number, node = busiest(data)
    tab = show(data)
    tab.click(chip(node["name"]))
    assert panel(tab) == node["name"]
    rows = dict(zip(tab.texts("#panel .account th"), tab.texts("#panel .account .number"),
                    strict=True))  # fmt: skip
    expected = {
        "from nodes of the circuit": node["incoming"],
        "from nodes left out": node["below"],
        "unexplained": node["unexplained"],
        "effect": node["effect"],
    }
    assert list(rows) == list(expected)
    for text, value in expected.items():
        assert number_of(rows[text]) == pytest.approx(value, rel=6e-3, abs=1e-6)
    own = [edge for edge in data["edges"] if number in (edge["source"], edge["target"])]
    assert drawn(tab, 2) == len(own)


def test_the_edges_of_a_held_node_are_sorted_tables_whose_rows_lead_on(show):
    data = cases.page(3, 30, 200)
    number, node = busiest(data)
    tab = show(data)
    tab.click(chip(node["name"]))
    into = [edge for edge in data["edges"] if edge["target"] == number]
    assert len(into) > 12
    rows = (
        "[...document.querySelector('#panel table:not(.account)').querySelectorAll('tbody .name')]"
        ".map(e => e.textContent)"
    )
    expected = [data["nodes"][edge["source"]]["name"] for edge in into]
    assert tab.run(rows) == expected[:12]
    tab.click("#panel button.more")
    listed = tab.run(rows)
    assert listed == expected
    assert f"Edges in: {len(into)}, in all" in tab.text("#panel")
    tab.click("#panel table:not(.account) tbody .name")
    assert panel(tab) == listed[0]


def test_pointing_shows_a_node_and_leaving_keeps_it_in_the_panel_alone(show):
    data = cases.page()
    _, node = busiest(data)
    tab = show(data)
    tab.hover(chip(node["name"]))
    assert panel(tab) == node["name"]
    assert tab.text("#tip b") == node["name"]
    assert drawn(tab, 2) > 0
    tab.hover("h1")
    assert drawn(tab, 2) == 0
    assert panel(tab) == node["name"]
    assert names(tab, "#graph .node.read") == [node["name"]]
    tab.press("Escape")
    assert panel(tab) == "Strongest nodes"


def test_a_second_click_or_escape_lets_go(show):
    data = cases.page()
    name = data["nodes"][0]["name"]
    tab = show(data)
    held = "#graph [aria-pressed=true]"
    tab.click(chip(name))
    assert names(tab, held) == [name]
    tab.click(chip(name))
    assert names(tab, held) == []
    tab.click(chip(name))
    tab.hover("h1")
    tab.press("Escape")
    assert names(tab, held) == []
    assert panel(tab) == "Strongest nodes"


def test_while_a_node_is_held_pointing_changes_nothing_but_the_tooltip(show):
    data = cases.page()
    one, other = data["nodes"][0]["name"], data["nodes"][5]["name"]
    tab = show(data)
    tab.click(chip(one))
    tab.hover(chip(other))
    assert panel(tab) == one
    assert tab.text("#tip b") == other


def test_chips_are_one_tab_stop_and_arrows_go_to_the_nearest(show):
    data = cases.page()
    tab = show(data)
    assert tab.count("#graph [tabindex='0']") == 1
    tab.focus("#graph [tabindex='0']")
    seen = {tab.run("document.activeElement.dataset.name")}
    for key in ["ArrowDown"] * 12 + ["ArrowRight", "ArrowLeft"] * 3 + ["ArrowUp"] * 12:
        before = tab.run("(b => [b.x, b.y])(document.activeElement.getBoundingClientRect())")
        tab.press(key)
        after = tab.run("(b => [b.x, b.y])(document.activeElement.getBoundingClientRect())")
        scroll_free = {"ArrowLeft": after[0] <= before[0], "ArrowRight": after[0] >= before[0]}
        assert scroll_free.get(key, True)
        seen.add(tab.run("document.activeElement.dataset.name"))
    assert len(seen) > 6
    name = tab.run("document.activeElement.dataset.name")
    tab.press("Enter")
    assert panel(tab) == name
    assert tab.run("document.activeElement.dataset.name") == name


def test_a_chip_says_what_it_is_to_who_cannot_see_it(show):
    data = cases.page()
    number, node = busiest(data)
    tab = show(data)
    said = tab.run(f"document.querySelector('{chip(node['name'])}').getAttribute('aria-label')")
    assert said.startswith(node["name"])
    into = sum(edge["target"] == number for edge in data["edges"])
    out = sum(edge["source"] == number for edge in data["edges"])
    assert said.endswith(f"{into} edges in, {out} out")


def test_the_sliders_only_raise_the_thresholds_and_say_what_they_hide(show):
    data = cases.page(3, 40, 120)
    tab = show(data)
    sizes = sorted(abs(node["effect"]) for node in data["nodes"])
    slide(tab, "nodes", 50)
    least = sizes[0] * (sizes[-1] / sizes[0]) ** 0.5
    # thresholds are carried with four digits
    kept = {node["name"] for node in data["nodes"] if abs(node["effect"]) >= least * 1.0005}
    maybe = {node["name"] for node in data["nodes"] if abs(node["effect"]) >= least * 0.9995}
    assert kept <= set(names(tab)) - {"logit-diff"} <= maybe
    assert "Weaker ones are hidden" in tab.text("#count")
    slide(tab, "nodes", 100)
    assert len(names(tab)) == 2
    slide(tab, "nodes", 0)
    slide(tab, "edges", 100)
    assert drawn(tab, 1) == 1
    slide(tab, "edges", 0)
    assert drawn(tab, 1) == len(data["edges"])
    assert tab.run("document.querySelector('output[for=edges]').textContent") == "all"


def test_a_held_node_stays_however_high_the_threshold(show):
    data = cases.page()
    weakest = min(data["nodes"], key=lambda node: abs(node["effect"]))["name"]
    tab = show(data)
    tab.click(chip(weakest))
    slide(tab, "nodes", 100)
    assert weakest in names(tab)


def test_a_name_in_the_panel_brings_back_a_hidden_node(show):
    data = cases.page(3, 60, 60)
    tab = show(data)
    slide(tab, "nodes", 100)
    tab.click("#panel button.more")
    hidden = tab.texts("#panel .name")[-1]
    assert hidden not in names(tab)
    tab.run("[...document.querySelectorAll('#panel .name')].at(-1).click()")
    tab.settle()
    assert hidden in names(tab)
    assert panel(tab) == hidden


def test_names_and_annotations_are_found(show):
    data = cases.page(3, 40, 60)
    tab = show(data)
    find(tab, "PLURAL")
    said = {one["name"] for one in data["nodes"] if "plural" in one["annotation"]}
    assert said
    assert set(names(tab, "#graph .node.found")) == said
    assert panel(tab).startswith(f"{len(said)} node")
    find(tab, data["nodes"][7]["name"])
    assert names(tab, "#graph .node.found") == [
        one["name"] for one in data["nodes"] if data["nodes"][7]["name"] in one["name"]
    ]
    find(tab, "nothing like that")
    assert panel(tab) == "0 nodes with \u201cnothing like that\u201d"


def test_enter_in_the_search_holds_the_strongest_that_matches(show):
    data = cases.page(3, 40, 60)
    tab = show(data)
    find(tab, "m")
    strongest = max(
        (one for one in data["nodes"] if "m" in one["name"] or "m" in one["annotation"]),
        key=lambda one: abs(one["effect"]),
    )
    tab.focus("#text")
    tab.press("Enter")
    assert panel(tab) == strongest["name"]


def test_contexts_are_shown_with_a_heat_for_every_token(show):
    data = cases.page()
    node = next(one for one in data["nodes"] if one["kind"] == "feature")
    found = data["features"][node["name"]]
    tab = show(data)
    tab.click(chip(node["name"]))
    assert tab.count("#panel .context") == 3
    for place, context in enumerate(found["contexts"], start=1):
        row = f"#panel .contexts li:nth-child({place})"
        assert tab.texts(f"{row} .token") == context["tokens"]
        assert tab.texts(f"{row} mark.token") == [context["tokens"][context["strongest"]]]
        heat = tab.run(
            f"[...document.querySelectorAll('{row} .token')]"
            ".map(e => parseFloat(e.style.getPropertyValue('--heat')))"
        )
        top = max(context["activations"])
        shares = [80 * value / top for value in context["activations"]]
        assert heat == pytest.approx(shares, abs=1)
    assert f"in 40 of 100 prompts of {data['corpus']['source']}" in tab.text("#panel")


def test_features_at_one_position_share_contexts(show):
    data = cases.page(2, 20, 20, positions=True)
    node = next(one for one in data["nodes"] if one["kind"] == "feature")
    tab = show(data)
    tab.click(chip(node["name"]))
    assert "@" in panel(tab)
    assert tab.count("#panel .context") == 3


def test_circuits_with_positions_have_a_column_a_token(show):
    data = cases.page(2, 30, 40, positions=True)
    tab = show(data)
    assert tab.texts("#heads .column bdi") == cases.WORDS
    lefts = tab.run(
        "[...document.querySelectorAll('#heads .column')].map(e => e.getBoundingClientRect().left)"
    )
    for node in data["nodes"]:
        x = tab.run(
            f"(b => b.x + b.width / 2)"
            f"(document.querySelector('{chip(node['name'])} .body').getBoundingClientRect())"
        )
        assert max(place for place, left in enumerate(lefts) if left <= x) == node["position"]
    assert set(tab.texts("#names .row")) - {""} == {
        data["sites"][node["site"]]["label"] for node in data["nodes"]
    }


def test_the_layout_is_switched_and_chips_say_their_position_there(show):
    data = cases.page(2, 20, 20, positions=True)
    tab = show(data)
    tab.click("#layout-site + label")
    assert tab.texts("#heads .column") == ["attention", "MLP", "residual"]
    node = next(one for one in data["nodes"] if one["kind"] == "feature")
    said = tab.run(f"document.querySelector('{chip(node['name'])} tspan').textContent")
    assert said == f"f{node['index']}@{node['position']}"
    assert sorted(names(tab)) == sorted([*(one["name"] for one in data["nodes"]), "logit-diff"])


def test_circuits_without_positions_have_one_layout(show):
    assert show().count("#layout-site") == 0


def test_the_address_keeps_the_held_node_and_the_layout(browser, tmp_path):
    data = cases.page(2, 20, 20, positions=True)
    name = data["nodes"][3]["name"]
    tab = browser.open(write_circuit(data, tmp_path / "page.html"))  # pyright: ignore
    tab.click("#layout-site + label")
    tab.click(chip(name))
    tab.run("void (document.title = 'before')")
    tab.send("Page.reload")
    tab.run("new Promise(done => setTimeout(done, 500))")
    assert tab.run("document.title") == data["title"]
    assert panel(tab) == name
    assert tab.run("document.getElementById('layout-site').checked") is True
    tab.run("location.hash = 'node=nonsense&layout=none'")
    tab.settle()
    assert panel(tab) != name
    assert tab.errors == []
    tab.close()


def test_orphans_are_marked_and_said(show):
    data = cases.page(2, 20, 10)
    orphans = {one["name"] for one in data["nodes"] if one["orphan"]}
    assert orphans
    tab = show(data)
    assert set(tab.run(
        "[...document.querySelectorAll('#graph .lost')].map(e => e.parentNode.dataset.name)"
    )) == orphans  # fmt: skip
    tab.click(chip(sorted(orphans)[0]))
    assert "An orphan" in tab.text("#panel")


def test_exact_values_stand_beside_estimates_where_they_were_checked(show):
    data = cases.page()
    number, node = busiest(data)
    node["exact"] = 0.123
    next(edge for edge in data["edges"] if edge["target"] == number)["exact"] = 0.456
    tab = show(data)
    tab.click(chip(node["name"]))
    assert "exact, by intervention" in tab.text("#panel .values")
    assert "0.123" in tab.text("#panel .values")
    table = tab.run(
        "[...document.querySelectorAll('#panel table:not(.account)')]"
        ".find(t => t.textContent.includes('exact')).innerText"
    )
    assert "0.456" in table


def test_the_metric_shows_what_flows_into_it(show):
    data = cases.page()
    tab = show(data)
    tab.click(chip("logit-diff"))
    into = [edge for edge in data["edges"] if edge["target"] == len(data["nodes"])]
    assert f"Edges in: {len(into)}," in tab.text("#panel")
    assert "6.43" in tab.text("#panel .values")


def test_a_large_circuit_shows_the_strongest_first_and_says_so(show):
    data = cases.page(12, 1000, 20_000)
    data["shown"]["of_edges"] = 50_000
    tab = show(data)
    shown = len(names(tab)) - 1
    assert 20 <= shown <= 80
    assert drawn(tab, 1) <= 300
    kept = set(names(tab)) - {"logit-diff"}
    sizes = {one["name"]: abs(one["effect"]) for one in data["nodes"]}
    assert min(sizes[name] for name in kept) >= max(
        size for name, size in sizes.items() if name not in kept
    )
    said = tab.text("#count")
    assert said.startswith(f"{shown} of {len(data['nodes'])} nodes, ")
    assert "of 50,000 edges drawn" in said
    assert "This page holds the strongest 20,000 edges." in said
    slide(tab, "nodes", 0)
    assert len(names(tab)) == len(data["nodes"]) + 1
    # until it is moved, the edges' threshold follows
    assert drawn(tab, 1) <= 300
    slide(tab, "edges", 0)
    assert drawn(tab, 1) == 20_000


@pytest.mark.parametrize(
    "data",
    [cases.page(1, 1, 0), cases.page(2, 5, 0, corpus=False), cases.page(2, 0, 0),
     cases.page(1, 4, 3, prompts=[], positions=True)],
)  # fmt: skip
def test_small_and_empty_circuits_are_shown(show, data):
    tab = show(data)
    assert len(names(tab)) == len(data["nodes"]) + 1


def test_numbers_that_are_not_finite_do_no_harm(show):
    data = cases.page(2, 8, 10)
    data["nodes"][0] |= {"effect": float("nan"), "incoming": float("inf")}
    data["edges"][0]["weight"] = float("nan")
    tab = show(data)
    tab.run(f"location.hash = 'node=' + {json.dumps(data['nodes'][0]['name'])}")
    tab.settle()
    assert "n/a" in tab.text("#panel")


def test_hostile_names_tokens_and_annotations_are_text(show):
    data = cases.page(2, 10, 12, positions=True)
    data["metric"] = HOSTILE
    data["prompts"] = [[HOSTILE, "\u202eabc", "\ud83d", "", "\u0301"]]
    data["sites"] = [site | {"label": HOSTILE} for site in data["sites"]]
    data["corpus"]["source"] = HOSTILE
    data["nodes"] = [
        one | {"name": f"{HOSTILE}{n}", "annotation": HOSTILE}
        for n, one in enumerate(data["nodes"])
    ]
    context = {"tokens": [HOSTILE] * 2, "activations": [1.0, 0.5], "strongest": 0, "prompt": 0}
    data["features"] = {
        one["name"]: {"fires": 1, "prompts": 1, "contexts": [context]} for one in data["nodes"]
    }
    tab = show(data)
    tab.click("#graph .node.feature")
    find(tab, "onerror")
    assert tab.run("document.title") == "Feature circuit of ioi on tiny"
    assert tab.count("img") == 0
    assert HOSTILE in tab.text("#panel")


def test_without_scripts_the_tables_are_there(show):
    tab = show(scripts=False)
    assert tab.run("document.querySelector('#box').checkVisibility()") is False
    assert tab.run("document.querySelector('.plain table').checkVisibility()") is True


def test_print_shows_the_tables_and_not_the_picture(show):
    tab = show(printed=True)
    assert tab.run("document.querySelector('#box').checkVisibility()") is False
    assert tab.run("document.querySelector('.plain table').checkVisibility()") is True


def test_the_page_runs_in_a_notebooks_frame(browser, tmp_path):
    path = tmp_path / "notebook.html"
    frame = folded(render_circuit(cases.page(2, 8, 10)))  # pyright: ignore
    path.write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    tab = browser.open(path)
    tab.run("document.querySelector('details').open = true")
    tab.run(
        "new Promise(done => { const frame = document.querySelector('iframe');"
        " frame.onload = done; frame.srcdoc += ' '; })"
    )
    tab.in_frames("document.querySelectorAll('#graph .node').length")
    click = (
        "document.querySelector('#graph .node').dispatchEvent(new MouseEvent('click',"
        " {bubbles: true})); document.querySelectorAll('#graph [aria-pressed=true]').length"
    )
    assert tab.in_frames(click) == [1]
    assert tab.errors == []
    tab.close()


@pytest.mark.parametrize("width", [360, 700, 1280, 1800])
@pytest.mark.parametrize("positions", [False, True])
def test_nothing_is_wider_than_the_window(show, width, positions):
    data = cases.page(4, 60, 200, positions=positions)
    data["nodes"][0]["annotation"] = "averyveryverylongannotation" * 6
    tab = show(data, width=width)
    tab.run(f"location.hash = 'node=' + {json.dumps(data['nodes'][0]['name'])}")
    tab.settle()
    assert tab.run("document.documentElement.scrollWidth") <= width
    if width >= 1280 and not positions:
        box = tab.run("(e => [e.scrollWidth, e.clientWidth])(document.getElementById('box'))")
        assert box[0] <= box[1]


def test_where_there_is_no_room_the_metric_is_in_view_first(show):
    tab = show(cases.page(4, 60, 200), width=360)
    x = tab.run(
        f"(b => b.x + b.width / 2)"
        f"(document.querySelector('{chip('logit-diff')}').getBoundingClientRect())"
    )
    left, right = tab.run(
        "(b => [b.left, b.right])(document.getElementById('box').getBoundingClientRect())"
    )
    assert left < x < right


# Texts of chips stand on shapes, which the pages' common check does not know.
CHIPS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color) => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => rgb(c).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  return [...document.querySelectorAll('#graph .node')].map(e => {
    const fill = (selector) => getComputedStyle(e.querySelector(selector)).fill;
    const [a, b] = [light(fill('text')), light(fill('.body'))].sort((x, y) => y - x);
    return [e.dataset.name, (a + .05) / (b + .05)];
  }).filter(([, ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_four_and_a_half(show, dark, held):
    data = cases.page(3, 40, 100, positions=True)
    tab = show(data, dark=dark)
    if held:
        tab.click(chip(busiest(data)[1]["name"]))
    assert tab.run(CHIPS) == []
    assert tab.run(CONTRAST.replace(":disabled'", ":disabled,.node'")) == []
