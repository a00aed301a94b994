"""Which columns of a table lie inside which: such a pair is never moved in one run."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Bool, Int

from headwater.components.kinds import KINDS
from headwater.components.table import ComponentTable, Group


def nested_columns(table: ComponentTable) -> dict[int, frozenset[int]]:
    """Return, for each column that is nested with others, those that hold it or lie inside it."""
    partners: dict[int, set[int]] = defaultdict(set)
    for outer, inner in table.nested():
        for a, b in np.argwhere(inside(outer, inner, table.repeats)).tolist():
            partners[outer.start + a].add(inner.start + b)
            partners[inner.start + b].add(outer.start + a)
    return {column: frozenset(others) for column, others in partners.items()}


def inside(outer: Group, inner: Group, repeats: int) -> Bool[np.ndarray, "outer inner"]:
    """Return which components of `inner` lie inside which of `outer`, a pair of `table.nested()`.

    Args:
        outer: Groups of one layer, of which ...
        inner: ... this one lies inside the other.
        repeats: Query heads a key-value head serves.
    """
    whole, part = _indices(outer)[:, None], _indices(inner)[None]
    if KINDS[outer.kind].unit == "whole":
        unit = np.ones((outer.size, inner.size), dtype=bool)
    elif outer.kind != inner.kind and inner.kind in ("key", "value"):
        unit = part == whole // repeats
    else:
        unit = part == whole
    if outer.positions is None or inner.positions is None:
        return unit
    return unit & (_positions(outer)[:, None] == _positions(inner)[None])


def _indices(group: Group) -> Int[np.ndarray, " component"]:
    return np.arange(group.size) % group.count


def _positions(group: Group) -> Int[np.ndarray, " component"]:
    assert group.positions is not None
    return np.repeat(np.array(group.positions), group.count)
