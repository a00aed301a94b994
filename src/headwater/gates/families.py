"""Families: components that are closed together, all of one kind and layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headwater.components import KINDS, ComponentTable, Group


@dataclass(frozen=True)
class Family:
    """Components that are closed together."""

    name: str
    columns: tuple[int, ...]
    kind: str = "gate"
    """The kind of all its components."""
    share: float = 1.0
    """The share of a forward that a run costs in which only these are moved."""

    @property
    def one_by_one(self) -> float:
        """Forwards that moving each of its components alone costs."""
        return len(self.columns) * self.share


def families_of(table: ComponentTable, depth: int) -> tuple[Family, ...]:
    """Return all components of one kind and layer together, in the order of the table.

    The features of a dictionary and its error are one family: closing them all puts the reference
    in place of the whole site.

    Args:
        table: The components of a model.
        depth: Its number of layers.
    """
    groups: dict[str, list[Group]] = defaultdict(list)
    for group in table.groups:
        where = "" if group.site.layer is None else f" of layer {group.site.layer}"
        where = where if group.coded is None else f" of {group.site}"
        groups[f"{KINDS[group.kind].plural}{where}"].append(group)
    return tuple(
        Family(
            name=name,
            columns=tuple(
                column
                for group in members
                for column in range(group.columns.start, group.columns.stop)
            ),
            kind=members[0].kind,
            share=1 - (members[0].site.layer or 0) / depth,
        )
        for name, members in groups.items()
    )


def renumbered(families: Sequence[Family]) -> tuple[Family, ...]:
    """Return families whose columns follow one another from 0 on."""
    result: list[Family] = []
    start = 0
    for family in families:
        stop = start + len(family.columns)
        result.append(replace(family, columns=tuple(range(start, stop))))
        start = stop
    return tuple(result)
