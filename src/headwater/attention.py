"""One attention for every architecture, in the model's own dtype, with taps on q, k, v and pattern.

Costs the same matrix products as the model's eager attention and holds the pattern
[batch, head, query, key]; it is slower than sdpa or flash, so it is switched on only for a run
that needs it. Nothing else in headwater sees queries, keys, values or patterns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout as dropped_out
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from headwater.errors import GateError, UnsupportedModelError
from headwater.implementations import configs_of, hugging_face_parts, selected

NAME = "headwater"
"""The name under which transformers finds `attention_function`."""

AttentionTap = Callable[[Tensor], Tensor | None]
"""Reads a value, and replaces it if it returns a tensor."""

AttentionReader = Callable[["Attended"], None]
"""Gets everything one attention computed its pattern from."""

# An additive mask may have been made in a lower dtype than the scores have, so its "never" is
# recognised by size: below half of float32's minimum (bfloat16's is equal), or half of float16's.
_NEVER = {torch.float16: torch.finfo(torch.float16).min / 2}
_NEVER_DEFAULT = torch.finfo(torch.float32).min / 2


@dataclass(frozen=True, eq=False)
class Scorer:
    """How one call of attention makes scores and patterns from queries and keys.

    An entry of the scores depends on one query and one key only; the softmax ties a row together.
    """

    scaling: float
    softcap: float | None
    bias: Tensor | None
    mask: Tensor | None
    sinks: Tensor | None
    """Logits of sinks, broadcastable to [batch, head, query, 1]; None without."""

    def scores(
        self,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch kv_head key d_head"],
    ) -> Float[Tensor, "batch head query key"]:
        """Return what goes into the softmax: scaled, capped, biased and masked."""
        scores = _grouped_product(query, key.transpose(-1, -2)) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if self.bias is not None:
            scores = scores + self.bias
        return scores if self.mask is None else _masked(scores, self.mask)

    def pattern(
        self, scores: Float[Tensor, "batch head query key"], dtype: torch.dtype
    ) -> Float[Tensor, "batch head query key"]:
        """Return the softmax of each row, without the sink's share."""
        return _softmax(scores, self.sinks, dtype)


@dataclass(frozen=True, eq=False)
class Attended:
    """What one call of attention computed its pattern from."""

    query: Float[Tensor, "batch pos head d_head"]
    key: Float[Tensor, "batch pos kv_head d_head"]
    scores: Float[Tensor, "batch head query key"]
    scorer: Scorer


@dataclass(eq=False)
class AttentionTaps:
    """What to read or replace in one attention module, called in the order of the fields.

    A tap gets `q` and `z` as [batch, pos, head, d_head], `k` and `v` as
    [batch, pos, kv_head, d_head] (queries and keys after rotary and norms), and `pattern` as
    [batch, head, query, key] after the softmax and before dropout; with sinks, the sink's share
    is left out, so rows sum to less than 1. Return a tensor of the same shape to replace it.
    """

    q: AttentionTap | None = None
    k: AttentionTap | None = None
    v: AttentionTap | None = None
    pattern: AttentionTap | None = None
    z: AttentionTap | None = None
    reader: AttentionReader | None = None
    """Gets queries, keys and scores, after the taps on `q` and `k`."""
    calls: int = 0
    """How often the module called headwater's attention; 0 after a run: it has its own."""


_Listeners = dict[nn.Module, tuple[AttentionTaps, ...]]
_listeners: ContextVar[_Listeners | None] = ContextVar("headwater_attention", default=None)


@contextmanager
def listening(taps: Mapping[nn.Module, AttentionTaps]) -> Iterator[None]:
    """Attach taps to attention modules inside the context, in this thread only.

    Contexts nest: an outer tap is called before an inner one on the same module.

    Args:
        taps: By attention module, the one transformers passes to its attention function.
    """
    token = listen(taps)
    try:
        yield
    finally:
        _listeners.reset(token)


