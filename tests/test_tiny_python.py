"""`tiny-python` answers its tasks, which are cut from real files it was not trained on."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import headwater as hw
from headwater import zoo
from headwater.errors import (
    PromptError,
    UnalignedPromptsError,
    UnknownTaskError,
    UnknownWordError,
)
from headwater.zoo import byte_tokenizer, python_pairs, python_source, python_tasks, train_python
from headwater.zoo.python_tasks import PROMPT, PYTHON_BEHAVIORS, Names, PythonFile, Site
from headwater.zoo.python_tokens import code_tokens
from headwater.zoo.python_windows import Windows

FOLDER = Path(zoo.__file__).parent / "data" / "tiny-python"
TASKS = list(PYTHON_BEHAVIORS)


@cache
def embedded():
    model = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@cache
def record():
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@cache
def shipped(name):
    lines = (FOLDER / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def last_logits(name, side):
    model, _ = embedded()
    tokens = torch.tensor([[256, *pair[side].encode()] for pair in shipped(name)])
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -1]


def logit_differences(name, side):
    return torch.stack(
        [
            row[ord(pair["answer"])] - row[[ord(one) for one in pair["wrong"]]].mean()
            for row, pair in zip(last_logits(name, side), shipped(name), strict=True)
        ]
    )


def sites(name, text, names=()):
    """The sites of a behavior behind enough text for a prompt to begin in."""
    padded = "#" * PROMPT + "\n" + text
    return list(PYTHON_BEHAVIORS[name].rule(PythonFile.of("made/up.py", padded, Names(names))))


# The model


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_of_every_shipped_pair_is_the_models_first_choice(name):
    expected = [ord(pair["answer"]) for pair in shipped(name)]

    assert last_logits(name, "clean").argmax(-1).tolist() == expected


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_loses_logit_when_the_prompt_is_corrupted(name):
    clean, corrupted = (logit_differences(name, side) for side in ("clean", "corrupted"))

    assert (clean > 0).all()
    assert clean.mean() - corrupted.mean() > 2
    assert ((clean - corrupted) > 0).double().mean() > 0.9


@pytest.mark.parametrize("name", TASKS)
def test_the_recorded_figures_are_those_of_the_shipped_pairs(name):
    figures = record()["tasks"][name]["pairs"]
    clean, corrupted = (logit_differences(name, side) for side in ("clean", "corrupted"))

    assert figures["count"] == len(shipped(name))
    assert figures["first_choice"] == 1.0
    assert figures["accuracy"] == 1.0
    assert figures["clean"] == pytest.approx(clean.mean().item(), abs=1e-3)
    assert figures["corrupted"] == pytest.approx(corrupted.mean().item(), abs=1e-3)
    assert figures["turned_by_corruption"] == pytest.approx(
        (corrupted < 0).double().mean().item(), abs=1e-4
    )


def test_the_model_is_small_and_loads_in_float32():
    model = hw.load("tiny-python", prove=False)
    weights = list(model.module.parameters())

    assert {weight.dtype for weight in weights} == {torch.float32}
    assert 1_000_000 < sum(weight.numel() for weight in weights) < 2_000_000
    assert (FOLDER / "model.safetensors").stat().st_size < 4_000_000


def test_the_model_predicts_code_far_better_than_a_count_of_bytes():
    text = "\n".join(pair["clean"] for name in TASKS for pair in shipped(name))
    counts = Counter(text.encode())
    shares = torch.tensor([count / len(text) for count in counts.values()])
    entropy = -(shares * shares.log2()).sum().item()

    assert record()["bits_per_byte"]["held_out"] < entropy / 2


def test_training_took_at_most_twenty_minutes_on_one_core():
    assert record()["core_seconds"] <= 1200


# The tasks


@pytest.mark.parametrize("name", TASKS)
def test_the_prompts_of_a_task_have_one_length_in_tokens(name):
    _, tokenizer = embedded()
    prompts = [pair[side] for pair in shipped(name) for side in ("clean", "corrupted")]

    assert {len(ids) for ids in tokenizer(prompts)["input_ids"]} == {PROMPT + 1}


@pytest.mark.parametrize("name", TASKS)
def test_the_pairs_of_a_task_are_distinct_and_their_answers_single_bytes(name):
    pairs = shipped(name)

    assert len({pair["clean"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert len(pair["answer"].encode()) == 1
        assert all(len(one.encode()) == 1 for one in pair["wrong"])
        assert pair["answer"] not in pair["wrong"]


@pytest.mark.parametrize("name", TASKS)
def test_every_pair_names_a_held_out_file(name):
    for pair in shipped(name):
        path, _, line = pair["label"].partition(", line ")

        assert python_source.is_held_out(path)
        assert int(line) > 0


CHANGED = {"bracket": {1}, "quote": {1}, "self": {4}, "indent": {1}, "name": set(range(1, 40))}


@pytest.mark.parametrize("name", TASKS)
def test_corruption_changes_one_place_of_a_prompt(name):
    for pair in shipped(name):
        different = [
            place
            for place, (one, other) in enumerate(zip(pair["clean"], pair["corrupted"], strict=True))
            if one != other
        ]

        assert len(different) in CHANGED[name]
        assert different[-1] - different[0] < 40


def test_no_answer_outweighs_the_others_where_habit_could_answer():
    brackets = Counter(pair["answer"] for pair in shipped("bracket"))
    quotes = Counter(pair["answer"] for pair in shipped("quote"))

    # The model hardly ever closes a curly bracket.
    assert brackets == {")": 100, "]": 99, "}": 1}
    assert quotes == {"'": 100, '"': 100}


@pytest.mark.parametrize("name", TASKS)
def test_no_prompt_ends_as_a_file_trained_on_does(name):
    _, train_text = trained_text()

    for pair in shipped(name):
        assert pair["clean"][-python_pairs.SEEN :] not in train_text


@pytest.mark.parametrize("name", TASKS)
def test_clean_prompts_stand_word_for_word_where_their_label_says(name):
    root, _ = trained_text()

    for pair in shipped(name):
        path, _, line = pair["label"].partition(", line ")
        text = python_source.read_source(root, path)
        end = text.index(pair["clean"]) + PROMPT

        assert pair["clean"] + pair["answer"] in text
        assert text.count(pair["clean"]) > 1 or text.count("\n", 0, end) + 1 == int(line)


@cache
def trained_text():
    """The library's folder and the training files, where this Python has those very files."""
    root = python_source.source_root()
    files = python_source.source_files(root)
    texts = [
        python_source.read_source(root, path)
        for path in files
        if not python_source.is_held_out(path)
    ]
    if python_source.source_hash(texts) != record()["train_files"]["sha256"]:
        pytest.skip(f"needs the library of Python {record()['versions']['python']}")
    return root, "\n".join(texts)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_measured_by_logit_difference_and_knows_its_model(name):
    task = hw.task(name)

    assert task.metric.name == "logit-diff"
    assert task.models == ("tiny-python",)
    assert task[:3].models == task.with_metric("prob-diff").models == ("tiny-python",)
    assert {pair.clean for pair in task} == {pair["clean"] for pair in shipped(name)}


