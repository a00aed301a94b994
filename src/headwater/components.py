"""What can be gated: components, how they are chosen, and how they are named.

A *selection* (`heads() + mlps(layers=[0, 1])`) says which kinds of component to score;
`Selection.expand` turns it into a `ComponentTable` for one model. A table is a list of *groups*:
all components of one kind that live at one site, so that a site with 3,072 neurons is one entry
and one tensor operation.

Names follow the field (EAP-IG, MIB) so that scores can be exchanged: `input`, `a3`, `a3.h5`,
`a3.h5<q>`, `a3.kv1<k>`, `m3`; ours beyond: `m3.n128` (neuron), `r3` (residual after layer 3),
`mixer3` (Mamba mixer), and the suffix `@7` for a position (`@-1`: the last).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from jaxtyping import Bool
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.errors import (
    GateError,
    NestedComponentsError,
    UnknownComponentError,
    UnknownOptionError,
    did_you_mean,
)
from headwater.sites import Site

Kind = Literal[
    "token", "head", "query", "key", "value", "attention", "mlp", "neuron", "residual", "mixer"
]
Unit = Literal["whole", "head", "kv_head", "feature"]
Positions = Literal["all", "each"] | Sequence[int]


@dataclass(frozen=True)
class KindRule:
    """Where a kind of component lives, along which axis it is cut, and how it is written."""

    site: str
    """The site's name inside a layer, or the whole path for `embed`."""
    unit: Unit
    """The axis that the components of this kind share: `whole` means one component a site."""
    written: str
    """The name, with `{layer}`, `{index}` and `{h}` (`h`, or `kv` when kv heads are fewer)."""
    plural: str
    """The function and command-line word that selects this kind."""


KINDS: dict[Kind, KindRule] = {
    "token": KindRule("embed", "whole", "input", "tokens"),
    "head": KindRule("attn.z", "head", "a{layer}.h{index}", "heads"),
    "query": KindRule("attn.q", "head", "a{layer}.h{index}<q>", "queries"),
    "key": KindRule("attn.k", "kv_head", "a{layer}.{h}{index}<k>", "keys"),
    "value": KindRule("attn.v", "kv_head", "a{layer}.{h}{index}<v>", "values"),
    "attention": KindRule("attn.out", "whole", "a{layer}", "attentions"),
    "mlp": KindRule("mlp.out", "whole", "m{layer}", "mlps"),
    "neuron": KindRule("mlp.post", "feature", "m{layer}.n{index}", "neurons"),
    "residual": KindRule("resid_post", "whole", "r{layer}", "residual"),
    "mixer": KindRule("mixer.out", "whole", "mixer{layer}", "mixers"),
}

INSIDE: dict[Kind, tuple[Kind, ...]] = {
    "attention": ("head", "query", "key", "value"),
    "head": ("query", "key", "value"),
    "mlp": ("neuron",),
}
"""Which kinds lie inside which: closing the outer one makes the inner one's gate meaningless."""


