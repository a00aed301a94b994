"""The page of a gradient check in a real browser: drawn, clicked, walked by keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import chromium
import gradcheck_page_cases as cases
from headwater.page import plateau
from headwater.page.gradcheck import write_gradcheck
from headwater.page.payload import finite
from test_page_browser import CONTRAST, HOSTILE

SPAN = [cases.STEPS[-1], cases.STEPS[0]]
ALONG = "document.getElementById('along').innerText"

Show = Callable[..., chromium.Page]


@pytest.fixture
def show(opened: Show) -> Show:
    """Write a page and open it; afterwards nothing may have gone wrong or gone out."""

    def open_page(data: dict[str, Any] | None = None, **how: Any) -> chromium.Page:
        return opened(write_gradcheck, data or cases.page(), **how)

    return open_page


def long_page(rows: int) -> dict[str, Any]:
    """A page with so many coordinates."""
    return cases.page(cases.site("x", *(cases.direction(f"n{place}") for place in range(rows))))


def tip(tab: chromium.Page) -> dict[str, str]:
    assert tab.run("document.getElementById('tip').hidden") is False
    return dict(zip(tab.texts("#tip dt"), tab.texts("#tip dd"), strict=True))


def test_a_click_on_a_row_shows_its_direction_in_both_pictures(show):
    tab = show()
    tab.click(".directions tbody tr:nth-child(2) td")
    assert tab.run(ALONG) == "layers.1.mlp.post along n3: agree"
    assert tab.count("#errors [aria-label*='along n3:'], #slopes [aria-label*='along n3:']") == 2
    assert tab.texts("#readings dd")[0] == "n3 0"
    assert tab.texts(".directions tr[aria-current] th") == ["n3"]


def test_enter_on_a_row_shows_its_direction(show):
    tab = show()
    tab.focus(".directions tbody tr:nth-child(2) button")
    tab.press("Enter")
    assert tab.run(ALONG).endswith("along n3: agree")


def test_arrows_walk_through_the_rows_which_are_one_tab_stop(show):
    tab = show(long_page(5))
    tab.focus(".directions [tabindex='0']")
    for key, name in [("ArrowDown", "n1"), ("ArrowDown", "n2"), ("ArrowUp", "n1"), ("End", "n4"),
                      ("ArrowDown", "n4"), ("Home", "n0")]:  # fmt: skip
        tab.press(key)
        assert tab.run(ALONG) == f"x along {name}: agree"
        assert tab.run("document.activeElement.textContent") == name
        assert tab.count(".directions [tabindex='0']") == 1


def test_hover_tells_a_step_in_numbers_and_its_region(show):
    tab = show()
    tab.hover("#errors [data-step='2'] circle")
    assert tab.text("#tip b") == "step 0.1 s"
    assert tip(tab) == {
        "step": "0.025",  # a tenth of s = 0.25
        "region": "truncation",
        "backward": "1.9",
        "forward": "2.1",
        "central": "1.999",
        "off the gradient": "0.001 (5e\u22124 of the slope)",
        "off the best slope": "0.001 (5e\u22124 of the slope)",
        "modeled error": "0.002",
    }


def test_a_step_is_marked_in_both_pictures(show):
    tab = show()
    tab.hover("#errors [data-step='2'] circle")
    assert tab.run("[...document.querySelectorAll('.at')].map(e => e.dataset.step)") == ["2", "2"]
    assert tab.count(".cursor") == 2


def test_hover_says_that_an_error_is_exactly_zero(show):
    one = cases.direction(off_gradient=[0.0, *cases.direction()["off_gradient"][1:]])
    tab = show(cases.page(cases.site("x", one)))
    tab.hover("#errors [data-step='0'] circle.hollow")
    assert tip(tab)["off the gradient"] == "exactly 0, drawn at the bottom edge"


def test_arrows_in_a_picture_walk_along_steps_and_directions(show):
    tab = show()
    tab.focus("#errors .picture")
    tab.press("Home")
    walked = []
    for _ in range(9):
        walked.append(tab.text("#tip b"))
        tab.press("ArrowRight")
    steps = [plateau.short(step) for step in reversed(cases.STEPS)]
    assert walked == [f"step {step} s" for step in [*steps, steps[-1]]]
    spoken = tab.run("document.activeElement.getAttribute('aria-valuetext')")
    assert spoken.startswith("step 1 s, region truncation")
    tab.press("ArrowDown")
    assert tab.run(ALONG).endswith("along n3: agree")
    assert tab.run("document.activeElement.closest('figure').id") == "errors"


def test_another_site_brings_its_own_directions_and_tables(show):
    sites = [cases.site("mlp.post"), cases.site("mlp.gate", cases.direction("n7"))]
    tab = show(cases.page(*sites))
    visible = "[...document.querySelectorAll('.site')].map(e => e.checkVisibility())"
    assert tab.run(visible) == [True, False]
    tab.click("#site-1 + label")
    assert tab.run(visible) == [False, True]
    assert tab.run(ALONG) == "mlp.gate along n7: agree"


GEOMETRY = """
(picture => [...picture.querySelectorAll('.mark, .region, .linear, .bar-line, .claimed, .tenth')]
  .map(e => [e.getAttribute('class'), ...['cx', 'cy', 'x', 'y', 'width', 'height', 'x1', 'y1',
    'transform'].flatMap(name => (e.getAttribute(name) ?? '').match(/[-.0-9]+/g) ?? [])
    .map(Number)]))
