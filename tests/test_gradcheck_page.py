"""The page of a gradient check as text: what it holds, what it never holds, where points lie."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import Tensor

import gradcheck_page_cases as cases
import headwater as hw
from headwater.gradchecks.report import GradientReport
from headwater.gradchecks.view import page_data
from headwater.page import plateau
from headwater.page.document import asset
from headwater.page.gradcheck import render_gradcheck, write_gradcheck
from headwater.page.payload import finite
from test_page import HOSTILE, Outline, embedded


def smooth(x: Tensor) -> Tensor:
    return (x.sin() + 0.3 * x**2).sum()


@pytest.fixture(scope="module")
def report() -> GradientReport:
    points = torch.linspace(-1.1, 1.3, 40)
    return hw.check_gradient(lambda x: (x.sin() + 0.3 * x**2).sum(-1), points, batched=True)


def static(text: str) -> str:
    """A page's visible text with scripts off."""
    return Outline(re.sub(r"<(script|style)[ >].*?</\1>", "", text, flags=re.DOTALL)).text


def marks(picture: str, name: str) -> list[tuple[float, float, str]]:
    """Centers and classes of a family's marks, from the longest step to the shortest."""
    circles = re.findall(rf'class="mark ({name}[^"]*)" cx="([\d.]+)" cy="([\d.]+)"', picture)
    shapes = re.findall(rf'class="mark ({name}[^"]*)" d="[^"]*" transform="translate\(([\d.]+) ([\d.]+)\)"', picture)  # fmt: skip # noqa: E501
    return [(float(x), float(y), kind) for kind, x, y in circles + shapes]


def carried(**changes: object) -> dict:
    """A direction as the page carries it."""
    return finite(cases.direction(**changes))


SPAN = [cases.STEPS[-1], cases.STEPS[0]]


