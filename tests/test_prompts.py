"""Pairs, their encoding and alignment, batches and tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import (
    AnswerError,
    HeadwaterError,
    MetricError,
    MissingFieldError,
    PromptError,
    UnalignedPromptsError,
    UnknownWordError,
)
from headwater.metrics import cross_entropy, kl, logit_diff, logprob, metric, prob, prob_diff
from headwater.prompts import Pair, Task, prompt_batches
from headwater.prompts.encoding import Encoder
from small_tokenizers import byte_tokenizer, word_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = sorted([*DATA.glob("*/*.json"), *DATA.glob("*/*.csv")])

WORDS = word_tokenizer("Mary John Ann and met . gave a drink to the store in")

IOI = {
    "clean": "Mary and John met . John gave a drink to",
    "corrupted": "Mary and John met . Mary gave a drink to",
    "answer": "Mary",
    "wrong": "John",
}
SHORT = {"clean": "Mary met", "corrupted": "John met", "answer": "John", "wrong": "Ann"}


def ids(text: str) -> list[int]:
    return WORDS(text, add_special_tokens=False)["input_ids"]


# Alignment and padding --------------------------------------------------------------------------


def test_prompts_are_padded_on_the_left_whatever_the_tokenizer_prefers():
    tokenizer = word_tokenizer("Mary John Ann and met . gave a drink to")
    tokenizer.padding_side = "right"
    (batch,) = Task([IOI, SHORT]).batches(tokenizer)
    assert batch.pairs == (1, 0)  # sorted by length
    assert batch.mask[0].tolist() == [False] * 8 + [True] * 3
    assert batch.mask[1].all()
    assert batch.clean[0, -3:].tolist() == [1, *ids("Mary met")]
    assert batch.corrupted is not None
    assert batch.corrupted[0, -3:].tolist() == [1, *ids("John met")]


def test_positions_count_from_the_first_real_token():
    (batch,) = Task([IOI, SHORT]).batches(WORDS)
    assert batch.position_ids[0].tolist() == [0] * 8 + [0, 1, 2]
    assert batch.position_ids[1].tolist() == list(range(11))


def test_without_padding_only_equal_lengths_share_a_batch():
    batches = Task([IOI, SHORT, IOI]).batches(WORDS, pad=False)
    assert [batch.pairs for batch in batches] == [(1,), (0, 2)]
    assert all(batch.mask.all() for batch in batches)


def test_batches_hold_similar_lengths_and_every_pair_once():
    prompts = ["Mary met", "Mary and John met Ann", "Mary", "John met Ann ."]
    batches = prompt_batches(prompts, WORDS, batch_size=2)
    assert [batch.pairs for batch in batches] == [(2, 0), (3, 1)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_prompt_is_in_one_batch_as_it_was_written(lengths, batch_size, pad):
    prompts = [" ".join(["Mary", "met", "John"][i % 3] for i in range(n)) for n in lengths]
    batches = prompt_batches(prompts, WORDS, batch_size=batch_size, pad=pad)
    found = {}
    for batch in batches:
        assert len(batch) <= batch_size
        for pair, row, real in zip(batch.pairs, batch.clean, batch.mask, strict=True):
            found[pair] = row[real].tolist()
    assert found == {i: [1, *ids(prompt)] for i, prompt in enumerate(prompts)}


def test_the_same_task_always_gives_the_same_batches():
    task = Task([IOI, SHORT, {**SHORT, "clean": "Ann met"}])
    for one, other in zip(task.batches(WORDS), task.batches(WORDS), strict=True):
        assert one.pairs == other.pairs
        assert torch.equal(one.clean, other.clean)


def test_batches_without_alignment_have_no_corrupted_prompts():
    task = Task([{**SHORT, "corrupted": "John and Mary met"}])
    (batch,) = task.batches(WORDS, align=False)
    assert batch.corrupted is None


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(PromptError, match=r"^batch_size is 0; it must be at least 1\.$"):
        Task([SHORT]).batches(WORDS, batch_size=0)


def test_prompts_of_different_length_are_refused_with_both_tokenizations():
    with pytest.raises(UnalignedPromptsError) as refusal:
        Task([SHORT, {**IOI, "corrupted": "Mary and Ann gave a drink"}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 1: clean has 11 tokens, corrupted 7; they part at position 3 ('John' / 'Ann').\n"
        "  clean:     '[BOS]'|'Mary'|'and'|'John'|'met'|'.'|'John'|'gave'|'a'|'drink'|'to'\n"
        "  corrupted: '[BOS]'|'Mary'|'and'|'Ann'|'gave'|'a'|'drink'\n"
        "Rewrite one of them, or use a reference that needs no corrupted prompt: "
        'reference=hw.Mean(over="clean").'
    )


def test_a_prompt_that_only_goes_on_is_said_to_part_at_the_end():
    with pytest.raises(UnalignedPromptsError, match=r"they part at position 3 \(the end / 'in'\)"):
        Task([{"clean": "Mary met", "corrupted": "Mary met in"}]).batches(WORDS)


def test_prompts_that_differ_only_in_blanks_are_refused():
    with pytest.raises(PromptError) as refusal:
        Task([{"clean": "Mary met", "corrupted": "Mary  met"}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 0: clean and corrupted have the same tokens, '[BOS]'|'Mary'|'met', so every effect "
        "would be 0. Change the word that carries the behavior."
    )


@pytest.mark.parametrize("template", ["[BOS] $A [EOS]", "$A [EOS]", "$A", "[BOS] $A"])
def test_an_end_token_that_the_tokenizer_appends_is_left_out(template):
    tokenizer = word_tokenizer("Mary met", template)
    (batch,) = prompt_batches(["Mary met"], tokenizer)
    front = [1] if template.startswith("[BOS]") else []
    assert batch.clean[0].tolist() == [*front, *tokenizer.convert_tokens_to_ids(["Mary", "met"])]


def test_tokens_are_shown_without_padding():
    (batch,) = Task([IOI, SHORT]).batches(WORDS)
    assert batch.tokens(WORDS)[0] == ["[BOS]", "Mary", "met"]
    assert batch.tokens(WORDS, "corrupted")[0] == ["[BOS]", "John", "met"]


def test_byte_level_tokens_are_shown_as_text():
    (batch,) = prompt_batches(["a é"], byte_tokenizer())
    assert batch.tokens(byte_tokenizer()) == [["a", " ", "Ã", "©"]]


def test_a_repeated_batch_is_setting_major():
    (batch,) = Task([IOI, SHORT]).batches(WORDS)
    tiled = batch.repeat(3)
    assert tiled.pairs == (1, 0, 1, 0, 1, 0)
    for name in ("clean", "mask", "position_ids", "answer", "wrong_mask"):
        assert torch.equal(getattr(tiled, name), torch.cat([getattr(batch, name)] * 3))


def test_rows_of_a_batch_keep_their_pairs():
    (batch,) = Task([IOI, SHORT]).batches(WORDS)
    assert batch.rows(1, 2).pairs == (0,)
    assert torch.equal(batch.rows(1, 2).clean, batch.clean[1:])


def test_tensors_move_to_a_device_together():
    (batch,) = Task([SHORT]).batches(WORDS, device="meta")
    assert {batch.clean.device.type, batch.mask.device.type} == {"meta"}


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Mary", " Mary", ids("Mary")[0]])
def test_an_answer_is_a_word_with_or_without_blank_or_a_token_id(answer):
    (batch,) = Task([{**IOI, "answer": answer}]).batches(WORDS)
    assert batch.answer is not None
    assert batch.answer.tolist() == [ids("Mary")]


def test_several_answers_are_padded_and_masked():
    rows = [{**SHORT, "answer": ["John", "Mary", "store"]}, {**SHORT, "answer": "John"}]
    (batch,) = Task(rows).batches(WORDS)
    assert batch.answer is not None
    assert batch.answer_mask is not None
    assert batch.answer[0].tolist() == ids("John Mary store")
    assert batch.answer[1][batch.answer_mask[1]].tolist() == ids("John")


MERGED = byte_tokenizer((("Ġ", "h"), ("Ġh", "e"), ("h", "e"), ("1", "3"), ("3", "5")))


def test_an_answer_is_what_the_joined_text_has_beyond_the_prompt():
    encoder = Encoder(MERGED)
    assert MERGED.convert_ids_to_tokens(encoder.answer("sees", " he")) == ["Ġhe"]
    assert MERGED.convert_ids_to_tokens(encoder.answer("sees ", "me")) == ["m", "e"]


def test_a_blank_is_put_in_where_the_plain_join_changes_the_prompt():
    encoder = Encoder(MERGED)
    assert encoder.bare("xhe") != encoder.bare("xh") + encoder.bare("e")
    assert MERGED.convert_ids_to_tokens(encoder.answer("xh", "e")) == ["Ġ", "e"]


def test_a_number_that_goes_on_a_number_keeps_its_own_tokens():
    # "35" is one token, and " 5" would be another year: the question is how likely 5 follows 3.
    encoder = Encoder(MERGED)
    assert encoder.bare("in 35")[:-1] != encoder.bare("in 3")
    assert MERGED.convert_ids_to_tokens(encoder.answer("in 3", "5")) == ["5"]
    assert MERGED.convert_ids_to_tokens(encoder.answer("in 13", "5")) == ["5"]


def test_years_can_be_asked_for_where_words_are_whole_numbers():
    assert Encoder(word_tokenizer("in 13 52")).answer("in 13", "52") == (5,)


def test_a_prompt_that_ends_in_a_blank_is_refused_with_what_to_write():
    with pytest.raises(AnswerError) as refusal:
        Task([{"clean": "x ", "answer": "he"}], "prob").batches(MERGED)
    assert str(refusal.value) == (
        "pair 0: 'he' cannot be told apart from its prompt: their join has other tokens.\n"
        "  prompt:          'x'|' '\n"
        "  prompt + answer: 'x'|' he'\n"
        "Write the answer as it stands in running text, with the blank in front (' he') and none "
        "at the end of the prompt, or give a token id."
    )


def test_an_answer_read_as_the_end_of_a_word_is_warned_of():
    task = Task([{"clean": "go to", "answer": "he"}, {"clean": "go to", "answer": " he"}], "prob")
    expected = (
        "pair 0: the answer 'he' was read as the end of 'tohe', for 1 of 2 pairs. "
        "If it is a word of its own, write ' he'."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(expected)}$"):
        task.batches(MERGED)


def test_an_unknown_word_of_a_prompt_is_refused_with_the_closest_words():
    with pytest.raises(UnknownWordError) as refusal:
        Task([{**IOI, "clean": IOI["clean"].replace("drink", "drinks,")}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 0: the tokenizer has no token for 'drinks' in "
        "'Mary and John met . John gave a drinks, to'. Closest: 'drink', 'in'. "
        "Use a word it knows; headwater never runs on the unknown token."
    )


@pytest.mark.parametrize("answer", ["Johnn", " Johnn"])
def test_an_unknown_answer_is_refused_with_the_closest_words(answer):
    with pytest.raises(UnknownWordError) as refusal:
        Task([{**IOI, "answer": answer}]).batches(WORDS)
    assert str(refusal.value) == (
        f"pair 0: the tokenizer has no token for 'Johnn' in {answer!r}. Closest: 'John', 'Ann'. "
        "Use a word it knows; headwater never runs on the unknown token."
    )


def test_a_token_id_outside_the_vocabulary_is_refused():
    with pytest.raises(AnswerError) as refusal:
        Task([{**IOI, "answer": 47764}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 0: token id 47764 is outside this tokenizer's vocabulary (0 to 15). "
        "Were the ids made with another model's tokenizer? Give the answer as text."
    )


def test_an_answer_and_a_wrong_one_of_the_same_token_are_refused():
    with pytest.raises(AnswerError) as refusal:
        Task([{**IOI, "wrong": " Mary"}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 0: 'Mary' is the token of an answer and of a wrong one, so the two cancel. "
        "Give it on one side only."
    )


def test_an_answer_of_the_metric_replaces_those_of_the_pairs():
    (batch,) = Task([{"clean": "Mary met"}], prob("Ann")).batches(WORDS)
    assert batch.answer is not None
    assert batch.answer.tolist() == [ids("Ann")]


# Answers of several tokens ----------------------------------------------------------------------


def test_several_tokens_are_appended_but_for_the_last_and_read_at_each():
    rows = [
        {"clean": "Mary met", "corrupted": "John met", "answer": "Ann in the store"},
        {"clean": "Mary met", "corrupted": "John met", "answer": "Ann ."},
    ]
    (batch,) = Task(rows, "logprob").batches(WORDS)
    run = [row[real].tolist() for row, real in zip(batch.clean, batch.mask, strict=True)]
    assert run == [[1, *ids("Mary met Ann")], [1, *ids("Mary met Ann in the")]]
    assert batch.corrupted is not None
    assert batch.corrupted[1].tolist() == [1, *ids("John met Ann in the")]
    assert batch.target is not None
    assert batch.target_mask is not None
    assert batch.target[1].tolist() == ids("Ann in the store")
    assert batch.target[0][batch.target_mask[0]].tolist() == ids("Ann .")
    assert batch.read == 4


def test_each_read_position_predicts_the_target_below_it():
    (batch,) = Task([{"clean": "Mary met", "answer": "Ann in the"}]).batches(WORDS)
    assert batch.target is not None
    columns = batch.read_columns()
    following = [*batch.clean[0].tolist(), int(batch.target[0, -1])]
    assert [following[column + 1] for column in columns] == batch.target[0].tolist()


def test_answers_of_one_and_of_several_tokens_have_their_own_batches():
    rows = [{"clean": "Mary met", "answer": one} for one in ("Ann", "Ann .", "John")]
    one, several = Task(rows).batches(WORDS)
    assert (one.pairs, several.pairs) == ((0, 2), (1,))
    assert one.target is None
    assert several.answer is None


@pytest.mark.parametrize("kind", [logit_diff, prob_diff, prob], ids=lambda kind: kind.name)
def test_other_metrics_refuse_several_tokens(kind):
    with pytest.raises(AnswerError) as refusal:
        Task([{**IOI, "answer": " the store"}], kind).batches(WORDS)
    assert str(refusal.value) == (
        f"pair 0: an answer is 2 tokens, 'the'|'store'; the metric {kind.name} reads one token. "
        'Choose answers of one token, or metric="logprob", which follows several.'
    )


def test_logprob_refuses_several_tokens_among_several_answers():
    with pytest.raises(AnswerError) as refusal:
        Task([{"clean": "Mary met", "answer": ["Ann", "the store"]}]).batches(WORDS)
    assert str(refusal.value) == (
        "pair 0: an answer is 2 tokens, 'the'|'store', and one of 2 answers; logprob follows "
        "several tokens only for a pair with one answer. Keep one, or give answers of one token."
    )


def test_a_function_that_reads_no_answers_takes_pairs_with_long_ones():
    def top(logits, batch):
        return logits.amax(-1)

    rows = [{**IOI, "answer": "the store"}]
    with pytest.raises(AnswerError, match=r"or hw\.metric\(function, needs=\(\)\) if the function"):
        Task(rows, top).batches(WORDS)
    (batch,) = Task(rows, metric(top, needs=())).batches(WORDS)
    assert batch.answer is None


@pytest.mark.parametrize("kind", [kl, cross_entropy], ids=lambda kind: kind.name)
def test_metrics_without_answers_do_not_mind_long_ones(kind):
    (batch,) = Task([{**IOI, "answer": "the store"}], kind).batches(WORDS)
    assert (batch.answer, batch.target) == (None, None)


# What a metric needs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "lighter"),
    [("answer", "kl, cross-entropy"), ("wrong", "prob, logprob, kl, cross-entropy")],
)
def test_a_missing_field_is_named_with_the_metrics_that_do_without(left_out, lighter):
    row = {name: value for name, value in SHORT.items() if name != left_out}
    with pytest.raises(MissingFieldError) as refusal:
        Task([SHORT, row], "logit-diff").batches(WORDS)
    assert str(refusal.value) == (
        f"pair 1: the pair has no `{left_out}`, which the metric logit-diff needs. "
        f"Give it one, or choose a metric that needs none: {lighter}."
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SHORT, logit_diff()),
        ({"clean": "Mary", "answer": "met"}, logprob()),
        ({"clean": "Mary met"}, cross_entropy()),
    ],
)
def test_the_metric_follows_from_what_every_pair_has(row, expected):
    assert Task([row]).metric == expected
    assert Task([row, SHORT]).metric == expected


def test_a_missing_tokenizer_is_refused():
    with pytest.raises(PromptError) as refusal:
        Task([SHORT]).batches(None)
    assert str(refusal.value) == (
        "the model has no tokenizer, so prompts cannot be turned into token ids. "
        "Give it one: hw.wrap(module, tokenizer=...)."
    )


def test_a_tokenizer_without_padding_token_will_do():
    tokenizer = byte_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (None, None)
    (batch,) = prompt_batches(["ab", "a"], tokenizer)
    assert batch.mask.tolist() == [[False, True], [True, True]]


# Tasks ------------------------------------------------------------------------------------------


def test_a_task_shows_itself_on_a_few_lines():
    assert repr(Task([IOI, {**SHORT, "label": "x"}], name="ioi")) == (
        "Task 'ioi': 2 pairs, metric logit-diff (the default: every pair has answer and wrong)\n"
        "  clean:     'Mary and John met . John gave a drink to'\n"
        "  corrupted: 'Mary and John met . Mary gave a drink to'\n"
        "  answer:    'Mary'\n"
        "  wrong:     'John'"
    )


def test_a_given_metric_is_not_called_the_default():
    assert repr(Task([SHORT], "prob")).startswith("Task 'task': 1 pair, metric prob\n")


def test_a_task_can_be_cut_and_sampled():
    task = Task([{"clean": f"Mary {i}"} for i in range(20)], kl(), name="t")
    assert [pair.clean for pair in task[2:4]] == ["Mary 2", "Mary 3"]
    assert task[3] == Pair("Mary 3")
    drawn = task.sample(5, seed=1)
    assert (drawn.metric, drawn.name, len(set(drawn))) == (kl(), "t", 5)
    assert drawn.pairs == task.sample(5, seed=1).pairs != task.sample(5, seed=2).pairs


def test_too_large_a_sample_is_refused():
    with pytest.raises(PromptError, match=r"^asked for a sample of 3 of the 1 pairs\.$"):
        Task([SHORT]).sample(3)


def test_a_task_comes_back_from_its_dictionary():
    task = Task([IOI, {**SHORT, "answer": ["John", 7], "label": "odd"}], prob("Ann"), name="t")
    data = json.loads(json.dumps(task.to_dict()))
    back = Task.from_dict(data)
    assert (back.pairs, back.metric, back.name) == (task.pairs, task.metric, "t")
    assert back.prompts_hash() == task.prompts_hash()


def test_a_task_with_a_function_needs_it_again():
    data = Task([SHORT], metric(lambda logits, batch: logits[:, 0], name="mine")).to_dict()
    with pytest.raises(MetricError, match="the metric mine was the Python function"):
        Task.from_dict(data)
    assert Task.from_dict(data, metric="prob").metric == prob()


def test_pairs_edited_after_saving_are_refused():
    data = Task([SHORT]).to_dict()
    data["pairs"][0]["clean"] = "Ann met"
    with pytest.raises(PromptError, match="do not match their saved hash"):
        Task.from_dict(data)


def test_the_hash_sees_prompts_and_answers_only():
    same = Task([Pair(**SHORT, origin="a.jsonl, line 3")], "prob", name="other")
    assert Task([SHORT]).prompts_hash() == same.prompts_hash()
    assert Task([SHORT]).prompts_hash() != Task([{**SHORT, "wrong": "Mary"}]).prompts_hash()


class Dataset:
    """As much of a `datasets.Dataset` as a task touches: iteration over rows with None cells."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_a_datasets_object_is_accepted():
    task = Task(Dataset([{**SHORT, "label": None}, {**SHORT, "wrong": None, "label": "x"}]))
    assert task.pairs == (Pair(**SHORT), Pair("Mary met", "John met", "John", label="x"))