"""


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("kind", ["smooth", "zeros", "jump", "lost"])
def test_the_script_draws_what_was_drawn_without_it(show, width, kind):
    one = {
        "smooth": cases.direction,
        "zeros": lambda: cases.direction(off_slope=[0.0] * 8, gradient=-1.0),
        "jump": lambda: cases.direction(forward=[1 / step for step in cases.STEPS], linear=None),
        "lost": cases.lost,
    }[kind]()
    tab = show(cases.page(cases.site("x", one)), width=width)
    span = SPAN if one["steps"] else [1e-12, 1.0]
    for place, draw in (("errors", plateau.errors), ("slopes", plateau.slopes)):
        drawn = tab.run(f"{GEOMETRY}(document.querySelector('#{place} .picture'))")
        across = tab.run(f"document.querySelector('#{place} .picture').viewBox.baseVal.width")
        picture = draw(finite(one), span, 0.25, across).replace("'", "\\'")
        twin = tab.run(
            f"{GEOMETRY}(new DOMParser().parseFromString('{picture}', 'text/html')"
            ".querySelector('.picture'))"
        )
        assert [mark[0] for mark in drawn] == [mark[0] for mark in twin]
        # both write one decimal, or none
        assert [mark[1:] for mark in drawn] == [pytest.approx(mark[1:], abs=0.11) for mark in twin]


def test_the_table_of_steps_follows_the_direction(show):
    other = cases.direction("n3", forward=[7.0] * 8)
    tab = show(cases.page(cases.site("x", cases.direction(), other)))
    tab.click(".directions tbody tr:nth-child(2)")
    cells = tab.texts("#steps tbody tr:nth-child(3) :is(th, td)")
    assert cells == ["0.1 s", "1.9", "7", "1.999", "0.001", "0.001", "truncation"]


def test_without_scripts_verdict_tables_and_pictures_are_there(show):
    tab = show(scripts=False)
    text = tab.text("main")
    assert "AGREE The gradient is the slope." in text
    assert "Another sentence." in text
    assert "n3" in text
    assert tab.count("#errors .picture .mark") == 2 * len(cases.STEPS)
    assert tab.run("document.querySelector('#toolbar').checkVisibility()") is False


def test_hundreds_of_rows_scroll_under_a_heading_that_stays(show):
    tab = show(long_page(256))
    box = "document.querySelector('.site .tall')"
    assert tab.run(f"{box}.clientHeight") < 450
    tab.run(f"{box}.scrollTop = 4000")
    edges = f"[{box}, {box}.querySelector('thead th')].map(e => e.getBoundingClientRect().top)"
    outer, heading = tab.run(edges)
    assert heading - outer <= 2


def test_print_shows_every_row(show):
    tab = show(long_page(60), printed=True)
    assert tab.run("(e => e.scrollHeight - e.clientHeight)(document.querySelector('.tall'))") <= 1


def test_hostile_names_are_shown_as_they_are_and_make_no_element(show):
    site = cases.site(HOSTILE, cases.direction(HOSTILE), cases.direction("n3"))
    tab = show(cases.page(site, site, tokens=[HOSTILE], marked=[0], title=HOSTILE, heading=HOSTILE))
    assert tab.text("mark.chip") == HOSTILE
    assert tab.texts(".directions button")[0] == HOSTILE
    tab.focus("#errors .picture")
    assert tab.count("img") == 0
    assert tab.run("document.title") == HOSTILE


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_nothing_is_wider_than_the_window(show, width):
    sites = [cases.site(f"layers.1.mlp.{name}") for name in ("post", "gate", "up")]
    for site in sites:
        site["effects"] = cases.table("effects", ["n3"]) | {
            "headings": ("entry", *["a heading"] * 8),
            "rows": [("n3", *[("-0.0001234", "against g")] * 8)],
        }
    tab = show(cases.page(*sites, tokens=["token"] * 300), width=width)
    assert tab.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_four_and_a_half(show, dark):
    verdicts = ("agree", "disagree", "neither")
    site = cases.site("x", *(cases.direction(one, standing=one) for one in verdicts))
    site["effects"] = cases.table("effects", ["n3"]) | {
        "rows": [("n3", ("-1", "other sign"), ("-2", "against g"))]
    }
    tab = show(cases.page(site), dark=dark)
    tab.hover("#errors [data-step='2'] circle")
    assert tab.run(CONTRAST) == []


def test_the_verdict_differs_by_its_sign_and_not_by_color_alone(show):
    verdicts = ("agree", "disagree", "neither")
    tab = show(cases.page(cases.site("x", *(cases.direction(v, standing=v) for v in verdicts))))
    signs = tab.run(
        "[...document.querySelectorAll('.directions td.verdict')]"
        ".map(e => getComputedStyle(e, '::before').content)"
    )
    assert [re.sub(r"[\"\s]", "", sign) for sign in signs] == ["\u2713", "\u2717", "!"]
