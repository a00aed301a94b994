"""The page as text: what it holds, what it can never hold, and how it is written."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

import page_cases as cases
from headwater import page
from headwater.components.kinds import KINDS
from headwater.errors import ResultError, UnknownOptionError
from headwater.page import static
from headwater.page.document import asset
from headwater.page.payload import payload
from headwater.page.ticks import ticks

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"


class Outline(HTMLParser):
    """Tags in order, and the text of script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def embedded(text: str) -> dict:
    """The data that a page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def small() -> str:
    return page.render(cases.audited(cases.transformer(4, 4), 20))


def test_the_page_holds_no_address(small):
    assert "http" not in small
    assert "//" not in re.sub(r"data:,", "", asset("page.html") + asset("page.css"))


def test_every_element_that_could_load_something_is_absent(small):
    outline = Outline(small)
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "embed", "base"}
    sources = [attributes for _, attributes in outline.tags if "src" in attributes]
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "link"]
    assert sources == []
    assert links == ["data:,"]


def test_the_policy_names_style_and_script_by_hash(small):
    policy = next(a["content"] for t, a in Outline(small).tags if t == "meta" and "content" in a
                  and "default-src" in (a["content"] or ""))  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_shell_is_at_most_sixty_kilobytes():
    data = cases.page([cases.component("a0.h0", "head", 0, 0, 1.0)], pairs=[], provenance={})
    assert len(page.render(data).encode()) <= 60_000


def test_five_thousand_neurons_stay_under_half_a_megabyte():
    data = cases.page(cases.neurons(4, 1250))
    assert len(page.render(data).encode()) < 500_000


def test_hostile_text_adds_no_element_anywhere():
    def shape(text: str) -> list[str]:
        return [tag for tag, _ in Outline(text).tags]

    def filled(word: str) -> dict:
        part = cases.component(word, "head", 0, 0, 1.0) | {"flags": [word], "exact": 1.0}
        pair = {"clean": [word], "corrupted": [word], "answer": [word], "wrong": [word],
                "label": word, "clean_value": 1.0, "corrupted_value": 0.0}  # fmt: skip
        return cases.page(
            [part],
            title=word,
            headline=[word],
            warnings=[word],
            estimator=word,
            reference=word,
            metric={"name": word, "sense": word, "clean": 1.0, "corrupted": None},
            statistics=[cases.stat(word, 1.0, None, None, word)],
            worst=[word],
            pairs=[pair],
            provenance={word: word},
        )

    assert shape(page.render(filled(HOSTILE))) == shape(page.render(filled("harmless")))
    hostile, harmless = page.fragment(filled(HOSTILE)), page.fragment(filled("harmless"))
    assert shape(hostile) == shape(harmless)


def test_text_survives_the_trip_through_the_page():
    tokens = [HOSTILE, "\u2028", "&amp;", "שלום", "{{data}}", "\\u003c", "\x00", "\ud83d"]
    data = cases.page([cases.component("m0", "mlp", 0, None, 1.0)])
    data["pairs"] = [cases.pair(0) | {"clean": tokens}]
    assert embedded(page.render(data))["pairs"][0]["clean"] == tokens


def test_placeholders_in_text_are_not_filled_in():
    text = page.render(cases.page([], title="{{data}} {{nothing}}"))
    assert "<title>{{data}} {{nothing}}</title>" in text


def pair_of_mlps(first: float, second: float) -> list[dict]:
    return [
        cases.component("m0", "mlp", 0, None, first),
        cases.component("m1", "mlp", 1, None, second),
    ]


def test_numbers_that_are_not_finite_become_null_and_a_warning():
    rows = pair_of_mlps(math.nan, 2.0)
    rows[1]["exact"] = math.inf
    data = cases.page(rows)
    text = page.render(data)
    held = embedded(text)["components"]
    assert held["score"] == [None, 2]
    assert held["exact"] == [None, None]
    assert held["checked"] == [0, 1]
    assert "2 components have a number that is not finite, shown as n/a." in text


def test_scores_keep_seven_digits():
    held = embedded(page.render(cases.page(pair_of_mlps(1 / 3, 3.0))))
    assert held["components"]["score"] == [0.3333333, 3]


def test_json_has_no_character_that_could_end_the_script():
    data = cases.page([], pairs=[cases.pair(0) | {"label": "<&>\u2028\u2029\ud800"}])
    assert not set("<>&\u2028\u2029\ud800") & set(payload(data))


def test_an_unknown_kind_of_page_is_refused_with_the_kinds_there_are():
    with pytest.raises(UnknownOptionError) as caught:
        page.render(cases.page([], kind="atribution"))
    assert str(caught.value) == (
        "no page of kind 'atribution'. Closest: 'attribution'. The kinds: 'attribution'."
    )


def test_missing_keys_are_named():
    with pytest.raises(ResultError) as caught:
        page.render({"kind": "attribution", "title": "t", "components": []})
    assert str(caught.value) == (
        "the page's data lacks 'estimator', 'metric'; it has 'kind', 'title', 'components'. Every "
        "page needs 'title', 'estimator', 'metric', 'components'; headwater.page.schema.PageData "
        "lists the rest."
    )


def test_write_makes_the_folder_and_leaves_only_the_page(tmp_path):
    target = tmp_path / "deep" / "page.html"
    data = cases.page(cases.transformer(2, 2))
    assert page.write(data, target) == target
    assert target.read_text(encoding="utf-8") == page.render(data)
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    target = page.write(cases.page(cases.transformer(1, 1)), tmp_path / "page.html")
    before = target.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("headwater.page.document.os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        page.write(cases.page(cases.transformer(2, 2)), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97123, "0.971"), (-4.5, "\u22124.50"), (1234.5, "1234"), (2.5e-7, "2.50e\u221207"),
     (0, "0"), (None, "\u2013"), (math.nan, "n/a"), (-math.inf, "n/a")],
)  # fmt: skip
def test_numbers_are_written_with_three_digits_and_a_true_minus(value, text):
    assert static.number(value) == text


def test_the_strongest_come_first_and_unknown_scores_last():
    rows = [cases.component(name, "mlp", 0, None, score)
            for name, score in (("a", 0.1), ("b", math.nan), ("c", -3.0), ("d", 2.0))]  # fmt: skip
    assert [row["name"] for row in static.by_strength(rows)] == ["c", "d", "a", "b"]


def test_the_notebook_fragment_shows_ten_components_without_style_sheet_or_script():
    data = cases.audited(cases.transformer(4, 4), 20)
    outside = page.fragment(data).split("<details>")[0]
    assert outside.count("<tr>") == 11
    assert not re.search(r"<(script|style|link)", outside)
    assert "The 10 strongest of 20." in outside


def test_the_notebook_frame_has_no_right_but_to_run_its_script():
    data = cases.page(cases.transformer(2, 2))
    frames = [
        attributes for tag, attributes in Outline(page.fragment(data)).tags if tag == "iframe"
    ]
    assert [frame["sandbox"] for frame in frames] == ["allow-scripts"]
    assert frames[0]["srcdoc"] == page.render(data)


def test_a_page_too_large_for_a_notebook_is_left_out_in_words(monkeypatch):
    monkeypatch.setattr("headwater.page.notebook.PAGE_LIMIT", 1000)
    text = page.fragment(cases.page(cases.transformer(2, 2)))
    assert "<iframe" not in text
    assert "The page is too large for a notebook" in text


def test_every_kind_of_component_has_a_plural_and_a_color():
    script = asset("data.js")
    plurals = dict(re.findall(r"(\w+): '([^']+)'", script[script.index("const PLURAL") :]))
    assert set(KINDS) <= set(plurals)
    assert plurals["ssm_head"] == "SSM heads"
    colored = set(re.findall(r"\.kind-(\w+)", asset("page.css")))
    assert colored == set(KINDS)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (-1.0, 1.0, 4, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 10.0, 7, [0, 2, 4, 6, 8, 10]),
        (-0.3, 7.2, 4, [0, 2, 4, 6]),
        (1234.0, 1241.0, 7, [1234, 1235, 1236, 1237, 1238, 1239, 1240, 1241]),
    ],
)
def test_ticks_are_round_and_inside(low, high, most, expected):
    assert ticks(low, high, most) == pytest.approx(expected)