def test_a_smaller_task_is_the_beginning_of_a_larger_one_with_the_same_seed():
    whole, other = hw.task("bracket", seed=3), hw.task("bracket", seed=4)

    assert hw.task("bracket", count=7, seed=3).pairs == whole.pairs[:7]
    assert other.pairs != whole.pairs
    assert set(other.pairs) == set(whole.pairs)


@pytest.mark.parametrize("count", [0, 201])
def test_more_pairs_than_were_cut_are_refused(count):
    with pytest.raises(PromptError) as caught:
        hw.task("bracket", count=count)

    assert str(caught.value) == (
        f"task 'bracket' has 200 distinct pairs; count is {count}.\nChoose a count from 1 to 200."
    )


def test_an_unknown_task_lists_those_of_both_kinds_of_text():
    with pytest.raises(UnknownTaskError) as caught:
        hw.task("brackets")

    assert str(caught.value) == (
        "no embedded task 'brackets'. Closest: 'bracket'.\n"
        "Embedded tasks: ioi, greater-than, agreement, induction, capital, language, gender, "
        "subject-verb (which is agreement); bracket, quote, self, indent, name (tiny-python); "
        "for a file of pairs: hw.Task.read('pairs.jsonl')."
    )


def test_a_model_of_words_is_refused_and_the_right_model_named():
    with pytest.raises(UnknownWordError, match=r"The embedded task 'bracket' is made for "):
        hw.attribute(hw.load("tiny", prove=False), hw.task("bracket", count=2), hw.heads())


