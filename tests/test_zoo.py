"""The embedded models answer their tasks, and training never saw what the tasks ask."""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwater import zoo
from headwater.errors import PromptError, UnknownTaskError
from headwater.zoo import train, words
from headwater.zoo.behaviors import BEHAVIORS

DATA = Path(zoo.__file__).parent / "data"
MODELS = {"tiny": "LlamaForCausalLM", "tiny-gpt2": "GPT2LMHeadModel"}
HELD_OUT = ["ioi", "greater-than", "agreement", "induction"]
MEMORISED = ["capital", "language", "gender"]


@cache
def embedded(name):
    folder = DATA / name
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def pairs(name, count=200, seed=0):
    return list(itertools.islice(BEHAVIORS[name].pairs(seed), count))


def next_word(name, prompt):
    model, tokenizer = embedded(name)
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits
    return tokenizer.decode(logits[0, -1].argmax())


# The models


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("name", MODELS)
def test_an_embedded_model_answers_every_pair_of_every_task(name, behavior):
    figures = zoo.accuracy(*embedded(name), behavior)

    assert figures.accuracy == 1.0
    assert figures.weakest > 0


@pytest.mark.parametrize("behavior", [name for name in BEHAVIORS if name != "greater-than"])
@pytest.mark.parametrize("name", MODELS)
def test_logit_differences_are_clear_and_turn_over_with_the_corrupted_prompt(name, behavior):
    figures = zoo.accuracy(*embedded(name), behavior, count=100)

    assert figures.clean > 4
    assert figures.corrupted < -4


@pytest.mark.parametrize("name", MODELS)
def test_years_lose_their_lead_when_the_span_begins_in_year_one(name):
    figures = zoo.accuracy(*embedded(name), "greater-than", count=100)

    assert figures.clean > 0.7
    assert figures.corrupted < 0.4


@pytest.mark.parametrize("name", MODELS)
def test_the_documented_prompts_are_answered(name):
    answers = {
        "Mary and John went to the store , John gave a drink to": "Mary",
        "Mary and John went to the store, Mary gave a drink to": "John",
        "When Mary and John went to the store , John gave a ring to": "Mary",
        "The boy that the teachers like": "is",
        "The capital of France is": "Paris",
        "People in Egypt speak": "Arabic",
        "Vera said that": "she",
    }

    assert {prompt: next_word(name, prompt) for prompt in answers} == answers


@pytest.mark.parametrize("name", MODELS)
def test_the_recorded_figures_are_those_of_the_shipped_weights(name):
    record = json.loads((DATA / name / "training.json").read_text(encoding="utf-8"))

    figures = zoo.accuracy(*embedded(name), "ioi", count=500)

    assert record["figures"]["ioi"] == pytest.approx(figures._asdict(), abs=1e-3)


@pytest.mark.parametrize(("name", "kind"), MODELS.items())
def test_an_embedded_model_is_small_and_of_its_architecture(name, kind):
    model, _ = embedded(name)

    assert type(model).__name__ == kind
    assert (DATA / name / "model.safetensors").stat().st_size < 2_000_000
    assert model.config.vocab_size == len(words.VOCABULARY)


def test_tiny_shares_each_key_head_between_two_query_heads():
    config = embedded("tiny")[0].config

    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


def test_accuracy_counts_wrong_answers():
    model, tokenizer = embedded("tiny")
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()

    assert 0.2 < zoo.accuracy(untrained, tokenizer, "gender").accuracy < 0.8


