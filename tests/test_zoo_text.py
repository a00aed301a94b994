"""The training text keeps back what the tasks ask, and training repeats itself exactly."""

import itertools
import json
import math
import random
import subprocess
import sys
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwater.zoo import grammar, holdout, train, words
from headwater.zoo.behaviors import BEHAVIORS

LEADS = [*words.NAMES, "The", "People", "When", "Then", "After"]


def pairs(name, count):
    return list(itertools.islice(BEHAVIORS[name].pairs(seed=0), count))


@cache
def training_sentences():
    rng = random.Random(5)
    return [grammar.sentence(rng).split() for _ in range(6_000)]


# What training never shows


def test_no_training_sentence_joins_two_people_of_a_held_out_pair():
    joined = [[word for word in said if word in words.NAMES] for said in training_sentences()]
    seen = {frozenset(names) for names in joined if len(set(names)) == 2}
    asked = {
        frozenset((pair["answer"][0].strip(), pair["wrong"][0].strip()))
        for pair in pairs("ioi", 1_500)
    }

    assert seen
    assert asked
    assert not seen & asked
    assert frozenset(("Mary", "John")) in asked


def test_no_training_sentence_joins_two_nouns_of_a_held_out_pair():
    def nouns(said):
        return tuple(word.removesuffix("s") for word in (said[1], said[4]))

    seen = {nouns(said) for said in training_sentences() if said[2] == "that" and said[0] == "The"}
    asked = {nouns(pair["clean"].split()) for pair in pairs("agreement", 544)}

    assert seen
    assert not seen & asked
    assert len(asked) == 34


def test_nothing_in_training_begins_in_a_held_out_year():
    seen = {tuple(said[6:8]) for said in training_sentences() if said[2] == "lasted"}
    asked = {tuple(pair["clean"].split()[6:8]) for pair in pairs("greater-than", 1_000)}

    assert seen
    assert not seen & asked


def test_no_repeated_string_of_training_joins_the_words_induction_asks_for():
    rng = random.Random(5)
    seen = set()
    for _ in range(500):
        string = grammar.repeated_string(rng)
        seen |= set(zip(string, string[1:] + string[:1], strict=True))
    asked = {
        (pair["clean"].split()[-1], pair[side][0].strip())
        for pair in pairs("induction", 1_000)
        for side in ("answer", "wrong")
    }

    assert not seen & asked


@pytest.mark.parametrize(
    ("rule", "population"),
    [
        (holdout.held_out_names, list(itertools.permutations(words.NAMES, 2))),
        (holdout.held_out_nouns, list(itertools.permutations(words.NOUNS, 2))),
        (holdout.held_out_start, list(itertools.product(words.CENTURIES, words.YEARS))),
        (holdout.held_out_neighbors, list(itertools.permutations(words.REPEATABLE[::5], 2))),
    ],
)
def test_a_seventh_of_the_combinations_is_held_out(rule, population):
    share = sum(rule(*one) for one in population) / len(population)

    assert share == pytest.approx(1 / 7, abs=0.01)


# The text and the training


def test_a_window_starts_with_the_start_token_and_has_a_fixed_length():
    rng = random.Random(0)
    drawn = [grammar.window(rng, repeated=0.5) for _ in range(200)]

    assert {len(window) for window in drawn} == {grammar.WINDOW}
    assert {window[0] for window in drawn} == {"[BOS]"}
    assert {window[1] in LEADS for window in drawn} == {True, False}
    assert all(word in words.VOCABULARY for window in drawn for word in window)


def test_a_window_without_repeats_is_made_of_sentences():
    rng = random.Random(0)

    assert all(grammar.window(rng, repeated=0.0)[1] in LEADS for _ in range(200))


def test_a_repeated_window_says_its_string_in_a_circle():
    window = grammar.window(random.Random(1), repeated=1.0)[1:]
    again = window.index(window[0], 1)

    assert window[again:] == window[:-again]


def test_sinusoids_are_sines_then_cosines_of_falling_frequencies():
    table = train.sinusoids(3, 4)

    expected = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in range(3)]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_the_learning_rate_warms_up_and_ends_at_zero():
    recipe = train.Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [train.learning_rate(recipe, step) for step in (0, 9, 10, 55, 100)]

    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_training_twice_gives_the_same_weights(arch):
    recipe = train.Recipe(arch=arch, steps=2, batch=2)

    one, two = train.train(recipe).state_dict(), train.train(recipe).state_dict()

    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_writes_a_folder_that_transformers_loads(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        options = ["--arch", "gpt2", "--steps", "1", "--pairs", "4"]
        train.main([*options, "--out", str(tmp_path / "new")])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "new" / "training.json").read_text(encoding="utf-8"))

    AutoModelForCausalLM.from_pretrained(tmp_path / "new", local_files_only=True)
    AutoTokenizer.from_pretrained(tmp_path / "new", local_files_only=True)
    assert record["recipe"]["steps"] == 1
    assert set(record["figures"]) == set(BEHAVIORS)
    assert "core-seconds" in capsys.readouterr().out


def test_listing_the_tasks_loads_no_torch():
    code = "import sys; from headwater import zoo; zoo.BEHAVIORS; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "False\n"