@pytest.mark.parametrize("missing", [None, float("nan"), pandas.NA, pandas.NaT], ids=str)
def test_a_pandas_table_is_accepted_with_missing_cells_left_out(missing):
    rows = [{**SHORT, "label": missing}, {**SHORT, "wrong": missing, "label": "x"}]
    task = Task(pandas.DataFrame(rows))
    assert task.pairs == (Pair(**SHORT), Pair("Mary met", "John met", "John", label="x"))


def test_token_ids_and_lists_of_a_pandas_table_are_answers():
    table = pandas.DataFrame({"clean": ["a", "b"], "answer": [3, 5], "wrong": [["c", "d"], "e"]})
    assert Task(table).pairs == (Pair("a", None, 3, ("c", "d")), Pair("b", None, 5, "e"))


def test_a_pandas_table_without_prompts_is_refused():
    with pytest.raises(PromptError, match=r"^pair 0: unknown field 'claen'\. Closest: 'clean'"):
        Task(pandas.DataFrame({"claen": ["a"]}))
    with pytest.raises(PromptError, match=r"^there are no pairs"):
        Task(pandas.DataFrame({"clean": []}))


def test_the_first_pair_without_corrupted_prompt_is_found():
    bare = {"clean": "Mary met"}
    assert Task([SHORT, SHORT]).lacking_corrupted() is None
    assert Task([SHORT, bare, SHORT, bare]).lacking_corrupted() == 1
    assert not Task([SHORT, bare]).has_corrupted
    assert Task([SHORT, SHORT]).has_corrupted


