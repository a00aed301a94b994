"""A lens as a result: printed, saved, loaded, drawn, on a page."""

import dataclasses
import json
import math
import re

import pytest
import torch

import headwater as hw
from headwater.errors import (
    MissingExtraError,
    ModelGoneError,
    ResultError,
    RunFolderError,
    UnknownOptionError,
)
from headwater.lenses import folder, view, words
from shape_checks import unchecked
from tiny_models import build, tokens
from tiny_tasks import model as tiny
from tiny_tasks import tokenizer

PROMPTS = ["Mary and John went to the store", "Anna gave the ball to"]


@pytest.fixture(scope="module")
def model():
    return hw.load("tiny")


@pytest.fixture(scope="module")
def lens(model):
    return hw.lens(model, PROMPTS, sublayers=True, tokens=["Mary"], controls=8)


def test_what_is_saved_is_what_is_loaded(lens, tmp_path):
    lens.save(tmp_path / "run")
    again = hw.Lens.load(tmp_path / "run")
    assert repr(again) == repr(lens)
    assert again.names == lens.names
    assert again.tokens == ("Mary",)
    for key, value in lens.arrays.values.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(again.arrays.kl, lens.arrays.kl, rtol=0, atol=0, equal_nan=True)
    assert again.jumps().to_dict() == lens.jumps().to_dict()
    assert repr(again.rarity()) == repr(lens.rarity())


def test_base_rates_are_read_when_they_are_asked_for_and_are_kept(model, tmp_path):
    texts = PROMPTS * 3
    counted, plain = hw.lens(model, texts, controls=8), hw.lens(model, texts)
    assert plain.rarity().to_dict() == counted.rarity().to_dict()
    plain.save(tmp_path)
    assert hw.Lens.load(tmp_path).rarity().to_dict() == counted.rarity().to_dict()


def test_base_rates_need_a_model_that_is_still_there_or_is_given():
    lens = hw.lens(hw.load("tiny"), PROMPTS * 3)
    with pytest.raises(ModelGoneError, match="model=model"):
        lens.rarity()
    assert lens.rarity(model=hw.load("tiny")).bins


def test_a_folder_without_base_rates_says_how_to_have_them(model, tmp_path):
    hw.lens(model, PROMPTS).save(tmp_path)
    with pytest.raises(ResultError, match="controls=8 before it is saved"):
        hw.Lens.load(tmp_path).rarity()


def test_a_folder_with_another_lens_is_refused_and_can_be_overwritten(lens, model, tmp_path):
    lens.save(tmp_path)
    lens.save(tmp_path)  # the same one is no other
    other = hw.lens(model, PROMPTS[0])
    with pytest.raises(RunFolderError, match=r"holds another lens[^$]*names: .* there"):
        other.save(tmp_path)
    other.save(tmp_path, overwrite=True)
    assert hw.Lens.load(tmp_path).texts == (PROMPTS[0],)


def test_a_folder_with_other_files_is_refused(lens, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"other files than a lens \(notes.txt\)"):
        lens.save(tmp_path)


def test_a_lens_of_other_versions_is_the_same_lens(lens, tmp_path):
    lens.save(tmp_path)
    (tmp_path / folder.PAGE).write_text("of the first")
    versions = {**lens.provenance["versions"], "torch": "99"}
    provenance = {**lens.provenance, "versions": versions}
    dataclasses.replace(lens, provenance=provenance).save(tmp_path)
    assert hw.Lens.load(tmp_path).provenance["versions"]["torch"] == "99"
    assert not (tmp_path / folder.PAGE).exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"best": 3}, "best: 10 there, 3 now"),
        ({"mixtures": False}, "mixtures: True there, False now"),
        ({"tokens": ["John"]}, r"tokens\[0\]: Mary there, John now"),
        ({"readout": "none"}, "readout: final-norm there, none now"),
    ],
)
def test_a_lens_with_another_option_is_another_lens_and_the_option_is_named(
    lens, model, tmp_path, given, said
):
    lens.save(tmp_path)
    other = hw.lens(model, PROMPTS, **{"sublayers": True, "tokens": ["Mary"], **given})
    with pytest.raises(RunFolderError, match=said):
        other.save(tmp_path)


