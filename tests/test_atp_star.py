"""AtP*: attention recomputed by brute force, layers detached by hand, softmax rows one by one."""

from __future__ import annotations

import copy
import functools
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
import oracles
from headwater.errors import (
    GateError,
    MissingCapabilityError,
    StationaryMetricError,
    UnknownOptionError,
)
from headwater.estimators import attention_fix
from headwater.estimators.attention_fix import Fixed, KeyRows
from headwater.gates import AttentionRows, Replaced
from headwater.models import Model
from headwater.sites import Site
from oracles import NAMES, Float64, Names
from shape_checks import unchecked
from tiny_models import BUILDERS, build
from tiny_tasks import model, task, tokenizer

DOUBLE = torch.float64
WITH_ROWS = [
    name
    for name in BUILDERS
    if not name.startswith(("GPT-J", "GPT-Neo", "BLOOM", "Falcon", "Mamba")) or "NeoX" in name
]
"""Families whose attention can be read: grouped heads, soft caps, sinks and windows among them."""


def logit_difference(logits: Tensor, pairs: hw.Task) -> Tensor:
    """The metric of `task`, from its definition: one answer and one wrong word a pair."""
    last = logits[:, -1]
    answer = torch.tensor([pair.answer[0] for pair in pairs.pairs])
    wrong = torch.tensor([pair.wrong[0] for pair in pairs.pairs])
    rows = torch.arange(len(last))
    return last[rows, answer] - last[rows, wrong]


class Brute:
    """Attention recomputed by the model itself, one query or key replaced in one run."""

    def __init__(self, runner: Model, pairs: hw.Task) -> None:
        self.runner, self.pairs = runner, pairs
        self.adapter = runner.anatomy()
        encode = tokenizer()
        self.clean = encode([p.clean for p in pairs.pairs], return_tensors="pt")["input_ids"]
        corrupted = encode([p.corrupted for p in pairs.pairs], return_tensors="pt")
        self.corrupted = corrupted["input_ids"]

    def seen(self, ids: Tensor, name: str, layer: int) -> Tensor:
        kept: list[Tensor] = []
        taps = {Site(layer, name): lambda value: kept.append(value.detach().clone())}
        with torch.no_grad():
            self.runner.forward(ids, taps=taps)
        return kept[0]

    def slope(self, layer: int) -> tuple[Tensor, Tensor]:
        """The clean pattern of a layer and the derivative of the metric in it."""
        kept: list[Tensor] = []

        def leaf(pattern: Tensor) -> Tensor:
            kept.append(pattern.detach().requires_grad_())
            return kept[0]

        logits = self.runner.forward(self.clean, taps={Site(layer, "attn.pattern"): leaf})
        (slope,) = torch.autograd.grad(logit_difference(logits, self.pairs).sum(), kept[0])
        return kept[0].detach(), slope

    def replaced(self, kind: str, layer: int, unit: int, position: int | None) -> Tensor:
        """What the metric loses to first order in the pattern: [batch]."""
        name = {"query": "attn.q", "key": "attn.k"}[kind]
        off = self.seen(self.corrupted, name, layer)
        patterns: list[Tensor] = []

        def replace(value: Tensor) -> Tensor:
            value = value.clone()
            where = slice(None) if position is None else position
            value[:, where, unit] = off[:, where, unit]
            return value

        taps = {
            Site(layer, name): replace,
            Site(layer, "attn.pattern"): lambda pattern: patterns.append(pattern.detach()),
        }
        with torch.no_grad():
            self.runner.forward(self.clean, taps=taps)
        clean, slope = self.slope(layer)
        return ((clean - patterns[0]) * slope).sum((1, 2, 3))


