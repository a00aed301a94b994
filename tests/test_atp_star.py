"""AtP*: attention recomputed by brute force, layers detached by hand, softmax rows one by one."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater.errors import GateError, MissingCapabilityError, StationaryMetricError
from headwater.estimators.attention_fix import Fixed, KeyRows
from headwater.gates import AttentionRows, Replaced
from headwater.models import Model
from headwater.sites import Site
from tiny_models import BUILDERS, build
from tiny_tasks import gated, model, task, tokenizer

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
    # the twin subtracts numbers up to 10 from each other: that is its own rounding
    assert_close(found.flatten(), expected, rtol=1e-9, atol=1e-13)


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


def detached(pairs: hw.Task, layer: int | None) -> dict[str, Tensor]:
    """Attribution patching of heads, MLPs and inputs with one layer's writes detached by hand."""
    module, tokens = deep().module, deep().tokenizer
    clean, corrupted = (
        tokens([getattr(pair, side) for pair in pairs.pairs], return_tensors="pt")["input_ids"]
        for side in ("clean", "corrupted")
    )
    values: dict[str, dict[str, Tensor]] = {"clean": {}, "corrupted": {}}

    def keep(side: str, name: str):
        def before(_, args):
            values[side][name] = args[0]

        def after(_, args, output):
            values[side][name] = output

        return before, after

    for side, ids in (("clean", clean), ("corrupted", corrupted)):
        handles = []
        for number, block in enumerate(module.transformer.h):
            before, _ = keep(side, f"z{number}")
            handles.append(block.attn.c_proj.register_forward_pre_hook(before))
            _, after = keep(side, f"m{number}")
            handles.append(block.mlp.register_forward_hook(after))
            if number == 0:
                start, _ = keep(side, "input")
                handles.append(block.register_forward_pre_hook(start))
            if number == layer and side == "clean":
                handles.append(
                    block.register_forward_hook(
                        lambda _, args, out: args[0] + (out - args[0]).detach()
                    )
                )
        logits = module(input_ids=ids, use_cache=False).logits
        if side == "clean":
            answer, wrong = (
                torch.tensor(
                    tokens.convert_tokens_to_ids(
                        [getattr(pair, field)[0].strip() for pair in pairs.pairs]
                    )
                )
                for field in ("answer", "wrong")
            )
            rows = torch.arange(len(ids))
            value = logits[rows, -1, answer] - logits[rows, -1, wrong]
        for handle in handles:
            handle.remove()
    names = list(values["clean"])
    slopes = torch.autograd.grad(
        value.sum(), [values["clean"][name] for name in names], materialize_grads=True
    )
    scores: dict[str, Tensor] = {}
    for name, slope in zip(names, slopes, strict=True):
        product = (values["clean"][name] - values["corrupted"][name]).detach() * slope
        if name.startswith("z"):
            by_head = product.unflatten(-1, (4, -1)).sum((1, 3))
            scores |= {f"a{name[1:]}.h{head}": by_head[:, head] for head in range(4)}
        else:
            scores["input" if name == "input" else name] = product.sum((1, 2))
    return scores


def test_graddrop_equals_the_layers_detached_by_hand():
    module = deep().module
    module.requires_grad_(True)  # the hooks' twin needs a graph from the first layer on
    try:
        pairs = hw.task("ioi")[:4]
        plain = detached(pairs, None)
        dropped = [detached(pairs, layer) for layer in range(4)]
    finally:
        module.requires_grad_(False)
    components = hw.heads() + hw.mlps() + hw.tokens(positions="all")
    scores = hw.attribute(deep(), pairs, components, hw.AtPStar())
    for column, name in enumerate(scores.names):
        terms = 4 if name == "input" else 3  # the own layer's term is zero
        size = torch.stack([one[name].abs() for one in dropped]).sum(0) / terms
        if name != "input":
            layer = int(name.split(".")[0][1:])
            assert not dropped[layer][name].any()
        expected = torch.where(plain[name] < 0, -size, size)
        assert_close(scores.scores[:, column], expected, rtol=1e-8, atol=1e-10, msg=name)


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


@pytest.mark.parametrize("family", ["GPT-J", "BLOOM", "Mamba", "Falcon", "Gemma 2", "Granite"])
def test_graddrop_runs_on_families_with_blocks_of_other_kinds(family):
    runner, pairs = model(family), task(5, 5)
    components = hw.mixers() if family == "Mamba" else hw.heads() + hw.mlps()
    star = hw.attribute(runner, pairs, components, hw.AtPStar())
    function = gated(runner, pairs, components)
    linear = function.linearized(attention=False, drops=True)
    gradient = hw.attribute(runner, pairs, components, hw.Gradient()).scores
    # two layers: a component of layer 0 keeps what reaches the end past layer 1, and with layer 0
    # dropped one of layer 1 keeps everything
    upper = [i for i, part in enumerate(star.parts.components) if part.layer == 1]
    assert_close(star.scores[:, upper], gradient[:, upper], rtol=1e-9, atol=1e-12)
    lower = [i for i, part in enumerate(star.parts.components) if part.layer == 0]
    direct = linear.dropped(1).gates[:, lower]
    sign = torch.where(gradient[:, lower] < 0, -1.0, 1.0)
    assert_close(star.scores[:, lower], sign * direct.abs(), rtol=1e-9, atol=1e-12)


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
