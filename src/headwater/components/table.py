"""The components of one run: groups, one a kind and site, and their names in gate order.

A site with 3,072 neurons is one group and one tensor operation; names are made on demand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from headwater.coding import Coded, Place
from headwater.components.kinds import CODED, INSIDE, KINDS, Component, Kind
from headwater.errors import (
    GateError,
    UnknownComponentError,
    did_you_mean,
)
from headwater.sites import Site


@dataclass(frozen=True)
class Group:
    """All components of one kind at one site; their gates are `columns` of a gate tensor.

    Inside the group components run position by position, then along the unit axis.
    """

    kind: Kind
    site: Site
    count: int
    """Components along the unit axis (heads, kv heads, neurons); 1 for `whole`."""
    positions: tuple[int, ...] | None
    start: int
    """Column of this group's first component in the gate tensor."""
    short: str
    """`kv` when key-value heads are fewer than heads, else `h`."""
    coded: Coded | None = None
    """The site in the coordinates of a dictionary, for features and errors."""

    @property
    def place(self) -> Place:
        """What its off values are kept for."""
        return self.coded or self.site

    @property
    def size(self) -> int:
        """Number of components in the group."""
        return self.count * (1 if self.positions is None else len(self.positions))

    @property
    def columns(self) -> slice:
        """The group's columns in a gate tensor."""
        return slice(self.start, self.start + self.size)

    def names(self) -> list[str]:
        """Return the names of the group's components."""
        written = self._written
        units = [written.format(index=index) for index in range(self.count)]
        if self.positions is None:
            return units
        return [f"{unit}@{position}" for position in self.positions for unit in units]

    def component(self, offset: int) -> Component:
        """Return the group's component number `offset`."""
        slot, index = divmod(offset, self.count)
        rule = KINDS[self.kind]
        position = None if self.positions is None else self.positions[slot]
        name = self._written.format(index=index)
        return Component(
            name=name if position is None else f"{name}@{position}",
            kind=self.kind,
            layer=self.site.layer,
            index=None if rule.unit == "whole" else index,
            position=position,
        )

    @property
    def _written(self) -> str:
        """The name of a component without its position, and with `{index}` left open."""
        layer = self.site.layer
        at = "" if self.coded is None else CODED[self.site.name].format(layer=layer)
        return KINDS[self.kind].written.format(layer=layer, index="{index}", h=self.short, at=at)


class ComponentTable(Sequence[Component]):
    """The components of one run, in gate order, grouped by site."""

    def __init__(self, groups: Sequence[Group], repeats: int = 1) -> None:
        self.groups = tuple(groups)
        self.repeats = repeats
        """Query heads a key-value head serves; relates queries to keys and values."""
        self._refuse_twice()

    def __len__(self) -> int:
        return self.groups[-1].columns.stop if self.groups else 0

    def __getitem__(self, index: int) -> Component:  # pyright: ignore[reportIncompatibleMethodOverride]
        group = self.group_of(range(len(self))[index])
        return group.component(range(len(self))[index] - group.start)

    @cached_property
    def layers(self) -> list[int]:
        """The layers that hold components; the input of layer 0 counts as layer 0."""
        return sorted({group.site.layer or 0 for group in self.groups})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The components' names, in gate order."""
        return tuple(name for group in self.groups for name in group.names())

    @cached_property
    def _starts(self) -> list[int]:
        return [group.start for group in self.groups]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.names)}

    def _refuse_twice(self) -> None:
        """Refuse a component that is there twice: groups of one kind and site may share one."""
        seen: dict[tuple[Kind, Site], set[int | None]] = {}
        coded: dict[Site, Coded] = {}
        for group in self.groups:
            if group.coded is not None and coded.setdefault(group.site, group.coded) != group.coded:
                raise GateError(
                    f"two dictionaries are of '{group.site}': a name would mean a feature of "
                    "either.\nSelect both from one that is read once, or score them in two calls."
                )
            places = seen.setdefault((group.kind, group.site), set())
            for slot, position in enumerate(group.positions or (None,)):
                if position in places:
                    name = group.component(slot * group.count).name
                    if position in (group.positions or ())[:slot]:
                        raise GateError(
                            f"component {name!r} is selected twice: position {position} is given "
                            "twice.\nGive each position once, such as 0,-1."
                        )
                    raise GateError(
                        f"component {name!r} is selected twice.\n"
                        "Select each kind once: hw.nodes() already holds tokens, heads and MLPs."
                    )
                places.add(position)

    def index_of(self, name: str) -> int:
        """Return the column of the component called `name`.

        Raises:
            UnknownComponentError: If no component of this table has that name.
        """
        if name not in self._index:
            raise UnknownComponentError(
                f"no component {name!r} among the {len(self)} scored here."
                f"{did_you_mean(name, self.names)}\nAll names: `scores.names`."
            )
        return self._index[name]

    def group_of(self, column: int) -> Group:
        """Return the group that holds a gate column."""
        return self.groups[bisect_right(self._starts, column) - 1]

    def is_cut(self, length: int | None) -> bool:
        """Whether every path from the prompt to the logits crosses exactly one component.

        True for the input of layer 0 or for one residual, whole or in the features of a dictionary,
        at all positions together or at each. Only then do effects of a linear metric sum to the
        whole change.
        """
        kinds = [group.kind for group in self.groups]
        if len({group.place for group in self.groups}) != 1:
            return False
        if kinds not in (["token"], ["residual"]):
            # all features and the error are the whole site; of a dictionary without, the error
            coded = kinds in (["feature", "error"], ["error"])
            if not coded or self.groups[0].site.name not in ("embed", "resid_post"):
                return False
        positions = self.groups[0].positions
        return positions is None or (length is not None and positions == tuple(range(length)))

    def nested(self) -> Iterator[tuple[Group, Group]]:
        """Yield the pairs of groups (outer, inner) of which one lies inside the other."""
        for outer in self.groups:
            for inner in self.groups:
                if outer is inner or outer.site.layer != inner.site.layer:
                    continue
                here = outer.site == inner.site
                same = here and outer.kind == inner.kind and outer.start < inner.start
                if same or _holds_site(outer, inner) or inner.kind in INSIDE.get(outer.kind, ()):
                    yield outer, inner


def _holds_site(outer: Group, inner: Group) -> bool:
    """Whether a dictionary's site is the site of a component, or lies inside it."""
    if inner.coded is None or outer.coded is not None:
        return False
    within = (KINDS[kind].site for kind in INSIDE.get(outer.kind, ()))
    return inner.site.name in (outer.site.name, *within)
