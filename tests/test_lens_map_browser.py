"""The map of a lens's page in a real browser: colors, legend, what scrolls and what stays."""

from __future__ import annotations

import json
from typing import Any

import pytest

import lens_page_cases as cases
from headwater.page.document import asset
from lens_browser import PIXELS, color, mouse, panel, walk
from test_lens_page_browser import show

__all__ = ["show"]  # a fixture of this file too


def test_hover_shows_the_cell_under_the_pointer(show):
    data = cases.page(5, 7)
    tab = show(data)
    for row, position, name in [(5, 3, "r4"), (4, 0, "r3"), (0, 6, "input"), (2, 1, "r1")]:
        mouse(tab, data, row, position)
        assert panel(tab) == f"{name} at position {position}"


def test_hover_does_not_speak(show):
    data = cases.page(5, 7)
    tab = show(data)
    mouse(tab, data, 3, 3)
    assert tab.run("document.getElementById('live').textContent") == ""


def test_colors_go_from_the_first_to_the_last_of_the_ramp(show):
    data = cases.page(5, 7)
    grid = [[float(min(row, 5)) for _ in range(7)] for row in range(6)]
    data["prompts"][0]["values"]["kl_final"] = grid
    tab = show(data)
    assert color(tab, data, 0, 0) == [0xF6, 0xF2, 0xE8]
    assert color(tab, data, 5, 5) == [0x1D, 0x3F, 0x7A]
    light = [sum(color(tab, data, row, 1)) for row in range(6)]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 6


def test_a_number_far_out_does_not_take_the_colors_from_the_others(show):
    data = cases.page(5, 10)
    grid = [[float(position) for position in range(10)] for _ in range(6)]
    grid[2][3] = 1e6
    data["prompts"][0]["values"]["kl_final"] = grid
    tab = show(data)
    assert color(tab, data, 2, 3) == color(tab, data, 3, 9)
    assert tab.texts("#legend .ticks span")[-1] == "\u2265\u20099"
    assert color(tab, data, 3, 2) != color(tab, data, 3, 4)


def test_a_logarithmic_scale_gives_each_decade_the_same_share(show):
    data = cases.page(5, 7)
    data["prompts"][0]["values"]["rank_next"] = [[10.0**row] * 7 for row in range(6)]
    tab = show(data)
    for _ in range(5):
        walk(tab, "s")
    shares = tab.texts("#legend .ticks span")
    assert shares == ["1", "18", "320", "5,600", "100,000"]
    walk(tab, "Home", "ArrowDown")
    assert tab.run("document.querySelector('#legend .at').style.left") == "80%"


def test_a_diverging_scale_has_zero_in_its_middle(show):
    data = cases.page(5, 7)
    data["prompts"][0]["values"]["gain"] = [[-1.0, 3.0, 0.0, None, 1.0, 1.0, 1.0]] * 6
    tab = show(data)
    walk(tab, "S")
    assert tab.texts("#legend .ticks span") == ["\u22123", "\u22121.5", "0", "1.5", "3"]
    assert color(tab, data, 3, 2) == [0xF1, 0xEE, 0xE8]


def test_the_final_row_and_the_input_tokens_stay_while_many_rows_scroll(show):
    data = cases.page(64, 40)
    tab = show(data, height=700)
    head, body = ([120, 0, 200, 64], [120, 80, 200, 60])
    walk(tab, "Home", "ArrowDown")
    before = [tab.run(PIXELS % part) for part in (head, body)]
    walk(tab, *("ArrowDown",) * 50)
    after = [tab.run(PIXELS % part) for part in (head, body)]
    assert tab.run("document.getElementById('map').scrollTop") > 0
    assert panel(tab) == "r12 at position 0"
    assert after[0] == before[0]
    assert after[1] != before[1]


def repeated(prompt: dict[str, Any], times: int) -> dict[str, Any]:
    """A prompt read over and over, with two statistics."""
    by_row = ("top", "logprob", "followed_logprob")
    longer = {key: prompt[key] * times for key in ("tokens", "next", "final", "followed")}
    longer |= {key: [row * times for row in prompt[key]] for key in by_row}
    kept = ("kl_final", "kl_final_back")
    values = {key: [row * times for row in prompt["values"][key]] for key in kept}
    return longer | {"values": values}


def test_two_thousand_positions_are_drawn_in_a_small_canvas(show):
    data = cases.page(12, 50, curves=[], rarity=None)
    data["statistics"] = data["statistics"][:2]
    data["prompts"] = [repeated(data["prompts"][0], 40)]
    tab = show(data)
    width, height = tab.run("[canvas.width, canvas.height]")
    assert width * height < 2_000_000
    walk(tab, "End")
    assert panel(tab) == "r11 at position 1,999"
    each = tab.run(
        "(async () => { const b = document.getElementById('map'), t = performance.now();"
        "for (let i = 0; i < 30; i++) { b.scrollLeft = 1500 * i;"
        "await new Promise(r => requestAnimationFrame(r)); }"
        "return (performance.now() - t) / 30; })()"
    )
    assert each < 150


def test_a_key_never_scrolls_the_page(show):
    tab = show(cases.page(40, 50), height=600)
    tab.run("document.getElementById('map').scrollIntoView({block: 'center'})")
    tab.focus("#map")
    before = tab.run("scrollY")
    for key in ("ArrowDown", "End", "PageUp", "Home", " ", "ArrowUp"):
        tab.press(key)
    assert tab.run("scrollY") == before


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_on_every_color_of_both_ramps_has_a_contrast_of_four_and_a_half(mode):
    written = asset("lens_colors.js").splitlines()
    line = next(row for row in written if row.startswith(f"{mode}: "))
    for ramp in (json.loads(part.replace("'", '"')) for part in _lists(line)):
        for step in range(401):
            light = _light(_mixed(ramp, step / 400))
            # black above the threshold that the page uses, white below
            contrast = (light + 0.05) / 0.05 if light > 0.179 else 1.05 / (light + 0.05)
            assert contrast >= 4.5


def _lists(line: str) -> list[str]:
    return ["[" + part.split("]")[0] + "]" for part in line.split("[")[1:]]


def _mixed(stops: list[str], share: float) -> list[float]:
    place = min(share * (len(stops) - 1), len(stops) - 1 - 1e-9)
    low, high = ([int(stops[int(place) + n][i : i + 2], 16) for i in (1, 3, 5)] for n in (0, 1))
    return [a + place % 1 * (b - a) for a, b in zip(low, high, strict=True)]


def _light(color: list[float]) -> float:
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10.3 else v / 255 / 12.92 for v in color]
    return sum(part * value for part, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
