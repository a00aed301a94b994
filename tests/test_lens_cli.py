"""`headwater lens` as it is typed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headwater as hw
from headwater.cli.app import app
from headwater.errors import HeadwaterError
from headwater.zoo.grammar import window

PROMPT = "Mary and John went to the store"
HEADWATER = str(Path(sys.executable).with_name("headwater"))
RUN = CliRunner()


def run(*words, fails=None):
    found = RUN.invoke(app, ["lens", *map(str, words)])
    if fails is not None:
        assert isinstance(found.exception, HeadwaterError), found.output
        assert fails in str(found.exception)
        return str(found.exception)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    draw = random.Random(0)
    path.write_text("\n".join(" ".join(window(draw, repeated=0.2)[1:]) for _ in range(40)))
    return path


def test_a_text_shows_grid_table_and_sentences_and_leaves_a_page(tmp_path):
    said = run("--model", "tiny", "--text", PROMPT, "--against", "final,first", "--out", tmp_path)
    assert "Position i has read the tokens up to and including i" in said
    assert "KL(final||row)" in said
    assert "KL(row||first)" in said
    assert "museum" in said
    assert (tmp_path / "page.html").is_file()
    assert hw.Lens.load(tmp_path).texts == (PROMPT,)


def test_json_holds_the_means_of_every_row():
    data = json.loads(run("--model", "tiny", "--text", PROMPT, "--json", "--no-progress"))
    lens = hw.lens(hw.load("tiny"), PROMPT)
    by_row = {one["row"]: one for one in data["rows"]}
    assert list(by_row) == list(lens.names)
    expected = float(lens.kl()[lens.row("r1")].mean())
    assert by_row["r1"]["kl(final||layer)"] == pytest.approx(expected, rel=1e-5)


def test_other_rows_can_be_compared_with():
    said = run("--model", "tiny", "--text", PROMPT, "--against", "r1,2", "--sublayers")
    assert "KL(r1||row)" in said
    assert "KL(r2||row)" in said
    assert "r3.mid" in said


def test_a_lens_can_be_tested_and_what_was_found_is_on_the_page(tmp_path):
    words = "Mary gave a ball to John and Mary gave a ball to"
    said = run("--model", "tiny", "--text", words, "--check", 3, "--kept", 3, "--out", tmp_path)
    assert "put to the test" in said
    assert "recur" in said
    assert set(hw.Lens.load(tmp_path).added) == {"check", "kept"}


def test_a_corpus_is_streamed_with_rarity_and_its_page_shows_examples(corpus, tmp_path):
    said = run("--model", "tiny", "--file", corpus, "--rarity", "--out", tmp_path)
    assert "40 prompts" in said
    assert "confounded" in said
    assert "bootstrap over 40 prompts" in said
    page = (tmp_path / "page.html").read_text()
    assert "Layers by positions" in page
    again = hw.LensSummary.load(tmp_path)
    assert again.tally.prompts == 40
    assert run("--model", "tiny", "--file", corpus, "--rarity", "--out", tmp_path) == said


def test_a_translator_is_fitted_used_and_judged(corpus, tmp_path):
    out = tmp_path / "lens"
    said = run("fit", "--model", "tiny", "--file", corpus, "--method", "lstsq", "--out", out)
    assert "least squares" in said
    used = run("--model", "tiny", "--text", PROMPT, "--translator", out)
    assert used != run("--model", "tiny", "--text", PROMPT)
    held_out = tmp_path / "heldout.txt"
    draw = random.Random(1)
    held_out.write_text("\n".join(" ".join(window(draw, repeated=0.2)[1:]) for _ in range(20)))
    judged = run("evaluate", out, "--model", "tiny", "--file", held_out)
    for control in ("logit lens", "bias only", "marginal", "shuffled", "untrained"):
        assert control in judged
    assert "tiny-gpt2" in run(
        "--model", "tiny-gpt2", "--text", PROMPT, "--translator", out, fails="fitted to tiny"
    )


def forbidden(monkeypatch, name):
    """Let nothing be computed: what is refused later than before the work fails."""

    def ran(*args, **kwargs):
        pytest.fail(f"{name} ran")

    monkeypatch.setattr(f"headwater.{name}", ran)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", 1], "seed: 0 there, 1 now"),
        (["--best", 3], "best: 10 there, 3 now"),
        (["--tokens", "John"], "tokens"),
        (["--sublayers"], "names"),
        (["--layers", "1"], "names"),
        (["--readout", "none"], "readout: final-norm there, none now"),
        (["--text", "John"], "texts"),
    ],
)
def test_a_folder_of_another_lens_is_refused_before_anything_runs(
    tmp_path, monkeypatch, words, said
):
    hw.lens(hw.load("tiny"), PROMPT).save(tmp_path)
    forbidden(monkeypatch, "lens")
    usual = ["--model", "tiny", "--text", PROMPT, "--check", 8, "--out", tmp_path]
    refusal = run(*usual, *words, fails="already holds another lens")
    assert said in refusal


def test_a_lens_through_a_translator_claims_its_folder(corpus, tmp_path, monkeypatch):
    model = hw.load("tiny")
    hw.fit_lens(model, corpus).save(tmp_path / "map")
    usual = ["--model", "tiny", "--text", PROMPT, "--translator", tmp_path / "map"]
    run(*usual, "--out", tmp_path / "run")
    run(*usual, "--out", tmp_path / "run")  # the same again
    forbidden(monkeypatch, "lens")
    said = run(*usual[:4], "--out", tmp_path / "run", fails="another lens")
    assert "translator" in said


def test_other_files_are_refused_before_a_model_is_loaded(corpus, tmp_path, monkeypatch):
    hw.fit_lens(hw.load("tiny"), corpus).save(tmp_path / "map")
    (tmp_path / "notes.txt").write_text("mine")
    forbidden(monkeypatch, "load")
    for words in (
        ["--text", PROMPT],
        ["fit", "--file", corpus],
        ["evaluate", tmp_path / "map", "--file", corpus],
        ["logit", "--prompt", PROMPT, "--answer", "Mary"],
    ):
        run(*words, "--model", "tiny", "--out", tmp_path, fails="(map, notes.txt)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "bias", "--steps", 2], "method: lstsq there, bias now"),
        (["--seed", 3], "seed: 0 there, 3 now"),
        (["--limit", 9], "corpus: "),
        (["--length", 5], "corpus: "),
        (["--file", "{other}"], "corpus: "),
        (["--file", "{longer}"], "corpus: "),
        (["--layers", "1"], "rows"),
    ],
)
def test_a_folder_of_another_translator_is_refused_before_anything_is_fitted(
    corpus, tmp_path, monkeypatch, words, said
):
    other, longer = tmp_path / "other.txt", tmp_path / "longer.txt"
    other.write_text(corpus.read_text().replace("Mary", "Anna"))
    longer.write_text(corpus.read_text() + "\nMary and John")
    usual = ["fit", "--model", "tiny", "--file", corpus, "--out", tmp_path / "map"]
    run(*usual)
    run(*usual)  # the same again
    forbidden(monkeypatch, "fit_lens")
    words = [str(one).format(other=other, longer=longer) for one in words]
    assert said in run(*usual, *words, fails="already holds another translator")


@pytest.mark.parametrize("method", ["bias", "kl"])
def test_a_trained_translator_is_fitted_again_into_its_folder(corpus, tmp_path, method):
    usual = ["fit", "--model", "tiny", "--file", corpus, "--method", method, "--out", tmp_path]
    hw.fit_lens(hw.load("tiny"), corpus, method, steps=2).save(tmp_path)
    assert f"saved in {tmp_path}" in run(*usual, "--steps", 2)
    assert "steps: 2 there, 3 now" in run(*usual, "--steps", 3, fails="another translator")


def test_an_evaluation_in_the_folder_of_another_translator_is_refused(
    corpus, tmp_path, monkeypatch
):
    model = hw.load("tiny")
    hw.fit_lens(model, corpus).save(tmp_path / "one")
    hw.fit_lens(model, corpus, limit=20).save(tmp_path / "other")
    monkeypatch.setattr(hw.Translator, "evaluate", lambda *_, **__: pytest.fail("it ran"))
    usual = ["evaluate", tmp_path / "one", "--model", "tiny", "--file", corpus]
    run(*usual, "--out", tmp_path / "other", fails="another translator than the one that is judged")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--answer", "John"], "task.pairs[0].answer"),
        (["--position", -2], "position: -1 there, -2 now"),
        (["--components", "mlps"], "components"),
        (["--dtype", "float64"], "model.dtype: float32 there, float64 now"),
        (["--against", "John"], "against: False there, True now"),
    ],
)
def test_a_folder_of_another_logit_is_refused_before_anything_runs(
    tmp_path, monkeypatch, words, said
):
    usual = ["logit", "--model", "tiny", "--prompt", PROMPT, "--answer", "Mary", "--out", tmp_path]
    run(*usual)
    run(*usual)  # the same again
    forbidden(monkeypatch, "attribute_logit")
    assert said in run(*usual, *words, fails="already holds another logit's attribution")


def test_seed_and_progress_reach_the_tests_of_a_lens(monkeypatch):
    given = {}
    for name in ("check", "kept"):
        real = getattr(hw.Lens, name)

        def noted(lens, *args, real=real, name=name, **options):
            given[name] = options
            return real(lens, *args, **options)

        monkeypatch.setattr(hw.Lens, name, noted)
    words = "Mary gave a ball to John and Mary gave a ball to"
    usual = ["--model", "tiny", "--text", words, "--check", 2, "--kept", 3]
    run(*usual, "--seed", 5, "--no-progress")
    assert given["check"] == {"sample": 2, "seed": 5, "progress": False}
    assert given["kept"] == {"sample": 3, "seed": 5, "progress": False}


def test_a_logit_is_split_into_what_parts_write():
    prompt = f"{PROMPT} , John gave a drink to"
    said = run(
        "logit", "--model", "tiny", "--prompt", prompt, "--answer", "Mary", "--against", "John",
        "--audit",
    )  # fmt: skip
    assert "a3.h0" in said
    assert "frozen" in said
    assert "total" in said


def test_a_run_folder_of_either_kind_becomes_a_page_again(corpus, tmp_path):
    run("--model", "tiny", "--text", PROMPT, "--out", tmp_path / "one")
    run("--model", "tiny", "--file", corpus, "--out", tmp_path / "many")
    for name in ("one", "many"):
        (tmp_path / name / "page.html").unlink()
        found = RUN.invoke(app, ["page", str(tmp_path / name)])
        assert found.exit_code == 0, found.exception
        assert "predicts" in (tmp_path / name / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", PROMPT], "which model?"),
        (["--model", "tiny"], "neither --text nor --file"),
        (["--model", "tiny", "--text", "a", "--file", "b"], "both --text and --file"),
        (["--model", "tiny", "--file", "none.txt"], "no file 'none.txt'"),
        (["--model", "tiny", "--text", PROMPT, "--layers", "9"], "no layer 9"),
        (["--model", "tiny", "--text", PROMPT, "--against", "r9"], "no row 'r9'"),
        (["--model", "tiny", "--text", PROMPT, "--readout", "norm"], "readout='norm'"),
        (["--model", "tiny", "--text", PROMPT, "--plot", "x.bmp"], "'x.bmp'"),
        (["--model", "tiny", "--text", PROMPT, "--rarity", "--counts", "x"], "--counts 'x'"),
        (["--model", "tiny", "--file", "x", "--check", "2"], "--check goes with --text"),
        (["--model", "tiny", "--file", "x", "--against", "r1"], "--against goes with --text"),
        (["--model", "tiny", "--file", "x", "--best", "10"], "--best goes with --text"),
        (["--model", "tiny", "--file", "x", "--statistic", "rms"], "--statistic goes with --text"),
        (["--model", "tiny", "--file", "x", "--counts", "corpus"], "--counts goes with --rarity"),
        (["--model", "tiny", "--text", PROMPT, "--limit", "3"], "--limit goes with --file"),
        (["--model", "tiny", "--text", PROMPT, "--max-tokens", "512"], "--max-tokens goes with"),
        (["--model", "tiny", "--text", PROMPT, "--counts", "corpus"], "--counts goes with --rar"),
        (["--model", "tiny", "--text", PROMPT, "--statistic", "rms"], "--statistic goes with --pl"),
    ],
)
def test_what_cannot_be_done_is_refused(words, said):
    run(*words, fails=said)


@pytest.mark.parametrize("words", ["zoo", "sites tiny", f"lens --model tiny --text '{PROMPT}'"])
def test_a_reader_that_closes_the_pipe_makes_no_failure(words):
    command = f"{HEADWATER} {words} 2> /dev/null | head -1 > /dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_ctrl_c_says_so_and_what_is_saved(tmp_path, monkeypatch, capsys, caplog):
    from headwater.cli import main
    from headwater.lenses import dataset

    corpus, read = tmp_path / "corpus.txt", []
    corpus.write_text(f"{PROMPT}\n" * 20)
    real = dataset.measure

    def measure(*given, **options):
        read.append(None)
        if len(read) == 18:  # a window is 16 batches
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(dataset, "measure", measure)
    monkeypatch.setattr(
        sys, "argv",
        ["headwater", "lens", "--model", "tiny", "--file", str(corpus), "--batch-size", "1",
         "--out", str(tmp_path / "run")],
    )  # fmt: skip
    with caplog.at_level("INFO", "headwater"), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert f"16 prompts are saved in {tmp_path / 'run'}: run again, it goes on" in caplog.text