def test_rows_of_the_other_formats_are_accepted():
    row = {"Unnamed: 0": 4, "clean": "a", "corrupted": "b", "correct_idx": 3, "incorrect_idx": 5}
    circuits = {"clean_prefix": "a", "patch_prefix": "b", "clean_answer": "c", "patch_answer": "d"}
    task = Task([row, circuits])
    assert task.pairs == (Pair("a", "b", 3, 5), Pair("a", "b", "c", "d"))


BAD_TASKS = {
    "no pairs": ([], "there are no pairs. A task needs at least one."),
    "a file": (
        "pairs.jsonl",
        "hw.Task takes pairs, not the file 'pairs.jsonl'. Read it: hw.Task.read('pairs.jsonl').",
    ),
    "a name": (
        "ioi",
        "hw.Task takes pairs, not the text 'ioi'. An embedded task: hw.task('ioi'); "
        "a file of pairs: hw.Task.read('ioi').",
    ),
    "an empty mapping": ({}, "there are no pairs. A task needs at least one."),
    "a pair without fields": (
        [SHORT, {}],
        "pair 1: there is no field at all; the fields are 'clean', 'corrupted', 'answer', "
        "'wrong', 'label'. Give the prompt under 'clean'.",
    ),
    "a dictionary of splits": (
        {"train": [SHORT], "test": [SHORT]},
        "hw.Task takes a list of pairs; this is a mapping with 'train', 'test'. Put a single pair "
        "in a list; of a `datasets.DatasetDict` choose one split.",
    ),
    "texts": (
        ["Mary met"],
        "pair 0: a pair is an hw.Pair or a mapping with 'clean', 'corrupted', 'answer', 'wrong', "
        "'label'; this is a str: 'Mary met'.",
    ),
    "misspelt field": (
        [SHORT, {"claen": "Mary"}],
        "pair 1: unknown field 'claen'. Closest: 'clean', 'label'. "
        "The fields are 'clean', 'corrupted', 'answer', 'wrong', 'label'.",
    ),
    "blank prompt": (
        [{"clean": " "}],
        "pair 0: clean is blank (' '). Give the text of the prompt.",
    ),
    "number as prompt": ([{"clean": float("nan")}], "pair 0: clean is nan (float), not a text."),
    "empty answer": (
        [{"clean": "a", "answer": ""}],
        "pair 0: answer is an empty text. Give the text that follows the prompt.",
    ),
    "truth value as answer": (
        [{"clean": "a", "answer": True}],
        "pair 0: answer is True (bool), neither a text nor a token id.",
    ),
    "answer twice": (
        [{"clean": "a", "answer": ["b", "b"]}],
        "pair 0: answer has 'b' more than once. Give each once.",
    ),
    "label of another type": (
        [{"clean": "a", "label": 3}],
        "pair 0: label is 3 (int), not a text.",
    ),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_pairs_that_cannot_be_used_are_refused(case):
    pairs, message = BAD_TASKS[case]
    with pytest.raises(PromptError) as refusal:
        Task(pairs)
    assert str(refusal.value) == message


@pytest.mark.parametrize("field", ["clean", "corrupted", "answer", "wrong", "label"])
def test_half_of_a_surrogate_pair_is_refused_in_every_field(field):
    with pytest.raises(PromptError) as refusal:
        Task([{**SHORT, field: "Mary \ud800"}])
    assert str(refusal.value) == (
        f"pair 0: {field} has '\\ud800' at character 5, half of a surrogate pair and no character: "
        "'Mary \\ud800' (str). Remove it, or write the whole character."
    )


def test_whole_characters_outside_the_basic_plane_are_accepted():
    assert Pair("a \U0001f600").clean == "a \U0001f600"


@pytest.mark.skipif(not REAL, reason=f"no real pair files under {DATA}")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_and_bytes_are_refused_by_pair_and_never_crash(path):
    """With a byte-level tokenizer most answers are several tokens and many prompts unaligned."""
    refused = 0
    for pair in Task.read(path).pairs[:50]:
        try:
            Task([pair]).batches(byte_tokenizer())
        except HeadwaterError as refusal:
            refused += str(refusal).startswith(f"pair 0 ({pair.origin}): ")
    # Here every real answer has several bytes; only answers given as ids can be too large instead.
    assert refused == 50