def listen(taps: Mapping[nn.Module, AttentionTaps]) -> Token[_Listeners | None]:
    """Attach taps until the end of the current `contextvars.Context`.

    Args:
        taps: By attention module.

    Returns:
        What takes them away again.
    """
    outer = _listeners.get() or {}
    inner = {module: (*outer.get(module, ()), tap) for module, tap in taps.items()}
    return _listeners.set({**outer, **inner})


def can_switch(module: nn.Module) -> bool:
    """Return whether transformers lets the attention of any part of `module` be chosen.

    False for families with an attention of their own (Falcon, BLOOM, GPT-J, GPT-Neo). True is no
    promise: a family without attention (Mamba) accepts any choice. `AttentionTaps.calls` tells.
    """
    return any(_honors_choice(part) for part in hugging_face_parts(module))


@contextmanager
def switched_on(module: nn.Module) -> Iterator[bool]:
    """Run `module` with headwater's attention inside the context; restore exactly afterwards.

    Every config in the model is restored to what it was, sub-configs and cached copies included,
    also after an exception. Contexts nest. The configs are shared by all threads that use the
    model: hold the model's lock.

    Args:
        module: A transformers model, or a wrapper around one.

    Yields:
        `can_switch(module)`. A family with an attention of its own is left as it is: False here,
        and its `AttentionTaps.calls` stay 0.

    Raises:
        UnsupportedModelError: If there is no transformers model inside `module`.
    """
    parts = hugging_face_parts(module)
    if not parts:
        raise UnsupportedModelError(
            f"{type(module).__name__} contains no transformers model, so its attention cannot be "
            "switched to headwater's and has no queries, keys, values or patterns to offer.\n"
            "Use other sites, or give a model made by transformers.AutoModelForCausalLM."
        )
    parts = [part for part in parts if _honors_choice(part)]
    with selected(configs_of(parts), "_attn_implementation_internal", NAME):
        yield bool(parts)


def attention_function(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Float[Tensor, "batch query head d_value"], Float[Tensor, "batch head query key"]]:
    """Attend as the model's own eager attention does, and let taps read and replace.

    The output is `softmax(scaling * q k^T + bias + mask) v`, with the scores bounded by
    `softcap * tanh(scores / softcap)` where a family does that.

    Args:
        module: The attention module; taps are looked up by it.
        query: Queries after rotary.
        key: Keys after rotary; fewer heads than `query` when heads are grouped.
        value: Values, with as many heads as `key`.
        attention_mask: True (or 0, or a finite bias) where a query may look, False (or the
            dtype's minimum) where not; None is causal unless the module or `is_causal` says
            otherwise. A query that may look nowhere looks everywhere equally, as in eager
            attention, with finite values and gradients.
        scaling: Factor on the scores; None is `1 / sqrt(d_head)`.
        dropout: Probability of dropping a pattern entry; only if the module is training.
        **options: `softcap`, `position_bias`, `s_aux` or `sinks`, `is_causal` and
            `sliding_window` (used only without a mask) are honored; the rest does not concern
            attention weights.

    Returns:
        `z` for each head [batch, query, head, d_value], and the pattern.

    Raises:
        GateError: If a tap returns a tensor of another shape.
    """
    taps = (_listeners.get() or {}).get(module, ())
    for tap in taps:
        tap.calls += 1
    query = _tapped(taps, "q", query, by_position=True)
    key = _tapped(taps, "k", key, by_position=True)
    value = _tapped(taps, "v", value, by_position=True)

    scorer = _scorer(module, query, key, attention_mask, scaling, options)
    scores = scorer.scores(query, key)
    for tap in taps:
        if tap.reader is not None:
            tap.reader(Attended(query.transpose(1, 2), key.transpose(1, 2), scores, scorer))
    pattern = scorer.pattern(scores, value.dtype)
    pattern = _tapped(taps, "pattern", pattern)
    kept = dropped_out(pattern, p=dropout, training=module.training)
    z = _grouped_product(kept, value)
    z = _tapped(taps, "z", z, by_position=True)
    return z.transpose(1, 2).contiguous(), pattern