def test_other_token_ids_are_another_lens(model, tmp_path):
    hw.lens(model, [[3, 4, 5]]).save(tmp_path)
    with pytest.raises(RunFolderError, match="prompts_hash"):
        hw.lens(model, [[3, 4, 6]]).save(tmp_path)


def test_a_number_that_is_not_finite_leaves_json_that_every_reader_takes(lens, tmp_path):
    added = {"check": {"sentences": [], "table": {"rows": [[math.nan, 1.0]]}}}
    dataclasses.replace(lens, added=added).save(tmp_path)
    text = (tmp_path / folder.REPORT).read_text()
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["added"]["check"]["table"]["rows"] == [[None, 1.0]]
    row = hw.Lens.load(tmp_path).added["check"]["table"]["rows"][0]
    assert str(row[0]) == "nan"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("rows"),
        lambda data: data.update(rows=["r0"]),
        lambda data: data.update(vocabulary={"the": "1"}),
        lambda data: data.update(vocabulary=None),
        lambda data: data.update(tally_keys=3),
    ],
)
def test_a_damaged_lens_is_refused_with_how_to_make_one(lens, tmp_path, damage):
    lens.save(tmp_path)
    data = json.loads((tmp_path / folder.REPORT).read_text())
    damage(data)
    (tmp_path / folder.REPORT).write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=r"holds no lens that this .*\n.*headwater lens --out"):
        hw.Lens.load(tmp_path)


@pytest.mark.parametrize("broken", ["nothing", "json", "tensors", "release"])
def test_a_folder_that_holds_no_whole_lens_is_refused(lens, tmp_path, broken):
    lens.save(tmp_path)
    if broken == "nothing":
        (tmp_path / folder.REPORT).unlink()
    elif broken == "json":
        (tmp_path / folder.REPORT).write_text("{")
    elif broken == "tensors":
        (tmp_path / folder.TENSORS).write_bytes(b"12")
    else:
        (tmp_path / folder.REPORT).write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunFolderError):
        hw.Lens.load(tmp_path)


def test_a_loaded_lens_asks_for_its_model_before_it_is_tested(lens, model, tmp_path):
    lens.save(tmp_path)
    again = hw.Lens.load(tmp_path)
    with pytest.raises(ModelGoneError, match="model=model"):
        again.check(sample=2)
    found = again.check(model, sample=2, progress=False)
    assert found.sentences
    assert again.added["check"]["table"]["rows"]


def test_the_frame_has_one_row_a_prompt_position_and_row(lens):
    frame = lens.to_frame()
    assert len(frame) == int(lens.mask.sum()) * len(lens.names)
    one = frame[(frame.prompt == 1) & (frame.position == 2) & (frame.row == "r1")].iloc[0]
    assert one["kl(final||layer)"] == float(lens.kl()[lens.row("r1"), 1, 2])
    assert one["rank(Mary)"] == float(lens.rank("Mary")[lens.row("r1"), 1, 2])


