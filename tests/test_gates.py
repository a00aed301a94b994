"""The gated model: what its gates do, and that they do nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import attribute
from headwater.errors import GateError, NestedComponentsError, UnalignedPromptsError
from headwater.gates import GatedTask, Move
from tiny_models import BUILDERS
from tiny_tasks import gated, model, one_of_each, task, tokenizer

FAMILIES = list(BUILDERS)
FEW = ["GPT-2", "Llama", "Gemma 2", "BLOOM", "Falcon", "gpt-oss"]
EVERYWHERE = {  # what lies on plain hooks, so that the model's own attention runs
    "attn.z": hw.heads(),
    "attn.out": hw.attentions(),
    "mlp.out": hw.mlps(),
    "mlp.post": hw.neurons(),
    "mixer.out": hw.mixers(),
}


def outside_attention(chosen: Any) -> Any:
    offered = {site.name for site in chosen.sites()}
    selection = hw.tokens(positions="all") + hw.residual(positions=[0, -1])
    for site, components in EVERYWHERE.items():
        selection = selection + components if site in offered else selection
    return selection


def bare_logits(module: nn.Module, ids: Tensor, function: Any) -> Tensor:
    """What the user's own model says at the last position."""
    takes = {"attention_mask": function.rows.mask.long()}
    if not type(module).__name__.startswith(("Bloom", "Mamba")):
        takes["position_ids"] = function.rows.position_ids
    with torch.no_grad():
        return module(ids, use_cache=False, **takes).logits[:, -1:]


def difference(logits: Tensor, pairs: hw.Task, order: tuple[int, ...]) -> Tensor:
    last = logits[:, -1].float()
    answers = [pairs.pairs[i] for i in order]
    return torch.stack(
        [row[p.answer[0]] - row[p.wrong[0]] for row, p in zip(last, answers, strict=True)]
    )