def saturated(family: str, factor: float) -> Model:
    """A model whose queries are so long that most rows of attention look at one key."""
    module = build(family, dtype=DOUBLE)
    projections = [m for name, m in module.named_modules() if name.endswith(("q_proj", "c_attn"))]
    with torch.no_grad():
        for projection in projections:
            weight = projection.weight
            if projection.__class__.__name__ == "Conv1D":  # queries, keys and values in one
                weight[:, : weight.shape[1] // 3] *= factor
            else:
                weight *= factor
    return hw.wrap(module, tokenizer())


def assert_fixes_are_brute(runner: Model, length: int = 6) -> None:
    pairs = task(length, length)
    brute = Brute(runner, pairs)
    components = (
        hw.queries(layers=1, positions="each")
        + hw.keys(layers=1, positions="each")
        + hw.queries(layers=0)
        + hw.keys(layers=0)
    )
    scores = hw.attribute(runner, pairs, components, hw.AtPStar(grad_drop=False))
    assert scores.scores.isfinite().all()
    # one of every kind, place and head group: each brute run costs two forwards of its own
    columns = [*range(0, len(scores.names), 5), *range(len(scores.names) - 6, len(scores.names))]
    for column in columns:
        part = scores.parts.components[column]
        assert part.index is not None
        assert part.layer is not None
        expected = brute.replaced(part.kind, part.layer, part.index, part.position)
        scale = max(1.0, float(expected.abs().max()))
        assert_close(scores.scores[:, column], expected, rtol=0, atol=1e-9 * scale, msg=part.name)


@pytest.mark.parametrize("family", WITH_ROWS)
def test_query_and_key_fix_equal_attention_recomputed_by_the_model(family):
    assert_fixes_are_brute(model(family))


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2", "Mistral"])
def test_the_fixes_hold_where_attention_is_saturated(family):
    runner = saturated(family, 300.0)
    brute = Brute(runner, task(6, 6))
    pattern = brute.seen(brute.clean, "attn.pattern", 1)
    rows = pattern[:, :, 1:].amax(-1)  # a first row sees one key only
    if family != "Gemma 2":  # its scores are capped, which keeps rows from saturating
        assert float((rows > 0.99).double().mean()) > 0.8
    assert_fixes_are_brute(runner)


def test_padded_prompts_score_as_they_do_alone():
    runner, mixed = model("Llama"), task(6, 4)
    components = hw.queries() + hw.keys(positions=[0, -1]) + hw.heads()
    together = hw.attribute(runner, mixed, components, hw.AtPStar())
    for row in range(2):
        alone = hw.attribute(runner, mixed[row : row + 1], components, hw.AtPStar())
        assert_close(together.scores[row : row + 1], alone.scores, rtol=1e-9, atol=1e-12)


# --- single rows -------------------------------------------------------------------------------


def one_by_one(scores: Tensor, replaced: Tensor, slope: Tensor, sink: float | None) -> Tensor:
    """The effect of each key through one row, the softmax computed anew for each."""

    def pattern(row: Tensor) -> Tensor:
        if sink is not None:
            row = torch.cat([row, torch.tensor([sink], dtype=row.dtype)])
        return row.softmax(-1)[: scores.shape[-1]]

    effects = []
    for key in range(len(scores)):
        other = scores.clone()
        other[key] = replaced[key]
        effects.append(((pattern(scores) - pattern(other)) * slope).sum())
    return torch.stack(effects)


@given(
    row=st.lists(
        st.tuples(st.floats(-300, 300), st.floats(-300, 300), st.floats(-10, 10)),
        min_size=2,
        max_size=7,
    ),
    sink=st.none() | st.floats(-300, 300),
)
def test_every_key_of_a_row_is_as_if_computed_alone_however_saturated(row, sink):
    scores, replaced, slope = (torch.tensor(x, dtype=DOUBLE) for x in zip(*row, strict=True))
    shape = (1, 1, 1, len(row))
    sinks = None if sink is None else torch.tensor(sink, dtype=DOUBLE).reshape(1, 1, 1, 1)
    rows = AttentionRows(scores.softmax(-1).reshape(shape), scores.reshape(shape), sinks)
    found = KeyRows(rows, replaced.reshape(shape)).lost(slope.reshape(shape))
    expected = one_by_one(scores, replaced, slope, sink)
    # The twin subtracts numbers up to 10 from each other: that is its own rounding. The means are
    # differences of logarithms as large as the scores: a rounding or two of these, times the slope.
    largest = torch.stack([scores, replaced]).abs().max().clamp(min=abs(sink or 0.0))
    rounding = torch.finfo(DOUBLE).eps * float(largest * slope.abs().max())
    assert_close(found.flatten(), expected, rtol=1e-9, atol=1e-13 + 4 * rounding)


def test_a_saturated_row_has_its_whole_effect_where_the_gradient_sees_nothing():
    gap = 40.0  # two keys, of which the query's change swaps the winner
    scores = torch.tensor([gap, 0.0], dtype=DOUBLE).reshape(1, 1, 1, 2)
    rows = AttentionRows(scores.softmax(-1), scores, None)
    swapped = Replaced(slice(0, 1), "query", 0, scores.flip(-1), None, 1)
    slope = torch.tensor([1.0, 0.0], dtype=DOUBLE).reshape(1, 1, 1, 2)
    assert Fixed(rows, swapped).effects(slope).item() == pytest.approx(math.tanh(gap / 2))


# --- layers held constant ------------------------------------------------------------------------


@functools.cache
def deep() -> Model:
    """Four layers of GPT-2, trained, in float64."""
    return hw.load("tiny-gpt2", dtype="float64")


@dataclass(frozen=True)
class ByHand:
    """A model run by plain hooks, with what one of its layers adds to the residual detached."""

    module: Any
    names: Names
    heads: int
    clean: Tensor
    corrupted: Tensor
    answer: Tensor
    wrong: Tensor

    @property
    def layers(self) -> Any:
        return self.module.get_submodule(self.names.layers)

    def run(self, ids: Tensor, dropped: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """The value of every part, and all logits."""
        values: dict[str, Tensor] = {}

        def coming_in(name: str):
            def hook(_, args, kwargs):
                values[name] = args[0] if args else kwargs["hidden_states"]

            return hook

        def going_out(name: str):
            def hook(_, args, output):
                values[name] = output
                return output.clone()  # Falcon adds to an MLP's output in place

            return hook

        def detached(_, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after, *rest = output if isinstance(output, tuple) else (output,)
            after = before + (after - before).detach()
            return (after, *rest) if isinstance(output, tuple) else after

        with ExitStack() as stack:

            def entered(module: Any, hook: Any) -> None:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)

            def left(module: Any, hook: Any, **options: bool) -> None:
                stack.callback(module.register_forward_hook(hook, **options).remove)

            entered(self.layers[0], coming_in("input"))
            for number, layer in enumerate(self.layers):
                if self.names.mixer is not None:
                    left(layer.get_submodule(self.names.mixer), going_out(f"mixer{number}"))
                else:
                    entered(layer.get_submodule(self.names.o_proj), coming_in(f"a{number}"))
                    left(layer.get_submodule(self.names.mlp), going_out(f"m{number}"))
                if number == dropped:
                    left(layer, detached, with_kwargs=True)
            stack.enter_context(Float64())
            return values, self.module(ids, use_cache=False).logits

    def patched(self, dropped: int | None) -> dict[str, Tensor]:
        """Attribution patching of every part: what the metric loses, to first order."""
        off, _ = self.run(self.corrupted, None)
        on, logits = self.run(self.clean, dropped)
        value = oracles.logit_difference(logits, self.answer, self.wrong)
        slopes = torch.autograd.grad(value.sum(), list(on.values()), materialize_grads=True)
        scores: dict[str, Tensor] = {}
        for name, slope in zip(on, slopes, strict=True):
            product = (on[name] - off[name]).detach() * slope
            if name.startswith("a"):
                by_head = product.unflatten(-1, (self.heads, -1)).sum((1, 3))
                scores |= {f"{name}.h{head}": by_head[:, head] for head in range(self.heads)}
            else:
                scores[name] = product.sum((1, 2))
        return scores

    def counted(self) -> dict[str, Tensor]:
        """GradDrop by its definition: the mean size over the layers, with the plain sign."""
        plain, depth = self.patched(None), len(self.layers)
        dropped = [self.patched(layer) for layer in range(depth)]
        scores: dict[str, Tensor] = {}
        for name, score in plain.items():
            if name != "input":  # the own layer's term is zero
                own = int("".join(filter(str.isdigit, name.split(".")[0])))
                assert not dropped[own][name].any()
            terms = depth if name == "input" else depth - 1
            size = torch.stack([one[name].abs() for one in dropped]).sum(0) / terms
            scores[name] = torch.where(score < 0, -size, size)
        return scores


def assert_counted_by_hand(scores: hw.Attribution, by_hand: ByHand) -> None:
    expected = by_hand.counted()
    assert set(scores.names) == set(expected)
    for column, name in enumerate(scores.names):
        assert expected[name].abs().max() > 1e-4, f"{name}: nothing was tested"
        assert_close(scores.scores[:, column], expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_graddrop_equals_the_layers_detached_by_hand():
    pairs, tokens = hw.task("ioi")[:4], deep().tokenizer
    clean, corrupted = (
        tokens([getattr(pair, side) for pair in pairs.pairs], return_tensors="pt")["input_ids"]
        for side in ("clean", "corrupted")
    )
    answer, wrong = (
        tokens.convert_tokens_to_ids([getattr(pair, side)[0].strip() for pair in pairs.pairs])
        for side in ("answer", "wrong")
    )
    # a copy, whose weights give the hooks a graph from the first layer on
    module = copy.deepcopy(deep().module).requires_grad_(True)
    by_hand = ByHand(
        module, NAMES["GPT-2"], 4, clean, corrupted, torch.tensor(answer), torch.tensor(wrong)
    )
    components = hw.heads() + hw.mlps() + hw.tokens(positions="all")
    assert_counted_by_hand(hw.attribute(deep(), pairs, components, hw.AtPStar()), by_hand)


@pytest.mark.parametrize("family", ["GPT-J", "BLOOM", "Mamba", "Falcon", "Gemma 2", "Granite"])
def test_graddrop_equals_blocks_of_other_kinds_detached_by_hand(family):
    pairs, twin = task(5, 5), oracles.Twin(family)
    clean, corrupted = (
        tokenizer()([getattr(pair, side) for pair in pairs.pairs], return_tensors="pt")["input_ids"]
        for side in ("clean", "corrupted")
    )
    answer, wrong = (
        torch.tensor([getattr(pair, side)[0] for pair in pairs.pairs])
        for side in ("answer", "wrong")
    )
    by_hand = ByHand(twin.module, twin.names, twin.units("head"), clean, corrupted, answer, wrong)
    parts = hw.mixers() if "mixer" in twin.kinds else hw.heads() + hw.mlps()
    components = parts + hw.tokens(positions="all")
    assert_counted_by_hand(hw.attribute(model(family), pairs, components, hw.AtPStar()), by_hand)


def test_a_residual_survives_the_drop_of_every_layer():
    pairs = hw.task("ioi")[:2]
    scores = hw.attribute(deep(), pairs, hw.residual(positions="all"), hw.AtPStar())
    last = hw.attribute(deep(), pairs, hw.residual(layers=3, positions="all"), hw.Gradient())
    # nothing lies above the last residual, so every one of its four terms is its gradient score
    assert_close(scores.scores[:, -1], last.scores[:, 0], rtol=1e-9, atol=1e-12)


def test_dropping_layers_costs_backwards_through_the_layers_below_only():
    pairs = hw.task("ioi")[:8]
    scores = hw.attribute(deep(), pairs, hw.heads(), hw.AtPStar())
    # one, then 1/4 + 2/4 + 3/4 for layers 1 to 3; nothing gated lies below layer 0
    assert scores.cost.backwards / 8 == pytest.approx(2.5)
    assert scores.cost.forwards / 8 == pytest.approx(2)


def test_with_every_part_off_it_is_the_gradient():
    runner, pairs = model("Llama"), task(6, 6)
    components = hw.queries() + hw.keys() + hw.heads() + hw.mlps()
    off = hw.AtPStar(queries=False, keys=False, grad_drop=False)
    scores = hw.attribute(runner, pairs, components, off)
    gradient = hw.attribute(runner, pairs, components, hw.Gradient())
    assert_close(scores.scores, gradient.scores, rtol=1e-10, atol=1e-14)


def test_each_fix_can_be_switched_off_alone():
    runner, pairs = model("Llama"), task(6, 6)
    components = hw.queries() + hw.keys()
    gradient = hw.attribute(runner, pairs, components, hw.Gradient())
    star = hw.attribute(runner, pairs, components, hw.AtPStar(grad_drop=False))
    only_keys = hw.attribute(runner, pairs, components, hw.AtPStar(queries=False, grad_drop=False))
    queries = [i for i, name in enumerate(star.names) if "<q>" in name]
    keys = [i for i, name in enumerate(star.names) if "<k>" in name]
    assert_close(only_keys.scores[:, queries], gradient.scores[:, queries])
    assert_close(only_keys.scores[:, keys], star.scores[:, keys])
    assert (star.scores - gradient.scores).abs().max() > 1e-4


# --- what it says ----------------------------------------------------------------------------


def test_scores_are_audited_as_magnitudes():
    pairs = hw.task("ioi")[:16]
    scores = hw.attribute(deep(), pairs, hw.heads() + hw.mlps(), hw.AtPStar())
    exact = hw.attribute(deep(), pairs, hw.heads() + hw.mlps(), hw.Exact())
    audit = scores.audit(sample=100)
    x, y = scores.scores.abs().mean(0), exact.scores.abs().mean(0)
    assert audit.statistic("slope").value == pytest.approx(float((x * y).sum() / (y * y).sum()))
    row = next(row for row in audit.rows if row.name == "m0")
    column = scores.names.index("m0")
    assert abs(row.exact) == pytest.approx(float(y[column]))
    assert scores.mean()[column].abs() == pytest.approx(float(x[column]))


def test_signed_scores_are_audited_as_effects():
    pairs = hw.task("ioi")[:8]
    scores = hw.attribute(deep(), pairs, hw.heads(), hw.AtPStar(grad_drop=False))
    exact = hw.attribute(deep(), pairs, hw.heads(), hw.Exact()).mean()
    audit = scores.audit(sample=100)
    for row in audit.rows:
        assert row.exact == pytest.approx(float(exact[scores.names.index(row.name)]))


def test_a_model_of_one_layer_has_no_layer_to_drop():
    from transformers import LlamaConfig, LlamaForCausalLM

    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )
    runner = hw.wrap(module.eval(), tokenizer())
    with pytest.raises(GateError) as refused:
        hw.attribute(runner, task(5, 5), hw.heads(), hw.AtPStar())
    assert "has 1 layer" in str(refused.value)
    assert "hw.AtPStar(grad_drop=False)" in str(refused.value)
    hw.attribute(runner, task(5, 5), hw.heads(), hw.AtPStar(grad_drop=False))


def test_the_gradient_of_kl_is_refused_as_for_the_gradient():
    with pytest.raises(StationaryMetricError, match="exactly 0"):
        hw.attribute(model("Llama"), task(5), hw.heads(), hw.AtPStar(), metric="kl")


def test_a_function_without_rows_or_layers_is_refused_by_name():
    f = hw.GatedFunction(lambda m: m.sum(-1), ["a"])
    with pytest.raises(MissingCapabilityError) as refused:
        hw.attribute(f, estimator=hw.AtPStar())
    assert str(refused.value).startswith(
        "AtPStar needs attention rows, layer drops; this gated function offers none."
    )


def test_switches_that_are_neither_true_nor_false_are_refused():
    for option in ("queries", "keys", "grad_drop"):
        with unchecked(), pytest.raises(UnknownOptionError) as refused:
            hw.AtPStar(**{option: "no"})  # pyright: ignore[reportArgumentType]
        assert str(refused.value) == (
            f"{option}='no' is neither True nor False.\nType {option}=True or {option}=False."
        )


def test_without_graddrop_the_rows_of_one_part_are_widened_at_a_time(monkeypatch):
    alive, most = 0, 0

    class Counted(KeyRows):
        def __init__(self, *given: Any) -> None:
            nonlocal alive, most
            super().__init__(*given)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(attention_fix, "KeyRows", Counted)
    pairs = hw.task("ioi")[:2]
    hw.attribute(deep(), pairs, hw.keys(positions=[0, -1]), hw.AtPStar(grad_drop=False))
    assert most <= 2  # one in use while the next of the four layers is made
