"""The command line as a newcomer types it, on the embedded model."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headwater as hw
from headwater.cli import choices, main
from headwater.cli.show import column_form
from headwater.cli.spelling import typed, typed_words
from headwater.errors import UnknownOptionError

HEADWATER = str(Path(sys.executable).with_name("headwater"))


def installed(*words):
    """Run the installed command; nothing is a terminal here."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(
        [HEADWATER, *map(str, words)], capture_output=True, text=True, env=env, check=False
    )


def headwater(*words, cwd="."):
    """Run the command here, which costs no start of a process; what it returns is the same."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd):
        patch.setattr(sys, "argv", ["headwater", *map(str, words)])
        patch.setenv("COLUMNS", "100")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as left:
                code = int(left.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run, made by the command line once."""
    folder = tmp_path_factory.mktemp("cli") / "ioi"
    done = installed(
        "attribute", "--model", "tiny", "--task", "ioi", "--components", "heads,mlps",
        "--estimator", "gradient", "--reference", "corrupted", "--pairs", "16", "--out", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_attribute_shows_the_strongest_components_cost_and_next_steps(run):
    folder, done = run
    assert "strongest 10 of 20 components" in done.stdout
    assert "2 forwards and 1 backward a pair (16 pairs)" in done.stdout
    assert "Not audited" in done.stdout
    assert f"next: headwater audit {folder}" in done.stdout


def test_off_a_terminal_there_are_log_lines_and_no_escape_codes(run):
    _, done = run
    assert "\x1b" not in done.stdout + done.stderr
    assert "gradient over 20 components" in done.stderr


def test_audit_checks_every_component_of_a_small_run_and_says_so(run):
    folder, _ = run
    done = headwater("audit", folder, "--sample", "32")
    assert done.returncode == 0, done.stderr
    assert "20 of 20 components checked exactly" in done.stdout
    assert (folder / "audit.json").is_file()


def test_page_is_written_beside_the_run(run):
    folder, _ = run
    done = headwater("page", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"wrote {folder / 'page.html'}"
    assert "<html" in (folder / "page.html").read_text().lower()


def test_json_output_is_one_object(run):
    done = headwater("attribute", "-m", "tiny", "-t", "ioi", "--pairs", "4", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["components"]) == 20
    assert result["provenance"]["estimator"] == {"name": "gradient", "at": "clean"}


def test_the_same_specification_may_be_run_again_and_another_is_refused(run):
    folder, _ = run
    words = ("attribute", "-m", "tiny", "-t", "ioi", "--pairs", "16", "--out", folder)
    assert headwater(*words).returncode == 0
    done = headwater(*words, "--estimator", "exact")
    assert done.returncode == 2
    assert "RunFolderError" in done.stderr
    assert "already holds another run. They differ in" in done.stderr
    assert 'estimator: {"name": "gradient"' in done.stderr


def test_a_file_of_pairs_works_as_a_task(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pair = {
        "clean": "When Mary and John went to the store , John gave a drink to",
        "corrupted": "When Mary and John went to the store , Mary gave a drink to",
        "answer": "Mary",
        "wrong": "John",
    }
    pairs.write_text(json.dumps(pair) + "\n")
    done = headwater(
        "attribute", "-m", "tiny", "-t", pairs, "--metric", "logit-diff", "-e", "exact"
    )
    assert done.returncode == 0, done.stderr
    assert "1 pairs" in done.stdout or "1 pair" in done.stdout


def test_sites_lists_shapes_and_models_lists_families():
    sites = headwater("sites", "tiny")
    assert sites.returncode == 0, sites.stderr
    assert "layers.0-3.attn.z" in sites.stdout
    models = headwater("models")
    assert models.returncode == 0, models.stderr
    for family in ("GPT-2", "Llama", "Gemma 3", "Falcon", "Mamba-2"):
        assert family in models.stdout
    rows = json.loads(headwater("models", "--json").stdout)
    assert {"tiny", "tiny-gpt2"} <= set(rows["embedded"])


TINY = ("-m", "tiny", "-t", "ioi")
REFUSED = {
    "model": (("-m", "tinny", "-t", "ioi"), "UnknownModelError", "'tiny'"),
    "task": (("-m", "tiny", "-t", "ioy"), "UnknownTaskError", "'ioi'"),
    "file": (("-m", "tiny", "-t", "no/such.jsonl"), "PairFileError", "no/such.jsonl"),
    "component": ((*TINY, "-c", "haeds"), "UnknownOptionError", "'heads'"),
    "estimator": ((*TINY, "-e", "gradeint"), "UnknownOptionError", "'gradient'"),
    "reference": ((*TINY, "-r", "corupted"), "UnknownOptionError", "'corrupted'"),
    "metric": ((*TINY, "--metric", "logitdiff"), "UnknownOptionError", "'logit-diff'"),
    "dtype": ((*TINY, "--dtype", "flaot32"), "UnknownOptionError", "float32"),
    "layer": ((*TINY, "--layers", "9"), "GateError", "layers 0 to 3"),
    "positions": ((*TINY, "--positions", "eech"), "UnknownOptionError", "each"),
    "kl": ((*TINY, "--metric", "kl"), "StationaryMetricError", "hw.Exact() is -e exact"),
    "run": (None, "RunFolderError", "headwater attribute"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_each_mistake_is_one_message_with_the_fix_and_exit_code_2(
    mistake, tmp_path, monkeypatch, capsys
):
    words, error, fix = REFUSED[mistake]
    words = ("attribute", *words) if words else ("audit", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["headwater", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert error in said
    assert fix in said
    assert "Traceback" not in said


NOWHERE = ("-m", "no/such-model", "-t", "ioi")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attribute", *NOWHERE, "-e", "gradeint"), "no estimator 'gradeint'"),
        (("attribute", *NOWHERE, "-c", "haeds"), "no component kind 'haeds'"),
        (("attribute", *NOWHERE, "-r", "corupted"), "no reference 'corupted'"),
        (("attribute", "-m", "no/such-model", "-t", "ioy"), "'ioy'"),
        (("attribute", *NOWHERE, "--tolerance", "-1"), "tolerance=-1.0 is not above 0"),
        (("compare", *NOWHERE, "-e", "gradient,gradeint"), "no estimator 'gradeint'"),
        (("compare", *NOWHERE, "--positions", "eech"), "--positions 'eech' is unknown"),
        (("compare", *NOWHERE, "-r", "corupted"), "no reference 'corupted'"),
    ],
)
def test_what_was_typed_is_judged_before_a_model_is_looked_for(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["headwater", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("atp-star:grad_drop=0", hw.AtPStar(grad_drop=False)),
        ("atp-star:grad-drop=off:keys=True", hw.AtPStar(grad_drop=False, keys=True)),
        ("ig:path=inputs:rule=midpoint:steps=10", hw.IntegratedGradients("inputs", "midpoint", 10)),
        ("ig:tolerance=1e-3", hw.IntegratedGradients(tolerance=0.001)),
        ("ig:tolerance=none", hw.IntegratedGradients(tolerance=None)),
        ("second-order:probes=exact", hw.SecondOrder(probes="exact")),
        ("second-order:probes=4", hw.SecondOrder(probes=4)),
        ("auto:budget=30", hw.Auto(budget=30.0)),
        ("gradient:at=corrupted", hw.Gradient(at="corrupted")),
        ("trained-mask:patience=none", hw.TrainedMask(patience=None)),
        ("trained-mask:checkpoints=1", hw.TrainedMask(checkpoints="1")),
    ],
)
def test_typed_options_become_what_their_field_takes(words, made):
    # equal alone would let 1 pass for True and 3 for 3.0
    assert repr(choices.estimator(words)) == repr(made)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("atp-star:grad_drop=flase", "atp-star: grad_drop='flase' is not one of true, yes"),
        ("atp-star:grad_drop=none", "grad_drop='none' is not one of true"),
        ("shapley:permutations=none", "shapley: permutations='none' is not a whole number."),
        ("shapley:permutations=true", "permutations='true' is not a whole number."),
        ("ig:path=jont", "ig: path='jont' is not one of inputs, family, component, joint."),
        ("ig:tolerance=x", "ig: tolerance='x' is not a number or none."),
        ("second-order:probes=exat", "is not a whole number or exact. Closest: 'exact'."),
    ],
)
def test_options_of_another_type_are_refused(words, said):
    with pytest.raises(UnknownOptionError) as error:
        choices.estimator(words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ("Write reference=hw.Corrupted().", "hw.Corrupted() is -r corrupted"),
        ('Use hw.Mean(over="clean").', 'hw.Mean(over="clean") is -r mean --over clean'),
        ('hw.Gradient(at="corrupted")', 'hw.Gradient(at="corrupted") is -e gradient:at=corrupted'),
        ("Type hw.IntegratedGradients(steps=4)", "is -e ig:steps=4"),
        ("write hw.residual(layers=[...])", "hw.residual(layers=[...]) is -c residual"),
        ("another metric such as hw.logit_diff()", "hw.logit_diff() is --metric logit-diff"),
    ],
)
def test_python_in_a_refusal_is_said_as_it_is_typed(refusal, said):
    assert said in typed_words(refusal)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ("no.\nType the smallest effect: theta=0.05.", "theta=0.05 is --theta 0.05."),
        ("no.\nType batch_size=8, or dtype='float32'.", "batch_size=8 is --batch-size 8; dtype="),
        ('no.\nRaise steps=, or use path="family".', 'steps= is ig:steps=; path="family" is ig:'),
        ("no.\nType a gap, such as tolerance=0.01.", "tolerance=0.01 is ig:tolerance=0.01."),
    ],
)
def test_arguments_in_the_advice_are_said_as_options_of_what_was_typed(refusal, said):
    assert said in typed_words(refusal, ["headwater", "attribute", "-e", "ig:tolerance=-1"])


