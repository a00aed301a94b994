"""Where a group's gates lie in a padded batch, and how they spread over the value at its site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.components import ComponentTable, Group
from headwater.errors import GateError
from headwater.prompts import Batch


@dataclass(frozen=True, eq=False)
class Placed:
    """Where some columns of a table stand, group by group."""

    columns: Int[Tensor, " index"]
    parts: tuple[tuple[Group, Tensor, Tensor], ...]
    """Each group, the offsets of its columns in it, and which of `columns` these are: [part]."""

    @classmethod
    def of(cls, table: ComponentTable, columns: Sequence[int]) -> Placed:
        """Place columns of a table."""
        places = torch.tensor(columns)
        if len(columns) == 1:
            group = table.group_of(columns[0])
            return cls(places, ((group, places - group.start, torch.zeros_like(places)),))
        starts = torch.tensor([group.start for group in table.groups])
        which = torch.bucketize(places, starts, right=True) - 1
        parts = []
        for number in which.unique().tolist():
            group, order = table.groups[number], (which == number).nonzero().flatten()
            parts.append((group, places[order] - group.start, order))
        return cls(places, tuple(parts))

    @property
    def layer(self) -> int:
        """The first layer that any of them is in; the input of layer 0 counts as layer 0."""
        return min(group.site.layer or 0 for group, _, _ in self.parts)

    def picked(
        self, by_group: Mapping[Group, Float[Tensor, "setting batch component"]], setting: int
    ) -> Float[Tensor, "batch index"]:
        """Return their own entries of one setting, in the order of `columns`."""
        found = torch.cat([by_group[group][setting][:, at] for group, at, _ in self.parts], 1)
        order = torch.cat([order for _, _, order in self.parts])
        return found[:, order.argsort().to(found.device)]


def places_of(group: Group, rows: Batch) -> Int[Tensor, "batch place"]:
    """Return the columns of a group's positions in left-padded rows.

    Positions are those of the prompt; teacher-forced tokens of an answer behind it are none.

    Raises:
        GateError: If a row's prompt has no such position.
    """
    assert group.positions is not None
    lengths = rows.prompt_lengths()
    first = (rows.mask.shape[1] - rows.mask.sum(1))[:, None]
    end = first + lengths[:, None]
    wanted = torch.tensor(group.positions, device=rows.mask.device)
    places = torch.where(wanted >= 0, first + wanted, end + wanted)
    outside = (places < first) | (places >= end)
    if bool(outside.any()):
        row, slot = outside.nonzero()[0].tolist()
        raise GateError(
            f"position {group.positions[slot]} does not exist in pair {rows.pairs[row]}, whose "
            f"prompt has {int(lengths[row])} tokens (positions 0 to {int(lengths[row]) - 1}).\n"
            "Positions count from the first real token; -1 is the last."
        )
    return places


def spread_weight(
    group: Group,
    gates: Float[Tensor, "setting batch component"],
    value: Tensor,
    rows: Batch,
    base: float,
) -> Tensor:
    """Spread a group's gates over the shape of the value at its site."""
    flat = gates.flatten(0, 1)
    if group.positions is None:
        weight = flat[:, None, :]
    else:
        places = places_of(group, rows).to(value.device)
        by_place = flat.reshape(len(flat), len(group.positions), group.count)
        full = value.new_ones(len(flat), value.shape[1], group.count)
        index = places[..., None].expand(-1, -1, group.count)
        # a product: 3 and -1 can be the same token of a short prompt, and either gate closes it
        if base == 1:
            weight = full.scatter_reduce(1, index, by_place, "prod")
        else:
            weight = 1 - full.scatter_reduce(1, index, 1 - by_place, "prod")
    return weight[..., None] if value.ndim == 4 else weight
