"""Files of pairs: formats told apart by content, and an error with file and line for bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.errors import PairFileError, PromptError
from headwater.prompts import Pair, Task

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = sorted([*DATA.glob("*/*.json"), *DATA.glob("*/*.csv")])

PLAIN = {"clean": "A b", "corrupted": "A c", "answer": " x", "wrong": " y"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working folder, so that messages name it shortly."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes, name: str = "pairs.jsonl") -> str:
        raw = content if isinstance(content, bytes) else content.encode()
        Path(name).write_bytes(raw)
        return name

    return write


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_become_pairs(write):
    path = write(json_lines(PLAIN, {"clean": "D", "answer": ["e", 7], "label": "odd"}))
    task = Task.read(path)
    assert task.pairs == (
        Pair("A b", "A c", " x", " y"),
        Pair("D", answer=("e", 7), label="odd"),
    )
    assert (task.name, task.source) == ("pairs", "pairs.jsonl")


def test_feature_circuits_lines_become_pairs(write):
    row = {
        "clean_prefix": "The uncle",
        "patch_prefix": "The uncles",
        "clean_answer": " has",
        "patch_answer": " have",
        "case": "singular",
    }
    assert Task.read(write(json_lines(row))).pairs == (
        Pair("The uncle", "The uncles", " has", " have", "singular"),
    )


def test_a_year_file_asks_for_the_years_above_its_label(write):
    path = write("clean,corrupted,label\nfrom 1397 to 13,from 1301 to 13,97\n", "years.csv")
    task = Task.read(path)
    pair = task.pairs[0]
    assert pair.answer == ("98", "99")
    assert pair.wrong == tuple(f"{year:02d}" for year in range(98))
    assert task.metric.name == "prob-diff"


TOKEN_IDS = (
    ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
    '470,"Then, Ann gave","Then, Bob gave","Then, Eve gave",12,34\n'
)


def test_a_token_id_file_has_its_answers_as_ids(write):
    task = Task.read(write(TOKEN_IDS, "ioi.csv"))
    assert task.pairs == (Pair("Then, Ann gave", "Then, Bob gave", 12, 34),)
    assert task.metric.name == "logit-diff"


def test_the_corrupted_column_can_be_chosen(write):
    task = Task.read(write(TOKEN_IDS, "ioi.csv"), corrupted="corrupted_hard")
    assert task.pairs[0].corrupted == "Then, Eve gave"


def test_a_csv_with_our_own_columns_is_read(write):
    path = write("clean,corrupted,answer,wrong\nA b,A c, x, y\nD e,,z,\n", "own.csv")
    assert Task.read(path).pairs == (Pair("A b", "A c", " x", " y"), Pair("D e", None, "z"))


def test_a_json_list_is_read_with_the_line_of_each_item(write):
    path = write(json.dumps([PLAIN, {"clean": "D"}], indent=1), "pairs.json")
    task = Task.read(path)
    assert [pair.clean for pair in task] == ["A b", "D"]
    assert [pair.origin for pair in task] == ["pairs.json, line 2", "pairs.json, line 8"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_and_a_byte_order_mark_are_skipped(write, end):
    text = json_lines(PLAIN, {"clean": "D"}).replace("\n", end + end)
    task = Task.read(write(b"\xef\xbb\xbf" + f"{end}{text}".encode()))
    assert [pair.origin for pair in task] == ["pairs.jsonl, line 2", "pairs.jsonl, line 4"]


def test_a_quoted_cell_over_several_lines_keeps_line_numbers_right(write):
    path = write('clean,answer\n"two\nlines",x\n\nlast,y\n', "a.csv")
    assert [pair.origin for pair in Task.read(path)] == ["a.csv, line 2", "a.csv, line 5"]


def test_a_given_metric_replaces_that_of_the_format(write):
    path = write("clean,corrupted,label\na 13,b 13,97\n", "years.csv")
    assert Task.read(path, metric="logit-diff").metric.name == "logit-diff"


def test_the_line_is_named_when_a_pair_fails_later(write):
    task = Task.read(write(json_lines(PLAIN)))
    with pytest.raises(PromptError, match=r"^the model has no tokenizer"):
        task.batches(None)
    assert task.pairs[0].origin == "pairs.jsonl, line 1"


REFUSED = {
    "empty": ("", "pairs.jsonl is empty. A file of pairs has at least one."),
    "only blank lines": ("\n \n", "pairs.jsonl is empty. A file of pairs has at least one."),
    "empty list": ("[]", "pairs.jsonl has no pairs. A file of pairs has at least one."),
    "header only": (
        "clean,answer\n",
        "pairs.jsonl has no pairs. A file of pairs has at least one.",
    ),
    "broken JSON": (
        json_lines(PLAIN) + '{"clean": "A" "b"}\n',
        "pairs.jsonl, line 2: not JSON (Expecting ',' delimiter, column 15). "
        "Write one whole object on each line, or one JSON list.",
    ),
    "broken list": (
        '[\n{"clean": "A"},\n',
        "pairs.jsonl, line 3: not a JSON list (Expecting value, column 1).",
    ),
    "not an object": (
        json_lines(PLAIN, 7),
        "pairs.jsonl, line 2: 7 is not an object. A pair looks like "
        '{"clean": "...", "corrupted": "...", "answer": "...", "wrong": "..."}.',
    ),
    "misspelt field": (
        json_lines({"clean": "A", "corupted": "B"}),
        "pairs.jsonl, line 1: unknown field 'corupted'. Closest: 'corrupted'. "
        "The fields are 'clean', 'corrupted', 'answer', 'wrong', 'label'.",
    ),
    "no clean": (
        json_lines({"corrupted": "B"}),
        "pairs.jsonl, line 1: the field 'clean' is missing; the fields are 'corrupted'. "
        "Give the prompt under 'clean'.",
    ),
    "field missing in a later row": (
        json_lines(PLAIN, {"answer": " x"}),
        "pairs.jsonl, line 2: the field 'clean' is missing or empty. Give the prompt there.",
    ),
    "empty object": (
        json_lines({}),
        "pairs.jsonl, line 1: there is no field at all; the fields are 'clean', 'corrupted', "
        "'answer', 'wrong', 'label'. Give the prompt under 'clean'.",
    ),
    "half of a surrogate pair": (
        json_lines(PLAIN) + '{"clean": "A \\ud83d"}\n',
        "pairs.jsonl, line 2: clean has '\\ud83d' at character 2, half of a surrogate pair and no "
        "character: 'A \\ud83d' (str). Remove it, or write the whole character.",
    ),
    "number as prompt": (
        json_lines({"clean": 3}),
        "pairs.jsonl, line 1: clean is 3 (int), not a text.",
    ),
    "object as answer": (
        json_lines({"clean": "A", "answer": {"id": 3}}),
        "pairs.jsonl, line 1: answer is {'id': 3} (dict), neither a text nor a token id.",
    ),
    "answer also wrong": (
        json_lines({"clean": "A", "answer": ["b", "c"], "wrong": "c"}),
        "pairs.jsonl, line 1: 'c' is both an answer and wrong, so the two cancel. "
        "Give it on one side only.",
    ),
    "same prompts": (
        json_lines({"clean": "A", "corrupted": "A"}),
        "pairs.jsonl, line 1: clean and corrupted are the same text, 'A', so every effect would "
        "be 0. Change the word that carries the behavior, or leave corrupted out.",
    ),
    "neither JSON nor CSV": (
        "Dear reader,\n",
        "pairs.jsonl, line 1: neither JSON nor the header of a CSV file with a column 'clean': "
        "'Dear reader,'.\nWrite JSON lines such as "
        '{"clean": "...", "corrupted": "...", "answer": "...", "wrong": "..."}, '
        "or CSV with these columns.",
    ),
    "misspelt CSV header": (
        "claen,corrupted,label\na,b,3\n",
        "pairs.jsonl, line 1: neither JSON nor the header of a CSV file with a column 'clean': "
        "'claen,corrupted,label'. Closest: 'clean'.\nWrite JSON lines such as "
        '{"clean": "...", "corrupted": "...", "answer": "...", "wrong": "..."}, '
        "or CSV with these columns.",
    ),
    "column twice": (
        "clean,answer,answer\na,b,c\n",
        "pairs.jsonl, line 1: the column 'answer' stands there twice.",
    ),
    "too many cells": (
        "clean,answer\nThen, Ann gave,x\n",
        "pairs.jsonl, line 2: 3 cells under 2 columns. "
        "Put a prompt that has a comma in double quotes.",
    ),
    "open quote": (
        'clean,answer\n"Then,x\n',
        "pairs.jsonl, line 2: not CSV (unexpected end of data).",
    ),
    "year out of range": (
        "clean,corrupted,label\na 13,b 13,1352\n",
        "pairs.jsonl, line 2: label is '1352', not a two-digit year. In a file of "
        "clean,corrupted,label the answers are the years above the label; otherwise add a column "
        "`answer`.",
    ),
    "last year": (
        "clean,corrupted,label\na 13,b 13,99\n",
        "pairs.jsonl, line 2: label is 99, and no two-digit year is above it. Leave the pair out.",
    ),
    "word as token id": (
        TOKEN_IDS.replace("34", "Ann"),
        "pairs.jsonl, line 2: incorrect_idx is 'Ann', not a token id.",
    ),
    "Latin-1": (
        json_lines(PLAIN).encode() + b'{"clean": "caf\xe9"}\n',
        f"pairs.jsonl, line 2: byte 0xe9 at offset {len(json_lines(PLAIN)) + 14} of the file is "
        "not UTF-8. Save the file as UTF-8.",
    ),
    "UTF-16": (
        '{"clean": "A"}'.encode("utf-16"),
        "pairs.jsonl, line 1: byte 0xff at offset 0 of the file is not UTF-8. "
        "It looks like UTF-16. Save the file as UTF-8.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_file_and_line(write, case):
    content, message = REFUSED[case]
    path = write(content)
    with pytest.raises(PairFileError) as refusal:
        Task.read(path)
    assert str(refusal.value) == message


def test_a_missing_file_is_refused_with_the_closest_name(write):
    write("", "pairs.jsonl")
    with pytest.raises(PairFileError) as refusal:
        Task.read("pair.jsonl")
    assert str(refusal.value) == "no file 'pair.jsonl'. Closest: 'pairs.jsonl'."


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(PairFileError, match=r"is a folder\. Name a file of pairs in it"):
        Task.read(tmp_path)


def test_an_unknown_corrupted_column_is_refused(write):
    path = write(json_lines(PLAIN))
    with pytest.raises(PairFileError) as refusal:
        Task.read(path, corrupted="corrupted_hard")
    assert str(refusal.value) == (
        "pairs.jsonl, line 1: no field 'corrupted_hard' to take corrupted prompts from. "
        "There is: 'corrupted'."
    )


def test_files_are_read_line_by_line(write, monkeypatch):
    """A bad line is met before the rest of the file is decoded."""
    path = write(b'{"clean": 1}\n' + b"\xff" * 100)
    with pytest.raises(PairFileError, match="line 1: clean is 1"):
        Task.read(path)


@pytest.mark.skipif(not REAL, reason=f"no real pair files under {DATA}")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_every_row_of_the_real_files_is_read(path):
    task = Task.read(path)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    header = path.suffix == ".csv"
    assert len(task) == len(lines) - header
    assert task.has_corrupted
    assert all(pair.answer and pair.wrong for pair in task)