def test_the_value_that_was_refused_is_no_advice():
    assert typed_words("theta=-1.0 is not above 0.\nType a larger one.") == ""


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("Too few checks: raise sample=.", "Too few checks: raise --sample."),
        ("hw.verify(scores, theta=...) looks.", "headwater verify RUN --theta ... looks."),
        ("... 34 more in .rows", "... 34 more; --json has all"),
        ("... 3 more in audit.rows", "... 3 more; --json has all"),
        ("All of them: scores.error_bars().", "All of them: --json."),
        (
            "Use dtype='float64', or raise tolerance=.",
            "Use --dtype float64, or raise ig:tolerance=.",
        ),
        ("Type reference=hw.PositionalMean().", "Type -r positional-mean."),
        ('confirm with hw.Exact(at="corrupted")', "confirm with -e exact:at=corrupted"),
        ("r 0.97; p > 0.99, n=3", "r 0.97; p > 0.99, n=3"),
    ],
)
def test_what_a_result_says_is_written_as_it_is_typed(result, said):
    assert typed(result, ["ig"]) == said


def test_what_cannot_be_typed_is_left_alone():
    assert typed_words("no such file") == ""
    assert typed_words("Give it one: hw.wrap(module, tokenizer=...).") == ""


def test_an_audit_keeps_the_tolerance_that_was_asked_for_with_it():
    done = headwater(
        "attribute", "-m", "tiny", "-t", "ioi", "--pairs", "4", "-c", "heads",
        "--tolerance", "0.05", "--audit", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # the tolerance had all of them checked, and a sample of what is known would say less
    assert "16 of 16 components checked exactly" in done.stdout
    assert "error bars: every half width is at most 0.05 at 90 %" in done.stdout


def test_too_few_checks_say_which_option_to_raise():
    words = ("attribute", "-m", "tiny", "-t", "ioi", "--pairs", "2", "-c", "heads", "--audit", "1")
    done = headwater(*words)
    assert "Too few checks for a verdict: raise --audit." in done.stdout


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([9.658, -0.0123], ["+9.658", "-0.012"]),
        ([0.0004434, -0.00003], ["+0.0004434", "-0.0000300"]),
        ([-1234.5, 2.0], ["-1234", "+2"]),
        ([3e-7, 0.0], ["+3.000e-07", "+0.000e+00"]),
        ([0.0, 0.0], ["+0.000", "+0.000"]),
    ],
)
def test_a_column_has_four_digits_in_its_largest_number_and_one_number_of_decimals(values, shown):
    form = column_form(values)
    assert [f"{value:+{form}}" for value in values] == shown


