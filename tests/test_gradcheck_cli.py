"""`headwater gradcheck` as a newcomer types it: words, tables, folders, exit codes, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import headwater as hw
from headwater.cli import main
from headwater.gradchecks import check

HEADWATER = str(Path(sys.executable).with_name("headwater"))
PROMPT = "Mary and John went to the store , John gave a drink to"
USUAL = ("--model", "tiny", "--prompt", PROMPT, "--site", "layers.1.mlp.post")


def gradcheck(*words, cwd=None):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(
        [HEADWATER, "gradcheck", *map(str, words)],
        capture_output=True, text=True, cwd=cwd, env=env, check=False,
    )  # fmt: skip


def in_process(monkeypatch, capsys, *words):
    """Run the command here, which costs no start, and return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["headwater", "gradcheck", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradcheck") / "check"
    run = gradcheck(*USUAL, "--metric", "prob:Mary", "--out", folder)
    assert run.returncode == 0, run.stderr
    return folder, run


def test_the_verdict_comes_first_then_signs_reach_precision_and_tables(done):
    _, run = done
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Gradient check of prob:Mary on tiny at layers.1.mlp.post")
    assert lines[2].startswith("AGREE: autograd's gradient is the slope of prob:Mary in all 21")
    for said in ("Linear range along gradient", "Signs over 256 entries", "outside the gradient's",
                 "Precision, another question than correctness", "layers.1.mlp.gate: AGREE",
                 "layers.1.mlp.up: AGREE", "steps along gradient", "truncation", "plateau",
                 "rounding"):  # fmt: skip
        assert said in run.stdout, said


def test_the_table_of_steps_has_every_step(done):
    _, run = done
    steps = run.stdout.partition("steps along gradient")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(steps) == 24
    assert steps[0].split()[0] == "1.0e+00"


def test_a_saved_check_comes_back_as_it_was_and_makes_its_page_again(done):
    folder, _ = done
    report = hw.GradientReport.load(folder)
    assert report.verdict == "agree"
    assert report.objective == "prob:Mary"
    assert report.checks[0].gradient.shape == (256,)
    page = (folder / "page.html").read_text()
    (folder / "page.html").unlink()
    again = subprocess.run(
        [HEADWATER, "page", folder], capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "wrote" in again.stdout
    assert (folder / "page.html").read_text() == page


def test_a_saved_check_holds_what_the_live_one_says(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    report = hw.check_gradient(lambda x: (x @ weight).softmax(-1), torch.randn(5),
                               grad_outputs=torch.arange(7.0))  # fmt: skip
    report.save(tmp_path / "check")
    loaded = hw.GradientReport.load(tmp_path / "check")
    assert repr(loaded) == repr(report)
    assert loaded.to_dict() == report.to_dict()


def test_another_check_is_not_replaced_unless_told(tmp_path):
    first = hw.check_gradient(torch.sin, torch.tensor(1.0))
    second = hw.check_gradient(torch.sin, torch.tensor(1.5))
    first.save(tmp_path / "check")
    first.save(tmp_path / "check")
    with pytest.raises(hw.HeadwaterError, match="already holds another gradient check"):
        second.save(tmp_path / "check")
    second.save(tmp_path / "check", overwrite=True)
    assert repr(hw.GradientReport.load(tmp_path / "check")) == repr(second)


def test_a_folder_with_other_files_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(hw, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    code, _, said = in_process(monkeypatch, capsys, *USUAL, "--metric", "kl", "--out", tmp_path)
    assert code == 2
    assert "holds other files than a gradient check (notes.txt)" in said


def test_json_has_every_number_that_the_tables_show(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, *USUAL, "--metric", "prob:Mary", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] == "agree"
    assert [one["name"] for one in found["checks"]] == [
        "layers.1.mlp.post", "layers.1.mlp.gate", "layers.1.mlp.up",
    ]  # fmt: skip
    direction = found["checks"][0]["directions"][0]
    assert len(direction["difference"]["steps"]) == 24
    assert abs(direction["gradient"] - direction["difference"]["slope"]) < 1e-8


def test_a_wrong_gradient_ends_with_1(monkeypatch, capsys):
    right = check.gradient_of
    monkeypatch.setattr(check, "gradient_of", lambda function: -right(function))
    words = ("--metric", "logprob:Mary", "--coordinates", "2")
    code, out, _ = in_process(monkeypatch, capsys, *USUAL, *words)
    assert code == 1
    assert "DISAGREE" in out
    assert "the sign is flipped" in out


def test_what_is_neither_ends_with_3(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, *USUAL, "--metric", "kl", "--coordinates", "2")
    assert code == 3
    assert "STATIONARY" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metric", "prob:Marry"), "Closest: 'Mary'"),
        (("--metric", "prob:"), "Write prob:WORD or logprob:WORD"),
        (("--metric", "prb:Mary"), "Closest: 'prob'"),
        (("--metric", "kl:Mary"), "has no answer"),
        ((), "Write --metric prob:Mary, or --answer Mary and --wrong John"),
        (("--metric", "prob"), "is --metric prob:Mary; answer='Mary' is --answer Mary"),
        (("--metric", "logit-diff", "--answer", "Mary"), "wrong='John' is --wrong John"),
        (("--metric", "prob:Mary", "--position", "14"), "positions 0 to 13"),
        (("--metric", "prob:Mary", "--position", "last"), "a number such as -1, or all"),
        (("--metric", "prob:Mary", "--coordinates", "3,256"), "0 to 255"),
        (("--metric", "prob:Mary", "--coordinates", "few"), "is not a number"),
        (("--metric", "prob:Mary", "--dtype", "float16"), "'float64' or 'native'"),
        (("--metric", "prob:Mary", "--site", "layers.1.mlp.pst"), "'layers.1.mlp.post'"),
        (("--metric", "prob:Mary", "--site", "layers.9.mlp.post"), "4 layers"),
        (("--metric", "prob:Mary", "--site", "model.layers.1.mlp.down_proj.wieght"), "Closest"),
        (("--metric", "prob:Mary", "--site", "a1.h9"), "a1.h"),
        (("--metric", "prob:Mary", "--prompt", "Mary wnet"), "no token for 'wnet'"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_what_to_type(monkeypatch, capsys, words, said):
    code, out, errors = in_process(monkeypatch, capsys, *USUAL, *words)
    assert code == 2, out
    assert said in errors, errors


def test_other_kinds_of_sites_are_typed_alike(monkeypatch, capsys):
    for site, named in (
        ("heads,mlps", "a1.h2"),
        ("a1.h2", "a1.h2"),
        ("model.layers.1.mlp.down_proj.weight", "gradient"),
        ("embed", "d"),
    ):
        words = ("--site", site, "--metric", "prob:Mary", "--coordinates", "2")
        if site in ("heads,mlps", "a1.h2"):
            words = words[:-2]
        code, out, errors = in_process(monkeypatch, capsys, *USUAL, *words)
        assert code == 0, errors
        assert named in out


def test_a_component_is_checked_by_its_own_gate_alone(monkeypatch, capsys):
    words = ("--site", "a1.h2", "--metric", "prob:Mary", "--json")
    code, out, errors = in_process(monkeypatch, capsys, *USUAL, *words)
    assert code == 0, errors
    (found,) = json.loads(out)["checks"]
    assert found["name"] == "the gate of a1.h2"
    assert [one["name"] for one in found["directions"] if one["index"] is not None] == ["a1.h2"]
    # closing it is the exact score of the head
    task = hw.Task([{"clean": PROMPT, "answer": "Mary"}], hw.prob())
    exact = hw.attribute(hw.load("tiny"), task, hw.heads(layers=[1]), hw.Exact(),
                         reference=hw.Zero())  # fmt: skip
    score = float(exact.scores[0, exact.names.index("a1.h2")])
    assert found["reach"]["exact"] == pytest.approx(score, rel=1e-4)


def test_json_has_no_number_that_is_none_in_json(monkeypatch, capsys):
    words = ("--site", "final_norm", "--metric", "prob:Mary", "--json")
    _, out, _ = in_process(monkeypatch, capsys, *USUAL, *words)

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    json.loads(out, parse_constant=refuse)


def test_a_reader_who_stops_reading_loses_neither_the_folder_nor_the_exit_code(tmp_path):
    words = ("--metric", "kl", "--coordinates", "2", "--out", tmp_path / "check")
    with subprocess.Popen(
        [HEADWATER, "gradcheck", *map(str, (*USUAL, *words))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read().decode()
        assert run.wait() == 3, said
    assert "Traceback" not in said
    assert hw.GradientReport.load(tmp_path / "check").verdict == "stationary"
    assert (tmp_path / "check" / "page.html").exists()


def test_without_a_metric_nothing_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(hw, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert in_process(monkeypatch, capsys, *USUAL)[0] == 2


def test_answers_of_metrics_that_need_two_are_options(monkeypatch, capsys):
    words = ("--answer", "Mary", "--wrong", "John", "--coordinates", "2", "--position", "4")
    code, out, errors = in_process(monkeypatch, capsys, *USUAL, *words)
    assert code == 0, errors
    assert "logit-diff" in out
    assert "position 4" in out
