"""Random subsets of the unchecked components, closed together: many parts in one run.

A *round* deals the components at random into a few blocks, and every block is closed in a run of
its own. So each component is closed in exactly one run of a round, whatever the draw, and what else
is closed in that run does not depend on it: under a sum of effects, the mean of its runs minus the
mean of the others estimates its own effect without bias.

Of two nested components (a head and its query) a round deals only one, drawn at random; the other
one sits out and is compared in other rounds.

Two of the blocks are also closed together. Their effects must add up to the effect of the union;
what is left over is an interaction, seen without any noise of sampling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from headwater.components import ComponentTable, Group
from headwater.components.nesting import nested_columns

OUT = -1
"""The label of a component that sits a round out."""

Columns = tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """One deal of the components into blocks."""

    labels: Int[np.ndarray, " component"]
    """The block of each component, or `OUT`."""
    blocks: int

    def block(self, label: int) -> Columns:
        """Return the columns of a block; it may be empty."""
        return tuple(np.flatnonzero(self.labels == label).tolist())

    @property
    def union(self) -> Columns:
        """The first two blocks together; empty if one of them is, since nothing is then tried."""
        first, second = self.block(0), self.block(1)
        return tuple(sorted(first + second)) if first and second else ()

    @property
    def closed(self) -> Bool[np.ndarray, "block component"]:
        """Which components each block's run closes."""
        return self.labels[None] == np.arange(self.blocks)[:, None]

    @property
    def runs(self) -> list[Columns]:
        """The sets of columns to close: each block, then the union; an empty one needs no run."""
        return [self.block(label) for label in range(self.blocks)] + [self.union]


class Pool:
    """The components that are dealt, and which of them exclude each other.

    Args:
        count: Components in all.
        table: The model's components; None for a gated function, whose gates are all apart.
    """

    def __init__(self, count: int, table: ComponentTable | None) -> None:
        self.count, self.table = count, table
        self.partners = {} if table is None else nested_columns(table)
        self._times = np.zeros(count, dtype=int)  # dealt so far, of each

    def deal(self, members: Sequence[int], blocks: int, generator: np.random.Generator) -> Round:
        """Deal members into blocks, each component by itself and every block equally likely."""
        labels = np.full(self.count, OUT)
        dealt = self._apart(members, generator)
        labels[dealt] = generator.integers(blocks, size=len(dealt))
        self._times[dealt] += 1
        return Round(labels, blocks)

    def _apart(self, members: Sequence[int], generator: np.random.Generator) -> list[int]:
        """Return a random maximal set of members of which no two are nested.

        Those that sat out most often come first; among equals one kind goes before another, in an
        order drawn anew each time: a whole attention would hardly ever come before all its heads.
        """
        inside = frozenset(members)
        torn = [column for column in members if self.partners.get(column, frozenset()) & inside]
        if not torn:
            return list(members)
        assert self.table is not None
        rank = generator.permutation(len(self.table.groups))
        numbers = {group: number for number, group in enumerate(self.table.groups)}
        order = {column: rank[numbers[self.table.group_of(column)]] for column in torn}
        taken: set[int] = set()
        for column in sorted(torn, key=lambda column: (self._times[column], order[column])):
            if not self.partners[column] & taken:
                taken.add(column)
        return [column for column in members if column in taken or column not in order]

    def depth(self, members: Sequence[int]) -> int:
        """Return how many rounds it takes to deal every member once: the longest nested chain."""
        if self.table is None or not members:
            return 1
        present = {self.table.group_of(column) for column in members}
        inner: dict[Group, list[Group]] = defaultdict(list)
        for outer, part in self.table.nested():
            if outer in present and part in present:
                inner[outer].append(part)

        def chain(group: Group) -> int:
            return 1 + max(map(chain, inner[group]), default=0)

        return max(map(chain, present))