@dataclass(frozen=True)
class Component:
    """One scored part of a model."""

    name: str
    kind: Kind
    layer: int | None
    index: int | None
    """Head, kv head or neuron; None when the whole site is the component."""
    position: int | None
    """Counted from the first real token (negative: from the end); None means every position."""


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
        rule, layer = KINDS[self.kind], self.site.layer
        units = [
            rule.written.format(layer=layer, index=index, h=self.short)
            for index in range(self.count)
        ]
        if self.positions is None:
            return units
        return [f"{unit}@{position}" for position in self.positions for unit in units]

    def component(self, offset: int) -> Component:
        """Return the group's component number `offset`."""
        slot, index = divmod(offset, self.count)
        rule = KINDS[self.kind]
        position = None if self.positions is None else self.positions[slot]
        layer = self.site.layer
        name = rule.written.format(layer=layer, index=index, h=self.short)
        return Component(
            name=name if position is None else f"{name}@{position}",
            kind=self.kind,
            layer=layer,
            index=None if rule.unit == "whole" else index,
            position=position,
        )


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
        for group in self.groups:
            places = seen.setdefault((group.kind, group.site), set())
            for slot, position in enumerate(group.positions or (None,)):
                if position in places:
                    name = group.component(slot * group.count).name
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

        True for the input of layer 0 or for one residual, at all positions together or at each.
        Only then do effects of a linear metric sum to the whole change.
        """
        if len(self.groups) != 1 or self.groups[0].kind not in ("token", "residual"):
            return False
        positions = self.groups[0].positions
        return positions is None or (length is not None and positions == tuple(range(length)))

    def nested(self) -> Iterator[tuple[Group, Group]]:
        """Yield the pairs of groups (outer, inner) of which one lies inside the other."""
        for outer in self.groups:
            for inner in self.groups:
                if outer is inner or outer.site.layer != inner.site.layer:
                    continue
                same = outer.kind == inner.kind and outer.start < inner.start
                if same or inner.kind in INSIDE.get(outer.kind, ()):
                    yield outer, inner


@dataclass(frozen=True)
class Choice:
    """One term of a selection: a kind, the layers, the positions."""

    kind: Kind
    layers: tuple[int, ...] | None = None
    positions: Literal["all", "each"] | tuple[int, ...] = "all"


@dataclass(frozen=True)
class Selection:
    """Which components to score; join selections with `+`."""

    choices: tuple[Choice, ...]

    def __add__(self, other: Selection) -> Selection:
        return Selection(self.choices + other.choices)

    @property
    def needs_length(self) -> bool:
        """Whether the selection asks for `positions="each"`, hence for prompts of one length."""
        return any(choice.positions == "each" for choice in self.choices)

    def expand(self, adapter: Adapter, length: int | None = None) -> ComponentTable:
        """Return the components this selection means for one model.

        Args:
            adapter: The model's adapter; a kind it does not offer is refused by name.
            length: Tokens in every prompt; needed only for `positions="each"`.

        Raises:
            UnavailableSiteError: If the model does not offer a selected kind.
            GateError: If a layer does not exist or a component is selected twice.
        """
        groups: list[Group] = []
        start = 0
        grouped = adapter.n_kv_heads != adapter.n_heads
        for choice in self.choices:
            for site in _sites(choice, adapter):
                adapter.point(site)  # refuses by name what this model does not offer
                positions = choice.positions
                if positions == "each":
                    positions = tuple(range(length or 0))
                group = Group(
                    kind=choice.kind,
                    site=site,
                    count=_count(KINDS[choice.kind].unit, adapter),
                    positions=None if positions == "all" else positions,
                    start=start,
                    short="kv" if grouped else "h",
                )
                groups.append(group)
                start += group.size
        return ComponentTable(groups, repeats=(adapter.n_heads or 1) // (adapter.n_kv_heads or 1))

    def to_list(self) -> list[dict[str, object]]:
        """Return the selection as plain data, for manifests."""
        return [
            {
                "kind": choice.kind,
                "layers": None if choice.layers is None else list(choice.layers),
                "positions": choice.positions
                if isinstance(choice.positions, str)
                else list(choice.positions),
            }
            for choice in self.choices
        ]

    @staticmethod
    def from_list(data: Iterable[dict]) -> Selection:
        """Return the selection written by `to_list`."""
        return Selection(
            tuple(
                Choice(
                    kind=entry["kind"],
                    layers=None if entry["layers"] is None else tuple(entry["layers"]),
                    positions=_as_positions(entry["positions"]),
                )
                for entry in data
            )
        )


def _sites(choice: Choice, adapter: Adapter) -> list[Site]:
    rule = KINDS[choice.kind]
    if rule.site == "embed":
        if choice.layers is not None:
            raise GateError(
                "tokens are the input of layer 0 and have no layers.\n"
                "For the residual after a layer write hw.residual(layers=[...])."
            )
        return [Site(None, "embed")]
    layers = range(adapter.n_layers) if choice.layers is None else choice.layers
    for layer in layers:
        if not 0 <= layer < adapter.n_layers:
            raise GateError(
                f"layer {layer} does not exist: the model has layers 0 to {adapter.n_layers - 1}.\n"
                f"Write hw.{rule.plural}(layers=range({adapter.n_layers}))."
            )
    return [Site(layer, rule.site) for layer in layers]


def _count(unit: Unit, adapter: Adapter) -> int:
    sizes = {"whole": 1, "head": adapter.n_heads, "kv_head": adapter.n_kv_heads}
    return adapter.d_mlp if unit == "feature" else sizes[unit]  # type: ignore[return-value]


def _select(kind: Kind, layers: Iterable[int] | int | None, positions: Positions) -> Selection:
    if isinstance(positions, str) and positions not in ("all", "each"):
        raise UnknownOptionError(
            f"positions={positions!r} is unknown.{did_you_mean(positions, ('all', 'each'))}\n"
            'Write positions="all" (one component over all positions), "each" (one a position), '
            "or a list such as [0, -1]."
        )
    if not isinstance(positions, str) and not len(positions):
        raise UnknownOptionError(
            "positions=[] selects nothing.\n"
            'Write positions="all", "each", or a list such as [0, -1].'
        )
    if isinstance(layers, int):
        layers = (layers,)
    chosen = None if layers is None else tuple(layers)
    return Selection((Choice(kind, chosen, _as_positions(positions)),))


def _as_positions(positions: Positions) -> Literal["all", "each"] | tuple[int, ...]:
    if isinstance(positions, str):
        return "each" if positions == "each" else "all"
    return tuple(int(one) for one in positions)


def tokens(*, positions: Positions = "each") -> Selection:
    """Select the input of layer 0, one component a position (`input@3`) by default."""
    return _select("token", None, positions)


def heads(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select attention heads by their output before the output projection (`a3.h5`).

    Args:
        layers: Which layers; None means all.
        positions: `"all"` gates a head at every position together, `"each"` one position at a
            time, a list only at these positions (one component each).
    """
    return _select("head", layers, positions)