def test_a_written_page_holds_no_address(report, tmp_path):
    text = report.page(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "//" not in re.sub(r"data:,", "", asset("gradcheck.html") + asset("gradcheck.css"))


def test_the_report_returns_the_path_it_wrote(report, tmp_path):
    assert report.page(tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"
    assert (tmp_path / "deep" / "page.html").is_file()


def test_nothing_in_the_page_could_load_anything(report):
    outline = Outline(render_gradcheck(page_data(report)))
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "embed", "base"}
    assert [attributes for _, attributes in outline.tags if "src" in attributes] == []
    assert [a["href"] for tag, a in outline.tags if tag == "link"] == ["data:,"]
    assert [a for _, a in outline.tags if "style" in a] == []


def test_the_policy_names_style_and_script_by_hash(report):
    found = re.search(r'content="(default-src [^"]*)"', render_gradcheck(page_data(report)))
    assert found
    assert found[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src 'sha256-" in found[1]
    assert "unsafe" not in found[1]


def test_the_shell_is_at_most_forty_kilobytes():
    data = cases.page(cases.site("x", cases.lost()), tokens=[], provenance={}, facts={})
    assert len(render_gradcheck(data).encode()) <= 40_000


def test_three_sites_of_21_directions_and_24_steps_stay_under_250_kilobytes(report):
    (check,) = report.checks
    assert len(check.directions) == 21
    assert {len(one.difference.steps) for one in check.directions} == {24}
    three = GradientReport(objective="prob:Mary", checks=(check, check, check))
    assert len(render_gradcheck(page_data(three)).encode()) <= 250_000


def test_hostile_text_adds_no_element_anywhere():
    def filled(word: str) -> dict:
        one = cases.direction(word, verdict=word)
        one["readings"] = [word] * len(one["readings"])
        whole = cases.table(word, [word]) | {"headings": (word, word, word)}
        whole["rows"] = [(word, (word, word), word)]
        site = cases.site(word, one) | {
            "table": whole, "steps": whole, "effects": whole, "signs": whole, "entries": whole,
            "reach": {word: word}, "precision": {word: word}, "share": 0.5,
        }  # fmt: skip
        return cases.page(
            site,
            site,
            title=word,
            heading=word,
            sentences=[word, word],
            notes=[word],
            facts={word: word},
            tokens=[word],
            marked=[0],
            summary=whole | {"rows": [(word, word, word)] * 2},
            provenance={word: word},
        )

    hostile, harmless = (Outline(render_gradcheck(filled(w))) for w in (HOSTILE, "harmless"))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]


def test_names_survive_the_trip_through_the_page():
    names = [HOSTILE, "\u2028", "&amp;", "{{data}}", "\ud83d"]
    data = cases.page(cases.site("x", *map(cases.direction, names)))
    held = embedded(render_gradcheck(data))["sites"][0]["directions"]
    assert [one["name"] for one in held] == names


@pytest.mark.parametrize(
    ("function", "word", "sign"),
    [
        (smooth, "AGREE", "agree"),
        (lambda x: x.relu().sum(), "KINK", "neither"),
        (lambda x: (x >= 0).double().sum() + x.sum(), "JUMP", "neither"),
        (lambda x: (300 * torch.cat([x + 1, 0 * x])).softmax(0)[0], "ILL-CONDITIONED", "neither"),
    ],
    ids=["agree", "kink", "jump", "ill-conditioned"],
)
def test_the_verdict_is_in_words_with_scripts_off(function, word, sign):
    text = render_gradcheck(page_data(hw.check_gradient(function, torch.zeros(1))))
    assert f'<p class="lead"><span class="verdict {sign}">{word}</span>' in text


def test_a_wrong_gradient_is_said_to_disagree_in_every_row():
    x = torch.linspace(0.2, 1.0, 4, dtype=torch.float64)
    report = hw.check_gradient(smooth, x, gradient=-(x.cos() + 0.6 * x))
    text = render_gradcheck(page_data(report))
    assert '<span class="verdict disagree">DISAGREE</span>' in text
    rows = len(report.checks[0].directions)
    assert text.count('<td class="verdict disagree">disagree</td>') == rows


def test_a_constant_objective_is_said_to_be_one():
    report = hw.check_gradient(lambda x: x.softmax(0), torch.ones(3), grad_outputs="ones")
    text = static(render_gradcheck(page_data(report)))
    assert "CONSTANT" in text
    assert "Entries of the objective" in text


def test_every_direction_and_entry_is_in_a_table_with_scripts_off(report):
    outline = Outline(render_gradcheck(page_data(report)))
    rows = [attributes for tag, attributes in outline.tags if tag == "th"
            and attributes.get("scope") == "row"]  # fmt: skip
    check = report.checks[0]
    steps = len(check.steepest.difference.steps)
    signs = 4
    assert len(rows) == len(check.directions) + steps + len(check.effects) + signs


def test_the_checked_token_alone_is_marked():
    text = render_gradcheck(cases.page())
    assert re.findall(r"<mark[^>]*>([^<]*)</mark>", text) == [" John"]
    assert "the checked position is marked" in static(text)


def test_which_tokens_are_marked_follows_the_position():
    (check,) = hw.check_gradient(smooth, torch.ones(2)).checks
    at = check.__class__(**{**vars(check), "where": "position 1 (' and')"})

    def marked(position: object, one=at) -> list[int]:
        return list(
            page_data(
                GradientReport("f", (one,), tokens=("a", "b", "c"),
                               provenance={"position": position})
            )["marked"]
        )  # fmt: skip

    assert marked(-2) == [1]
    assert marked("all") == [0, 1, 2]
    assert marked(-1, check) == []


def test_line_breaks_in_tokens_are_drawn():
    text = static(render_gradcheck(cases.page(tokens=["a\n", "\tb"], marked=[])))
    assert "a\u21b5" in text
    assert "\u21e5b" in text


def test_numbers_that_are_not_finite_become_null():
    held = embedded(render_gradcheck(cases.page(cases.site("x", cases.lost(), cases.direction()))))
    first, second = held["sites"][0]["directions"]
    assert (first["slope"], first["bar"], first["plateau"]) == (None, None, [None, None])
    assert second["error"][-1] is None


def test_a_direction_that_was_rounded_away_says_so_in_its_picture():
    for draw in (plateau.errors, plateau.slopes):
        assert "every step was rounded away" in draw(finite(cases.lost()), SPAN, 1.0)


def test_slopes_keep_seven_digits_and_errors_four():
    one = cases.direction(forward=[1 / 3] * 8, off_slope=[1e-9 / 3] * 8)
    held = embedded(render_gradcheck(cases.page(cases.site("x", one))))["sites"][0]["directions"][0]
    assert held["forward"][0] == 0.3333333
    assert held["off_slope"][0] == 3.333e-10


def test_an_error_lies_at_its_place_on_both_logarithmic_axes():
    picture = plateau.errors(carried(), SPAN, 0.25, 700)
    found = marks(picture, "off-gradient")
    # steps from 10**-3.5 to 1 with a quarter decade to spare; errors from 1e-6 to 0.2 with 0.35
    low, high = -6 - 0.35, math.log10(0.2) + 0.35
    for (x, y, kind), step, off in zip(
        found, cases.STEPS, cases.direction()["off_gradient"], strict=True
    ):
        across = (math.log10(step) + 3.75) / 4
        up = (math.log10(off) - low) / (high - low)
        assert kind == "off-gradient"
        assert x == pytest.approx(72 + across * (700 - 72 - 14), abs=0.06)  # one written decimal
        assert y == pytest.approx(360 - 46 - up * (360 - 46 - 26), abs=0.06)


def test_both_series_lie_on_each_other_where_both_errors_have_one_size():
    picture = plateau.errors(carried(), SPAN, 0.25)
    first = [place[:2] for place in marks(picture, "off-gradient")]
    assert first == [place[:2] for place in marks(picture, "off-slope")]


def test_an_error_of_exactly_zero_lies_hollow_at_the_bottom_edge_and_says_so():
    off = [1e-1, 0.0, 1e-3, 1e-4, 1e-5, 1e-6, 1e-5, 1e-4]
    picture = plateau.errors(carried(off_gradient=off), SPAN, 0.25)
    found = marks(picture, "off-gradient")
    assert [place for place, mark in enumerate(found) if mark[2].endswith("hollow")] == [1]
    assert found[1][1] == 360 - 46
    assert max(y for _, y, kind in found if "hollow" not in kind) <= 360 - 46 - 20
    assert "off the gradient exactly 0" in picture


def test_the_regions_are_shaded_and_named_and_end_half_way_between_steps():
    picture = plateau.errors(carried(), SPAN, 0.25, 700)
    found = re.findall(
        r'<rect class="region (\w+)" x="([\d.]+)" y="26.0" width="([\d.]+)"', picture
    )
    ends = {name: (float(x), float(x) + float(width)) for name, x, width in found}
    per_decade = (700 - 72 - 14) / 4
    low, high = 72 + 0.5 * per_decade, 72 + 2 * per_decade
    assert ends["rounding"] == pytest.approx((72, low), abs=0.11)
    assert ends["plateau"] == pytest.approx((low, high), abs=0.11)
    assert ends["truncation"] == pytest.approx((high, 686), abs=0.11)
    assert {"rounding", "plateau", "truncation"} <= set(re.findall(r">(\w+)</text>", picture))


def test_the_linear_range_is_a_line_at_its_step():
    picture = plateau.errors(carried(), SPAN, 0.25, 700)
    found = re.search(r'<line class="linear" x1="([\d.]+)"', picture)
    assert found
    assert float(found[1]) == pytest.approx(72 + (700 - 72 - 14) * 2.75 / 4, abs=0.06)
    assert "linear to 0.1 s" in picture


def test_one_sided_slopes_lie_at_their_place_and_the_gradient_is_a_line():
    picture = plateau.slopes(carried(), SPAN, 0.25, 420)
    # slopes from 1 to 3, with six hundredths to spare on either side
    low, high = 1 - 0.12, 3 + 0.12
    for name, sign in (("forward", 1), ("backward", -1)):
        for (_, y, _), step in zip(marks(picture, name), cases.STEPS, strict=True):
            up = (2 + sign * step - low) / (high - low)
            assert y == pytest.approx(360 - 46 - up * (360 - 46 - 26), abs=0.06)
    assert 'class="claimed" x1="72.0" y1="170.0"' in picture


def test_a_slope_that_rounding_throws_out_of_the_picture_is_hollow_at_its_edge():
    forward = [2 + step for step in cases.STEPS[:-1]] + [1e6]
    picture = plateau.slopes(carried(forward=forward), SPAN, 0.25)
    *inside, last = marks(picture, "forward")
    assert last[1:] == (26.0, "forward hollow")
    assert all(kind == "forward" for _, _, kind in inside)


def effects(report: GradientReport) -> list[list[str]]:
    """The marks of the table of effects, by entry: adding, scaling, zeroing."""
    table = page_data(report)["sites"][0]["effects"]
    assert table is not None
    return [
        ["" if isinstance(row[column], str) else row[column][1] for column in (3, 5, 7)]
        for row in table["rows"]
    ]


def test_scaling_a_negative_entry_is_marked_as_going_against_the_gradient():
    report = hw.check_gradient(lambda x: 2 * x.sum(), torch.tensor([-1.0, 3.0]), coordinates=[0, 1])
    assert effects(report) == [["", "against g", ""], ["", "", ""]]


def test_zeroing_beyond_the_gradients_reach_is_marked_when_its_sign_is_another():
    # the slope at 1 is 0.8, so zeroing must lose 0.8 to first order; in truth it gains 0.2
    report = hw.check_gradient(lambda x: ((x - 0.6) ** 2).sum(), torch.ones(1), coordinates=[0])
    assert effects(report) == [["", "", "other sign"]]


def test_a_change_that_moves_nothing_is_said_to_be_in_the_noise():
    report = hw.check_gradient(lambda x: x[0] * 2, torch.tensor([1.0, 2.0]), coordinates=[1])
    assert effects(report) == [["in the noise"] * 3]


def test_which_sign_each_change_must_have_is_said_beside_the_effects(report):
    text = static(render_gradcheck(page_data(report)))
    assert "Adding to an entry moves the objective with the sign of g" in text
    assert "scaling it up40 of 40a*g" in text.replace("\n", "")


def test_a_line_holds_all_the_way_to_zero():
    report = hw.check_gradient(lambda x: x.sum(), torch.tensor([1.0, 5.0]))
    reach = page_data(report)["sites"][0]["reach"]
    assert reach["slope holds for"] == "all the way"
    assert reach["zero is"] == "inside the gradient's reach"


def test_notes_stand_in_a_box_and_not_among_the_sentences():
    (check,) = hw.check_gradient(smooth, torch.ones(2)).checks
    noted = check.__class__(**{**vars(check), "notes": ("read me",)})
    data = page_data(GradientReport("f", (noted,)))
    assert not any("read me" in sentence for sentence in data["sentences"])
    assert '<section class="notes" aria-label="Note">' in render_gradcheck(data)


def test_the_check_is_in_the_page_to_the_last_direction_and_step(report):
    held = embedded(render_gradcheck(page_data(report)))["sites"][0]
    check = report.checks[0]
    for one, shown in zip(check.directions, held["directions"], strict=True):
        found = one.difference
        assert shown["steps"] == pytest.approx(found.steps / check.size, rel=1e-6)
        # an error is carried as such: a slope of seven digits could not show it
        assert shown["off_slope"] == pytest.approx(found.central - found.slope, rel=1e-3)


def test_the_data_ends_no_script_element():
    text = render_gradcheck(cases.page(cases.site("</script>", cases.direction("<!--"))))
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1])["sites"][0]["name"] == "</script>"


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    path = write_gradcheck(cases.page(), tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == render_gradcheck(cases.page())


def test_a_page_carries_300_directions_at_most_the_wrong_ones_first_and_says_so(tmp_path):
    weights = torch.linspace(0.5, 1.5, 400, dtype=torch.float64)
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)
    wrong = 2 * weights * x.cos()
    wrong[:390] /= 2
    report = hw.check_gradient(
        lambda z: z.sin() @ weights, x, batched=True, gradient=wrong, coordinates="all"
    )
    data = page_data(report)
    (site,) = data["sites"]
    assert len(report.checks[0].directions) == 405
    assert len(site["directions"]) == len(site["table"]["rows"]) == 300
    assert any("300 of 405 directions" in note for note in data["notes"])
    shown = {one["name"] for one in site["directions"]}
    assert {f"[{entry}]" for entry in range(390, 400)} <= shown
    assert site["directions"][site["first"]]["name"] == report.checks[0].steepest.name
    assert site["effects"] is not None
    assert {row[0] for row in site["effects"]["rows"]} <= shown
    assert len(report.to_dict()["checks"][0]["directions"]) == 405
    assert report.page(tmp_path / "page.html").stat().st_size < 1.5e6
