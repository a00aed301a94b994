"""Pairs made for another tokenizer: which can be used, why the others cannot, and their lengths."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headwater as hw
from headwater.errors import HeadwaterError, PromptError, UnknownWordError
from headwater.metrics import METRICS
from headwater.prompts import Task
from headwater.zoo.byte_tokenizer import START, build_tokenizer
from small_tokenizers import byte_tokenizer, word_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data" / "feature_circuits"
FIRST = 300
"""How many pairs of a file are tried."""
FILES = sorted(DATA.glob("*.json"))
real = pytest.mark.skipif(not FILES, reason=f"no pair files under {DATA}")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

BYTES = build_tokenizer(positions=256)
WORDS = word_tokenizer("The cat cats dog sat sit runs run ran now")

FITS = {"clean": "The cat", "corrupted": "The dog", "answer": "sat", "wrong": "sit"}
LONG_ANSWER = {**FITS, "answer": "sat now"}
LONGER = {**FITS, "corrupted": "The cat now"}
BOTH = {**LONGER, "wrong": "sit now"}


def reasons(rows, metric=None, **how):
    return Task(rows, metric).usable(WORDS, **how).reasons


# What is left out, and why ------------------------------------------------------------------------


def test_every_pair_that_fits_is_kept_and_the_task_is_the_same():
    task = Task([FITS, {**FITS, "answer": "ran"}])
    usable = task.usable(WORDS)
    assert usable.task is task
    assert (usable.kept, usable.left_out, usable.reasons) == ((0, 1), (), {})
    assert repr(usable) == (
        "Task 'task': 2 of 2 pairs can be used with this tokenizer and the metric logit-diff"
    )


def test_the_others_are_counted_by_reason_and_quoted():
    usable = Task([FITS, LONGER, BOTH, FITS, BOTH], name="cats").usable(WORDS)
    assert usable.kept == (0, 3)
    assert usable.reasons == {"prompts of unequal length": 3, "an answer of several tokens": 2}
    assert usable.to_dict() == {
        "pairs": 5,
        "kept": 2,
        "condition": "this tokenizer and the metric logit-diff",
        "left_out": {"prompts of unequal length": 3, "an answer of several tokens": 2},
    }
    assert repr(usable) == (
        "Task 'cats': 2 of 5 pairs can be used with this tokenizer and the metric logit-diff; "
        "left out: 3 for prompts of unequal length, 2 for an answer of several tokens "
        "(2 for more than one reason)\n"
        "  pair 1: clean has 3 tokens, corrupted 4; they part at position 3 (the end / 'now').\n"
        "  pair 2: an answer is 2 tokens, 'sit'|'now'; the metric logit-diff reads one token. "
        'Choose answers of one token, or metric="logprob", which follows several.'
    )


def test_the_task_of_the_others_tells_in_its_source_what_was_left_out():
    task = Task([LONGER, FITS], "prob", name="cats", source="cats.json")
    kept = task.usable(WORDS).task
    assert kept.pairs == (task.pairs[1],)
    assert (kept.metric, kept.name) == (hw.prob(), "cats")
    assert kept.source == (
        "cats.json: 1 of 2 pairs can be used with this tokenizer and the metric prob; "
        "left out: 1 for prompts of unequal length"
    )
    assert Task.from_dict(kept.to_dict()).source == kept[:1].source == kept.source
    assert task.source == "cats.json"


def test_a_task_without_usable_pairs_is_refused_with_the_reasons():
    usable = Task([LONGER], name="cats").usable(WORDS)
    assert usable.kept == ()
    with pytest.raises(PromptError) as refusal:
        _ = usable.task
    assert str(refusal.value) == (
        "Task 'cats': 0 of 1 pairs can be used with this tokenizer and the metric logit-diff; "
        "left out: 1 for prompts of unequal length\n"
        "  pair 0: clean has 3 tokens, corrupted 4; they part at position 3 (the end / 'now').\n"
        'A reference that needs no corrupted prompt, reference=hw.Mean(over="clean"), also takes '
        "prompts of unequal length: usable(tokenizer, align=False)."
    )


def test_where_lengths_are_not_the_reason_the_refusal_does_not_speak_of_them():
    with pytest.raises(PromptError, match=r"change what the first one is left out for\.$"):
        _ = Task([LONG_ANSWER]).usable(WORDS).task


@pytest.mark.parametrize(
    ("row", "metric", "reason"),
    [
        (LONG_ANSWER, "logit-diff", "an answer of several tokens"),
        ({**FITS, "wrong": "sit now"}, "prob-diff", "an answer of several tokens"),
        (LONGER, "kl", "prompts of unequal length"),
        ({**FITS, "clean": "The bird"}, None, "a word without a token"),
        ({**FITS, "corrupted": "The bird"}, None, "a word without a token"),
        ({**FITS, "answer": "sang"}, None, "a word without a token"),
        ({**FITS, "wrong": None}, "logit-diff", "an answer missing"),
        ({**FITS, "wrong": " sat"}, None, "an answer that cannot be read"),
        ({**FITS, "answer": 99}, None, "an answer that cannot be read"),
        ({**FITS, "corrupted": "The  cat"}, None, "a prompt that cannot be used"),
    ],
)
def test_each_refusal_has_its_reason(row, metric, reason):
    assert reasons([FITS, row], metric or "logit-diff") == {reason: 1}


def test_a_prompt_that_the_metric_cannot_score_is_left_out():
    bare = word_tokenizer("The cat", template="$A")
    usable = Task([{"clean": "The"}, {"clean": "The cat"}], "cross-entropy").usable(bare)
    assert usable.reasons == {"a prompt that cannot be used": 1}
    assert repr(usable).endswith(
        "\n  pair 0: cross-entropy needs a prompt of at least 2 tokens, since it scores each "
        "token given those before it; this one has 1."
    )


def test_a_metric_that_reads_several_tokens_keeps_pairs_with_such_answers():
    assert reasons([FITS, LONG_ANSWER], "logprob") == {}
    assert reasons([FITS, LONG_ANSWER], "kl") == {}


@pytest.mark.parametrize("metric", ["logprob", "kl", "logit-diff"])
@pytest.mark.parametrize("side", ["answer", "wrong"])
def test_one_token_can_be_asked_for_on_both_sides_whatever_the_metric(metric, side):
    usable = Task([FITS, {**FITS, side: "run now"}], metric).usable(WORDS, one_token=True)
    assert usable.kept == (0,)
    assert usable.reasons == {"an answer of several tokens": 1}
    assert usable.condition.endswith(", answers of one token")


def test_without_alignment_lengths_may_differ():
    assert reasons([FITS, LONGER], align=False) == {}


def test_a_missing_corrupted_prompt_is_no_reason_but_its_pair_may_leave_for_another():
    """While one pair lacks a corrupted prompt none is used; without it the others must align."""
    lacking = {**FITS, "corrupted": None}
    assert reasons([FITS, LONGER, lacking]) == {}
    found = Task([FITS, LONGER, {**lacking, "answer": "sat now"}]).usable(WORDS)
    assert found.kept == (0,)
    assert found.reasons == {"prompts of unequal length": 1, "an answer of several tokens": 1}
    found.task.batches(WORDS)


def test_a_missing_tokenizer_is_refused():
    with pytest.raises(PromptError, match=r"^the model has no tokenizer"):
        Task([FITS]).usable(None)


words = st.sampled_from(["The", "cat", "cats", "dog", "sat", "bird", "now"])
prompts = st.lists(words, min_size=1, max_size=3).map(" ".join)
answers = st.lists(words, min_size=1, max_size=2).map(" ".join)
rows = st.fixed_dictionaries(
    {"clean": prompts, "answer": answers, "wrong": answers},
    optional={"corrupted": prompts},
).filter(lambda row: row["clean"] != row.get("corrupted") and row["answer"] != row["wrong"])


@given(st.lists(rows, min_size=1, max_size=5), st.sampled_from(sorted(METRICS)), st.booleans())
@settings(max_examples=80, deadline=None)
def test_what_is_kept_runs_and_nothing_that_was_left_out_runs_beside_it(pairs, metric, align):
    task = Task(pairs, metric)
    usable = task.usable(WORDS, align=align)
    kept, others = usable.kept, tuple(one.number for one in usable.left_out)
    assert sorted((*kept, *others)) == list(range(len(task)))
    if kept:
        batches = usable.task.batches(WORDS, align=align)
        assert sum(len(batch) for batch in batches) == len(kept)
    for other in others:
        beside = Task([pairs[number] for number in (*kept, other)], metric)
        with pytest.raises(HeadwaterError, match=f"^pair {len(kept)}: "):
            beside.batches(WORDS, align=align)


# Prompts of one length ----------------------------------------------------------------------------


def test_a_task_splits_into_tasks_of_one_length_the_shortest_first():
    task = Task([{"clean": text} for text in ("The cat ran", "cat", "dog", "The dog ran")], "kl")
    groups = task.by_length(WORDS)
    # The tokenizer puts one token in front, which the model reads too.
    assert list(groups) == [2, 4]
    assert [pair.clean for pair in groups[2]] == ["cat", "dog"]
    assert [pair.clean for pair in groups[4]] == ["The cat ran", "The dog ran"]
    assert {(one.metric, one.name) for one in groups.values()} == {(hw.kl(), "task")}


def test_lengths_are_those_of_the_prompts_that_run_without_what_stands_behind():
    task = Task([FITS, LONG_ANSWER, {**FITS, "clean": "cat", "corrupted": "dog"}], "logprob")
    for length, group in task.by_length(WORDS).items():
        for batch in group.batches(WORDS):
            assert set(batch.prompt_lengths().tolist()) == {length}


def test_a_group_of_one_length_takes_positions_that_the_whole_task_does_not():
    model = hw.load("tiny-python", prove=False)
    rows = [{"clean": "def f(a", "answer": ")"}, {"clean": "def fg(b", "answer": ")"}]
    selection = hw.heads(positions="each")
    asked = {"estimator": hw.Gradient(), "reference": hw.Zero()}
    with pytest.raises(PromptError, match='positions="each" needs prompts of one length'):
        hw.attribute(model, Task(rows), selection, **asked)
    groups = Task(rows).by_length(model.tokenizer)
    assert list(groups) == [8, 9]
    scores = [hw.attribute(model, one, selection, **asked) for one in groups.values()]
    assert len(scores[1].names) == 9 / 8 * len(scores[0].names)


def test_a_word_without_a_token_is_refused_by_pair():
    with pytest.raises(UnknownWordError, match=r"^pair 1: the tokenizer has no token for 'bird'"):
        Task([FITS, {"clean": "The bird"}]).by_length(WORDS)


# The pairs of feature-circuits --------------------------------------------------------------------


def raw(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[:FIRST]
    return [json.loads(line) for line in lines]


def first_pairs(path: Path, metric: str | None = None) -> Task:
    return Task.read(path, metric)[:FIRST]


def fits(row, spelled) -> Counter[str]:
    """What feature-circuits asks of a pair, where `spelled` counts the tokens of a text."""
    answers = [spelled(row[side]) for side in ("clean_answer", "patch_answer")]
    prompts = [spelled(row[side]) for side in ("clean_prefix", "patch_prefix")]
    return Counter(
        {
            "an answer of several tokens": max(answers) > 1,
            "prompts of unequal length": prompts[0] != prompts[1],
        }
    )


@real
@each_file
def test_over_bytes_pairs_are_left_out_for_the_reasons_of_feature_circuits(path):
    expected = [fits(row, lambda text: len(text.encode())) for row in raw(path)]
    usable = first_pairs(path).usable(BYTES)
    assert Counter(usable.reasons) == +sum(expected, Counter())
    assert usable.kept == tuple(at for at, found in enumerate(expected) if not +found)


@real
@each_file
def test_over_whole_words_every_pair_is_kept(path):
    texts = " ".join(text for row in raw(path) for key, text in row.items() if key != "case")
    usable = first_pairs(path).usable(word_tokenizer(texts), one_token=True)
    assert (usable.reasons, len(usable.kept)) == ({}, len(raw(path)))


@real
@each_file
def test_over_bytes_with_a_merged_word_the_pairs_of_that_word_are_kept(path):
    tokens = byte_tokenizer((("Ġ", "i"), ("Ġi", "s"), ("Ġ", "a"), ("r", "e"), ("Ġa", "re")))
    usable = first_pairs(path).usable(tokens, align=False)
    expected = [
        at
        for at, row in enumerate(raw(path))
        if {row["clean_answer"], row["patch_answer"]} == {" is", " are"}
    ]
    assert list(usable.kept) == expected
    assert 0 < len(expected) < len(usable.whole)


@real
@each_file
def test_over_bytes_the_log_probability_follows_every_answer_without_alignment(path):
    task = first_pairs(path, "logprob")
    assert task.usable(BYTES, align=False).left_out == ()
    lengths = Counter(len(row["clean_prefix"].encode()) + 1 for row in raw(path))
    assert BYTES.bos_token == START
    assert {n: len(group) for n, group in task.by_length(BYTES).items()} == lengths


@pytest.mark.skipif(not (DATA / "simple_test.json").exists(), reason=f"no pair files under {DATA}")
def test_the_pairs_that_can_be_used_over_bytes_are_attributed():
    model, path = hw.load("tiny-python", prove=False), DATA / "simple_test.json"
    task = first_pairs(path, "logprob")
    asked = {"estimator": hw.Gradient(), "reference": hw.Corrupted()}
    with pytest.raises(PromptError, match="clean has 10 tokens, corrupted 11"):
        hw.attribute(model, task, hw.heads(), **asked)
    usable = task.usable(model.tokenizer).task
    aligned = [one for one in raw(path) if len(one["clean_prefix"]) == len(one["patch_prefix"])]
    assert [pair.clean for pair in usable] == [one["clean_prefix"] for one in aligned]
    assert hw.attribute(model, usable, hw.heads(), **asked).scores.shape[0] == len(aligned)
