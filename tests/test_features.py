"""Gates on dictionary features: what they do to a model, against plain hooks and plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from feature_gates import CASES, TIGHT, Case, closed, prompts
from feature_twins import (
    ACTIVATIONS,
    Twin,
    corrupted_code,
    error_of,
    features_of,
    function_by_hand,
    random_dictionaries,
    random_dictionary,
    toward,
)
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import NestedComponentsError
from headwater.gates import GatedTask, Move
from headwater.sites import Site
from tiny_tasks import gated, model, pair, task

INSIDE = ("0.attn.z", "0.resid_mid", "0.mlp.post", "1.attn.z")
"""More of Llama's."""


# --- open gates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", list(CASES))
def test_open_gates_leave_the_logits_as_they_are_bit_by_bit(family, dtype):
    chosen = model(family, dtype, prove=dtype == torch.float64)
    found = random_dictionaries(chosen, *CASES[family]).to(
        dtype=torch.promote_types(dtype, torch.float32)
    )
    function = gated(chosen, prompts(), hw.features(found))
    kept: list[Tensor] = []
    taps = {Site(None, "logits"): lambda value: kept.append(value)}
    bare = chosen.forward(function.ids, position_ids=function.rows.position_ids, read=1)
    with torch.no_grad():
        function.run(function.gates(), taps)
    function.run(function.gates().requires_grad_(), taps)
    assert torch.equal(kept[0], bare)
    assert torch.equal(kept[1], bare)


# --- one gate closed ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(CASES))
def test_closing_a_feature_or_an_error_is_that_intervention_by_plain_hooks(family):
    case = Case(family)
    clean = case.twin.metric()
    for site, dictionary in case.dictionaries.items():
        off = corrupted_code(case.twin, site, dictionary)
        columns = case.sampled(site)
        found = case.function.effects(columns)
        for column, effect in zip(columns, found, strict=True):
            edit = toward(dictionary, case.index(site, column), *off)
            with torch.no_grad():
                expected = clean - case.twin.metric({site: edit})
            assert float(expected.abs().max()) > 1e-4
            assert_close(effect, expected, **TIGHT)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm"])
def test_every_kind_of_dictionary_is_closed_by_its_own_formula(activation, scaling):
    case = Case("Llama", "0.mlp.out", *INSIDE, activation=activation, scaling=scaling)
    clean = case.twin.metric()
    for site, dictionary in case.dictionaries.items():
        off = corrupted_code(case.twin, site, dictionary)
        columns = case.sampled(site, 2)
        for column, effect in zip(columns, case.function.effects(columns), strict=True):
            edit = toward(dictionary, case.index(site, column), *off)
            with torch.no_grad():
                expected = clean - case.twin.metric({site: edit})
            assert_close(effect, expected, **TIGHT)
        with torch.no_grad():
            whole = case.twin.metric({site: toward(dictionary, None, *off)})
            put = case.twin.value(site, case.twin.corrupted)
            replaced = case.twin.metric({site: lambda _, put=put: put})
        assert_close(whole, replaced, **TIGHT)
        assert_close(closed(case.function, case.columns(site)), replaced, **TIGHT)


def test_a_transcoder_is_read_where_it_encodes_and_moves_what_it_writes():
    chosen = model("Llama")
    one = random_dictionary(24, 12, 3, reads=24, skip=torch.eye(24, dtype=torch.float64) / 3)
    read, written = Site(0, "mlp.in"), Site(0, "mlp.out")
    found = Dictionaries({written: one}, {written: read})
    function = gated(chosen, prompts(), hw.features(found))
    twin = Twin(chosen, "Llama", function)
    ids = twin.corrupted
    clean, off = (features_of(one, twin.value(read, which)) for which in (None, ids))
    error = twin.value(written) - clean @ one.decoder - one.decoder_bias
    off_error = twin.value(written, ids) - off @ one.decoder - one.decoder_bias
    column = int((clean - off).abs().sum((0, 1)).argmax())
    changes = {
        column: (off - clean)[..., column, None] * one.decoder[column],
        one.features: off_error - error,
    }
    assert function.names[-1] == "m0.error"
    for index, change in changes.items():
        with torch.no_grad():
            expected = twin.metric() - twin.metric({written: lambda x, by=change: x + by})
        assert_close(function.effects([index])[0], expected, **TIGHT)
    put = twin.value(written, ids)
    replaced = twin.metric({written: lambda _: put})
    assert_close(closed(function, list(range(13))), replaced.detach(), **TIGHT)