def test_a_task_of_words_is_refused_by_the_model_of_bytes_and_the_right_models_named():
    with pytest.raises(UnalignedPromptsError) as caught:
        hw.attribute(hw.load("tiny-python", prove=False), hw.task("gender", count=9), hw.heads())

    assert str(caught.value).endswith(
        "The embedded task 'gender' is made for "
        "hw.load('tiny') or hw.load('tiny-gpt2') or hw.load('tiny-mamba')."
    )


# Cutting tasks out of files


def test_a_bracket_site_ends_before_the_closing_bracket_of_what_is_open():
    (found,) = sites("bracket", "x = y[(), 10:20]\n")

    assert found.clean.endswith("\nx = y[(), 10:20")
    assert found.corrupted == found.clean.replace("y[", "y(")
    assert (found.answer, found.wrong) == ("]", (")",))
    assert found.origin == "made/up.py, line 2"


def test_a_round_bracket_becomes_a_square_one_and_a_curly_one_a_round_one():
    call, mapping = sites("bracket", "x = f(10)\ny = {1: 2}\n")

    assert (call.corrupted[-len("f(10") :], call.wrong) == ("f[10", ("]",))
    assert (mapping.corrupted[-len("{1: 2") :], mapping.wrong) == ("(1: 2", (")",))


def test_brackets_in_strings_and_comments_are_no_sites():
    assert sites("bracket", "x = '(abc)'  # [abc]\n") == []


def test_a_quote_site_ends_before_the_quote_that_closes_the_string():
    (found,) = sites("quote", "x = rb'abc'\n")

    assert found.clean.endswith("\nx = rb'abc")
    assert found.corrupted == found.clean.replace("'", '"')
    assert (found.answer, found.wrong) == ("'", ('"',))


@pytest.mark.parametrize("text", ["'''abc'''", "'a\"c'", r"'a\'c'", "''", "# 'abc'"])
def test_strings_that_do_not_settle_their_quote_are_no_sites(text):
    assert sites("quote", f"x = 1, {text}\n") == []


def test_a_self_site_asks_for_a_methods_first_parameter():
    (found,) = sites("self", "class A:\n    def run(self, x):\n        pass\n")

    assert found.clean.endswith("class A:\n    def run(")
    assert found.corrupted.endswith("class A:\n\n\n\n\ndef run(")
    assert (found.answer, found.wrong) == ("s", (")",))


@pytest.mark.parametrize("text", ["def run(self): pass\n", "if a:\n    def run(selfish): pass\n"])
def test_functions_and_other_first_parameters_are_no_self_sites(text):
    assert sites("self", text) == []


def test_an_indent_site_ends_as_deep_as_the_line_with_the_colon():
    found, _ = sites("indent", "if a:\n  while b[1:2]:\n      c = 1\n")[::-1]

    assert found.clean.endswith("if a:\n  while b[1:2]:\n  ")
    assert found.corrupted.endswith("if a:\n  while b[1:2])\n  ")
    assert (found.answer, found.wrong) == (" ", ("i", "s", "e", "r"))


def test_a_colon_inside_a_dictionary_is_no_indent_site():
    assert sites("indent", "x = {1:\n     2}\n") == []


