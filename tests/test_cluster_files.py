"""Files of clusters: contexts that are continued alike, without corrupted prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import headwater as hw
from headwater.errors import MissingFieldError, PairFileError, PromptError
from headwater.prompts import Pair, Task
from headwater.prompts.clusters import EXAMPLE, cluster_rows, opens_clusters
from small_tokenizers import byte_tokenizer
from tiny_tasks import model

CAT = {"context": ["The", " cat"], "answer": " sat"}
DOG = {"context": ["A", " d", "og"], "answer": " ran"}
CAT_PAIR = Pair("The cat", answer=" sat", label="17")
DOG_PAIR = Pair("A dog", answer=" ran", label="23")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working folder, so that messages name it shortly."""
    monkeypatch.chdir(tmp_path)

    def write(content: object, *, indent: int | None = None) -> str:
        text = content if isinstance(content, str) else json.dumps(content, indent=indent)
        Path("clusters.json").write_text(text, encoding="utf-8")
        return "clusters.json"

    return write


# What is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_entries_become_pairs_without_corrupted_prompt_whose_label_is_their_id(write, indent):
    task = Task.read(write({"17": CAT, "23": DOG}, indent=indent))
    assert task.pairs == (CAT_PAIR, DOG_PAIR)
    assert (task.metric, task.name, task.has_corrupted) == (hw.logprob(), "clusters", False)


def test_a_context_may_be_one_text(write):
    task = Task.read(write({"17": {"context": "The cat", "answer": " sat"}}, indent=2))
    assert task.pairs == (CAT_PAIR,)


def test_the_document_a_context_was_cut_from_may_be_named(write):
    assert Task.read(write({"17": {**CAT, "document_idx": 90}})).pairs == (CAT_PAIR,)


SEVERAL = {
    "entries by id": {"5": {"17": CAT, "23": DOG}, "6": {"3": CAT}},
    "lists of entries": {"5": [CAT, DOG], "6": [CAT]},
    "contexts by id": {"5": {"contexts": {"17": CAT, "23": DOG}}, "6": {"contexts": {"3": CAT}}},
    "contexts and answers": {
        "5": {"contexts": [CAT["context"], "A dog"], "answers": [" sat", " ran"]},
        "6": {"contexts": [["The cat"]], "answers": [" sat"]},
    },
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", SEVERAL)
def test_in_a_file_of_several_clusters_the_label_is_the_cluster(write, form, indent):
    task = Task.read(write(SEVERAL[form], indent=indent))
    assert task.pairs == (
        Pair("The cat", answer=" sat", label="5"),
        Pair("A dog", answer=" ran", label="5"),
        Pair("The cat", answer=" sat", label="6"),
    )


def test_one_cluster_may_have_its_entries_under_contexts(write):
    assert Task.read(write({"contexts": {"17": CAT, "23": DOG}})).pairs == (CAT_PAIR, DOG_PAIR)


def test_entries_are_also_read_line_by_line_and_from_a_list(write):
    bare = (Pair("The cat", answer=" sat"), Pair("A dog", answer=" ran"))
    assert Task.read(write(f"{json.dumps(CAT)}\n{json.dumps(DOG)}\n")).pairs == bare
    assert Task.read(write([CAT, DOG])).pairs == bare
    assert Task([CAT, DOG]).pairs == bare


def test_each_pair_knows_its_line_and_its_entry(write):
    task = Task.read(write("\n" + json.dumps({"17": CAT, "23": DOG}, indent=2)))
    lines = Path("clusters.json").read_text().splitlines()
    assert [lines[int(pair.origin.split()[2].strip(",")) - 1] for pair in task] == [
        '  "17": {',
        '  "23": {',
    ]
    assert task.pairs[1].origin == "clusters.json, line 10, entry '23'"


@pytest.mark.parametrize(
    ("form", "origin"),
    [
        ("entries by id", "clusters.json, line 10, entry '23' of cluster '5'"),
        ("lists of entries", "clusters.json, line 10, entry 1 of cluster '5'"),
        ("contexts by id", "clusters.json, line 11, entry '23' of cluster '5'"),
        ("contexts and answers", "clusters.json, line 8, entry 1 of cluster '5'"),
    ],
)
def test_an_entry_of_several_clusters_is_named_with_its_cluster(write, form, origin):
    assert Task.read(write(SEVERAL[form], indent=2)).pairs[1].origin == origin


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="Ġ▁"), max_size=6)


