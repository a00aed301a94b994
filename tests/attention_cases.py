"""A slow twin of headwater's attention, its inputs, and which families ask for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tiny_models import BUILDERS

OWN_ATTENTION = {"GPT-J", "BLOOM", "Falcon", "Falcon sequential", "Falcon new", "GPT-Neo"}
NO_ATTENTION = {"Mamba", "Mamba-2"}
INTERFACE = [name for name in BUILDERS if name not in OWN_ATTENTION | NO_ATTENTION]


def slow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention one number at a time: Python loops over batch, head, query and key."""
    batch, head, queries, _ = query.shape
    group, keys = head // key.shape[1], key.shape[2]
    pattern = query.new_zeros(batch, head, queries, keys)
    output = query.new_zeros(batch, queries, head, value.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, head, queries))).tolist():
        weights = []
        for j in range(keys):
            score = scaling * float(query[b, h, i] @ key[b, h // group, j])
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            score += 0.0 if bias is None else float(bias[b, h, i, j])
            weights.append(math.exp(score) if allowed[b, i, j] else 0.0)
        total = sum(weights) + (0.0 if sinks is None else math.exp(float(sinks[h])))
        for j in range(keys):
            pattern[b, h, i, j] = weights[j] / total
            output[b, i, h] += weights[j] / total * value[b, h // group, j]
    return output, pattern


def random_heads(
    head: int = 6,
    kv_head: int = 2,
    queries: int = 5,
    keys: int = 5,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(  # type: ignore[return-value]
        torch.randn(2, heads, length, width, generator=generator, dtype=torch.float64).to(dtype)
        for heads, length, width in ((head, queries, 4), (kv_head, keys, 4), (kv_head, keys, 3))
    )


def causal(queries: int = 5, keys: int = 5, window: int | None = None) -> Tensor:
    """[batch, query, key], built index by index."""
    allowed = torch.zeros(2, queries, keys, dtype=torch.bool)
    for i in range(queries):
        here = i + keys - queries
        for j in range(keys):
            allowed[:, i, j] = j <= here and (window is None or j > here - window)
    return allowed


class Resting(nn.Module):
    """An attention module that is only asked whether it is training."""


RESTING = Resting().eval()
