"""`headwater dictionaries` as it is typed."""

import json

import pytest
from typer.testing import CliRunner

import headwater as hw
from headwater.cli.app import app
from headwater.dictionaries import read_dictionary
from headwater.errors import HeadwaterError
from headwater.loading import embedded_folder
from headwater.saes import inspect_dictionary
from headwater.zoo import corpus

RUN = CliRunner()
SHIPPED = embedded_folder() / "tiny" / "dictionaries"
ONE = SHIPPED / "layers.1.mlp.out"
QUICK = (
    *("--site", "layers.1.mlp.out", "--features", 24, "--k", 4, "--steps", 12, "--tokens", 64),
    *("--batch-size", 8, "--no-progress"),
)


def run(*words, fails=None):
    found = RUN.invoke(app, ["dictionaries", *map(str, words)])
    if fails is not None:
        assert isinstance(found.exception, HeadwaterError), found.output
        assert fails in str(found.exception)
        return str(found.exception)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


def drawn(count, *, held_out):
    texts = corpus.texts("tiny", 0, held_out=held_out)
    return [next(texts) for _ in range(count)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(drawn(12, held_out=True)))
    return path


def test_a_dictionary_is_looked_at_without_a_model():
    said = run("inspect", ONE)
    assert "a dictionary of 384 features, width 96 (topk, k=8)" in said
    assert "trained on: tiny, blocks.1.hook_mlp_out" in said
    assert "explained variance" not in said


def test_a_dictionary_is_measured_on_the_embedded_model_s_own_text_and_says_so():
    said = run("inspect", ONE, "--model", "tiny", "--limit", 6, "--no-progress")
    texts = drawn(6, held_out=True)
    found = inspect_dictionary(ONE, hw.load("tiny"), texts, progress=False).figures
    assert f"explained variance  {found.explained_variance:.4f}" in said
    assert f"{found.spliced:.4f} spliced" in said
    assert "text: 6 prompts of the grammar it was trained on (seed 0, other ones than" in said


def test_a_file_s_text_is_used_instead(file):
    data = json.loads(run("inspect", ONE, "--model", "tiny", "--file", file, "--json"))
    assert data["text"] == f"the file {file}"
    (one,) = data["dictionaries"]
    assert one["figures"]["prompts"] == 12
    assert one["figures"]["explained_variance"] > 0.9
    assert one["warnings"] == []


def test_several_dictionaries_are_a_table(file):
    looked = run("inspect", SHIPPED)
    assert len(looked.splitlines()) == 14
    said = run("inspect", "embedded", "--model", "tiny", "--file", file, "--limit", 2)
    heading, *lines = said.splitlines()
    assert heading.split() == [
        *("site", "kind", "features", "explained", "active", "dead"),
        *("spliced", "mean", "zero", "recovered"),
    ]
    by_site = {line.split()[0]: line.split() for line in lines[:13]}
    figures = inspect_dictionary(ONE, hw.load("tiny"), file, limit=2, progress=False).figures
    row = by_site["layers.1.mlp.out"]
    assert row[3] == f"{figures.explained_variance:.4f}"
    assert row[5:7] == [str(figures.dead), f"{figures.spliced:.3f}"]


def test_a_dictionary_s_place_can_be_typed_and_a_wrong_one_is_said_not_to_fit(file):
    words = ("inspect", ONE, "--model", "tiny", "--file", file, "--limit", 3)
    said = run(*words, "--site", "layers.0.attn.out")
    assert "this dictionary does not fit the activations of tiny at layers.0.attn.out" in said


def test_a_dictionary_is_trained_kept_and_judged(tmp_path):
    out = tmp_path / "sae"
    said = run("train", "--model", "tiny", *QUICK, "--limit", 20, "--out", out)
    assert "20 prompts of the grammar it was trained on (seed 0)" in said
    assert f"headwater dictionaries inspect {out} --model tiny" in said
    found = read_dictionary(out)
    assert (found.features, found.activation.k) == (24, 4)
    assert found.origin.hook == "blocks.1.hook_mlp_out"
    weights = (out / "sae_weights.safetensors").read_bytes()
    assert run("train", "--model", "tiny", *QUICK, "--limit", 20, "--out", out) == said
    assert (out / "sae_weights.safetensors").read_bytes() == weights
    run("train", "--model", "tiny", *QUICK, "--limit", 20, "--seed", 1, "--out", out,
        fails="seed: 0 there, 1 now")  # fmt: skip
    data = json.loads(run("inspect", out, "--model", "tiny", "--limit", 3, "--json"))
    assert data["dictionaries"][0]["figures"]["active"] <= 4


def test_training_reads_a_file(file, tmp_path):
    out = tmp_path / "sae"
    words = ("train", "--model", "tiny", *QUICK, "--file", file, "--out", out, "--json")
    data = json.loads(run(*words))
    assert data["training"]["corpus"] == f"the file {file}"
    assert data["training"]["reached"]["end"] == 12
    assert data["dictionary"]["features"] == 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", ONE, "--model", "some/model"), "Give a corpus: --file corpus.txt"),
        (("inspect", ONE, "--file", "x.txt"), "--file goes with --model"),
        (("inspect", "embedded"), "which embedded model's? Add --model tiny"),
        (("inspect", ONE, "--model", "tiny", "--reads", "embed"), "--reads goes with --site"),
        (("inspect", "nowhere"), "there is no file or folder nowhere"),
        (("inspect", "embedded", "--model", "tiny-gpt2"), "they do for: tiny"),
        (("train", "--model", "my/model", *QUICK, "--out", "x"), "no text is known for 'my/model'"),
        (
            ("train", "--model", "tiny", *QUICK, "--activation", "rellu", "--out", "x"),
            "no activation 'rellu'. Closest: 'relu'",
        ),
        (
            ("train", "--model", "tiny", "--site", "layers.1.mlp", "--features", 8, "--out", "x"),
            "Closest: 'layers.1.mlp.",
        ),
        (
            ("train", "--model", "tiny", *QUICK, "--limit", 1, "--out", "x"),
            "has 48 tokens in 1 prompts, and a step takes 64",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*words, fails=said)


def test_source_files_are_the_text_of_the_python_model():
    known, unseen = (corpus.texts("tiny-python", 0, held_out=held) for held in (False, True))
    tokenizer = hw.load("tiny-python").tokenizer
    for texts in (known, unseen):
        lengths = {len(tokenizer(next(texts))["input_ids"]) for _ in range(5)}
        assert lengths == {128}