@pytest.mark.parametrize("position", [3, -1])
def test_a_feature_at_one_position_is_closed_there_only(position):
    case = Case("Llama", "0.mlp.out", "0.resid_post", positions=[position, 2])
    here = torch.zeros(6, 1, dtype=torch.float64)
    here[position] = 1
    for site, dictionary in case.dictionaries.items():
        off = corrupted_code(case.twin, site, dictionary)
        names = case.table.names
        at = f"m0.{{}}@{position}" if site.name == "mlp.out" else f"r0.{{}}@{position}"
        for index in (*range(dictionary.features), "error"):
            name = at.format("error" if index == "error" else f"f{index}")
            edit = toward(dictionary, index, *off, here)
            with torch.no_grad():
                expected = case.twin.metric() - case.twin.metric({site: edit})
            assert_close(case.function.effects([names.index(name)])[0], expected, **TIGHT)


def test_off_values_are_those_of_the_reference():
    site = Site(0, "mlp.out")
    pairs = prompts()

    def effects(reference: Any) -> tuple[Case, Tensor]:
        case = Case("Llama", "0.mlp.out", reference=reference, pairs=pairs)
        return case, case.function.effects(case.columns(site))

    case, _ = effects(None)
    one = case.dictionaries[site]
    code, error = corrupted_code(case.twin, site, one)
    references = {
        hw.Zero(): (0.0, 0.0),
        hw.Corrupted(): (code, error),
        hw.Mean(): (code.mean((0, 1)), error.mean((0, 1))),
        hw.PositionalMean(): (code.mean(0), error.mean(0)),
        hw.Resample(): (code.flip(0), error.flip(0)),  # the other one of two pairs
    }
    for reference, off in references.items():
        case, found = effects(reference)
        for index, effect in zip((*range(one.features), "error"), found, strict=True):
            with torch.no_grad():
                after = case.twin.metric({site: toward(one, index, *off)})
            assert_close(effect, case.twin.metric() - after, **TIGHT)


def test_everything_of_a_site_closed_puts_the_references_site_there():
    site = Site(0, "resid_post")
    for reference, put in {
        hw.Corrupted(): lambda twin, _: twin.value(site, twin.corrupted),
        # a mean of features and errors is that of the site; nothing at all is the decoder's bias
        hw.Mean(): lambda twin, _: twin.value(site, twin.corrupted).mean((0, 1)),
        hw.Zero(): lambda _, one: one.decoder_bias,
    }.items():
        case = Case("GPT-NeoX", "0.resid_post", reference=reference, scaling="layer_norm")
        value = put(case.twin, case.dictionaries[site])
        with torch.no_grad():
            expected = case.twin.metric({site: lambda x, v=value: v.expand_as(x)})
        assert_close(closed(case.function, case.columns(site)), expected, **TIGHT)


def test_from_the_corrupted_end_a_gate_restores_what_the_clean_run_has():
    case = Case("Llama", "0.mlp.out", "1.resid_post")
    function, corrupted = case.function.at("corrupted"), case.twin.corrupted
    for site, dictionary in case.dictionaries.items():
        value = case.twin.value(site)
        own = features_of(dictionary, value), error_of(dictionary, value, value)
        columns = case.sampled(site)
        for column, effect in zip(columns, function.effects(columns), strict=True):
            edit = toward(dictionary, case.index(site, column), *own)
            with torch.no_grad():
                expected = case.twin.metric({site: edit}, corrupted) - case.twin.metric(
                    ids=corrupted
                )
            assert_close(effect, expected, **TIGHT)


def test_features_of_several_sites_move_together_each_from_what_reaches_it():
    case = Case("Llama", "embed", "0.mlp.out", "1.resid_post")
    by_hand = function_by_hand(case.twin, case.dictionaries, case.table.names)
    torch.manual_seed(0)
    m = torch.rand(3, 2, len(case.table), dtype=torch.float64)
    m[0] = (m[0] > 0.5).double()
    with torch.no_grad():
        assert_close(case.function(m), by_hand.fn(m), **TIGHT)
    # what an earlier gate moves changes the features that a later one finds
    (mine,), (hand,) = (
        torch.autograd.grad(f(leaf).sum(), leaf)
        for f in (case.function, by_hand)
        for leaf in [m[1:].clone().requires_grad_()]
    )
    assert_close(mine, hand, **TIGHT)
    some = [case.columns(site)[k] for site in case.dictionaries for k in (0, 2, -1)]
    assert_close(closed(case.function, some), by_hand.moved([Move(tuple(some), 1.0)])[0], **TIGHT)
    for family in case.function.families:
        part = case.function.only([family])
        assert part.names == tuple(case.table.names[column] for column in family.columns)
        (mine,) = part.slopes([Move(tuple(range(len(part.names))), 0.4)])
        (hand,) = by_hand.slopes([Move(family.columns, 0.4)])
        assert_close(mine.value, hand.value, **TIGHT)
        assert_close(mine.gradient, hand.gradient, **TIGHT)