def test_a_name_site_ends_after_the_first_letter_of_a_loops_target():
    (found,) = sites("name", "for path in all:\n    print(path)\n", ["pool park pack pack"])

    assert found.clean.endswith("for path in all:\n    print(p")
    assert found.corrupted.endswith("for pool in all:\n    print(p")
    assert (found.answer, found.wrong) == ("a", ("o",))


def test_a_name_site_may_begin_with_a_parameter():
    (found,) = sites("name", "def f(a, *path, b=(1, size)):\n    g(path, size)\n", ["pool", "seed"])

    assert found.clean.endswith("g(p")
    assert "*pool," in found.corrupted


@pytest.mark.parametrize(
    "text",
    [
        "for path in all:\n    print(x.path)\n",
        "for path in all:\n    part(path)\n",
        "for path in all:\n    poll(path)\n",
        "for pat in all:\n    print(pat)\n",
        "path = 1\nprint(path)\n",
    ],
)
def test_names_that_other_words_suggest_or_nothing_introduces_are_no_sites(text):
    assert sites("name", text, ["pool", "pot"]) == []


def test_a_site_too_near_the_beginning_of_its_file_is_left_out():
    file = PythonFile.of("made/up.py", "x = y[10:20]\n", Names(()))

    assert list(python_tasks.bracket_sites(file)) == []


def test_a_prompt_with_a_character_of_several_bytes_is_left_out():
    assert sites("bracket", "x = y['é', 10]\n") == []


def test_tokens_stand_where_they_say():
    text = Path(python_tasks.__file__).read_text(encoding="utf-8") + "\x0c\nx = 'é', (1)\n"

    tokens = code_tokens(text)

    assert len(tokens) > 1_000
    for token in tokens:
        assert text[token.start : token.end] in (token.text, "")


def test_a_name_is_replaced_by_the_most_frequent_one_that_parts_after_the_first_letter():
    names = Names(["pale", "pool pool", "post post post", "point"])

    assert names.instead_of("path") == "post"
    assert names.instead_of("poor") == "pale"
    assert names.instead_of("zone") is None


def site(text, answer):
    return Site(text, text.upper(), answer, ("x",), "made/up.py, line 1")


def test_chosen_sites_are_balanced_and_none_ends_as_a_training_file_does():
    many = [site(f"{number:0>60}a", "a") for number in range(300)]
    few = [site(f"{number:0>60}b", "b") for number in range(30)]
    seen = site("s" * 60, "b")

    chosen = python_pairs.choose([*many, *few, seen], "text " + "s" * 60, balanced=True)

    assert Counter(one.answer for one in chosen) == {"a": 170, "b": 30}
    assert seen not in chosen
    assert len(set(chosen)) == 200


def test_a_site_is_measured_by_its_own_answers():
    model, tokenizer = embedded()
    pair = shipped("indent")[0]
    asked = Site(pair["clean"], pair["corrupted"], "s", ("i", " "), pair["label"])

    (measured,) = python_pairs.measure(model, tokenizer, [asked])

    for side in ("clean", "corrupted"):
        row = last_logits("indent", side)[0]
        expected = row[ord("s")] - (row[ord("i")] + row[ord(" ")]) / 2
        assert getattr(measured, side) == pytest.approx(expected.item(), abs=1e-4)
    assert not measured.first_choice


# The text


def test_source_files_are_the_librarys_own(tmp_path):
    kept = ["a.py", "b/c.py", "test_tools.py"]
    left_out = [
        "test/a.py",
        "b/tests/a.py",
        "site-packages/a.py",
        "encodings/cp437.py",
        "_sysconfigdata_x.py",
        "config-3.11-x/a.py",
        "a.txt",
    ]
    for path in kept + left_out:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")

    assert python_source.source_files(tmp_path) == kept


def test_an_eighth_of_all_paths_is_held_out():
    held_out = sum(python_source.is_held_out(f"package/module_{n}.py") for n in range(8_000))

    # Four standard deviations of a binomial count.
    assert abs(held_out - 1_000) < 4 * (8_000 * 1 / 8 * 7 / 8) ** 0.5


