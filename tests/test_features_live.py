"""Scores of features whose dictionaries are at hand: audited as they are, two of them together."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

import headwater as hw
from feature_twins import (
    Twin,
    corrupted_code,
    features_of,
    random_dictionaries,
    random_dictionary,
    toward,
)
from headwater.components.kinds import CODED
from headwater.components.names import coded_site
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import GateError, NestedComponentsError, UnknownComponentError
from headwater.gates import Move
from headwater.sites import Site
from tiny_tasks import gated, model, pair

TIGHT = {"rtol": 0, "atol": 1e-10}


def prompts() -> hw.Task:
    return hw.Task([pair(6, seed=i, changed=(1, 3, -1)) for i in range(2)])


@pytest.fixture(scope="module")
def scores() -> hw.Attribution:
    """Of dictionaries that no file holds."""
    made = random_dictionaries(model("Llama"), "0.attn.z", "0.mlp.out", "1.resid_post", features=4)
    return hw.attribute(model("Llama"), prompts(), hw.features(made) + hw.heads(layers=0))


def test_scores_of_dictionaries_made_in_memory_are_audited_while_they_are_there(scores):
    exact = hw.attribute(model("Llama"), prompts(), scores.selection(), hw.Exact())
    audit = scores.audit(sample=100)
    assert audit.counts.checked == len(scores.names)
    for row in audit.rows:
        assert row.exact == pytest.approx(float(exact[row.name].mean()), abs=1e-10)
    assert len(scores.diagnose().findings) == len(scores.names)
    assert "were checked exactly" in repr(hw.verify(scores, theta=0.01))


@pytest.mark.parametrize(
    ("a", "b"),
    [("m0.f1", "m0.error"), ("m0.f1", "r1.f2"), ("a0.z.error", "m0.f0"), ("m0.f1@3", "r1.f2@-1")],
)
def test_two_features_of_a_result_are_closed_together(scores, a, b):
    found = hw.interaction(scores, a=a, b=b)
    positions = [int(name.partition("@")[2]) for name in (a, b)] if "@" in a else "all"
    by_name = scores.selection().choices[0].dictionaries
    assert by_name is not None
    function = gated(model("Llama"), prompts(), hw.features(by_name, positions=positions))
    first, second = (function.names.index(name) for name in (a, b))
    rest = function.value()
    one, other, both = function.moved(
        [Move((first,), 1.0), Move((second,), 1.0), Move((first, second), 1.0)]
    )
    assert_close(found.effect_a, rest - one, **TIGHT)
    assert_close(found.effect_b, rest - other, **TIGHT)
    assert_close(found.effect_both, rest - both, **TIGHT)


def test_a_head_and_a_feature_of_its_site_are_refused_and_a_feature_without_a_dictionary(scores):
    with pytest.raises(NestedComponentsError, match=r"^a0\.z\.f1 lies inside a0\.h1, "):
        hw.interaction(scores, a="a0.z.f1", b="a0.h1")
    for asked in (lambda a, b: hw.interaction(scores, a=a, b=b),
                  lambda a, b: hw.interaction(model("Llama"), prompts(), a, b)):  # fmt: skip
        with pytest.raises(GateError) as refused:
            asked("m1.f0", "a0.h1")
        assert str(refused.value) == (
            "m1.f0 is of a dictionary of 'layers.1.mlp.out', and none is given here: a name alone "
            "does not say whose.\nAsk the scores of features, which know it: scores = "
            "hw.attribute(model, task, hw.features(...)), then hw.interaction(scores, a=..., "
            "b=...)."
        )


def test_the_site_of_a_feature_is_read_from_its_name():
    for name, written in CODED.items():
        layer = None if name == "embed" else 12
        for end in (".f3", ".error", ".f3@-1"):
            assert coded_site(written.format(layer=layer) + end) == Site(layer, name)
    with pytest.raises(UnknownComponentError) as refused:
        coded_site("m3")
    assert str(refused.value) == (
        "'m3' is no feature of a dictionary.\nTheir names are m3.f77, a3.f77, r3.f77, input.f77, "
        "m3.error."
    )


def test_a_transcoder_reads_what_gates_before_it_hand_on_whatever_was_selected_first():
    chosen = model("Llama")
    read, written = Site(0, "resid_mid"), Site(0, "mlp.out")
    over = random_dictionary(24, 12, 3, reads=24)
    transcoder = Dictionaries({written: over}, {written: read})
    before = random_dictionaries(chosen, "0.resid_mid")
    function = gated(chosen, prompts(), hw.features(before))
    twin = Twin(chosen, "Llama", function)
    one = before[read]
    off = corrupted_code(twin, read, one)
    ids = twin.corrupted
    over_off = features_of(over, twin.value(read, ids))
    moved = toward(one, 2, *off)(twin.value(read))
    column = int((features_of(over, moved) - over_off).abs().sum((0, 1)).argmax())
    change = (over_off - features_of(over, moved))[..., column, None] * over.decoder[column]
    # the MLP sees the moved residual, and its output is moved on top of that
    expected = twin.metric({read: toward(one, 2, *off), written: lambda x: x + change}).detach()
    for selection in (
        hw.features(before) + hw.features(transcoder),
        hw.features(transcoder) + hw.features(before),
    ):
        both = gated(chosen, prompts(), selection)
        columns = tuple(both.names.index(name) for name in ("r0.mid.f2", f"m0.f{column}"))
        assert_close(both.moved([Move(columns, 1.0)])[0], expected, **TIGHT)