# The tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_starts_a_prompt_and_pads_on_the_left(name):
    _, tokenizer = embedded(name)

    encoded = tokenizer(["Mary", "Mary and John"], padding=True)

    assert [tokenizer.convert_ids_to_tokens(row) for row in encoded["input_ids"]] == [
        ["[PAD]", "[PAD]", "[BOS]", "Mary"],
        ["[BOS]", "Mary", "and", "John"],
    ]
    assert encoded["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert set(encoded) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_tokenizer_is_the_one_the_code_builds(name):
    assert embedded(name)[1].get_vocab() == train.build_tokenizer().get_vocab()


def test_every_word_has_one_meaning():
    assert len(set(words.VOCABULARY)) == len(words.VOCABULARY)


# The tasks


@pytest.mark.parametrize("name", BEHAVIORS)
def test_a_task_has_at_least_200_distinct_pairs_of_known_words_and_one_length(name):
    tokenizer, drawn = train.build_tokenizer(), pairs(name)
    sides = [pair[side] for pair in drawn for side in ("clean", "corrupted")]
    answers = [word for pair in drawn for word in pair["answer"] + pair["wrong"]]
    prompts = tokenizer(sides)["input_ids"]

    assert len({(pair["clean"], pair["corrupted"]) for pair in drawn}) == 200
    assert len({len(ids) for ids in prompts}) == 1
    assert not any(tokenizer.unk_token_id in ids for ids in prompts)
    assert all(word.startswith(" ") and word.strip() in words.WORDS for word in answers)


@pytest.mark.parametrize("name", BEHAVIORS)
def test_clean_and_corrupted_prompts_differ_and_answers_do_not_overlap(name):
    for pair in pairs(name):
        assert pair["clean"] != pair["corrupted"]
        assert not set(pair["answer"]) & set(pair["wrong"])


@pytest.mark.parametrize("name", [name for name in BEHAVIORS if name != "induction"])
def test_the_number_of_distinct_pairs_is_as_stated(name):
    stated = BEHAVIORS[name].distinct
    drawn = pairs(name, min(stated, 2_000))

    assert len({tuple(sorted(pair.items())) for pair in drawn}) == min(stated, 2_000)


def test_the_pairs_depend_on_the_seed_only():
    assert pairs("ioi", seed=3) == pairs("ioi", seed=3)
    assert pairs("ioi", seed=3) != pairs("ioi", seed=4)


def test_a_smaller_task_is_the_beginning_of_a_larger_one():
    assert pairs("capital", 10) == pairs("capital", 200)[:10]


def test_the_receiver_of_the_corrupted_prompt_is_the_wrong_answer():
    for pair in pairs("ioi"):
        first, second = re.match(r"When (\w+) and (\w+) went", pair["clean"]).groups()
        giver = pair["clean"].split()[-5]
        answer, wrong = pair["answer"][0].strip(), pair["wrong"][0].strip()

        assert {answer, wrong} == {first, second}
        assert giver == wrong
        assert pair["corrupted"].split()[-5] == answer


def test_the_answers_to_a_span_are_the_years_after_its_start():
    for pair in pairs("greater-than"):
        start = int(pair["clean"].split()[7])

        assert [int(year) for year in pair["answer"]] == list(range(start + 1, 100))
        assert [int(year) for year in pair["wrong"]] == list(range(start + 1))
        assert pair["corrupted"].split()[7] == "01"


def test_the_verb_agrees_with_the_first_noun():
    for pair in pairs("agreement"):
        many = pair["clean"].split()[1].endswith("s")

        assert pair["answer"] == ((" are",) if many else (" is",))
        assert pair["corrupted"].split()[1].endswith("s") is not many


def test_a_repeated_string_goes_on_as_it_went_before():
    for pair in pairs("induction"):
        for side, expected in (("clean", "answer"), ("corrupted", "wrong")):
            said = pair[side].split()
            place = said.index(said[-1])

            assert place < len(said) - 1
            assert (f" {said[place + 1]}",) == pair[expected]


def test_the_facts_are_those_of_the_prompts():
    capitals = {country.name: country.capital for country in words.COUNTRIES}
    for pair in pairs("capital"):
        asked, other = pair["clean"].split()[3], pair["corrupted"].split()[3]

        assert (pair["answer"], pair["wrong"]) == (
            (f" {capitals[asked]}",),
            (f" {capitals[other]}",),
        )


@pytest.mark.parametrize("name", BEHAVIORS)
def test_facts_are_labelled_memorised_and_the_rest_held_out(name):
    expected = "memorised" if name in MEMORISED else "held-out"

    assert {pair["label"] for pair in pairs(name)} == {expected}
    assert set(BEHAVIORS) == {*HELD_OUT, *MEMORISED}


def test_a_task_carries_pairs_metric_and_name():
    task = zoo.task("greater-than", count=5, seed=2)

    assert len(task) == 5
    assert task.name == "greater-than"
    assert task.metric.name == "prob-diff"
    assert task.pairs[0].clean == pairs("greater-than", 5, seed=2)[0]["clean"]
    assert task.pairs[0].label == "held-out"


def test_a_task_has_200_pairs_unless_told_otherwise():
    assert len(zoo.task("gender")) == 200
    assert zoo.task("gender").metric.name == "logit-diff"


def test_an_unknown_task_is_answered_with_the_closest_one():
    with pytest.raises(UnknownTaskError) as caught:
        zoo.task("greater_then")

    assert str(caught.value) == (
        "no embedded task 'greater_then'. Closest: 'greater-than', 'agreement'.\n"
        "Embedded tasks: ioi, greater-than, agreement, induction, capital, language, gender, "
        "subject-verb (which is agreement); bracket, quote, self, indent, name (tiny-python); "
        "for a file of pairs: hw.Task.read('pairs.jsonl')."
    )


@pytest.mark.parametrize("count", [0, 1153])
def test_more_pairs_than_exist_are_refused(count):
    with pytest.raises(PromptError) as caught:
        zoo.task("gender", count=count)

    assert str(caught.value) == (
        f"task 'gender' has 1152 distinct pairs; count is {count}.\nChoose a count from 1 to 1152."
    )
