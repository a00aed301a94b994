"""The page of a lens as text: what it holds, what it never holds, where points lie."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import pytest

import lens_page_cases as cases
from headwater.page.document import asset
from headwater.page.lens import CONVENTION, SCRIPTS, STYLES, render_lens, write_lens
from headwater.page.lens_payload import cost, short
from headwater.page.over_rows import Series, named, picture
from headwater.page.tables import boxed
from headwater.page.tokens import visible
from test_page import HOSTILE, Outline, embedded

KEYS = [key for key, *_ in cases.STATISTICS]


@pytest.fixture(scope="module")
def small() -> str:
    return render_lens(cases.page(3, 6))


def static(text: str) -> str:
    """A page's visible text with scripts off."""
    return Outline(re.sub(r"<(script|style)[ >].*?</\1>", "", text, flags=re.DOTALL)).text


def dots(drawn: str, kind: str = "") -> list[tuple[float, float]]:
    found = re.findall(rf'class="dot {kind}[^"]*" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    return [(float(x), float(y)) for x, y in found]


def lines(drawn: str) -> list[str]:
    return re.findall(r'class="line [^"]*" d="([^"]*)"', drawn)


def row(name: str, kind: str = "residual") -> dict[str, str]:
    return {"name": name, "kind": kind}


def test_the_page_holds_no_address(small):
    assert "http" not in small
    fixed = "".join(map(asset, ("lens.html", "lens_map.html", *STYLES, *SCRIPTS)))
    assert "//" not in fixed.replace("data:,", "")


def test_nothing_in_the_page_could_load_anything(small):
    outline = Outline(small)
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "embed", "base"}
    assert [a for _, a in outline.tags if "src" in a or "style" in a] == []
    assert [a["href"] for tag, a in outline.tags if tag == "link"] == ["data:,"]


def test_the_policy_names_style_and_script_by_hash(small):
    found = re.search(r'content="(default-src [^"]*)"', small)
    assert found
    assert found[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src 'sha256-" in found[1]
    assert "unsafe" not in found[1]


def test_the_script_builds_the_page_from_text_alone():
    script = "".join(map(asset, SCRIPTS))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_shell_is_at_most_sixty_kilobytes():
    data = cases.page(1, 1, curves=[], tables=[], rarity=None)
    assert len(render_lens(data).encode()) <= 60_000


@pytest.mark.parametrize(("layers", "positions", "most"), [(12, 64, 300_000), (32, 128, 1_000_000)])
def test_the_page_is_small(layers, positions, most):
    assert len(render_lens(cases.page(layers, positions)).encode()) <= most


def filled(word: str) -> dict[str, Any]:
    """A page in which every text is the word."""
    data = cases.page(2, 5, prompts=2)
    return data | {
        "title": word,
        "heading": word,
        "sentences": [word, word],
        "notes": [word],
        "facts": {word: word},
        "provenance": {word: word},
        "rows": [one | {"name": f"{word}{n}", "title": word} for n, one in enumerate(data["rows"])],
        "vocabulary": [word] * len(data["vocabulary"]),
        "statistics": [
            one | {"name": word, "unit": word, "explain": word} for one in data["statistics"]
        ],
        "curves": [
            curve | {"rows": [one | {"row": f"{word}{n}"} for n, one in enumerate(curve["rows"])]}
            for curve in data["curves"]
        ],
        "tables": [
            {"title": word, "caption": word, "headings": (word, word),
             "rows": [(word, word), (word, (word, word))]}
        ],
        "rarity": data["rarity"] | {
            "caption": word,
            "rows": [word] * len(data["rows"]),
            "bins": [one | {"label": word} for one in data["rarity"]["bins"]],
        },
    }  # fmt: skip


def test_hostile_text_adds_no_element_anywhere():
    hostile, harmless = (
        Outline(render_lens(filled(word))) for word in (HOSTILE, "x" * len(HOSTILE))
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]


@pytest.mark.parametrize("word", [HOSTILE, "<!--", "\u2028", "&amp;", "{{data}}", "\ud83d", "\0"])
def test_the_data_ends_no_script_and_is_what_it_was(word):
    text = render_lens(filled(word))
    assert text.encode()
    assert embedded(text)["statistics"][0]["name"] == word


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "\u2423the"),
        ("a b", "a b"),
        ("   ", "\u2423\u2423\u2423"),
        ("a ", "a\u2423"),
        ("\n", "\u21b5"),
        ("\r\n\n", "\u21b5\u21b5"),
        ("\tx", "\u21e5x"),
        ("", "\u2205"),
        ("\x00", "\u27e800\u27e9"),
        ("\u202eabc", "\u27e8202E\u27e9abc"),
        ("\u2028", "\u27e82028\u27e9"),
        ("\ud83d", "\u27e8D83D\u27e9"),
        ("\u200d", "\u27e8200D\u27e9"),
        ("\u0301", "\u25cc\u0301"),
        (" \u0301", "\u2423\u25cc\u0301"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
        ("</script><b>", "</script><b>"),
    ],
)
def test_a_token_is_shown_with_signs_for_what_cannot_be_seen(token, shown):
    assert visible(token) == shown


