"""Which components a selection means, and what they are called."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headwater as hw
from headwater.coding import Coded
from headwater.components import KINDS, SELECTORS, Group, Selection, parse_component
from headwater.components.kinds import CODED
from headwater.dictionaries import Dictionary
from headwater.errors import (
    GateError,
    UnavailableSiteError,
    UnknownComponentError,
    UnknownOptionError,
)
from headwater.sites import Site
from shape_checks import unchecked
from tiny_tasks import model

NO_FEATURES = Dictionary(*(torch.zeros(s) for s in ((3, 0), (0,), (0, 3), (3,))))
"""Features have names of their own wherever a dictionary can be."""
GROUPS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "layer": st.integers(0, 200),
        "count": st.integers(1, 5000),
        "positions": st.none() | st.lists(st.integers(-50, 50), min_size=1, max_size=4).map(tuple),
        "start": st.integers(0, 1000),
        "short": st.sampled_from(["h", "kv"]),
    }
)


@given(GROUPS, st.integers(0, 10**6), st.sampled_from(list(CODED)))
def test_reading_a_printed_name_gives_the_component_back(fields, offset, written):
    rule = KINDS[fields["kind"]]
    name = rule.site or written
    site = Site(None if name == "embed" else fields["layer"], name)
    count = 1 if rule.unit == "whole" else fields["count"]
    fields = {name: value for name, value in fields.items() if name != "layer"}
    coded = None if rule.site else Coded(site, site, NO_FEATURES)
    group = Group(**{**fields, "site": site, "count": count, "coded": coded})
    component = group.component(offset % group.size)
    assert parse_component(component.name) == component


@given(st.from_regex(r"(a|m|r|mixer)?[0-9]{0,2}\.?(h|kv|n|f)?[0-9]{0,2}(<[qkv]>)?", fullmatch=True))
def test_every_name_that_can_be_read_is_the_one_that_would_be_printed(name):
    try:
        component = parse_component(name)
    except UnknownComponentError:
        return
    rule = KINDS[component.kind]
    written = rule.written.format(
        layer=component.layer,
        index=component.index,
        h="kv" if ".kv" in name else "h",
        at=name.rpartition(".")[0],
    )
    assert written == name


@pytest.mark.parametrize(
    "name",
    ["", "a", "h5", "a3.n5", "m3.h5", "a3.h5<z>", "a3<q>", "a3.kv1", "a3.kv1<q>", "a03", "A3"],
)
def test_what_is_no_name_is_refused_with_the_grammar(name):
    with pytest.raises(UnknownComponentError) as refused:
        parse_component(name)
    assert str(refused.value) == (
        f"{name!r} is not a component's name.\n"
        "Names are input, a3, a3.h5, a3.h5<q>, a3.kv1<k>, m3, m3.n128, r3, mixer3, mixer3.c17, "
        "mixer3.h2, mixer3<ssm>, mixer3<conv>, m3.f77, a3.f77, r3.f77, input.f77, m3.error, each "
        "with @7 for a position."
    )


def names(family: str, selection: Selection, length: int | None = None) -> list[str]:
    return list(selection.expand(model(family, prove=False).adapter, length).names)


def test_names_count_layers_then_positions_then_heads():
    assert names("GPT-2", hw.heads(layers=[1, 0], positions=[0, -1])) == [
        *(f"a1.h{i}@0" for i in range(4)),
        *(f"a1.h{i}@-1" for i in range(4)),
        *(f"a0.h{i}@0" for i in range(4)),
        *(f"a0.h{i}@-1" for i in range(4)),
    ]


def test_keys_and_values_are_kv_heads_where_heads_are_grouped_and_heads_where_not():
    assert names("Llama", hw.keys(layers=1)) == ["a1.kv0<k>", "a1.kv1<k>"]
    assert names("GPT-2", hw.values(layers=1)) == [f"a1.h{i}<v>" for i in range(4)]
    assert names("Llama", hw.queries(layers=0)) == [f"a0.h{i}<q>" for i in range(4)]


def test_nodes_are_the_input_the_heads_and_the_mlps():
    expected = ["input", *(f"a{n}.h{i}" for n in (0, 1) for i in range(4)), "m0", "m1"]
    assert names("GPT-2", hw.nodes()) == expected


def test_each_position_is_counted_from_the_first_token():
    assert names("Llama", hw.residual(layers=0), 3) == ["r0@0", "r0@1", "r0@2"]
    assert names("Llama", hw.tokens(), 2) == ["input@0", "input@1"]


def test_neurons_are_as_many_as_the_down_projection_reads():
    assert len(names("Llama", hw.neurons())) == 2 * 40
    assert names("Llama", hw.neurons(layers=1))[-1] == "m1.n39"


def test_every_selector_is_offered_under_its_plural_name():
    assert set(SELECTORS) | {"features"} == {rule.plural for rule in KINDS.values()} | {"nodes"}


@pytest.mark.parametrize("layer", [2, -1])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(layer):
    with pytest.raises(GateError) as refused:
        names("Llama", hw.mlps(layers=[0, layer]))
    assert str(refused.value) == (
        f"layer {layer} does not exist: the model has layers 0 to 1.\n"
        "Write hw.mlps(layers=range(2))."
    )


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (
            hw.nodes() + hw.heads(layers=0),
            "component 'a0.h0' is selected twice.\n"
            "Select each kind once: hw.nodes() already holds tokens, heads and MLPs.",
        ),
        (
            hw.mlps(layers=[1, 1]),
            "layer 1 is given twice for mlps.\nGive each layer once, such as 0,2.",
        ),
        (
            hw.residual(layers=0, positions=[-1, -1]),
            "component 'r0@-1' is selected twice: position -1 is given twice.\n"
            "Give each position once, such as 0,-1.",
        ),
    ],
)
def test_a_component_selected_twice_is_refused_by_what_doubles_it(selection, said):
    with pytest.raises(GateError) as refused:
        names("GPT-2", selection)
    assert str(refused.value) == said


def test_a_misspelt_positions_word_is_answered_with_the_closest():
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.heads(positions="every")  # pyright: ignore[reportArgumentType]
    assert str(refused.value) == (
        "positions='every' is unknown.\n"
        'Write positions="all" (one component over all positions), "each" (one a position), '
        "or a list such as [0, -1]."
    )


@pytest.mark.parametrize(
    ("family", "selection"),
    [
        ("Mamba", hw.heads()),
        ("Mamba", hw.mlps()),
        ("GPT-J", hw.queries()),
        ("BLOOM", hw.keys()),
        ("Mixtral", hw.neurons()),
        ("Llama", hw.mixers()),
    ],
)
def test_what_a_family_does_not_offer_is_refused_by_name(family, selection):
    with pytest.raises(UnavailableSiteError) as refused:
        names(family, selection)
    adapter = model(family, prove=False).adapter
    site = KINDS[selection.choices[0].kind].site
    kind = KINDS[selection.choices[0].kind].plural
    assert str(refused.value).startswith(
        f"{adapter.family.name} has no {kind}: {adapter.missing[site]}.\nIt offers tokens, "
    )
    assert kind not in str(refused.value).splitlines()[1]


def test_an_unknown_component_is_answered_with_the_closest():
    table = (hw.heads() + hw.mlps()).expand(model("GPT-2", prove=False).adapter)
    assert table.names[table.index_of("a1.h3")] == "a1.h3"
    with pytest.raises(UnknownComponentError) as refused:
        table.index_of("a1.h7")
    assert str(refused.value) == (
        "no component 'a1.h7' among the 10 scored here. Closest: 'a1.h3', 'a1.h2', 'a1.h1'.\n"
        "All names: `scores.names`."
    )


CHOICES = [
    select(positions=positions)
    for select in SELECTORS.values()
    for positions in ("all", "each", [0], [0, -1])
] + [hw.heads(layers=range(3)), hw.mlps(layers=2), hw.neurons(layers=[])]


@given(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=3))
def test_a_selection_survives_being_written_as_plain_data(parts):
    selection = parts[0]
    for part in parts[1:]:
        selection = selection + part
    assert Selection.from_list(selection.to_list()) == selection


@pytest.mark.parametrize(
    ("selection", "length", "cut"),
    [
        (hw.tokens(), 4, True),
        (hw.tokens(positions="all"), None, True),
        (hw.residual(layers=1), 4, True),
        (hw.residual(layers=1, positions=[0, -1]), 4, False),
        (hw.residual(), 4, False),
        (hw.heads(), 4, False),
        (hw.tokens() + hw.residual(layers=1), 4, False),
    ],
)
def test_only_the_input_or_one_residual_at_every_position_is_a_cut(selection, length, cut):
    table = selection.expand(model("GPT-2", prove=False).adapter, length)
    assert table.is_cut(length) is cut
