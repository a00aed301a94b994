"""Annotations of features: ours and those of feature-circuits."""

from __future__ import annotations

import json

import pytest

from headwater.errors import ResultError
from headwater.feature_circuits.annotations import (
    annotation_of,
    read_annotations,
    write_annotations,
)


def theirs(name: str, annotation: str | None = "plural nouns", **more: str) -> str:
    kind, _, feature = name.partition("/")
    entry = {"Component": kind.split("_")[0], "Feature": feature, "Name": name}
    said = {} if annotation is None else {"Annotation": annotation}
    return json.dumps(entry | said | more)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("resid_5/3036", "r5.f3036"), ("attn_0/7", "a0.f7"), ("mlp_12/0", "m12.f0"),
     ("embed/293", "input.f293")],
)  # fmt: skip
def test_names_of_feature_circuits_become_ours(tmp_path, name, ours):
    path = tmp_path / "theirs.jsonl"
    path.write_text(theirs(name, Layer="5", Notes="on 'that'"))
    assert read_annotations(path) == {ours: "plural nouns"}


def test_headings_and_lines_without_a_text_say_nothing(tmp_path):
    path = tmp_path / "theirs.jsonl"
    heading = theirs("Name", "Annotation", Component="Component")
    path.write_text("\n".join([theirs("embed/1", None), theirs("embed/2", ""), "", heading]))
    assert read_annotations(path) == {}


def test_two_texts_of_one_feature_are_joined_and_equal_ones_are_one(tmp_path):
    path = tmp_path / "theirs.jsonl"
    texts = ("plural nouns", "active in noun phrases", "plural nouns")
    path.write_text("\n".join(theirs("mlp_1/2", text) for text in texts))
    assert read_annotations(path) == {"m1.f2": "plural nouns; active in noun phrases"}


def test_what_is_written_is_read_back(tmp_path):
    said = {"m1.f5": "names \u2013 first", "m1.f5@3": "here", "r2.error": "x", "a0": "all of it",
            "r1.mid": "whole", "input.f0": "\u2028"}  # fmt: skip
    path = write_annotations(said, tmp_path / "deep" / "annotations.jsonl")
    assert read_annotations(path) == {name: text.strip() for name, text in said.items() if
                                      text.strip()}  # fmt: skip


def test_both_forms_may_stand_in_one_file(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text(theirs("mlp_1/2") + '\n{"name": "m1.f3", "annotation": "verbs"}\n')
    assert read_annotations(path) == {"m1.f2": "plural nouns", "m1.f3": "verbs"}


def test_a_node_at_a_position_has_its_own_text_or_the_features():
    said = {"m1.f5": "names", "m1.f5@3": "the second name"}
    assert annotation_of(said, "m1.f5@3") == "the second name"
    assert annotation_of(said, "m1.f5@4") == "names"
    assert annotation_of(said, "m1.f5") == "names"
    assert annotation_of(said, "m1.f6@3") == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "not JSON (Expecting property name enclosed in double quotes, column 2)."),
     ('{"feature": 3}', "no annotation of a feature; it holds 'feature'.\n"
      'Write {"name": "r5.f3036", "annotation": "..."} on each line.'),
     ("[1]", "no annotation of a feature; it holds [1].\n"
      'Write {"name": "r5.f3036", "annotation": "..."} on each line.'),
     (theirs("resid5/3"), "'resid5/3' is no feature. Names of feature-circuits are resid_5/3036, "
      "attn_5/3036, mlp_5/3036 and embed/3036."),
     ('{"name": "m1.g3", "annotation": "x"}', "'m1.g3' is no node of a circuit. Names are "
      "r5.f3036, a5.f3036, m5.f3036, input.f3036, m5.error and m5, each with @7 for a position."),
     ('{"name": "m1.f3", "annotation": 5}', "'annotation' is 5, not a text.")],
)  # fmt: skip
def test_a_line_that_is_neither_is_refused_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(theirs("mlp_1/2") + "\n\n" + line)
    with pytest.raises(ResultError) as caught:
        read_annotations(path)
    assert str(caught.value) == f"{path}, line 3: {message}"


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResultError) as caught:
        read_annotations(tmp_path / "none.jsonl")
    assert str(caught.value) == f"no file {str(tmp_path / 'none.jsonl')!r} of annotations."


def test_a_name_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ResultError, match=r"annotations: 'm1.q' is no node of a circuit"):
        write_annotations({"m1.q": "x"}, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
