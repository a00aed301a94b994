"""`headwater shift` as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from headwater.cli.app import app
from headwater.errors import HeadwaterError
from headwater.shifts import Examples, Shift, read_judgments
from headwater.zoo.biased import biased

RUN = CliRunner()
QUICK = ("--site", "layers.0.resid_post", "--sample", 8, "--estimator", "gradient", "--audit", 4)


def run(*words, fails=None):
    found = RUN.invoke(app, ["shift", *map(str, words)])
    if fails is not None:
        assert isinstance(found.exception, HeadwaterError), found.output
        assert fails in str(found.exception)
        return str(found.exception)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    run("data", "--task", "gender-by-number", "--count", 40, "--out", folder)
    return "--biased", folder / "biased.jsonl", "--balanced", folder / "balanced.jsonl"


def test_an_embedded_task_is_written_as_two_files(files):
    some, balanced = biased("gender-by-number", 40)
    assert Examples.read(files[1]).sha256() == some.sha256()
    assert Examples.read(files[3]).sha256() == balanced.sha256()


def test_features_are_shown_and_a_file_is_left_to_judge_them_in(files, tmp_path):
    path = tmp_path / "judge.jsonl"
    said = run("features", "--model", "tiny", *files[:2], *QUICK, "--top", 3, "--out", path)
    assert "Probe at layers.0.resid_post (mean over tokens): male or female" in said
    assert "4 of 1,540 components checked exactly" in said
    biased = " ".join(map(str, files[:2]))
    command = f"headwater shift ablate --model tiny {biased} --balanced BALANCED.jsonl"
    (again,) = (line for line in said.splitlines() if line.startswith(command))
    assert again.endswith(
        f" --site layers.0.resid_post --estimator gradient --sample 8 --judged {path}"
    )
    judged = read_judgments(path)
    assert len(judged) == 3
    assert {one.judgment for one in judged} == {""}
    assert all("[[" in one.contexts[0] for one in judged)
    again = ("features", "--model", "tiny", *files[:2], "--out", path)
    run(*again, fails="judgments in it would be lost")


def test_judgments_are_filled_in_by_the_rule(files):
    said = run("features", "-m", "tiny", *files, *QUICK, "--top", 5, "--by-rule", "--json")
    data = json.loads(said)
    assert {one["judgment"] for one in data["features"]} <= {"ablate", "keep"}
    assert all("on_spurious" in one for one in data["features"])
    assert data["probe"]["classes"] == ["female", "male"]


def test_what_was_judged_is_ablated_and_saved(files, tmp_path):
    path, out = tmp_path / "judge.jsonl", tmp_path / "run"
    path.write_text('{"feature": "r0.f93", "judgment": "ablate"}\n')
    said = run("ablate", "-m", "tiny", *files, *QUICK, "--judged", path, "--draws", 1, "--out", out)
    assert "1 feature ablated, as judgments say that were given" in said
    assert "  and retrained" in said
    assert f"saved in {out}" in said
    assert Shift.load(out).ablated == ("r0.f93",)


def test_names_are_ablated_without_a_file():
    task = ("--task", "gender-by-number", "--count", 40, "--bias", 0.9)
    words = (*task, *QUICK, "--names", "r0.f93, m0.f93", "--draws", 0, "--json", "-r", "mean")
    data = json.loads(run("ablate", "-m", "tiny", *words))
    assert data["ablated"] == ["r0.f93", "m0.f93"]
    assert data["provenance"]["reference"]["name"] == "mean"
    assert data["provenance"]["biased"]["groups"]["female, singular"] == 2
    assert [one["kind"] for one in data["outcomes"]] == ["before", "ablated", "ablated", "oracle"]


def test_what_was_typed_is_judged_before_a_model_is_loaded(files):
    run("ablate", "-m", "none", fails="neither was given")
    run("ablate", "-m", "none", *files, "--task", "gender-by-number", fails="both were given")
    run("ablate", "-m", "none", *files[:2], fails="--biased was given without --balanced")
    run("features", "-m", "none", "-t", "gender-by-numbr", fails="Closest: 'gender-by-number'")
    run("ablate", "-m", "none", *files, "-r", "zeros", fails="Closest: 'zero'")
    run("ablate", "-m", "none", *files, "--bias", 0.5, fails="--count and --bias are of --task")
    run("features", "-m", "none", *files, "--threshold", 0.9, fails="Add --by-rule")
    run(
        "ablate", "-m", "none", *files, "--judged", "x", "--names", "y",
        fails="both --judged and --names",
    )  # fmt: skip
    run(
        "features", "-m", "none", "-t", "gender-by-number", "--balanced", files[3],
        fails="has a balanced set of its own",
    )  # fmt: skip
