"""Which columns of a table lie inside which: such a pair is never moved in one run."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headwater.components.kinds import KINDS
from headwater.components.table import ComponentTable, Group
from headwater.errors import NestedComponentsError


def nested_columns(table: ComponentTable) -> dict[int, frozenset[int]]:
    """Return, for each column that is nested with others, those that hold it or lie inside it."""
    partners: dict[int, set[int]] = defaultdict(set)
    for outer, inner in table.nested():
        for a, b in np.argwhere(inside(outer, inner, table.repeats)).tolist():
            partners[outer.start + a].add(inner.start + b)
            partners[inner.start + b].add(outer.start + a)
    return {column: frozenset(others) for column, others in partners.items()}


def refuse_nested(table: ComponentTable, moved: Bool[Tensor, "setting component"]) -> None:
    """Raise if two nested components leave their base in one setting.

    Args:
        table: The components.
        moved: Bool tensor [setting, component]: which gates are away from their base.

    Raises:
        NestedComponentsError: Naming one such pair.
    """
    for outer, inner in table.nested():
        whole, part = moved[:, outer.columns], moved[:, inner.columns]
        if not _meet(outer, inner, whole, part, table.repeats):
            continue
        for setting, a in whole.nonzero().tolist():
            held = inside(outer, inner, table.repeats, slice(a, a + 1))[0]
            both = torch.from_numpy(held) & part[setting].cpu()
            if bool(both.any()):
                names = outer.component(a).name, inner.component(int(both.int().argmax())).name
                raise NestedComponentsError(
                    f"{names[1]} lies inside {names[0]}, and both gates are moved in one run: the "
                    "inner one then means nothing.\n"
                    "Score them in two calls, or leave one kind out."
                )


def _meet(
    outer: Group,
    inner: Group,
    whole: Bool[Tensor, "setting outer"],
    part: Bool[Tensor, "setting inner"],
    repeats: int,
) -> bool:
    """Whether some setting moves a component of `outer` and one of `inner` inside it.

    In the size of the groups, not of their pairs: this is asked at every run.
    """
    wholes = whole.reshape(len(whole), -1, outer.count)
    parts = part.reshape(len(part), -1, inner.count)
    if KINDS[outer.kind].unit == "whole":
        parts = parts.any(-1, keepdim=True)
    elif _shares(outer, inner):
        parts, wholes = parts.any(-1, keepdim=True), wholes.any(-1, keepdim=True)
    elif outer.kind != inner.kind and inner.kind in ("key", "value"):
        wholes = wholes.unflatten(-1, (inner.count, repeats)).any(-1)
    here, there = outer.positions, inner.positions
    if here is None or there is None:
        return bool((wholes.any(1) & parts.any(1)).any())
    shared = sorted(set(here) & set(there))
    wholes = wholes[:, [here.index(position) for position in shared]]
    parts = parts[:, [there.index(position) for position in shared]]
    return bool((wholes & parts).any())


def inside(
    outer: Group, inner: Group, repeats: int, among: slice = slice(None)
) -> Bool[np.ndarray, "outer inner"]:
    """Return which components of `inner` lie inside which of `outer`, a pair of `table.nested()`.

    Args:
        outer: Groups of one layer, of which ...
        inner: ... this one lies inside the other.
        repeats: Query heads a key-value head serves.
        among: The components of `outer` that are asked about.
    """
    whole, part = _indices(outer)[among, None], _indices(inner)[None]
    if KINDS[outer.kind].unit == "whole" or _shares(outer, inner):
        unit = np.ones((len(whole), inner.size), dtype=bool)
    elif outer.kind != inner.kind and inner.kind in ("key", "value"):
        unit = part == whole // repeats
    else:
        unit = part == whole
    if outer.positions is None or inner.positions is None:
        return unit
    return unit & (_positions(outer)[among, None] == _positions(inner)[None])


def _shares(outer: Group, inner: Group) -> bool:
    """Whether every one of `outer` holds a part of every one of `inner`: heads, and features."""
    return inner.coded is not None and outer.coded is None


def _indices(group: Group) -> Int[np.ndarray, " component"]:
    return np.arange(group.size) % group.count


def _positions(group: Group) -> Int[np.ndarray, " component"]:
    assert group.positions is not None
    return np.repeat(np.array(group.positions), group.count)