def _scorer(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    scaling: float | None,
    options: Mapping[str, Any],
) -> Scorer:
    if mask is None and _is_causal(module, options):
        mask = _causal(query, key, options.get("sliding_window"))
    return Scorer(
        scaling=1 / math.sqrt(query.shape[-1]) if scaling is None else scaling,
        softcap=options.get("softcap"),
        bias=options.get("position_bias"),
        mask=mask,
        sinks=_sinks(module, options),
    )


def _honors_choice(part: PreTrainedModel) -> bool:
    # A private classmethod, so a release without it must not break the import: then switch, and
    # let the call counter tell.
    asks = getattr(part, "_can_set_attn_implementation", None)
    return asks is None or bool(asks())


def _tapped(
    taps: tuple[AttentionTaps, ...], name: str, value: Tensor, *, by_position: bool = False
) -> Tensor:
    for tap in taps:
        reader: AttentionTap | None = getattr(tap, name)
        if reader is None:
            continue
        shown = value.transpose(1, 2) if by_position else value
        replacement = reader(shown)
        if replacement is None:
            continue
        if replacement.shape != shown.shape:
            raise GateError(
                f"the tap on 'attn.{name}' returned shape {tuple(replacement.shape)} for a value "
                f"of shape {tuple(shown.shape)}.\n"
                "Return a tensor of the same shape, or None to leave the value as it is."
            )
        value = replacement.transpose(1, 2) if by_position else replacement
    return value


def _grouped_product(
    left: Float[Tensor, "batch head rows inner"], right: Float[Tensor, "batch kv_head inner cols"]
) -> Float[Tensor, "batch head rows cols"]:
    """Multiply each head of `left` with the kv head of its group, without copying `right`."""
    batch, head, rows, inner = left.shape
    kv_head = right.shape[1]
    if head == kv_head:
        return left @ right
    stacked = left.reshape(batch, kv_head, head // kv_head * rows, inner)
    return (stacked @ right).reshape(batch, head, rows, right.shape[-1])


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    # The same two sources, in the same order, as transformers' sdpa attention: encoders inside a
    # multimodal model come without a mask, too.
    is_causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _causal(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    sliding_window: int | None,
) -> Bool[Tensor, "1 1 query key"]:
    rows, columns = query.shape[-2], key.shape[-2]
    here = torch.arange(columns - rows, columns, device=query.device)[:, None]
    there = torch.arange(columns, device=query.device)[None, :]
    allowed = there <= here
    if sliding_window is not None:
        allowed = allowed & (there > here - sliding_window)
    return allowed[None, None]


def _masked(
    scores: Float[Tensor, "batch head query key"], mask: Tensor
) -> Float[Tensor, "batch head query key"]:
    mask = mask[..., : scores.shape[-1]]  # a static cache makes masks longer than the keys
    if mask.dtype == torch.bool:
        never = ~mask
    else:
        never = mask <= _NEVER.get(mask.dtype, _NEVER_DEFAULT)
        scores = scores + mask.masked_fill(never, 0)
    # Filling instead of adding: in a lower dtype the sum can overflow to -inf, and a row of
    # -inf has a softmax of NaN, in values and in gradients.
    return scores.masked_fill(never, torch.finfo(scores.dtype).min)


def _sinks(module: nn.Module, options: Mapping[str, Any]) -> Tensor | None:
    for given in (options.get("s_aux"), options.get("sinks"), getattr(module, "sinks", None)):
        if isinstance(given, Tensor):
            return given.reshape(1, -1, 1, 1) if given.ndim == 1 else given
    return None


def _softmax(
    scores: Float[Tensor, "batch head query key"], sinks: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "batch head query key"]:
    """Normalize in float32, or in float64 if the model computes in it; return `dtype`."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(wide)
    if sinks is None:
        return scores.softmax(dim=-1).to(dtype)
    column = sinks.to(wide).expand(*scores.shape[:-1], 1)
    with_sink = torch.cat([scores, column], dim=-1).softmax(dim=-1)
    return with_sink[..., :-1].to(dtype)


AttentionInterface.register(NAME, attention_function)
# Eager masks are additive and never None, so families that add their own bias to them still can.
AttentionMaskInterface.register(NAME, eager_mask)