@given(
    st.dictionaries(texts, st.tuples(st.lists(texts, max_size=3), texts), min_size=1, max_size=4),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_ids_contexts_and_answers_come_back_as_they_were_written(entries, indent, escaped):
    whole = {id: {"context": parts, "answer": one} for id, (parts, one) in entries.items()}
    text = json.dumps(whole, indent=indent, ensure_ascii=escaped)
    rows = [row for _, row in cluster_rows(Path("x.json"), text)]
    assert rows == [{"label": id, **entry} for id, entry in whole.items()]
    assert opens_clusters(text.split("\n")[0])


# What is measured ---------------------------------------------------------------------------------


def test_the_metric_is_the_log_probability_of_the_answer_so_that_positive_supports():
    task = Task([{"context": ["w5", " w9", " w4"], "answer": " w7"}])
    scores = hw.attribute(model("GPT-2"), task, hw.heads(), hw.Exact(), reference=hw.Zero())
    module: Any = model("GPT-2").module
    ids = torch.tensor([[5, 9, 4]])
    width = module.config.n_embd // module.config.n_head

    def close_first_head(_module, inputs):
        return (torch.cat([torch.zeros_like(inputs[0][..., :width]), inputs[0][..., width:]], -1),)

    def logprob():
        return module(ids).logits[0, -1].log_softmax(-1)[7].detach()

    clean = logprob()
    with module.transformer.h[0].attn.c_proj.register_forward_pre_hook(close_first_head):
        closed = logprob()
    assert_close(scores.mean()[scores.names.index("a0.h0")], clean - closed)


def test_a_reference_that_needs_corrupted_prompts_is_refused(write):
    task = Task.read(write({"17": {"context": ["w5", " w9"], "answer": " w7"}}))
    with pytest.raises(MissingFieldError, match="corrupted"):
        hw.attribute(model("GPT-2"), task, hw.heads(), hw.Gradient(), reference=hw.Corrupted())


def test_an_answer_of_several_tokens_is_followed_through(write):
    (batch,) = Task.read(write({"17": CAT})).batches(byte_tokenizer())
    assert batch.target is not None
    assert byte_tokenizer().decode(batch.target[0]) == " sat"


# What is refused ----------------------------------------------------------------------------------

ENTRY = (
    "an entry of a cluster is an object with 'context' and 'answer'. "
    f"A file of clusters looks like {EXAMPLE}."
)

REFUSED = {
    "no answer": (
        {"17": {"context": ["The", " cat"]}},
        "line 1, entry '17': the field 'answer' is missing or empty. "
        "Give the token that follows the context.",
    ),
    "empty answer": (
        {"17": CAT, "23": {**DOG, "answer": ""}},
        "line 1, entry '23': answer is an empty text. Give the text that follows the prompt.",
    ),
    "no context": (
        {"17": {"contxt": ["The"], "answer": " x"}},
        f"line 1, entry '17': an object with 'contxt', 'answer'; {ENTRY}",
    ),
    "other keys": (
        {"5": {"loss": 2.5, "size": 3}},
        f"line 1, entry '5': an object with 'loss', 'size'; {ENTRY}",
    ),
    "many keys": (
        {"5": dict.fromkeys("abcdefghij", 1)},
        "line 1, entry '5': an object with 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h' and more; "
        f"{ENTRY}",
    ),
    "an unknown field beside": (
        {"17": {**CAT, "answr": " x"}},
        "line 1, entry '17': unknown field 'answr'. Closest: 'answer'. "
        "The fields are 'context', 'answer', 'document_idx', 'label'.",
    ),
    "a list of tokens": (
        {" sat": ["The", " cat"]},
        f"line 1, entry ' sat': a list that begins with 'The' (str); {ENTRY}",
    ),
    "an empty cluster": ({"5": [], "6": [CAT]}, f"line 1, entry '5': [] (list); {ENTRY}"),
    "clusters of clusters": (
        {"a": {"b": {"c": CAT}}},
        f"line 1, entry 'b' of cluster 'a': an object with 'c'; {ENTRY}",
    ),
    "something beside contexts": (
        {"5": {"contexts": {"17": CAT}, "losses": [1.5]}},
        f"line 1, entry '5': an object with 'contexts', 'losses'; {ENTRY}",
    ),
    "more contexts than answers": (
        {"5": {"contexts": ["a", "b"], "answers": ["c"]}},
        "line 1, entry '5': 2 contexts and 1 answers. Give one answer for each context.",
    ),
    "contexts by id, answers in a list": (
        {"5": {"contexts": {"17": CAT}, "answers": [" sat"]}},
        f"line 1, entry '5': an object with 'contexts', 'answers'; {ENTRY}",
    ),
    "a token id in the context": (
        {"17": {"context": ["The", 7], "answer": " x"}},
        "line 1, entry '17': context[1] is 7 (int), not a text. "
        "Give the text of each token; they are joined.",
    ),
    "a number as context": (
        {"17": {"context": 7, "answer": " x"}},
        "line 1, entry '17': context is 7 (int), neither a text nor a list of texts.",
    ),
    "no context at all": (
        {"17": {"context": [], "answer": " x"}},
        "line 1, entry '17': context is blank ([] (list)). Give what the model reads.",
    ),
    "tokens as GPT-2 spells them": (
        {"17": {"context": ["The", "Ġcat", "Ċ"], "answer": "Ġsat"}},
        "line 1, entry '17': context has 'Ġ' where blanks should be: 'TheĠcatĊ'. A vocabulary "
        "spells its tokens so. Write the text of each: tokenizer.decode([token_id]).",
    ),
    "tokens as SentencePiece spells them": (
        {"17": {"context": ["▁The", "▁cat"], "answer": "▁sat"}},
        "line 1, entry '17': context has '▁' where blanks should be: '▁The▁cat'. A vocabulary "
        "spells its tokens so. Write the text of each: tokenizer.decode([token_id]).",
    ),
    "an id twice": (
        '{"17": {"context": "a", "answer": "b"},\n "17": {"context": "c", "answer": "d"}}',
        "line 2: '17' stands there twice.",
    ),
    "a field twice": (
        '{"17": {"context": "a", "answer": "b", "answer": "c"}}',
        "line 1, entry '17': 'answer' stands there twice.",
    ),
    "broken JSON": (
        '{\n"17": {"context": "a", "answer": "b"}\n"23": 5}',
        "line 3: not JSON (Expecting ',' delimiter, column 1). Write clusters as one object, "
        f"{EXAMPLE}; pairs as one whole object on each line, or one JSON list.",
    ),
    "something behind the clusters": (
        json.dumps({"17": CAT}) + "\n" + json.dumps({"23": DOG}),
        "line 2: not JSON (Extra data, column 1). Write clusters as one object, "
        f"{EXAMPLE}; pairs as one whole object on each line, or one JSON list.",
    ),
    "a pair over several lines": (
        '{\n "clean": "A",\n "answer": ["b"]\n}',
        "line 1: a pair over several lines. Write one whole object on each line, or one JSON list.",
    ),
    "an empty object over two lines": ("{\n}", f"line 1: {{}} (dict); {ENTRY}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_cluster_is_refused_with_file_line_and_entry(write, case):
    content, message = REFUSED[case]
    path = write(content)
    with pytest.raises(PairFileError) as refusal:
        Task.read(path)
    assert str(refusal.value) == f"clusters.json, {message}"


def test_real_text_may_hold_the_characters_of_vocabularies(write):
    task = Task.read(write({"17": {"context": ["Il", " Ġ", "gant"], "answer": " ▁"}}))
    assert task.pairs[0].clean == "Il Ġgant"


def test_clusters_have_no_field_to_take_corrupted_prompts_from(write):
    with pytest.raises(PairFileError) as refusal:
        Task.read(write({"17": CAT}), corrupted="context")
    assert str(refusal.value) == (
        "clusters.json, line 1, entry '17': no field 'context' to take corrupted prompts from. "
        "There is: none."
    )


def test_an_entry_that_fails_later_is_named(write):
    task = Task.read(write({"17": CAT, "23": {**DOG, "answer": ["a", " dog"]}}))
    with pytest.raises(PromptError) as refusal:
        task.batches(byte_tokenizer())
    assert str(refusal.value).startswith("pair 1 (clusters.json, line 1, entry '23'): an answer is")


# What is a cluster and what a pair ----------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"17": {"context": ["a"], "answer": "b"}}',
        '{"17": [{"context": ["a"], "answer": "b"}',
        '{"17": {',
        '{"17":',
        '{ "a \\" b" : [',
        "{",
        '{"answers": {"17": {}}}',
    ],
)
def test_an_object_of_objects_opens_clusters(line):
    assert opens_clusters(line)


@pytest.mark.parametrize(
    "line",
    [
        '{"clean": "a", "answer": ["b", "c"]}',
        '{"answer": ["b", "c"], "clean": "a"}',
        '{"answer": ["b", "c"',
        '{"answer": {"id": 3}}',
        '{"context": ["a"], "answer": "b"}',
        '{"answers": ["b"], "clean": "a"}',
        '{"claen": "a"}',
        '{"claen": "a',
        "{}",
        "[",
        '[{"17": {}}]',
        "clean,answer",
        '{"17" {',
    ],
)
def test_a_row_of_pairs_does_not(line):
    assert not opens_clusters(line)
