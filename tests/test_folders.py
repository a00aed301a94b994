"""Results' folders: what they take, what they refuse, and JSON that every reader takes."""

import json
import math

import pytest
import torch

from headwater import GradientReport, check_gradient, strict_json
from headwater.endings import Ending, ending_of
from headwater.errors import RunFolderError
from headwater.folders import Folder, without_versions
from headwater.lenses.translators import Evaluation
from tiny_tasks import model as tiny

FOLDER = Folder(
    report="found.json",
    tensors="found.safetensors",
    what="answer",
    made_by="hw.answer().save('FOLDER')",
    identity=lambda data: without_versions(data["provenance"]),
    page="page.html",
)
MODEL = {"name": "tiny", "device": "cpu", "weights_hash": "w", "dtype": "float32"}


def result(**changes):
    provenance = {"model": MODEL, "seed": 0, "versions": {"torch": "1"}, **changes}
    return {"provenance": provenance, "value": 1.5}


def strict(path):
    """The JSON of a file, by a reader that knows no NaN and no infinity."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_numbers_that_are_not_finite_are_null_in_json_and_come_back():
    data = {
        "a/b~c": [1.5, math.inf, {"x": -math.inf}],
        "plain": (1, "nan", None, True, -0.0),
        "deep": [[math.nan]],
    }
    text = strict_json.dumped(data)
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain["a/b~c"] == [1.5, None, {"x": None}]
    again = strict_json.loaded(text)
    assert list(again) == list(data)
    assert again["a/b~c"] == data["a/b~c"]
    assert again["plain"] == list(data["plain"])
    assert math.isnan(again["deep"][0][0])


def test_a_list_of_such_numbers_that_names_none_is_refused():
    for lost in ({"/b": "nan", "/a/0": "nan"}, {"/a": "five"}, ["/a"]):
        with pytest.raises(ValueError, match=r"not_finite|five"):
            strict_json.loaded(json.dumps({"a": 1, "not_finite": lost}))


def test_what_is_written_is_what_is_read(tmp_path):
    tensors = {"x": torch.arange(6.0).view(2, 3).mT}
    FOLDER.write(tmp_path, {**result(), "bar": math.inf}, tensors)
    data, back = FOLDER.read(tmp_path)
    assert data == {"schema_version": 1, **result(), "bar": math.inf}
    assert torch.equal(back["x"], tensors["x"])
    assert strict(tmp_path / "found.json")["bar"] is None


def test_versions_name_and_device_make_no_other_result(tmp_path):
    FOLDER.write(tmp_path, result(), {})
    moved = result(versions={"torch": "2"}, model={**MODEL, "name": "other", "device": "cuda"})
    FOLDER.claim(tmp_path, FOLDER.identity(moved))
    FOLDER.write(tmp_path, moved, {})
    assert FOLDER.data(tmp_path)["provenance"]["versions"] == {"torch": "2"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"seed: 0 there, 1 now"),
        ({"model": {**MODEL, "weights_hash": "v"}}, r"model\.weights_hash: w there, v now"),
        ({"of": [1, {"a": 2}]}, r"of: nothing there, \[1, "),
    ],
)
def test_another_result_is_refused_with_what_differs_and_can_be_overwritten(
    tmp_path, changes, said
):
    FOLDER.write(tmp_path, result(), {})
    (tmp_path / "page.html").write_text("of the first")
    other = result(**changes)
    with pytest.raises(RunFolderError, match=f"already holds another answer.*\n  {said}"):
        FOLDER.claim(tmp_path, FOLDER.identity(other))
    with pytest.raises(RunFolderError, match="already holds another answer"):
        FOLDER.write(tmp_path, other, {})
    assert FOLDER.data(tmp_path)["provenance"] == result()["provenance"]
    assert (tmp_path / "page.html").exists()
    FOLDER.write(tmp_path, other, {}, overwrite=True)
    assert not (tmp_path / "page.html").exists()


def test_a_claim_compares_no_more_than_is_known(tmp_path):
    FOLDER.write(tmp_path, result(), {})
    FOLDER.claim(tmp_path)
    FOLDER.claim(tmp_path, {"seed": 0})
    with pytest.raises(RunFolderError, match="seed: 0 there, 2 now"):
        FOLDER.claim(tmp_path, {"seed": 2})


def test_other_files_are_refused_and_what_a_killed_write_left_is_not(tmp_path):
    (tmp_path / ".found.json.abc").write_text("{")
    (tmp_path / "found.safetensors").write_text("half")
    FOLDER.claim(tmp_path, {"seed": 0})
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"other files than an answer \(thesis.tex\)"):
        FOLDER.claim(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "7", '{"schema_version": 99}', "{}"])
def test_a_report_that_is_none_is_refused_with_what_to_type(tmp_path, text):
    FOLDER.write(tmp_path, result(), {})
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"holds no answer.*\n.*hw\.answer\(\)\.save\('/"):
        FOLDER.read(tmp_path)
    with pytest.raises(RunFolderError):
        FOLDER.write(tmp_path, result(), {})
    FOLDER.write(tmp_path, result(), {}, overwrite=True)
    assert FOLDER.read(tmp_path)[0]["value"] == 1.5


def test_an_evaluation_on_one_prompt_has_no_error_bar_and_is_json(tmp_path):
    names = ("translator", "logit lens", "bias only", "marginal", "shuffled")
    sums = {name: torch.tensor([[2.0], [0.0]]) for name in names}
    found = Evaluation(("input", "r0"), sums, torch.tensor([4.0]), "lstsq")
    found.save(tmp_path)
    first = strict(tmp_path / "evaluation.json")["table"][0]
    assert (first["kl"], first["standard error"]) == (0.5, None)
    assert math.isnan(Evaluation.load(tmp_path).kl().error)


def test_a_gradient_check_with_infinite_effects_is_json_and_comes_back(tmp_path):
    report = check_gradient(torch.log, torch.tensor([2.0]))  # the logarithm of 0 is -inf
    report.save(tmp_path)
    assert strict(tmp_path / "gradcheck.json")["not_finite"]
    loaded = GradientReport.load(tmp_path)
    assert repr(loaded) == repr(report)
    assert loaded.checks[0].effects[0].zeroing == -math.inf


# --- endings ---------------------------------------------------------------------------------


def logits_of(size):
    return size * torch.randn(3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_a_scale_is_found_and_what_is_none_is_told_by_how_far_it_misses():
    raw = logits_of(1.0)
    ending, off = ending_of(tiny("Granite"), raw, 0.25 * raw, 1e-9)
    assert ending.cap is None
    assert ending.scale == pytest.approx(0.25, rel=1e-12)
    assert off < 1e-12
    _, off = ending_of(tiny("Granite"), raw, raw + 1, 1e-9)
    assert off > 0.5


def test_rounding_makes_no_scale():
    raw = logits_of(1.0)
    close = raw * (1 + 5e-5)
    assert ending_of(tiny("Llama", torch.bfloat16), raw, close, 0.1)[0] == Ending(1.0)
    exact, _ = ending_of(tiny("Llama", torch.float64), raw, close, 0.1)
    assert exact.scale == pytest.approx(1 + 5e-5, rel=1e-12)


def test_a_cap_that_is_configured_is_preferred_where_logits_are_too_small_to_tell():
    raw = logits_of(0.01)
    assert ending_of(tiny("Gemma 2"), raw, raw, 1e-6)[0] == Ending(cap=30.0)
    large = logits_of(40.0)
    assert ending_of(tiny("Gemma 2"), large, large, 1e-6)[0] == Ending(1.0)
