"""headwater's attention against each model's own and against a slow twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attention_cases import INTERFACE, RESTING, Resting, causal, random_heads, slow_attention
from headwater.attention import attention_function, switched_on
from headwater.precision import context_for
from tiny_models import build, tokens

# float32: sums in another order, on logits of about 1 to 30; float64: the same, 1e-9 of that
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def eager(name: str, dtype: torch.dtype) -> nn.Module:
    module = build(name, dtype=dtype)
    module.set_attn_implementation("eager")
    return module


def left_padded(batch: int, positions: int, *, pads: int) -> Tensor:
    mask = torch.ones(batch, positions, dtype=torch.long)
    mask[0, :pads] = 0
    return mask


# --- equal to the models' own ------------------------------------------------------------------


@pytest.mark.parametrize("positions", [3, 9], ids=["within the window", "beyond the window"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", INTERFACE)
def test_logits_equal_those_of_the_models_own_eager_attention(name, dtype, positions):
    module, ids = eager(name, dtype), tokens(positions=positions)
    with torch.no_grad(), context_for(module):
        own = module(ids, use_cache=False).logits
        with switched_on(module):
            ours = module(ids, use_cache=False).logits
    assert_close(ours, own, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", INTERFACE)
def test_left_padded_prompts_get_the_same_logits_and_gradients_as_with_eager(name, dtype):
    module, ids, mask = eager(name, dtype), tokens(positions=9), left_padded(2, 9, pads=4)
    embedded = module.get_input_embeddings()(ids).detach().requires_grad_()

    def logits_and_gradient() -> tuple[Tensor, Tensor]:
        logits = module(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        real = logits[mask.bool()]
        weights = torch.linspace(-1, 1, real.numel(), dtype=dtype).view_as(real)
        return real.detach(), torch.autograd.grad((real * weights).mean(), embedded)[0]

    with context_for(module):
        own = logits_and_gradient()
        with switched_on(module):
            ours = logits_and_gradient()
    assert_close(ours, own, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", INTERFACE)
def test_bfloat16_logits_stay_within_bfloat16_rounding_of_eager(name):
    module, ids = eager(name, torch.bfloat16), tokens(positions=9)
    with torch.no_grad():
        own = module(ids, use_cache=False).logits
        with switched_on(module):
            ours = module(ids, use_cache=False).logits
    assert ours.dtype == own.dtype
    # 2^-8 is one rounding; three layers of them where the softmax differs in dtype (GPT-2, sinks)
    assert_close(ours, own, rtol=0, atol=4 * 2**-8 * own.abs().max().item())


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "Phi"])
def test_dropout_drops_what_eager_attention_drops(name):
    module, ids = eager(name, torch.float32).train(), tokens(positions=9)

    def logits() -> Tensor:
        torch.manual_seed(5)
        return module(ids, use_cache=False).logits

    with torch.no_grad():
        own, resting = logits(), module.eval()(ids, use_cache=False).logits
        module.train()
        with switched_on(module):
            ours = logits()
    assert_close(ours, own, rtol=0, atol=1e-5)
    if name != "Phi":  # its dropout is 0 by default
        assert (own - resting).abs().max() > 1e-3


# --- against a slow twin -----------------------------------------------------------------------


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "sinks": (
        {"s_aux": torch.linspace(-1, 2, 6, dtype=torch.float64)},
        {"sinks": torch.linspace(-1, 2, 6, dtype=torch.float64)},
    ),
    "position bias": (
        {"position_bias": torch.arange(25, dtype=torch.float64).view(1, 1, 5, 5) / 9},
        {"bias": (torch.arange(25, dtype=torch.float64).view(1, 1, 5, 5) / 9).expand(2, 6, 5, 5)},
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("kv_head", [1, 2, 6])
def test_it_is_what_a_loop_over_heads_queries_and_keys_computes(case, kv_head):
    options, twin_options = OPTIONS[case]
    query, key, value = random_heads(kv_head=kv_head)
    allowed = causal()
    ours = attention_function(RESTING, query, key, value, allowed[:, None], scaling=0.7, **options)
    assert_close(ours, slow_attention(query, key, value, allowed, scaling=0.7, **twin_options))


@pytest.mark.parametrize("keys", [5, 8])
@pytest.mark.parametrize("window", [None, 2])
def test_without_a_mask_it_is_causal_and_windowed_with_queries_at_the_end(keys, window):
    query, key, value = random_heads(keys=keys)
    ours = attention_function(RESTING, query, key, value, None, sliding_window=window)
    assert_close(ours, slow_attention(query, key, value, causal(5, keys, window), scaling=0.5))


@pytest.mark.parametrize("said_by", ["option", "module"])
def test_without_a_mask_an_encoder_looks_both_ways(said_by):
    module, options = Resting(), {}
    if said_by == "option":
        options["is_causal"] = False
    else:
        module.is_causal = False
    query, key, value = random_heads()
    everywhere = torch.ones(2, 5, 5, dtype=torch.bool)
    ours = attention_function(module, query, key, value, None, **options)
    assert_close(ours, slow_attention(query, key, value, everywhere, scaling=0.5))


def additive(allowed: Tensor, dtype: torch.dtype, never: float) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, never)


NEVERS = {
    "float64's minimum": (torch.float64, torch.finfo(torch.float64).min),
    "float32's minimum in float64": (torch.float64, torch.finfo(torch.float32).min),
    "bfloat16's minimum in float32": (torch.float32, torch.finfo(torch.bfloat16).min),
    "float16's minimum in float16": (torch.float16, torch.finfo(torch.float16).min),
    "minus infinity": (torch.float32, -math.inf),
    "minus ten thousand": (torch.float32, -1e4),
}


@pytest.mark.parametrize("case", NEVERS)
def test_an_additive_mask_is_the_boolean_mask_whatever_its_never_is(case):
    query, key, value = random_heads()
    allowed = causal()[:, None]
    ours = attention_function(RESTING, query, key, value, additive(allowed, *NEVERS[case]))
    assert_close(ours, attention_function(RESTING, query, key, value, allowed))


def test_a_finite_bias_in_the_mask_is_added_where_a_query_may_look():
    query, key, value = random_heads()
    allowed = causal()
    alibi = -torch.rand(2, 6, 5, 5, dtype=torch.float64) * 3
    mask = alibi + additive(allowed, torch.float64, torch.finfo(torch.float64).min)[:, None]
    ours = attention_function(RESTING, query, key, value, mask)
    assert_close(ours, slow_attention(query, key, value, allowed, scaling=0.5, bias=alibi))


def test_a_mask_longer_than_the_keys_is_cut():
    query, key, value = random_heads()
    longer = torch.zeros(2, 1, 5, 9, dtype=torch.bool)
    longer[..., :5] = causal()[:, None]
    ours = attention_function(RESTING, query, key, value, longer)
    assert_close(ours, attention_function(RESTING, query, key, value, causal()[:, None]))


@pytest.mark.parametrize("case", ["boolean", *NEVERS])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_a_query_that_may_look_nowhere_stays_finite_in_values_and_gradients(dtype, case):
    heads = [tensor.requires_grad_() for tensor in random_heads(dtype=dtype)]
    allowed = causal()[:, None].clone()
    allowed[0, :, :3] = False
    mask = allowed if case == "boolean" else additive(allowed, *NEVERS[case])
    output, pattern = attention_function(RESTING, *heads, mask)
    gradients = torch.autograd.grad(output.float().square().sum(), heads)
    assert all(tensor.isfinite().all() for tensor in (output, pattern, *gradients))
    assert pattern.dtype == output.dtype == dtype


def test_a_query_that_may_look_nowhere_looks_everywhere_equally_as_in_eager_attention():
    query, key, value = random_heads(dtype=torch.float32)
    nowhere = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    _, pattern = attention_function(RESTING, query, key, value, nowhere)
    assert_close(pattern, torch.full_like(pattern, 0.2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_below_float32_the_softmax_is_taken_in_float32_and_cast_back(dtype):
    query, key, value = random_heads(head=2, dtype=dtype)
    _, pattern = attention_function(RESTING, query, key, value, None, scaling=1.0, is_causal=False)
    scores = query @ key.transpose(-1, -2)
    assert torch.equal(pattern, torch.softmax(scores.float(), dim=-1).to(dtype))