# --- both ends are exact ------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_leave_the_bare_models_metric_bitwise_in_bfloat16(family):
    chosen, mixed = model(family, torch.bfloat16, prove=False), task(6, 4, 6)
    function = gated(chosen, mixed, outside_attention(chosen))
    bare = bare_logits(chosen.module, function.ids, function)
    with torch.no_grad():
        ours = function(function.gates())[0]
    assert torch.equal(ours, difference(bare, mixed, function.rows.pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_input_is_the_corrupted_run_bitwise_in_bfloat16(family):
    chosen, mixed = model(family, torch.bfloat16, prove=False), task(6, 4, 6)
    function = gated(chosen, mixed, hw.tokens(positions="all"))
    bare = bare_logits(chosen.module, function.rows.corrupted, function)
    closed = difference(bare, mixed, function.rows.pairs)
    assert torch.equal(function.switched([0])[0], closed)
    with torch.no_grad():
        assert torch.equal(function(function.gates() * 0)[0], closed)
    assert torch.equal(function.at("corrupted").value(), closed)


def test_a_gate_at_one_half_is_half_way_between_value_and_reference():
    chosen, one = model("Llama"), task(5)
    function = gated(chosen, one, hw.mlps(layers=1), hw.Zero())
    hook = chosen.adapter.layers[1].mlp.register_forward_hook(lambda _, __, out: out / 2)
    with torch.no_grad():
        halved = chosen.forward(function.ids)
        hook.remove()
        ours = function(function.gates() / 2)[0]
    last = halved[0, -1]
    expected = last[one.pairs[0].answer[0]] - last[one.pairs[0].wrong[0]]
    assert_close(ours[0], expected, rtol=1e-10, atol=0)


# --- one path for every way of asking -----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "end"),
    [(family, "clean") for family in FAMILIES] + [(family, "corrupted") for family in FEW],
)
def test_switching_one_gate_equals_the_whole_run_with_one_gate_moved(family, end):
    chosen = model(family)
    function = gated(chosen, task(6, 4), one_of_each(chosen), end=end)
    columns = range(len(function.names))
    m = function.gates(len(columns))
    for column in columns:
        m[column, :, column] = 1 - m[column, :, column]
    with torch.no_grad():
        dense, rest = function(m), function(function.gates())
    assert_close(function.switched(columns), dense, rtol=1e-11, atol=1e-11)
    effects = rest - dense if end == "clean" else dense - rest
    assert_close(function.effects(columns), effects, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FEW)
def test_stacked_settings_equal_each_setting_alone(family):
    chosen = model(family)
    function = gated(chosen, task(6, 4), hw.tokens(positions=[0, -1]) + hw.mlps())
    m = torch.rand(5, 2, len(function.names), dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([function(setting[None]) for setting in m])
        assert_close(function(m), alone, rtol=1e-11, atol=1e-11)


def test_a_small_token_budget_splits_the_stack_and_changes_nothing():
    chosen = model("Qwen2")
    function = gated(chosen, task(6, 4), hw.heads() + hw.mlps())
    columns = range(len(function.names))
    whole = function.switched(columns)
    function.tokens = 1
    assert_close(function.switched(columns), whole, rtol=1e-11, atol=1e-11)


def test_columns_come_back_in_the_order_asked_for():
    function = gated(model("GPT-2"), task(5), hw.heads() + hw.mlps())
    forward = function.switched([0, 9, 7])
    assert_close(function.switched([7, 0, 9]), forward[[2, 0, 1]], rtol=1e-11, atol=1e-11)
    assert function.switched([]).shape == (0, 1)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Falcon", "Mamba"])
def test_exact_effects_of_the_last_layer_run_no_earlier_layer(family):
    chosen = model(family)
    kind = hw.mixers if family == "Mamba" else hw.mlps
    function = gated(chosen, task(5, 5), kind(layers=1))
    function.value()
    function.effects([0])
    ran = [0, 0]

    def counting(layer: int) -> Any:
        def count(*_: Any) -> None:
            ran[layer] += 1

        return count

    parts = [next(layer.children()) for layer in chosen.adapter.layers]
    hooks = [part.register_forward_hook(counting(i)) for i, part in enumerate(parts)]
    function.switched([0])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_the_cost_counts_a_suffix_run_by_its_share_of_the_layers():
    function = gated(model("GPT-2"), task(5, 5), hw.mlps())
    before = function.cost.forwards
    function.effects([0, 1])
    # two prompts: one run at rest, then two and one of the two layers
    assert function.cost.forwards - before == pytest.approx(2 * (1 + 1 + 1 / 2))


# --- lengths, padding, batches ------------------------------------------------------------


def alone_and_together(family: str, dtype: torch.dtype, estimator: Any) -> tuple[Tensor, Tensor]:
    chosen, mixed = model(family, dtype, prove=dtype == torch.float64), task(6, 3)
    components = one_of_each(chosen)
    together = attribute(chosen, mixed, components, estimator).scores
    alone = [attribute(chosen, mixed[i : i + 1], components, estimator).scores for i in range(2)]
    return together, torch.cat(alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_mixed_lengths_get_the_scores_each_gets_alone_in_float64(family):
    together, alone = alone_and_together(family, torch.float64, hw.Exact())
    assert_close(together, alone, rtol=0, atol=1e-11 * float(alone.abs().max()))


@pytest.mark.parametrize("family", [*FEW, "Mamba", "Mamba-2"])
def test_prompts_of_mixed_lengths_get_the_gradients_each_gets_alone_in_float64(family):
    together, alone = alone_and_together(family, torch.float64, hw.Gradient())
    assert_close(together, alone, rtol=0, atol=1e-11 * float(alone.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_mixed_lengths_get_the_scores_each_gets_alone_in_float32(family):
    together, alone = alone_and_together(family, torch.float32, hw.Exact())
    # logits of about 10 carry rounding of 1e-6 through three layers
    assert_close(together, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_all_padding_stay_finite_with_finite_gradients(family, dtype):
    chosen = model(family, dtype, prove=dtype == torch.float64)
    (batch,) = task(7, 2).batches(tokenizer())
    leaf: list[Tensor] = []

    def grow(value: Tensor) -> Tensor:
        leaf.append(value.detach().requires_grad_())
        return leaf[0]

    site = chosen.sites()[0]
    with chosen.frozen():
        logits = chosen.forward(
            batch.clean, mask=batch.mask, position_ids=batch.position_ids, taps={site: grow}
        )
    assert bool(logits.isfinite().all())
    (gradient,) = torch.autograd.grad(logits[:, -1].square().sum(), leaf)
    assert bool(gradient.isfinite().all())
    assert not bool(gradient[~batch.mask].any())  # padding moves no number
    assert bool(gradient[batch.mask].any())


def test_the_batch_size_does_not_matter():
    chosen, mixed = model("Llama"), task(6, 4, 5, 6, 4)
    components = one_of_each(chosen)
    whole = attribute(chosen, mixed, components, hw.Exact(), batch_size=32)
    for size in (1, 2, 3):
        split = attribute(chosen, mixed, components, hw.Exact(), batch_size=size)
        assert_close(split.scores, whole.scores, rtol=0, atol=1e-11)
        assert_close(split.parts.clean, whole.parts.clean, rtol=0, atol=1e-11)
        assert_close(split.parts.sizes, whole.parts.sizes, rtol=1e-5, atol=0)


# --- positions ------------------------------------------------------------


def test_each_position_of_the_input_adds_nothing_but_its_own_change():
    chosen, two = model("Qwen3"), task(5, 5)
    function = gated(chosen, two, hw.tokens(positions="each"))
    assert function.names == tuple(f"input@{i}" for i in range(5))
    # the pairs differ at the first and last token only
    effects = function.effects(range(5))
    assert bool((effects[[0, 4]].abs() > 1e-6).all())
    # to rounding: gates are stacked in the batch, and matrix products of other shapes may add up
    # in another order
    assert float(effects[1:4].abs().max()) < 1e-14


@pytest.mark.parametrize("estimator", [hw.Exact(), hw.Gradient()], ids=["exact", "gradient"])
@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_positions_count_from_the_first_real_token_and_negative_ones_from_the_end(estimator, end):
    chosen, mixed, estimator = model("GPT-NeoX"), task(6, 4), replace(estimator, at=end)

    def scores(pairs: hw.Task, positions: Any) -> Any:
        return attribute(chosen, pairs, hw.residual(layers=0, positions=positions), estimator)

    # in the prompt of 4 tokens, 3 and -1 are the same one: both must get its score
    mixed_scores = scores(mixed, [0, 3, -1])
    six, four = scores(mixed[:1], "each"), scores(mixed[1:], "each")
    for name, in_six, in_four in (
        ("r0@0", "r0@0", "r0@0"),
        ("r0@3", "r0@3", "r0@3"),
        ("r0@-1", "r0@5", "r0@3"),
    ):
        expected = torch.stack([six[in_six][0], four[in_four][0]])
        assert_close(mixed_scores[name], expected, rtol=0, atol=1e-11)
        assert bool((expected != 0).all())


@pytest.mark.parametrize(("position", "length"), [(4, 4), (-5, 4)])
def test_a_position_outside_a_prompt_is_refused_with_the_pair(position, length):
    with pytest.raises(GateError) as refused:
        attribute(model("GPT-2"), task(6, 4), hw.heads(positions=[position]))
    assert str(refused.value) == (
        f"position {position} does not exist in pair 1, whose prompt has {length} tokens "
        "(positions 0 to 3).\nPositions count from the first real token; -1 is the last."
    )


def test_each_position_of_prompts_of_several_lengths_is_refused():
    with pytest.raises(UnalignedPromptsError) as refused:
        attribute(model("GPT-2"), task(6, 4), hw.mlps(positions="each"))
    assert str(refused.value) == (
        'positions="each" needs prompts of one length, but this task has lengths 4, 6: '
        "position 5 would be another word in each.\n"
        'Write hw.mlps(positions="all"), or a list such as [0, -1], or split the task by length.'
    )


# --- nested components ------------------------------------------------------------


def moved_together(family: str, components: Any, *names: str) -> Tensor:
    function = gated(model(family), task(4), components)
    m = function.gates()
    for name in names:
        m[..., function.names.index(name)] = 0.5
    with torch.no_grad():
        return function(m)


@pytest.mark.parametrize(
    ("components", "outer", "inner"),
    [
        (hw.mlps() + hw.neurons(), "m1", "m1.n7"),
        (hw.neurons() + hw.mlps(), "m1", "m1.n7"),
        (hw.attentions() + hw.heads(), "a1", "a1.h3"),
        (hw.attentions() + hw.values(), "a1", "a1.kv1<v>"),
        (hw.heads() + hw.queries(), "a1.h2", "a1.h2<q>"),
        (hw.heads() + hw.keys(), "a1.h3", "a1.kv1<k>"),
        (hw.heads() + hw.values(positions=[0]), "a1.h0", "a1.kv0<v>@0"),
        (hw.mlps(positions=[1]) + hw.neurons(positions=[1]), "m0@1", "m0.n2@1"),
        (hw.mlps() + hw.mlps(positions=[1]), "m0", "m0@1"),
    ],
)
def test_nested_components_are_refused_when_moved_in_one_run(components, outer, inner):
    with pytest.raises(NestedComponentsError) as refused:
        moved_together("Llama", components, outer, inner)
    assert str(refused.value) == (
        f"{inner} lies inside {outer}, and both gates are moved in one run: the inner one then "
        "means nothing.\nScore them in two calls, or leave one kind out."
    )


@pytest.mark.parametrize(
    ("components", "names"),
    [
        (hw.mlps() + hw.neurons(), ("m0", "m1.n7")),
        (hw.heads() + hw.queries(), ("a1.h2", "a1.h3<q>")),
        (hw.heads() + hw.keys(), ("a1.h2", "a1.kv0<k>")),  # kv head 0 serves heads 0 and 1
        (hw.heads() + hw.mlps(), ("a1.h2", "m1")),
        (hw.mlps(positions=[0]) + hw.neurons(positions=[1]), ("m0@0", "m0.n2@1")),
        (hw.residual(layers=1, positions=[0, 1]), ("r1@0", "r1@1")),
    ],
)
def test_components_side_by_side_may_move_in_one_run(components, names):
    assert bool(moved_together("Llama", components, *names).isfinite().all())


def test_nested_components_may_be_scored_one_at_a_time():
    chosen, one = model("Llama"), task(4)
    joined = attribute(chosen, one, hw.mlps() + hw.neurons(layers=1), hw.Exact())
    apart = attribute(chosen, one, hw.neurons(layers=1), hw.Exact())
    assert_close(joined["m1.n7"], apart["m1.n7"], rtol=0, atol=1e-12)


# --- what a gated function refuses ------------------------------------------------------------


def test_gates_of_the_wrong_shape_are_refused_with_both_shapes():
    function = gated(model("GPT-2"), task(4, 4), hw.mlps())
    with pytest.raises(GateError) as refused:
        function(torch.ones(1, 3, 2))
    assert str(refused.value) == (
        "gates have shape (1, 3, 2); expected [setting, batch=2, component=2].\n"
        "Start from `function.gates(settings)`."
    )


def test_an_empty_selection_is_refused():
    with pytest.raises(GateError, match=re.escape("Write for example hw.heads().")):
        GatedTask(model("GPT-2"), task(4), hw.heads(layers=[]), hw.Zero())


class Numbered(hw.GatedFunction):
    """A function that offers something of its own."""

    def offered(self) -> str:
        return f"offered at the {self.end} end"


def test_a_function_seen_from_the_other_end_is_of_the_same_class_and_offers_the_same():
    function = Numbered(lambda m: m.sum(-1), ["a", "b"])
    other = function.at("corrupted")
    assert other.offered() == "offered at the corrupted end"
    assert other.cost is function.cost
    assert function.end == "clean"
    assert other.effects([0]).tolist() == [[1.0]]


def test_part_of_a_function_holds_the_same_examples():
    function = hw.GatedFunction(lambda m: m.sum(-1), ["a", "b"], examples=[7])
    assert list(function.only(function.families).pairs) == [7]


def test_passes_counted_apart_leave_the_functions_own_cost_also_after_an_error():
    function = hw.GatedFunction(lambda m: m.sum(-1), ["a", "b"])
    with function.counting() as cost:
        function.value()
    assert (cost.forwards, function.cost.forwards) == (1, 0)
    with pytest.raises(KeyboardInterrupt), function.counting():
        raise KeyboardInterrupt
    assert function.cost.forwards == 0


def test_slopes_of_moves_over_several_groups_come_back_in_the_order_of_their_columns():
    function = gated(model("GPT-2"), task(5, 5), hw.heads() + hw.mlps())
    last = len(function.names) - 1
    (mixed,) = function.slopes([Move((last, 0, 2), 0.0)])
    (plain,) = function.slopes([Move((0, 2, last), 0.0)])
    assert_close(mixed.gradient, plain.gradient[:, [2, 0, 1]], rtol=0, atol=1e-12)
    for place, column in enumerate((0, 2, last)):
        (alone,) = function.slopes([Move((column,), 0.0)])
        assert_close(plain.gradient[:, [place]], alone.gradient, rtol=0, atol=1e-10)