def test_prompts_of_mixed_lengths_get_the_scores_each_gets_alone():
    pairs = task(6, 4)
    found = random_dictionaries(model("Llama"), "0.attn.z", "0.resid_mid", "1.mlp.post")
    selection = hw.features(found) + hw.features(
        random_dictionaries(model("Llama"), "1.resid_post"), positions=[0, -1]
    )
    for estimator in (hw.Exact(), hw.Gradient()):
        together = hw.attribute(model("Llama"), pairs, selection, estimator).scores
        alone = [
            hw.attribute(model("Llama"), pairs[i : i + 1], selection, estimator).scores
            for i in range(2)
        ]
        assert_close(together, torch.cat(alone), **TIGHT)


def test_few_features_are_encoded_alone_and_give_what_all_do(monkeypatch):
    case = Case("Llama", "0.mlp.out", features=40)
    columns = case.sampled(Site(0, "mlp.out"))[:-1]
    asked: list[int | None] = []
    encode = hw.Dictionary.encode

    def counting(self: Any, x: Tensor, columns: Tensor | None = None) -> Tensor:
        asked.append(None if columns is None else len(columns))
        return encode(self, x, columns)

    case.function.value()
    monkeypatch.setattr(hw.Dictionary, "encode", counting)
    few = case.function.effects(columns)
    assert asked == [3]  # three settings of one run, one feature each
    monkeypatch.setattr("headwater.gates.coded.SPARSE", 10**9)
    asked.clear()
    assert_close(case.function.effects(columns), few, **TIGHT)
    assert asked == [None]


# --- what is nested -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "other", "outer", "inner"),
    [
        ("0.mlp.out", hw.mlps(), "m0", "m0.f2"),
        ("0.mlp.out", hw.mlps(positions=[1]), "m0@1", "m0.error"),
        ("0.mlp.post", hw.neurons(), "m0.n7", "m0.post.f2"),
        ("0.mlp.post", hw.mlps(), "m0", "m0.post.f2"),
        ("0.attn.z", hw.heads(), "a0.h3", "a0.z.f1"),
        ("0.attn.z", hw.attentions(), "a0", "a0.z.error"),
        ("0.attn.out", hw.attentions(), "a0", "a0.f1"),
        ("0.resid_post", hw.residual(positions=[2]), "r0@2", "r0.f1"),
        ("embed", hw.tokens(positions="all"), "input", "input.f1"),
    ],
)
def test_a_feature_inside_a_component_is_refused_when_both_move_in_one_run(
    place, other, outer, inner
):
    found = hw.features(random_dictionaries(model("Llama"), place))
    for selection in (other + found, found + other):
        function = gated(model("Llama"), prompts(), selection)
        pair_of = tuple(function.names.index(name) for name in (outer, inner))
        with pytest.raises(NestedComponentsError) as refused:
            function.moved([Move(pair_of, 1.0)])
        assert str(refused.value) == (
            f"{inner} lies inside {outer}, and both gates are moved in one run: the inner one "
            "then means nothing.\nScore them in two calls, or leave one kind out."
        )
        assert bool(function.effects(list(pair_of)).isfinite().all())


@pytest.mark.parametrize(
    ("place", "other", "names"),
    [
        ("0.mlp.out", hw.neurons(), ("m0.n7", "m0.f2")),
        ("0.attn.out", hw.heads(), ("a0.h3", "a0.f1")),
        ("0.attn.z", hw.heads(), ("a1.h3", "a0.z.f1")),
        ("0.resid_mid", hw.attentions() + hw.mlps(), ("a0", "m0", "r0.mid.f1")),
        ("0.mlp.out", hw.residual(positions="all"), ("r0", "m0.f1", "m0.f3", "m0.error")),
    ],
)
def test_features_beside_a_component_may_move_with_it(place, other, names):
    found = hw.features(random_dictionaries(model("Llama"), place))
    function = gated(model("Llama"), prompts(), other + found)
    columns = [function.names.index(name) for name in names]
    assert bool(closed(function, columns).isfinite().all())