def queries(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select the queries of heads, after rotary embedding and query norm (`a3.h5<q>`)."""
    return _select("query", layers, positions)


def keys(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select keys, one component a key-value head (`a3.kv1<k>`; `a3.h5<k>` if not grouped)."""
    return _select("key", layers, positions)


def values(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select values, one component a key-value head (`a3.kv1<v>`; `a3.h5<v>` if not grouped)."""
    return _select("value", layers, positions)


def attentions(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select whole attention blocks by what they write to the residual (`a3`)."""
    return _select("attention", layers, positions)


def mlps(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select whole MLPs by what they write to the residual (`m3`)."""
    return _select("mlp", layers, positions)


def neurons(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select MLP neurons: the inputs of the down projection (`m3.n128`)."""
    return _select("neuron", layers, positions)


def residual(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "each"
) -> Selection:
    """Select the residual stream after a layer, one component a position (`r3@7`)."""
    return _select("residual", layers, positions)


def mixers(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select whole Mamba mixers by what they write to the residual (`mixer3`)."""
    return _select("mixer", layers, positions)


def nodes(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select the nodes of a circuit: input, heads and MLPs (`input`, `a3.h5`, `m3`)."""
    return (
        tokens(positions=positions)
        + heads(layers=layers, positions=positions)
        + mlps(layers=layers, positions=positions)
    )


SELECTORS = {
    "tokens": tokens,
    "heads": heads,
    "queries": queries,
    "keys": keys,
    "values": values,
    "attentions": attentions,
    "mlps": mlps,
    "neurons": neurons,
    "residual": residual,
    "mixers": mixers,
    "nodes": nodes,
}
"""The command line's words; the same as the functions' names."""

_NUMBER = "(?:0|[1-9][0-9]*)"
_NAME = re.compile(
    rf"(?:(?P<token>input)"
    rf"|a(?P<attn>{_NUMBER})(?:\.h(?P<head>{_NUMBER})(?:<(?P<qkv>[qkv])>)?"
    rf"|\.kv(?P<kv_head>{_NUMBER})<(?P<kv>[kv])>)?"
    rf"|m(?P<mlp>{_NUMBER})(?:\.n(?P<neuron>{_NUMBER}))?"
    rf"|r(?P<resid>{_NUMBER})"
    rf"|mixer(?P<mixer>{_NUMBER}))"
    rf"(?:@(?P<position>-?{_NUMBER}))?"
)


def parse_component(name: str) -> Component:
    """Return the component a name means; printing its `.name` gives the name back.

    Example:
        >>> parse_component("a3.h5<q>@7").kind
        'query'

    Raises:
        UnknownComponentError: If the name is not of the grammar.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownComponentError(
            f"{name!r} is not a component's name.\n"
            "Names are input, a3, a3.h5, a3.h5<q>, a3.kv1<k>, m3, m3.n128, r3, mixer3, "
            "each with @7 for a position."
        )
    part = match.groupdict()
    position = None if part["position"] is None else int(part["position"])

    def made(kind: Kind, layer: str | None, index: str | None = None) -> Component:
        number = None if layer is None else int(layer)
        return Component(name, kind, number, None if index is None else int(index), position)

    if part["token"]:
        return made("token", None)
    if part["attn"] is not None:
        index = part["head"] or part["kv_head"]
        kinds: dict[str | None, Kind] = {"q": "query", "k": "key", "v": "value", None: "head"}
        kind = "attention" if index is None else kinds[part["qkv"] or part["kv"]]
        return made(kind, part["attn"], index)
    if part["mlp"] is not None:
        return made("mlp" if part["neuron"] is None else "neuron", part["mlp"], part["neuron"])
    if part["resid"] is not None:
        return made("residual", part["resid"])
    return made("mixer", part["mixer"])


def refuse_nested(table: ComponentTable, moved: Bool[Tensor, "setting component"]) -> None:
    """Raise if two nested components leave their base in one setting.

    Args:
        table: The components.
        moved: Bool tensor [setting, component]: which gates are away from their base.

    Raises:
        NestedComponentsError: Naming one such pair.
    """
    for outer, inner in table.nested():
        for a in range(outer.size):
            rows = moved[:, outer.start + a, None]
            both = (rows & moved[:, inner.columns]).any(0)
            for b in both.nonzero().flatten().tolist():
                whole, part = outer.component(a), inner.component(b)
                if _lies_inside(whole, part, table.repeats):
                    raise NestedComponentsError(
                        f"{part.name} lies inside {whole.name}, and both gates are moved in one "
                        "run: the inner one then means nothing.\n"
                        "Score them in two calls, or leave one kind out."
                    )


def _lies_inside(outer: Component, inner: Component, repeats: int) -> bool:
    places = {outer.position, inner.position}
    if None not in places and len(places) == 2:
        return False
    if outer.index is None or outer.kind == inner.kind:
        return outer.index is None or outer.index == inner.index
    shared = inner.kind in ("key", "value")
    return inner.index == (outer.index // repeats if shared else outer.index)


assert set(KINDS) == set(get_args(Kind))  # a kind without a rule is a programming error