def test_the_printed_table_has_the_means_of_every_row(lens):
    lines = words.table(lens, ["final", "r1"])
    heads = re.split(r"\s{2,}", lines[0])
    assert heads[1:5] == ["KL(final||row)", "KL(row||final)", "KL(r1||row)", "KL(row||r1)"]
    by_name = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert list(by_name) == list(reversed(lens.names))
    for name, cells in by_name.items():
        row = lens.row(name)
        expected = float(lens.kl("r1", "layer||ref")[row].nanmean())
        assert float(cells[3]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert float(cells[5]) == float(lens.rank("input")[row].nanmedian())


def test_the_grid_has_the_best_token_of_every_cell_and_says_what_does_not_fit(lens):
    lines = words.grid(lens, 0, width=200)
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    best = lens.topk(1).ids[lens.row("r2"), 0, :, 0].tolist()
    assert cells["r2"] == [lens.text_of(one) for one in best]
    narrow = words.grid(lens, 0, width=30)
    assert "the last" in narrow[0]
    assert "of 8 positions" in narrow[0]
    assert all(len(line) <= 30 for line in narrow[1:])


def test_the_page_holds_the_numbers_of_every_cell_and_says_what_is_left_out(lens, monkeypatch):
    data = view.page_data(lens)
    shown = data["prompts"][0]["values"]["kl(final||layer)"]
    for row, position in ((0, 0), (3, 5), (8, 7)):
        assert shown[row][position] == pytest.approx(float(lens.kl()[row, 0, position]), rel=1e-3)
    top = data["prompts"][0]["top"][4][2][0]
    assert data["vocabulary"][top] == lens.text_of(int(lens.topk(1).ids[4, 0, 2, 0]))
    assert data["shown"] == {"prompts": 2, "of": 2, "positions": 14, "of_positions": 14}
    monkeypatch.setattr(view, "CELLS", 10 * len(lens.names))
    fewer = view.page_data(lens)
    assert fewer["shown"] == {"prompts": 2, "of": 2, "positions": 10, "of_positions": 14}


def test_the_page_is_one_file_that_loads_nothing(lens, tmp_path):
    text = lens.page(tmp_path / "lens.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text


def test_text_of_tokens_is_escaped_on_the_page(tmp_path):
    model = hw.wrap(build("GPT-2"), tokenizer())
    lens = hw.lens(model, tokens(1, 4))
    lens.vocabulary[int(lens.arrays.ids[0, 0])] = "</script><b>x"
    text = lens.page(tmp_path / "lens.html").read_text()
    assert "</script><b>x" not in text


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_picture_is_written_in_the_format_of_its_name(lens, tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"lens{ending}"
    figure = lens.plot(path, "rank(input)", prompt=1)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    axes = figure.axes[0]
    assert [one.get_text() for one in axes.get_yticklabels()] == list(lens.names)
    assert "rank of input" in axes.get_title()


def test_a_picture_of_another_kind_is_refused(lens, tmp_path):
    with pytest.raises(UnknownOptionError, match=r"\.png, \.svg, \.pdf"):
        lens.plot(tmp_path / "lens.bmp")
    assert not list(tmp_path.iterdir())


def test_a_long_prompt_is_cut_in_a_picture_and_that_is_said():
    lens = hw.lens(tiny("Llama"), tokens(1, 50))
    assert "(positions 0 to 39 of 50)" in lens.plot().axes[0].get_title()


def test_without_matplotlib_the_error_names_the_extra(lens, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    with pytest.raises(MissingExtraError, match=r"headwater\[matplotlib\]"):
        lens.plot()


def test_a_prompt_that_is_not_there_is_refused(lens):
    with unchecked(), pytest.raises(UnknownOptionError, match="no prompt 2: there are 2"):
        lens.plot(prompt=2)


def test_reading_through_a_translator_with_another_norm_is_refused(model):
    translator = hw.fit_lens(model, PROMPTS * 4, progress=False)
    with pytest.raises(UnknownOptionError, match="through the final norm"):
        hw.lens(model, PROMPTS, translator=translator, readout="none")


def test_a_lens_through_a_translator_is_tested_through_it(model):
    translator = hw.fit_lens(model, PROMPTS * 4, progress=False)
    lens = hw.lens(model, PROMPTS, translator=translator, mixtures=False)
    assert lens.check(sample=2, progress=False).sentences


def test_the_divergence_that_rounding_took_below_zero_is_told(lens):
    kl = lens.arrays.kl.clone()
    kl[0, 0, 0, 0] = -3e-4
    arrays = dataclasses.replace(lens.arrays, kl=kl)
    noisy = dataclasses.replace(lens, arrays=arrays)
    assert any("-3.0e-04 nats" in one for one in words.sentences(noisy))
    assert not any("Rounding" in one for one in words.sentences(lens))
