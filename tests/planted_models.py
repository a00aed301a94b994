"""Models in which one thing goes wrong with first-order scores, and only that thing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import headwater as hw
from headwater.audits import diagnosis as flags
from headwater.zoo.truths.cancellation import CANCELLATION
from tiny_models import build
from tiny_tasks import task, tokenizer

CALM = 0.2
"""On all query weights: no row of attention has p > 0.99 then."""
SHARP = 12.0
"""On the query weights of one layer: most of its rows have p > 0.99 then."""
BENDING = 20.0
"""On the query weights of one head: no slope of its rows' softmax holds as far as they move."""
LAYER = 1


def saturated() -> hw.Attribution:
    """A GPT-2 of which one layer has its queries multiplied."""
    module = _calm_gpt2()
    attention = module.transformer.h[LAYER].attn.c_attn
    with torch.no_grad():
        attention.weight[:, : module.config.n_embd] *= SHARP / CALM
        attention.bias[: module.config.n_embd] *= SHARP / CALM
    components = hw.heads() + hw.queries() + hw.keys()
    return _kept(hw.wrap(module, tokenizer()), task(7, 7, 7), components)


def bent() -> hw.Attribution:
    """A GPT-2 with the queries of one head multiplied: its rows change much, and none saturates."""
    module = _calm_gpt2()
    attention = module.transformer.h[LAYER].attn.c_attn
    size = module.config.n_embd // module.config.n_head
    with torch.no_grad():
        attention.weight[:, size : 2 * size] *= BENDING
        attention.bias[size : 2 * size] *= BENDING
    components = hw.queries(layers=LAYER) + hw.keys(layers=LAYER)
    return _kept(hw.wrap(module, tokenizer()), task(7, 7, 7), components)


def certain() -> hw.Attribution:
    """A GPT-2 with its unembedding multiplied, asked for what it predicts, by probability."""
    module = _calm_gpt2()
    with torch.no_grad():
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight * 20)
    pairs = []
    for pair in task(7, 7, 7).pairs:
        ids = tokenizer()(pair.clean, return_tensors="pt")["input_ids"]
        answer = int(module(ids).logits[0, -1].argmax())
        pairs.append(hw.Pair(pair.clean, pair.corrupted, answer=answer))
    return _kept(hw.wrap(module, tokenizer()), hw.Task(pairs, hw.prob()), hw.heads())


def cancelling() -> hw.Attribution:
    """Two layers of which the second undoes the first, to first order."""
    return _kept_function(CANCELLATION.function())


def routed() -> hw.Attribution:
    """A Mixtral with two of four experts a token: the choice switches as a gate closes."""
    return _kept(_calm("Mixtral"), task(7, 7, 7), hw.heads())


def rounded() -> hw.Attribution:
    """A Llama in bfloat16, one of whose heads writes next to nothing."""
    calm = _calm("Llama", torch.bfloat16)
    weight = calm.module.model.layers[LAYER].self_attn.o_proj.weight
    with torch.no_grad():
        weight[:, : weight.shape[1] // 4] *= 1e-3
    return _kept(calm, task(7, 7, 7), hw.heads())


def plain() -> hw.Attribution:
    """A Llama in float64, in which nothing was planted."""
    return _kept(_calm("Llama"), task(7, 7, 7), hw.heads())


PLANTED: dict[str, Callable[[], hw.Attribution]] = {
    flags.ATTENTION: saturated,
    flags.BENT: bent,
    flags.OUTPUT: certain,
    flags.CANCELLATION: cancelling,
    flags.ROUTING: routed,
    flags.NOISE: rounded,
    "none": plain,
}
"""By the one flag that each must raise."""

_alive: list[object] = []


def _calm_gpt2() -> torch.nn.Module:
    module = build("GPT-2", dtype=torch.float64)
    with torch.no_grad():
        for block in module.transformer.h:
            block.attn.c_attn.weight[:, : module.config.n_embd] *= CALM
            block.attn.c_attn.bias[: module.config.n_embd] *= CALM
    return module


def _calm(family: str, dtype: torch.dtype = torch.float64) -> hw.Model:
    module = build(family, dtype=dtype)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight *= CALM
    return hw.wrap(module, tokenizer())


def _kept(wrapped: hw.Model, pairs: hw.Task, components) -> hw.Attribution:
    _alive.append(wrapped)  # results hold their model weakly
    return hw.attribute(wrapped, pairs, components, hw.Gradient(), progress=False)


def _kept_function(function: hw.GatedFunction) -> hw.Attribution:
    _alive.append(function)
    return hw.attribute(function, estimator=hw.Gradient())


def saturated_rows(pattern: Tensor) -> list[float]:
    """Share of rows with p > 0.99 by head, the first token's row left out, entry by entry."""
    batch, head, query, _ = pattern.shape
    shares = []
    for h in range(head):
        hits = [
            max(pattern[b, h, q].tolist()) > 0.99 for b in range(batch) for q in range(1, query)
        ]
        shares.append(sum(hits) / len(hits))
    return shares