def test_the_split_stays_as_it_was_when_the_model_was_trained():
    # As `printf threading.py | sha256sum` says: c5b75970..., and for ast.py b4fa779c...
    assert 0xC5B75970 % 8 == 0
    assert python_source.is_held_out("threading.py")
    assert 0xB4FA779C % 8 == 4
    assert not python_source.is_held_out("ast.py")


def test_a_source_is_read_with_line_feeds_alone(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x\r\ny\rz\n")

    assert python_source.read_source(tmp_path, "a.py") == "x\ny\rz\n"


def test_windows_lie_in_one_file_and_begin_with_the_start_token():
    texts = ["ab\ncdefgh", "xy", "uvw\nxyz\n"]
    windows = Windows.of(texts, size=5)
    drawn = windows.draw(400, torch.Generator().manual_seed(0))

    said = {bytes(row[1:].tolist()).decode() for row in drawn}

    assert set(drawn[:, 0].tolist()) == {256}
    assert said == {text[start : start + 5] for text in texts for start in range(len(text) - 4)}


def test_half_of_the_windows_begin_where_a_line_does():
    windows = Windows.of(["ab\n" + "c" * 10_000], size=5)
    drawn = windows.draw(100, torch.Generator().manual_seed(0))

    at_lines = [bytes(row[1:].tolist()) in (b"ab\ncc", b"ccccc") for row in drawn[50:]]
    first_lines = sum(bytes(row[1:4].tolist()) == b"ab\n" for row in drawn[50:])

    assert all(at_lines)
    # Fair coin between the two lines, four standard deviations.
    assert abs(first_lines - 25) < 4 * (50 / 4) ** 0.5


# The tokenizer


@given(st.text())
def test_a_text_becomes_its_bytes_behind_a_start_token_and_comes_back(text):
    _, tokenizer = embedded()
    ids = tokenizer(text)["input_ids"]

    assert ids == [256, *text.encode()]
    assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text


@given(st.binary())
def test_any_bytes_have_tokens_of_their_own(data):
    _, tokenizer = embedded()
    symbols = tokenizer.convert_ids_to_tokens(list(data))

    assert all(len(symbol) == 1 and symbol.isprintable() for symbol in symbols)
    assert tokenizer.convert_tokens_to_ids(symbols) == list(data)


def test_a_text_that_spells_the_start_token_is_plain_bytes():
    _, tokenizer = embedded()

    assert tokenizer("[BOS]")["input_ids"] == [256, *b"[BOS]"]


def test_short_prompts_are_padded_on_the_left():
    _, tokenizer = embedded()
    encoded = tokenizer(["x", "x=1"], padding=True)

    assert encoded["input_ids"] == [[257, 257, 256, 120], [256, 120, 61, 49]]
    assert encoded["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_the_shipped_tokenizer_is_the_one_the_code_builds():
    built = byte_tokenizer.build_tokenizer(train_python.POSITIONS)
    # Not the cached one: padding a batch leaves its mark on a tokenizer.
    saved = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    assert saved.to_str() == built.backend_tokenizer.to_str()


# Training


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    recipe = train_python.PythonRecipe(steps=300, warmup=100)
    shares = [train_python.rate_share(recipe, step) for step in (0, 49, 99, 100, 200, 300)]

    assert shares == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_training_repeats_itself_exactly():
    recipe = train_python.PythonRecipe(steps=4, batch=2, window=20, warmup=1)
    text = "for name in names:\n    print(name)\n" * 5

    first, second = (train_python.train(recipe, [text]) for _ in range(2))

    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_saved_weights_are_rounded_and_load_in_float32(tmp_path):
    model = train_python.train(train_python.PythonRecipe(steps=0), ["x" * 200])
    expected = model.lm_head.weight.detach().half().float()

    train_python.save_rounded(tmp_path / "saved", model, {})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")

    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, expected)
