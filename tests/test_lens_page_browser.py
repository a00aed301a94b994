"""The page of a lens in a real browser: walked by keyboard, pinned, linked to, attacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import chromium
import lens_page_cases as cases
from headwater.page.lens import CONVENTION, render_lens, write_lens
from headwater.page.notebook import folded
from headwater.page.tokens import visible
from lens_browser import address, mouse, panel, pinned, walk
from test_page_browser import CONTRAST, HOSTILE

Show = Callable[..., chromium.Page]


@pytest.fixture
def show(opened: Show) -> Show:
    """Write a page and open it; afterwards nothing may have gone wrong or gone out."""

    def open_page(data: dict[str, Any] | None = None, **how: Any) -> chromium.Page:
        return opened(write_lens, data or cases.page(5, 7), **how)

    return open_page


def test_arrows_home_and_end_reach_every_cell(show):
    tab = show()
    tab.focus("#map")
    for key, name in [
        ("Home", "r4 at position 0"), ("ArrowRight", "r4 at position 1"),
        ("ArrowDown", "r3 at position 1"), ("End", "r3 at position 6"),
        ("ArrowRight", "r3 at position 6"), ("ArrowLeft", "r3 at position 5"),
        ("ArrowUp", "r4 at position 5"), ("ArrowUp", "r4 at position 5"),
        ("PageUp", "r4 at position 0"), ("PageDown", "r4 at position 6"),
    ]:  # fmt: skip
        tab.press(key)
        assert panel(tab) == name


def test_the_cell_is_told_in_one_sentence_to_who_cannot_see_it(show):
    data = cases.page(5, 7)
    prompt = data["prompts"][0]
    said = walk(show(data), "Home", "ArrowRight", "ArrowDown")
    reads, after = (visible(data["vocabulary"][prompt[key][1]]) for key in ("tokens", "next"))
    best = visible(data["vocabulary"][prompt["top"][4][1][0]])
    assert said.startswith(f"r3, position 1, reads {reads}, next {after}; predicts {best} ")
    assert "KL(final \u2016 layer) " in said
    assert said.endswith(" nats")


def test_the_panel_has_every_number_of_the_cell_and_the_index_convention(show):
    data = cases.page(5, 7)
    prompt = data["prompts"][0]
    tab = show(data)
    walk(tab, "Home", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown")
    shown = dict(zip(tab.texts("#panel .values dt"), tab.texts("#panel .values dd"), strict=True))
    for key, name, unit, *_ in cases.STATISTICS:
        text = shown[name].replace("\u2212", "-").replace(",", "").removesuffix(unit)
        assert float(text) == pytest.approx(prompt["values"][key][3][2], rel=6e-3, abs=1e-3)
    tokens = [visible(data["vocabulary"][token]) for token in prompt["top"][3][2]]
    assert tab.texts("#panel .top .chip") == tokens
    assert CONVENTION in tab.text("#panel")


def test_the_panel_says_which_guess_is_input_next_and_final(show):
    data = cases.page(5, 7)
    prompt = data["prompts"][0]
    tab = show(data)
    walk(tab, "Home", "ArrowRight")
    roles = tab.run(
        "[...document.querySelectorAll('#panel .top tr')].map(r =>"
        " [...r.querySelectorAll('.role')].map(e => e.textContent))"
    )
    assert roles == [
        [
            name
            for name, key in (("input", "tokens"), ("next", "next"), ("final", "final"))
            if prompt[key][1] == token
        ]
        for token in prompt["top"][5][1]
    ]
    assert "final" in roles[0]


def test_the_last_position_has_no_next_token(show):
    tab = show()
    assert "next none" in walk(tab, "End")
    assert tab.texts("#panel .reads dd")[1] == "none"


def test_a_click_pins_a_cell_and_another_click_unpins_it(show):
    data = cases.page(5, 7)
    tab = show(data)
    mouse(tab, data, 3, 2, click=True)
    assert pinned(tab)[0].startswith("r2 at 2 ")
    assert tab.count("#pins figure") == 2
    mouse(tab, data, 3, 2, click=True)
    assert pinned(tab) == []
    assert tab.count("#pins figure") == 0


def test_enter_pins_and_escape_unpins(show):
    tab = show()
    assert walk(tab, "Home", "ArrowDown", "Enter").endswith("; pinned")
    assert len(pinned(tab)) == 1
    walk(tab, "Escape")
    assert pinned(tab) == []


def test_another_row_of_a_pinned_position_takes_its_place(show):
    tab = show()
    walk(tab, "Home", "Enter", "ArrowDown", "Enter")
    assert [name[:8] for name in pinned(tab)] == ["r3 at 0 "]


def test_four_positions_are_compared_and_the_oldest_gives_way(show):
    tab = show()
    walk(tab, "Home", "Enter", *(key for _ in range(4) for key in ("ArrowRight", "Enter")))
    assert [int(name.split()[2]) for name in pinned(tab)] == [1, 2, 3, 4]
    kinds = tab.run("[...document.querySelectorAll('.pin')].map(e => e.className)")
    assert len(set(kinds)) == 4
    assert tab.count("#pins figure") == 5


def test_a_pin_has_a_button_that_removes_it(show):
    tab = show()
    walk(tab, "Home", "Enter", "ArrowRight", "Enter")
    tab.click("[aria-label='unpin position 0']")
    assert [int(name.split()[2]) for name in pinned(tab)] == [1]


def test_a_pins_trajectory_has_a_mark_at_every_row_and_a_large_one_at_its_own(show):
    data = cases.page(5, 7)
    tab = show(data)
    walk(tab, "Home", "ArrowDown", "Enter")
    dots = "[...document.querySelectorAll('#pins figure:first-child .dot')].map(e => e.%s.baseVal.value)"  # noqa: E501
    radii = tab.run(dots % "r")
    assert radii == [2.5, 2.5, 2.5, 2.5, 5, 2.5]
    values = [grid[0] for grid in data["prompts"][0]["values"]["kl_final"]]
    heights = tab.run(dots % "cy")
    drop = [(heights[-1] - y) / (heights[-1] - heights[0]) for y in heights]
    assert drop == pytest.approx([value / values[0] for value in values], abs=1e-3)


def test_followed_tokens_are_drawn_with_label_and_role(show):
    data = cases.page(5, 7)
    prompt = data["prompts"][0]
    tab = show(data)
    walk(tab, "Home", "Enter")
    labels = tab.texts("#pins figure:nth-child(2) .named tspan:last-child")
    names = {visible(data["vocabulary"][token]) for token in prompt["followed"][0]}
    assert {label.rsplit(" (", 1)[0] for label in labels} == names
    assert sum("input" in label for label in labels) == 1


def test_what_a_sublayer_writes_is_no_step_of_a_trajectory(show):
    tab = show(cases.page(3, 7, writes=True))
    walk(tab, "Home", "Enter")
    assert tab.count("#pins figure:first-child .dot.hollow") == 6
    path = tab.run("document.querySelector('#pins figure:first-child .line').getAttribute('d')")
    assert path.count("L") == 6


def test_the_statistic_is_switched_by_menu_and_by_key(show):
    tab = show()
    current = "document.querySelector('#panel .current dt').textContent"
    assert tab.run(current) == "KL(final \u2016 layer)"
    assert "KL(layer \u2016 final) " in walk(tab, "s")
    assert tab.run(current) == "KL(layer \u2016 final)"
    assert tab.run("document.getElementById('statistic').value") == "1"
    tab.press("S")
    assert tab.run(current) == "KL(final \u2016 layer)"
    tab.run(
        "(s => { s.value = '8'; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('statistic'))"
    )
    assert tab.run(current) == "entropy"
    assert tab.text("#explain") == "entropy: what it says."
    assert tab.text("#legend .title") == "entropy, nats"


def test_the_address_keeps_prompt_statistic_and_pins(browser, tmp_path):
    data = cases.page(5, 7, prompts=2, writes=True)
    tab = browser.open(write_lens(data, tmp_path / "page.html"))
    tab.run("location.hash = 'prompt=2&statistic=rank_next&pins=3.r1.mid~5.input'")
    tab.settle()
    assert [name.split()[:3] for name in pinned(tab)] == [
        ["r1.mid", "at", "3"],
        ["input", "at", "5"],
    ]
    assert tab.run("document.getElementById('prompt').value") == "1"
    assert panel(tab) == "input at position 5"
    walk(tab, "s")
    assert address(tab) == "#prompt=2&statistic=rank_final&pins=3.r1.mid~5.input"
    tab.run("void (document.title = 'before')")
    tab.send("Page.reload")
    tab.run("new Promise(done => setTimeout(done, 500))")
    assert tab.run("document.title") == "Lens of tiny"
    assert tab.run("document.getElementById('statistic').value") == "6"
    assert [name.split()[0] for name in pinned(tab)] == ["r1.mid", "input"]
    assert panel(tab) == "input at position 5"
    assert tab.errors == []
    tab.close()


@pytest.mark.parametrize(
    "text",
    ["prompt=9&statistic=none&pins=99.r1~1.none~x", "pins=~~", "prompt=-1", "%E0%A4%A", "pins=1."],
)
def test_an_address_that_says_nonsense_shows_the_beginning(show, text):
    tab = show()
    tab.run(f"location.hash = {json.dumps(text)}")
    tab.settle()
    assert pinned(tab) == []
    assert tab.run("document.getElementById('statistic').value") == "0"
    assert panel(tab) == "r4 at position 6"


def test_another_prompt_drops_the_pins_of_the_one_before(show):
    tab = show(cases.page(5, 7, prompts=2))
    walk(tab, "Home", "Enter")
    tab.run(
        "(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('prompt'))"
    )
    assert pinned(tab) == []
    assert address(tab) == "#prompt=2&statistic=kl_final"


def test_hostile_tokens_and_names_are_text(show):
    data = cases.page(3, 6, prompts=2)
    strange = [HOSTILE, "\u202eabc", "\u2028", "\ud83d", "", "\u0301", "\U0001f469\u200d\U0001f4bb"]
    data["vocabulary"] = [strange[n % len(strange)] for n in range(len(data["vocabulary"]))]
    data["rows"] = [one | {"name": HOSTILE + one["name"]} for one in data["rows"]]
    data["statistics"] = [one | {"name": HOSTILE, "explain": HOSTILE} for one in data["statistics"]]
    tab = show(data)
    walk(tab, "Home", "Enter", "ArrowDown", "ArrowRight", "Enter")
    assert tab.run("document.title") == "Lens of tiny"
    assert tab.count("img") == 0
    assert HOSTILE in tab.text("#panel h3")


def test_pointing_at_a_trajectory_tells_its_numbers(show):
    data = cases.page(5, 7)
    tab = show(data)
    walk(tab, "Home", "Enter")
    tab.hover("#pins figure:first-child .dot:nth-of-type(2)")
    assert tab.run("document.getElementById('tip').hidden") is False
    assert tab.text("#tip b") == "r0"
    shown = float(tab.texts("#tip dd")[0])
    assert shown == pytest.approx(data["prompts"][0]["values"]["kl_final"][1][0], rel=6e-3)


def test_without_scripts_the_table_and_the_curves_are_there(show):
    tab = show(cases.page(5, 50), scripts=False)
    assert tab.run("document.querySelector('#map').checkVisibility()") is False
    assert tab.run("document.querySelector('.cells').checkVisibility()") is True
    assert "the first 40 of 50 positions" in tab.text("main")
    assert tab.count(".over .picture") == 1 + len(cases.STATISTICS) + 1 + 5


def test_print_shows_the_table_and_not_the_map(show):
    tab = show(printed=True)
    assert tab.run("document.querySelector('#map').checkVisibility()") is False
    assert tab.run("document.querySelector('.cells').checkVisibility()") is True


def test_the_page_runs_in_a_notebooks_frame(browser, tmp_path):
    path = tmp_path / "notebook.html"
    frame = folded(render_lens(cases.page(3, 6)))  # pyright: ignore
    path.write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    tab = browser.open(path)
    tab.run("document.querySelector('details').open = true")
    tab.run(
        "new Promise(done => { const frame = document.querySelector('iframe');"
        " frame.onload = done; frame.srcdoc += ' '; })"
    )
    tab.in_frames("document.getElementById('statistic').value")
    enter = "new KeyboardEvent('keydown', {key: 'Enter', cancelable: true})"
    pin = f"document.getElementById('map').dispatchEvent({enter})"
    assert tab.in_frames(pin) == [False]
    assert tab.in_frames("document.querySelectorAll('.pin').length") == [1]
    assert tab.errors == []
    tab.close()


def test_a_page_without_prompts_runs(show):
    tab = show(cases.page(3, 6) | {"prompts": []})
    assert tab.count("#map") == 0
    assert tab.run("document.documentElement.classList.contains('scripts')") is True


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_is_wider_than_the_window(show, width):
    data = cases.page(12, 64, prompts=3, writes=True)
    data["vocabulary"] = ["averyveryverylongtoken" * 3, *data["vocabulary"][1:]]
    tab = show(data, width=width)
    walk(tab, "Home", "Enter", "ArrowRight", "Enter")
    assert tab.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_four_and_a_half(show, dark):
    tab = show(dark=dark)
    walk(tab, "Home", "Enter", "ArrowDown")
    assert tab.run(CONTRAST) == []