def test_tokens_of_one_text_stay_two_tokens():
    data = cases.page(2, 5)
    data["vocabulary"] = ["\ufffd"] * len(data["vocabulary"])
    prompt, held = data["prompts"][0], embedded(render_lens(data))
    assert len(held["vocabulary"]) == len({*prompt["tokens"], *prompt["final"],
        *(t for row in prompt["top"] for cell in row for t in cell),
        *(t for cell in prompt["followed"] for t in cell)})  # fmt: skip
    assert set(held["vocabulary"]) == {"\ufffd"}


def test_the_page_carries_the_tokens_it_was_given_and_no_others():
    data = cases.page(2, 5)
    data["vocabulary"] = [*data["vocabulary"], "never used"]
    prompt = data["prompts"][0]
    page = embedded(render_lens(data))
    held = page["prompts"][0]

    def words(tokens: list, vocabulary: list[str]) -> list:
        return [None if token is None else vocabulary[token] for token in tokens]

    known = list(map(visible, data["vocabulary"]))
    for key in ("tokens", "next", "final"):
        assert words(held[key], page["vocabulary"]) == words(prompt[key], known)
    for held_row, row_ in zip(held["top"], prompt["top"], strict=True):
        for held_cell, cell in zip(held_row, row_, strict=True):
            assert words(held_cell, page["vocabulary"]) == words(cell, known)
    for held_cell, cell in zip(held["followed"], prompt["followed"], strict=True):
        assert words(held_cell, page["vocabulary"]) == words(cell, known)
    assert "never used" not in page["vocabulary"]


def test_numbers_have_four_digits_and_probabilities_three_places():
    data = cases.page(2, 5)
    prompt, held = data["prompts"][0], embedded(render_lens(data))["prompts"][0]
    for key in KEYS:
        for found, given in zip(held["values"][key], prompt["values"][key], strict=True):
            for one, value in zip(found, given, strict=True):
                if value is None or math.isnan(value):
                    assert one is None
                else:
                    assert one == pytest.approx(value, rel=5.1e-4)
    for which, name in (("logprob", "cost"), ("followed_logprob", "followed_cost")):
        for found, given in zip(held[name], prompt[which], strict=True):
            for cell, values in zip(found, given, strict=True):
                assert [-one / 1000 for one in cell] == pytest.approx(values, abs=5.1e-4)


@pytest.mark.parametrize(
    ("value", "held"),
    [(1.23456, 1.235), (123456, 123456), (123456.7, 123500), (2.0, 2), (None, None),
     (math.nan, None), (math.inf, None), (-1.23456e-7, -1.235e-07)],
)  # fmt: skip
def test_a_number_is_shortened_and_a_count_is_not(value, held):
    assert short(value) == held


@pytest.mark.parametrize(
    ("logprob", "held"), [(-1.2346, 1235), (0.0, 0), (1e-9, 0), (-math.inf, None), (None, None)]
)
def test_a_log_probability_is_held_as_thousandths_without_sign(logprob, held):
    assert cost(logprob) == held