def test_small_scores_are_not_printed_as_zero():
    done = headwater(
        "attribute", "-m", "tiny", "-t", "ioi", "--pairs", "4", "--metric", "cross-entropy"
    )
    scores = [line.split()[1] for line in done.stdout.splitlines() if re.match(r"[am]\d", line)]
    assert len(scores) == 10
    assert all(float(score) != 0 for score in scores)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "headwater", "attribute", "-m", "tinny", "-t", "ioi"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "UnknownModelError" in done.stderr


def test_a_survey_without_attention_says_what_to_run_instead():
    done = headwater("survey", "-m", "tiny-mamba", "-t", "ioi")
    assert done.returncode == 2
    assert "a survey counts saturated rows of attention, and Mamba shows none" in done.stderr
    assert "headwater compare -m tiny-mamba -t ioi -c mixers" in done.stderr


def test_a_survey_in_the_folder_of_a_run_leaves_the_run_as_it_is(run):
    folder, _ = run
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = headwater(
        "survey", "-m", "tiny", "-t", "ioi", "--sample", "4", "--tested", "2", "-o", folder
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert hw.Attribution.load(folder).names


def test_an_unknown_flag_is_refused_with_exit_code_2():
    done = installed("attribute", "--modle", "tiny")
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_demo_prints_the_result_and_writes_the_page(tmp_path):
    done = headwater("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 of 20 components checked exactly" in done.stdout
    assert (tmp_path / "demo" / "page.html").stat().st_size > 20_000
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    shown = readme[readme.index("```\nioi on tiny") + 3 :].split("```")[0]
    for part in shown.split("..."):
        assert " ".join(part.split()) in " ".join(done.stdout.split())
    again = headwater("demo", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_compare_prints_a_row_an_estimator_and_writes_runs_and_a_page(tmp_path):
    done = headwater(
        "compare", "--model", "tiny", "--task", "ioi", "--components", "heads,mlps",
        "--estimators", "gradient,ig:steps=2,exact", "--pairs", "8", "--out", tmp_path / "cmp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("gradient", "ig:steps=2", "exact"):
        assert name in done.stdout
    assert "20 of 20 components checked exactly" in done.stdout
    assert (tmp_path / "cmp" / "page.html").is_file()
    assert (tmp_path / "cmp" / "ig-steps=2" / "run.json").is_file()
    other = headwater(
        "compare", "-m", "tiny", "-t", "ioi", "-e", "gradient", "-o", tmp_path / "cmp"
    )
    assert other.returncode == 2
    assert "already holds another comparison" in other.stderr
    inside = headwater("page", tmp_path / "cmp")
    assert inside.returncode == 2
    assert "holds a comparison, one run an estimator: exact, gradient, ig-steps=2" in inside.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--estimator", "ig:steps=x"], "ig: steps='x' is not a whole number"),
        (["--estimator", "ig:stepz=3"], "ig has no option 'stepz'. Closest: 'steps'"),
        (["--estimator", "ig:path"], "ig: option 'path' has no value.\nWrite ig:path=value, the"),
        (["--layers", "5-1"], "--layers '5-1': the range 5-1 is reversed.\nWrite 1-5."),
        (["--layers", "0-"], "--layers '0-': '0-' is not a number"),
        (["--positions", "-1,-1"], "position -1 is given twice"),
        (["--estimator", "atpstar"], "no estimator 'atpstar'. Closest: 'atp-star'"),
        (["--estimator", "ig", "--at", "corrupted"], "--at corrupted: ig has no end to choose"),
        (["--draws", "3"], "--draws goes with --reference resample"),
        (["--reference", "mean", "--over", "nowhere.txt"], "neither corrupted or clean nor a file"),
        (["--budget", "5"], "are of the error bars that --tolerance asks for"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(words, said):
    done = headwater("attribute", "--model", "tiny", "--task", "ioi", "--pairs", "2", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_end_stands_in_the_title():
    done = headwater(
        "attribute", "--model", "tiny", "--task", "ioi", "--components", "mlps", "--pairs", "2",
        "--at", "corrupted",
    )  # fmt: skip
    assert "ioi on tiny: gradient, reference corrupted, at the corrupted end" in done.stdout


def test_magnitudes_say_that_they_are():
    done = headwater(
        "attribute", "--model", "tiny", "--task", "ioi", "--components", "mlps", "--pairs", "4",
        "--estimator", "atp-star",
    )  # fmt: skip
    assert "these scores are magnitudes: the mean over pairs of |effect|" in done.stdout


def test_two_ends_that_contradict_each_other_are_refused():
    with pytest.raises(UnknownOptionError, match="--at corrupted contradicts gradient:at=clean"):
        choices.estimator("gradient:at=clean", "corrupted")


def test_a_layer_that_is_not_there_is_answered_with_the_range_to_type():
    done = headwater("attribute", "-m", "tiny", "-t", "ioi", "--pairs", "2", "--layers", "9")
    assert done.returncode == 2
    assert "--layers 0-3" in done.stderr
