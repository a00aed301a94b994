"""Where attention rows are saturated, and what a linear softmax misses there.

A row of attention is a softmax over the keys that its query may see. Where one of them takes nearly
all, the softmax has hardly any slope, and first-order scores of queries and keys see nothing of
what would happen if that changed (Kramár et al., "AtP*", arXiv 2403.00745, section 3.1.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.estimators.attention_fix import Fixed, by_component
from headwater.gates import AttentionRows, Replaced

SATURATED = 0.99
"""A row is saturated if its largest share is above this. The slope of a softmax is at most
p (1 - p): there it is below 0.0099, under a twenty-fifth of the 0.25 it has at its steepest."""

Rows = Float[Tensor, "batch head query key"]
RowMask = Bool[Tensor, "batch head query"]


def counted_rows(rows: AttentionRows) -> RowMask:
    """Return which rows have a choice: at least two keys that the query may see.

    The first token sees only itself, so its share is 1 whatever the model does: such a row says
    nothing of saturation. Rows of padding see no key at all.
    """
    never = torch.finfo(rows.scores.dtype).min / 2
    return (rows.scores > never).sum(-1) > 1


def largest_share(pattern: Rows) -> Float[Tensor, "batch head query"]:
    """Return the largest share of each row; what is missing from 1 went to a sink."""
    return torch.maximum(pattern.amax(-1), 1 - pattern.sum(-1))


def saturated_rows(rows: AttentionRows) -> RowMask:
    """Return which of the rows that have a choice are saturated."""
    return counted_rows(rows) & (largest_share(rows.pattern.float()) > SATURATED)


def missed(
    rows: AttentionRows, part: Replaced, slope: Rows, at: RowMask
) -> Float[Tensor, "batch component"]:
    """Return what a linear softmax misses of the replaced components' effects in some rows.

    The effect with the softmax computed (the fixes of AtP*) minus the effect with its slope, to
    first order in the pattern either way. The slope is taken in the scores: a cap on them counts
    as exact on both sides.

    Args:
        rows: The attention in the clean run.
        part: Its scores with queries or keys at their off value.
        slope: `df/dp`.
        at: The rows that count.
    """
    slope = slope.to(rows.scores.dtype) * at[..., None]
    fixed = Fixed(rows, part).effects(slope)
    return fixed - linear_effects(rows, part, slope).to(fixed)


def linear_effects(
    rows: AttentionRows, part: Replaced, slope: Rows
) -> Float[Tensor, "batch component"]:
    """Return effects through the softmax's slope: `sum_k p_k (g_k - g.p) (s_k - s'_k)` a row."""
    pattern = rows.pattern.to(rows.scores.dtype)
    centered = slope - (pattern * slope).sum(-1, keepdim=True)
    effects = pattern * centered * (rows.scores - part.scores)
    return by_component(effects.sum(3 if part.kind == "query" else 2), part)


def row_share(at: RowMask, counted: RowMask, part: Replaced) -> Float[Tensor, "two component"]:
    """Return, for each component, how many of its rows are marked, and how many count.

    A query at one position has the one row there; every other component all rows of its heads.
    """
    return torch.stack([_rows_of(mask, part) for mask in (at & counted, counted)])


def _rows_of(mask: RowMask, part: Replaced) -> Float[Tensor, " component"]:
    marked = mask.double()
    if part.kind == "query" and part.places is not None:
        return by_component(marked, part).sum(0)
    if part.kind == "key":
        marked = marked.unflatten(1, (part.kv_heads, -1)).flatten(2, 3)
    by_unit = marked.sum((0, 2))
    return by_unit if part.places is None else by_unit.repeat(part.places.shape[1])
