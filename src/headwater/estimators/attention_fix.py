"""What a row of attention does when a query or a key changes: the softmax itself, not its slope.

All in scores `s` [batch, head, query, key] before the softmax, `p` after it, and `g = df/dp`. A
saturated softmax has no slope, but its rows can be computed again: that is one matrix product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.gates import AttentionRows, Replaced

Rows = Float[Tensor, "batch head query key"]


class Fixed:
    """Effects of replaced queries or keys through one attention, given the slope of its pattern.

    What the softmax does is computed once; a slope then costs one multiplication.

    Args:
        rows: The attention in the clean run.
        replaced: Its scores with queries or keys at their off value.
    """

    def __init__(self, rows: AttentionRows, replaced: Replaced) -> None:
        self.rows, self.replaced = rows, replaced
        self._each = replaced.kind == "key" and replaced.places is not None
        if self._each:
            self._keys = KeyRows(rows, replaced.scores)
        else:
            new = _pattern(replaced.scores, rows.sinks)
            self._lost = _pattern(rows.scores, rows.sinks) - new

    def effects(self, slope: Rows) -> Float[Tensor, "batch component"]:
        """Return what the metric loses, to first order in the pattern.

        Args:
            slope: `df/dp`.

        Returns:
            One effect for each of the replaced components.
        """
        slope = slope.to(self.rows.scores.dtype)
        if self._each:
            return by_component(self._keys.lost(slope), self.replaced)
        lost = self._lost * slope
        return by_component(lost.sum(2 if self.replaced.kind == "key" else 3), self.replaced)


def by_component(
    values: Float[Tensor, "batch head pos"], replaced: Replaced
) -> Float[Tensor, "batch component"]:
    """Sum contributions of single queries or keys over what each component covers.

    Args:
        values: Of every query, or of every key.
        replaced: The components: heads, or key-value heads, at all positions or at some.
    """
    if replaced.kind == "key":  # the heads that a key-value head serves
        values = values.unflatten(1, (replaced.kv_heads, -1)).sum(2)
    places: Int[Tensor, "batch place"] | None = replaced.places
    if places is None:
        return values.sum(2)
    index = places[:, None, :].expand(-1, values.shape[1], -1)
    return values.gather(2, index).transpose(1, 2).flatten(1)


class KeyRows:
    """Every row when one of its keys at a time is replaced, for all keys, in O(query * key).

    Only the score of the replaced key changes, so a row moves weight between that key and all
    others together: with the others' share fixed,
    `sum_j (p_j - p'_j) g_j = (p_t - p'_t) (g_t - mean of g over the others)`.
    Both means and shares are taken in logarithms over prefix and suffix, so that nothing is
    divided by a share that is rounded to zero: Kramár et al.'s algorithm 4 divides by
    `1 - p_t + p_t exp(delta)` and gives NaN in saturated rows.

    Args:
        rows: The attention in the clean run.
        replaced: Scores in which every column belongs to its own replacement.
    """

    def __init__(self, rows: AttentionRows, replaced: Rows) -> None:
        # kept as they are and widened at each use: GradDrop keeps the rows of every layer at once
        self._scores = rows.scores
        scores = _wide(rows.scores)
        sinks = None if rows.sinks is None else _wide(rows.sinks).expand_as(scores[..., :1])
        self._others = _without_own(scores, sinks)
        before = torch.sigmoid(scores - self._others)
        self._lost = before - torch.sigmoid(_wide(replaced) - self._others)

    def lost(self, slope: Rows) -> Float[Tensor, "batch head key"]:
        """Return what the metric loses by each key's replacement, summed over the queries."""
        scores, slope = _wide(self._scores), _wide(slope)
        # a mean over the others of numbers of either sign, each part in logarithms
        up = _without_own(scores + slope.clamp(min=0).log(), None)
        down = _without_own(scores + (-slope).clamp(min=0).log(), None)
        mean = (up - self._others).exp() - (down - self._others).exp()
        return (self._lost * (slope - mean)).sum(2).to(self._scores.dtype)


def _without_own(scores: Rows, sinks: Tensor | None) -> Rows:
    """Return for every key the logsumexp of the row's other keys, and of its sink."""
    nothing = scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    before = torch.cat([nothing, scores.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([scores.flip(-1).logcumsumexp(-1)[..., :-1].flip(-1), nothing], -1)
    others = torch.logaddexp(before, after)
    return others if sinks is None else torch.logaddexp(others, sinks)


def _pattern(scores: Rows, sinks: Tensor | None) -> Rows:
    """Return the softmax of each row, without the sink's share, in the scores' dtype."""
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores.dtype).expand_as(scores[..., :1])
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def _wide(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()