def test_the_index_convention_is_said_with_and_without_scripts(small):
    assert static(small).count(CONVENTION) == 2
    assert CONVENTION in asset("lens_panel.js")


def test_what_was_left_out_is_said_on_the_page():
    shown = {"prompts": 1, "of": 1200, "positions": 64, "of_positions": 76800}
    text = static(render_lens(cases.page(2, 64, shown=shown)))
    assert "The page holds 1 of 1,200 prompts and 64 of 76,800 positions." in text


def test_nothing_is_said_to_be_left_out_if_nothing_is(small):
    assert "The page holds" not in small


def test_without_scripts_the_first_forty_positions_are_tables_of_ten():
    text = render_lens(cases.page(3, 64, prompts=2))
    assert "The first prompt: the most probable next token at the first 40 of 64 positions" in text
    tables = re.findall(r'<table class="cells">(.*?)</table>', text, re.DOTALL)
    assert len(tables) == 4
    heads = re.findall(r"<i>(\d+)</i>", "".join(tables))
    assert list(map(int, heads)) == list(range(40))


def test_the_table_without_scripts_has_the_final_row_first_and_its_tokens_bold():
    data = cases.page(3, 4)
    text = render_lens(data)
    body = re.search(r'<table class="cells">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert body
    names = re.findall(r'<th scope="row">(\w+)</th>', body[1])
    assert names == ["r2", "r1", "r0", "input"]
    prompt = data["prompts"][0]
    first, *others = (line.split("</th>")[1] for line in body[1].split("</tr>")[:-1])
    assert first.count("<b>") == 4
    for line, cells in zip(others, prompt["top"][-2::-1], strict=True):
        assert line.count("<b>") == sum(
            cell[0] == final for cell, final in zip(cells, prompt["final"], strict=True)
        )


def test_a_page_without_prompts_has_curves_and_no_map():
    data = cases.page(3, 6)
    data |= {"prompts": [], "shown": {"prompts": 0, "of": 5, "positions": 0, "of_positions": 30}}
    text = render_lens(data)
    assert 'id="map"' not in text
    assert "Is any layer close to both ends?" in text


@pytest.mark.parametrize("missing", [{"rarity": None}, {"curves": []}, {"tables": []}])
def test_a_section_without_content_is_absent(missing):
    title = {"rarity": "rarity-title", "curves": "curves-title", "tables": "table-0"}
    (key,) = missing
    assert f'id="{title[key]}"' in render_lens(cases.page(2, 3))
    assert f'id="{title[key]}"' not in render_lens(cases.page(2, 3, **missing))


def test_all_divergences_are_in_one_picture_and_every_statistic_has_its_own(small):
    together = re.search(r'<figure class="together">.*?</figure>', small, re.DOTALL)
    assert together
    assert len(lines(together[0].split("<figcaption>")[0])) == 4
    for _, name, *_ in cases.STATISTICS:
        assert f"<figure><h3>{name}</h3>" in small


def test_a_curve_may_lack_rows_and_numbers():
    data = cases.page(3, 6)
    curve = data["curves"][0]
    curve["rows"] = [curve["rows"][1] | {"mean": math.nan}, curve["rows"][3]]
    text = render_lens(data | {"curves": [curve]})
    drawn = re.search(r'<div class="small">(.*?)</div>', text, re.DOTALL)
    assert drawn
    assert len(dots(drawn[1])) == 1


def test_heights_lie_at_their_place_on_a_straight_axis():
    drawn = picture([row("r0"), row("r1")], [Series("s", "k", [0.0, 2.0])], "x", size=(160, 138))
    # from 0 to 2 with a twentieth to spare above; 100 pixels of height below 10 of margin
    assert dots(drawn) == [(82.0, 110.0), (126.0, pytest.approx(110 - 100 * 2 / 2.1, abs=0.06))]


def test_heights_lie_at_their_place_on_a_logarithmic_axis_and_zero_at_its_edge():
    drawn = picture(
        [row("r0"), row("r1"), row("r2")],
        [Series("s", "k", [0.0, 1.0, 100.0])], "x", scale="log", size=(160, 138),
    )  # fmt: skip
    # two decades with a tenth of one to spare on either side
    heights = [y for _, y in dots(drawn)]
    assert heights == pytest.approx([110, 110 - 100 * 0.1 / 2.2, 110 - 100 * 2.1 / 2.2], abs=0.06)


def test_a_negative_number_gets_a_line_at_zero():
    drawn = picture([row("r0"), row("r1")], [Series("s", "k", [-1.0, 1.0])], "x", size=(160, 138))
    assert '<path class="axis" d="M60 60.0H148"/>' in drawn


def test_what_a_sublayer_writes_is_a_mark_beside_the_line():
    rows = [row("r0"), row("a0", "write"), row("r1")]
    drawn = picture(rows, [Series("s", "k", [1.0, 5.0, 2.0])], "x")
    assert [path.count("L") for path in lines(drawn)] == [1]
    assert re.findall(r'class="dot k( hollow)?"', drawn) == ["", " hollow", ""]


def test_a_line_breaks_where_a_row_has_no_number():
    drawn = picture(
        [row(f"r{n}") for n in range(5)], [Series("s", "k", [1.0, 2.0, None, 3.0, 4.0])], "x"
    )
    assert [(path.count("M"), path.count("L")) for path in lines(drawn)] == [(2, 2)]


def test_a_band_goes_around_the_interval():
    series = Series("s", "k", [1.0, 1.0], interval=([0.0, 0.5], [2.0, 1.5]))
    drawn = picture([row("r0"), row("r1")], [series], "x", size=(160, 138))
    found = re.search(r'class="band inner k" d="M([^"]*)Z"', drawn)
    assert found
    points = [tuple(map(float, point.split())) for point in found[1].split("L")]
    assert [x for x, _ in points] == [82, 126, 126, 82]
    heights = [110 - 100 * value / 2.1 for value in (2.0, 1.5, 0.5, 0.0)]
    assert [y for _, y in points] == pytest.approx(heights, abs=0.06)


def test_a_picture_without_numbers_is_drawn_empty():
    assert dots(picture([row("r0")], [Series("s", "k", [None])], "x")) == []
    assert dots(picture([row("r0")], [Series("s", "k", [None])], "x", scale="log")) == []


def test_names_below_the_axis_leave_each_other_room_and_hold_the_last_row():
    rows = [row(f"r{n}") for n in range(33)]
    places = named(rows, 300)
    assert places[-1] == 32
    steps = {b - a for a, b in itertools.pairwise(places)}
    assert len(steps) == 1
    assert 300 / 33 * steps.pop() >= 7 * 3


def test_bins_of_rarity_share_their_axis():
    text = render_lens(cases.page(3, 4))
    ranks = re.findall(r'aria-label="[^"]*median rank by layer, own and control">(.*?)</svg>', text)
    axes = {tuple(re.findall(r'text-anchor="end">([^<]*)<', drawn)) for drawn in ranks}
    assert len(ranks) == 5
    assert len(axes) == 1


def test_columns_of_words_are_to_the_left_and_columns_of_numbers_are_not():
    table = cases.table(headings=("a", "b", "c"), rows=[("x", "1e-3", "late"), ("y", "12 %", "3")])
    text = boxed(table, "label", kind="told")
    assert re.findall(r"<td([^>]*)>([^<]*)</td>", text) == [
        ("", "1e\u22123"), (' class="words"', "late"), ("", "12 %"), (' class="words"', "3"),
    ]  # fmt: skip


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    data = cases.page(2, 3)
    path = write_lens(data, tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html"
    assert path.read_text(encoding="utf-8") == render_lens(data)


def test_numbers_that_are_not_finite_are_null_everywhere():
    data = cases.page(2, 3)
    data["prompts"][0]["values"]["kl_final"][0][0] = math.nan
    data["prompts"][0]["logprob"][0][0][0] = -math.inf
    data["curves"][0]["rows"][0]["mean"] = math.inf
    data["rarity"]["bins"][0]["own"][0] = math.nan
    text = render_lens(data)
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1], parse_constant=pytest.fail)["prompts"][0]["cost"][0][0][0] is None
    plain = re.sub(r"<(script|style)[ >].*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", plain, re.IGNORECASE)
