"""Scoring features of dictionaries from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import headwater as hw
from feature_twins import random_dictionaries, random_dictionary
from headwater.cli import choices
from headwater.cli.app import app
from headwater.errors import DictionaryError, GateError, UnknownOptionError
from headwater.sites import Site

HEADWATER = str(Path(sys.executable).with_name("headwater"))
ON_TINY = ("attribute", "-m", "tiny", "-t", "ioi", "--pairs", "2", "-c", "features")


def typed(*words: Any) -> str:
    """Run a command in this process and return what it prints; what it refuses is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "100"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random dictionaries of two sites of `tiny`, on disk."""
    there = tmp_path_factory.mktemp("dictionaries")
    made = random_dictionaries(hw.load("tiny"), "1.mlp.out", "3.resid_post", features=5)
    for site, one in made.items():
        hw.write_dictionary(one, there / str(site), hook=site, dtype=torch.float32)
    return there


def test_features_of_a_folder_are_scored_saved_and_audited(folder, tmp_path):
    out = tmp_path / "run"
    said = typed(*ON_TINY, "--dictionaries", folder, "--out", out)
    assert "strongest 10 of 13 components" in said
    assert f"next: headwater audit {out}" in said
    tiny = hw.load("tiny")
    expected = hw.attribute(
        tiny, hw.task("ioi")[:2], hw.features(hw.load_dictionaries(tiny, folder))
    )
    found = hw.Attribution.load(out)
    assert found.names == expected.names
    assert torch.equal(found.scores, expected.scores)
    audited = typed("audit", out, "--sample", "13", "--diagnose")
    assert "13 of 13 components checked exactly" in audited
    checked = hw.Attribution.load(out).checked
    assert checked is not None
    exact = hw.attribute(
        tiny, hw.task("ioi")[:2], hw.features(hw.load_dictionaries(tiny, folder)), hw.Exact()
    )
    for row in checked.rows:
        assert row.exact == pytest.approx(float(exact[row.name].mean()), abs=1e-5)
    assert typed("page", out) == f"wrote {out / 'page.html'}\n"


def test_features_join_other_kinds_and_take_layers_and_positions(folder):
    said = typed(
        "attribute", "-m", "tiny", "-t", "ioi", "--pairs", "2", "-c", "heads,features",
        "-d", folder, "--layers", "1", "--positions", "0,-1", "-e", "exact", "--json",
    )  # fmt: skip
    names = [row["name"] for row in json.loads(said)["components"]]
    heads = [f"a1.h{head}@{at}" for at in (0, -1) for head in range(4)]
    features = [f"m1.f{index}@{at}" for at in (0, -1) for index in range(5)]
    assert names == [*heads, *features, "m1.error@0", "m1.error@-1"]


@pytest.mark.parametrize("words", [(), ("--dictionaries", "embedded")], ids=["default", "named"])
def test_the_dictionaries_that_ship_with_the_embedded_model_are_the_default(words):
    shipped = hw.load_dictionaries(hw.load("tiny"))
    said = json.loads(typed(*ON_TINY, *words, "--layers", "0", "--json"))
    sites = {site: one for site, one in shipped.items() if site.layer == 0}
    assert len(said["components"]) == sum(one.features + 1 for one in sites.values())
    (choice,) = said["provenance"]["components"]
    assert choice["kind"] == "feature"
    assert [entry["site"] for entry in choice["dictionaries"]] == [str(site) for site in shipped]


def test_dictionaries_follow_the_model_to_float64(folder, tmp_path):
    typed(*ON_TINY, "-d", folder, "--dtype", "float64", "--out", tmp_path / "run")
    found = hw.Attribution.load(tmp_path / "run")
    assert found.scores.dtype == torch.float64
    assert "13 of 13" in typed("audit", tmp_path / "run", "--sample", "13")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("attribute", "-m", "nowhere/model", "-t", "ioi", "-c", "features"),
            "no dictionaries ship for the model 'nowhere/model', only for embedded ones.\n"
            "Say where some are: --dictionaries FOLDER.",
        ),
        (
            ("attribute", "-m", "nowhere/model", "-t", "ioi", "-d", "embedded"),
            "--dictionaries goes with features, and none are selected.\n"
            "Type -c features --dictionaries ...",
        ),
        (
            ("attribute", "-m", "nowhere/model", "-t", "ioi", "-c", "heads,feature", "-d", "x"),
            "no component kind 'feature'. Closest: 'features'. Known: tokens, heads, queries, "
            "keys, values, attentions, mlps, neurons, residual, mixers, channels, ssm_heads, ssm, "
            "conv, nodes, features.",
        ),
        (
            ("compare", "-m", "nowhere/model", "-t", "ioi", "-c", "features"),
            "features are scored by headwater attribute --dictionaries, and by headwater features.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(words, said):
    with pytest.raises(UnknownOptionError) as refused:
        typed(*words)
    assert str(refused.value) == said


def test_a_folder_is_read_before_a_model_is_loaded(tmp_path):
    on_nothing = ("attribute", "-m", "nowhere/model", "-t", "ioi", "-c", "features", "-d")
    with pytest.raises(DictionaryError, match="there is no file or folder "):
        typed(*on_nothing, tmp_path / "missing")
    with pytest.raises(DictionaryError, match="holds no dictionaries"):
        typed(*on_nothing, tmp_path)


def test_a_run_with_a_relative_folder_is_audited_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    typed(*ON_TINY, "-d", folder.name, "--layers", "3", "--out", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert "7 of 7 components checked exactly" in typed("audit", "run", "--sample", "7")


def test_a_layer_without_a_dictionary_is_refused(folder):
    with pytest.raises(GateError) as refused:
        typed(*ON_TINY, "-d", folder, "--layers", "0-1")
    assert str(refused.value) == (
        "no dictionary at layer 0: there are some at layers.1.mlp.out, layers.3.resid_post."
    )


def test_dictionaries_are_named_one_by_one(folder, tmp_path):
    first, second = sorted(folder.iterdir())
    found = choices.dictionaries([str(first), str(second)], "any")
    assert {str(site) for site in found} == {first.name, second.name}
    assert [str(site) for site in choices.dictionaries([str(second)], "any")] == [second.name]
    for name in "ab":
        shutil.copytree(first, tmp_path / name)
    with pytest.raises(DictionaryError, match="on the command line -d PATH -d PATH"):
        choices.dictionaries([str(tmp_path)], "any")
    assert len(choices.dictionaries([str(tmp_path / "b"), str(second)], "any")) == 2


def test_a_place_is_typed_behind_its_folder(folder):
    first, second = sorted(folder.iterdir())
    found = choices.dictionaries([f"{first}=layers.2.mlp.out", str(second)], "any")
    assert [str(site) for site in found] == ["layers.2.mlp.out", second.name]
    # a path that lies in another is read once
    found = choices.dictionaries([f"{first}=layers.2.mlp.out", str(folder)], "any")
    assert [str(site) for site in found] == ["layers.2.mlp.out", second.name]
    with pytest.raises(UnknownOptionError, match="names one path twice"):
        choices.dictionaries([f"{first}=layers.2.mlp.out", str(first)], "any")
    with pytest.raises(UnknownOptionError, match="Name it alone"):
        choices.dictionaries(["embedded", str(first)], "tiny")


def test_a_transcoder_has_two_places(folder, tmp_path):
    tiny = hw.load("tiny")
    width = tiny.anatomy().d_model
    one = random_dictionary(width, 5, 0, reads=width)
    hw.write_dictionary(one, tmp_path / "tc", hook="layers.1.mlp.in", hook_out="layers.1.mlp.out")
    place = f"{tmp_path / 'tc'}="
    found = choices.dictionaries([f"{place}layers.2.mlp.in:layers.2.mlp.out"], "any")
    (site,) = found
    assert (str(found.reads(site)), str(site)) == ("layers.2.mlp.in", "layers.2.mlp.out")
    with pytest.raises(DictionaryError, match="is a transcoder, and one site was named"):
        choices.dictionaries([f"{place}layers.2.mlp.out"], "any")
    swapped = choices.dictionaries([f"{place}layers.2.mlp.in:layers.0.mlp.out"], "any")
    with pytest.raises(DictionaryError, match="cannot be gated"):
        hw.feature_circuit(tiny, hw.task("ioi")[:2], swapped, nodes=3)
    plain = sorted(folder.iterdir())[0]
    with pytest.raises(DictionaryError, match="is no transcoder"):
        choices.dictionaries([f"{plain}=layers.2.mlp.in:layers.2.mlp.out"], "any")


def test_a_refusal_is_one_message_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [HEADWATER, *ON_TINY, "-d", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("DictionaryError: ")
    assert "Traceback" not in done.stderr


def test_dictionaries_that_are_read_are_put_into_the_choice_of_features(folder):
    parts = choices.components("mlps,features", "1", "each", features=True)
    found = choices.dictionaries([str(folder)], "any")
    assert isinstance(found, hw.Dictionaries)
    mlps, features = choices.coded(parts, found).choices
    assert (mlps.kind, mlps.dictionaries) == ("mlp", None)
    assert (features.kind, features.layers, features.positions) == ("feature", (1,), "each")
    assert features.dictionaries is found
    assert list(found) == [Site(1, "mlp.out"), Site(3, "resid_post")]