def test_a_feature_everywhere_holds_the_same_feature_at_a_position():
    found = random_dictionaries(model("Llama"), "0.mlp.out")
    both = hw.features(found) + hw.features(found, positions=[1])
    function = gated(model("Llama"), prompts(), both)

    def together(*names: str) -> Tensor:
        return closed(function, [function.names.index(name) for name in names])

    with pytest.raises(NestedComponentsError, match=r"^m0\.f2@1 lies inside m0\.f2, "):
        together("m0.f2", "m0.f2@1")
    assert bool(together("m0.f2", "m0.f3@1", "m0.error@1").isfinite().all())


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["read", "written"])
def test_no_hook_is_left_behind_when_a_run_fails(when):
    chosen = model("Llama")
    one = random_dictionary(24, 12, 3, reads=24)
    written = Site(0, "mlp.out")
    found = Dictionaries({written: one}, {written: Site(0, "mlp.in")})
    function = gated(chosen, prompts(), hw.features(found))
    before = function.effects([0, 12])

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    modules = {"read": "model.layers.0.mlp.up_proj", "written": "model.layers.1.mlp"}
    handle = chosen.module.get_submodule(modules[when]).register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        function.effects([0, 12])
    handle.remove()
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in chosen.module.modules()
    )
    assert_close(function.effects([0, 12]), before, rtol=0, atol=0)


def test_runs_of_features_are_counted_from_their_layer_on():
    case = Case("Llama", "0.mlp.out", "1.mlp.out")
    first, last = (case.columns(site)[0] for site in case.dictionaries)
    case.function.value()
    before = case.function.cost.forwards
    case.function.effects([first, last])
    # of two prompts: the two layers' run, and half of one; where runs start was kept just now
    assert case.function.cost.forwards - before == pytest.approx(2 * (1 + 0.5))
    scores = hw.attribute(case.model, case.pairs, case.selection, hw.Gradient())
    assert (scores.cost.forwards, scores.cost.backwards) == (2 * 2, 2)


def test_sizes_are_what_a_feature_writes_beside_the_residual():
    for family in ("Llama", "Granite"):
        case = Case(family, "0.mlp.out", "1.mlp.out", positions=[2])
        found = hw.attribute(case.model, case.pairs, case.selection, hw.Gradient()).parts.sizes
        for site, one in case.dictionaries.items():
            value = case.twin.value(site)
            off, off_error = corrupted_code(case.twin, site, one)
            # in Granite what a block puts out is multiplied before it is added
            scale = case.model.anatomy().write_scale
            changes = (features_of(one, value) - off)[..., None] * one.decoder
            changes = torch.cat([changes, (error_of(one, value, value) - off_error)[:, :, None]], 2)
            entering = Site(None, "embed") if site.layer == 0 else Site(0, "resid_post")
            residual = case.twin.value(entering)
            ratio = scale * changes[:, 2].norm(dim=-1) / residual[:, 2].norm(dim=-1)[:, None]
            assert_close(found[case.columns(site)], ratio.mean(0), rtol=1e-5, atol=0)


def test_a_task_of_several_batches_gives_what_one_batch_gives():
    found = random_dictionaries(model("Llama"), "0.mlp.out", "1.resid_post")
    pairs = hw.Task([pair(6, seed=i, changed=(1, 3)) for i in range(3)])
    for estimator in (hw.Exact(), hw.Gradient(), hw.IntegratedGradients(steps=2)):
        whole = hw.attribute(model("Llama"), pairs, hw.features(found), estimator)
        split = hw.attribute(model("Llama"), pairs, hw.features(found), estimator, batch_size=2)
        assert_close(split.scores, whole.scores, **TIGHT)
        assert_close(split.parts.sizes, whole.parts.sizes, rtol=1e-5, atol=0)


def test_several_draws_of_off_values_are_averaged():
    found = random_dictionaries(model("Llama"), "0.mlp.out")
    pairs = hw.Task([pair(6, seed=i, changed=(1, 3)) for i in range(3)])
    both = hw.attribute(
        model("Llama"), pairs, hw.features(found), hw.Exact(), reference=hw.Resample(draws=2)
    )
    batches = GatedTask(
        model("Llama"), pairs, hw.features(found), hw.Resample(draws=2), batch_size=32
    )
    draws = [function.effects(range(len(function.names))).T for _, function in batches]
    assert len(draws) == 2
    assert_close(both.scores, (draws[0] + draws[1]) / 2, **TIGHT)
