"""The nodes of one site that a circuit keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.feature_circuits.cotangents import Rows
from headwater.feature_circuits.runs import BatchRun
from headwater.feature_circuits.sites import NodeSite


@dataclass(frozen=True)
class Kept:
    """Some nodes of a site, in the order of their numbers; at positions, position by position.

    Args:
        node: The site.
        indices: Numbers of features; the error is number F.
        slots: The position of each; None if nodes are not told apart by position.
        threshold: Each pair and position counts only where the node's effect there exceeds this
            (the rule of feature-circuits); None: everywhere.
    """

    node: NodeSite
    indices: tuple[int, ...]
    slots: tuple[int, ...] | None = None
    threshold: float | None = None
    _places: dict[tuple[int, int | None], int] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        slots = self.slots or (None,) * len(self.indices)
        for place, key in enumerate(zip(self.indices, slots, strict=True)):
            self._places[key] = place

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def names(self) -> list[str]:
        """The nodes' names."""
        slots = self.slots or (None,) * len(self.indices)
        return [
            self.node.name(index, slot) for index, slot in zip(self.indices, slots, strict=True)
        ]

    @cached_property
    def rows(self) -> Rows:
        """The distinct features and whether the error is there."""
        distinct = sorted(set(self.indices))
        last = self.node.features
        return Rows(tuple(i for i in distinct if i < last), last in distinct)

    @cached_property
    def column_index(self) -> tuple[Int[Tensor, " node"], Int[Tensor, " node"]]:
        """Of each node its number among the distinct ones, and its position."""
        assert self.slots is not None
        distinct = {index: place for place, index in enumerate(sorted(set(self.indices)))}
        return (
            torch.tensor([distinct[index] for index in self.indices], dtype=torch.long),
            torch.tensor(self.slots, dtype=torch.long),
        )

    def places(self, row: int, slot: int | None) -> Iterator[tuple[int, int | None]]:
        """Yield where the nodes of a row stand here, and their positions.

        Args:
            row: A feature's number, or -1 for the error.
            slot: The row's only position; None: all.
        """
        index = self.node.features if row < 0 else row
        if self.slots is None:
            yield self._places[index, None], None
        elif slot is not None:
            yield self._places[index, slot], slot
        else:
            for place, (own, at) in enumerate(zip(self.indices, self.slots, strict=True)):
                if own == index:
                    yield place, at

    def chunks(self, size: int, *, split: bool) -> Iterator[tuple[list[int], Sequence[int] | None]]:
        """Yield rows that are pulled back together, and of each its only position.

        Args:
            size: Most rows.
            split: Give each position a row of its own, where nodes are told apart by position.
        """
        if split and self.slots is not None:
            last = self.node.features
            pairs = sorted(zip(self.indices, self.slots, strict=True))
            for first in range(0, len(pairs), size):
                part = pairs[first : first + size]
                yield [-1 if i == last else i for i, _ in part], [slot for _, slot in part]
            return
        rows = self.rows.indices
        for first in range(0, len(rows), size):
            yield rows[first : first + size], None

    def mask_of(self, one: BatchRun) -> Bool[Tensor, "batch pos node"] | None:
        """Return where the nodes of a batch count; None: everywhere."""
        if self.threshold is None:
            return None
        return one.state(self.node).effects().abs() > self.threshold

    def of(self, values: Float[Tensor, "batch pos node"]) -> Float[Tensor, " kept"]:
        """Return the sum over pairs of numbers of these nodes, over positions too if they are."""
        total = values.double().sum(0).cpu()
        if self.slots is None:
            return total.sum(0)[list(self.indices)]
        return total[list(self.slots), list(self.indices)]
