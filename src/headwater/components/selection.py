"""Which components to score: `heads() + mlps(layers=[0, 1])`, expanded for one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.architectures.adapter import Adapter
from headwater.coding import Coded, Place
from headwater.components.coded_places import CodedPlaces
from headwater.components.kinds import KINDS, Kind, Unit
from headwater.components.names import coded_site, parse_component
from headwater.components.table import ComponentTable, Group
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import GateError, UnavailableSiteError
from headwater.sites import EMBED, Site

Positions = Literal["all", "each"] | Sequence[int]


@dataclass(frozen=True)
class Choice:
    """One term of a selection: a kind, the layers, the positions."""

    kind: Kind
    layers: tuple[int, ...] | None = None
    positions: Literal["all", "each"] | tuple[int, ...] = "all"
    dictionaries: Dictionaries | None = None
    """Whose features are chosen, each site's error behind them; for `kind="feature"` only."""


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

    def holding(self, names: Iterable[str]) -> Selection:
        """Return the smallest selection that holds components by name.

        Args:
            names: Of components of any kind; of features, those of this selection's dictionaries.

        Raises:
            UnknownComponentError: If a name is not of the grammar.
            GateError: If this selection has no dictionary of a feature's site.
        """
        choices: list[Choice] = []
        coded: dict[Site, Dictionaries] = {}
        for name in names:
            component = parse_component(name)
            layers = None if component.layer is None else (component.layer,)
            positions = "all" if component.position is None else (component.position,)
            found, kind = None, component.kind
            if kind in ("feature", "error"):
                kind, site = "feature", coded_site(name)
                if site not in coded:
                    coded[site] = self._dictionary(name, site)
                found = coded[site]
                layers = None  # there is no other one
            choice = Choice(kind, layers, positions, found)
            if choice not in choices:
                choices.append(choice)
        return Selection(tuple(choices))

    def _dictionary(self, name: str, site: Site) -> Dictionaries:
        """Return the dictionary of a site alone."""
        for choice in self.choices:
            if choice.dictionaries is not None and site in choice.dictionaries:
                one = choice.dictionaries[site]
                return Dictionaries({site: one}, {site: choice.dictionaries.reads(site)})
        raise GateError(
            f"{name} is of a dictionary of '{site}', and none is given here: a name alone does not "
            "say whose.\nAsk the scores of features, which know it: scores = hw.attribute(model, "
            "task, hw.features(...)), then hw.interaction(scores, a=..., b=...)."
        )

    def expand(self, adapter: Adapter, length: int | None = None) -> ComponentTable:
        """Return the components this selection means for one model.

        Args:
            adapter: The model's adapter; a kind it does not offer is refused by name.
            length: Tokens in every prompt; needed only for `positions="each"`.

        Raises:
            UnavailableSiteError: If the model does not offer a selected kind.
            GateError: If a layer does not exist or a component is selected twice.
            DictionaryError: If a dictionary does not fit the model.
        """
        groups: list[Group] = []
        start = 0
        grouped = adapter.n_kv_heads != adapter.n_heads
        coded_places = CodedPlaces(adapter)
        for choice in self.choices:
            positions = choice.positions
            if positions == "each":
                positions = tuple(range(length or 0))
            for place in _places(choice, adapter, coded_places):
                coded = place if isinstance(place, Coded) else None
                site = place if isinstance(place, Site) else place.site
                kinds: tuple[Kind, ...] = (choice.kind,) if coded is None else ("feature", "error")
                for kind in kinds:
                    if not (count := _count(KINDS[kind].unit, adapter, coded)):
                        continue  # a site that is one node as a whole: its error
                    group = Group(
                        kind=kind,
                        site=site,
                        count=count,
                        positions=None if positions == "all" else positions,
                        start=start,
                        short="kv" if grouped else "h",
                        coded=coded,
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
                **(
                    {}
                    if choice.dictionaries is None
                    else {"dictionaries": choice.dictionaries.to_list()}
                ),
            }
            for choice in self.choices
        ]

    @staticmethod
    def from_list(data: Iterable[dict]) -> Selection:
        """Return the selection written by `to_list`.

        Raises:
            DictionaryError: If a dictionary was made in memory, or its file has changed or is gone.
        """
        read: list[tuple[object, Dictionaries]] = []  # those of several choices are the same ones

        def dictionaries(listed: list[dict]) -> Dictionaries:
            found = next((one for known, one in read if known == listed), None)
            if found is None:
                found = Dictionaries.from_list(listed)
                read.append((listed, found))
            return found

        return Selection(
            tuple(
                Choice(
                    kind=entry["kind"],
                    layers=None if entry["layers"] is None else tuple(entry["layers"]),
                    positions=as_positions(entry["positions"]),
                    dictionaries=dictionaries(entry["dictionaries"])
                    if "dictionaries" in entry
                    else None,
                )
                for entry in data
            )
        )


def _places(choice: Choice, adapter: Adapter, coded: CodedPlaces) -> Sequence[Place]:
    """Return the sites that a choice means, or the coded sites."""
    if choice.kind not in ("feature", "error"):
        return _sites(choice, adapter)
    if choice.dictionaries is None:
        raise GateError(
            "features are those of dictionaries, and none are given here: a name alone does not "
            "say whose feature is meant.\nWrite hw.features(hw.load_dictionaries(model, 'FOLDER'))."
        )
    return coded.of(choice.dictionaries, choice.layers)


def _sites(choice: Choice, adapter: Adapter) -> list[Site]:
    rule = KINDS[choice.kind]
    if rule.site == "embed":
        if choice.layers is not None:
            raise GateError(
                "tokens are the input of layer 0 and have no layers.\n"
                "For the residual after a layer write hw.residual(layers=[...])."
            )
        return [EMBED]
    layers = range(adapter.n_layers) if choice.layers is None else choice.layers
    for place, layer in enumerate(layers):
        if layer in layers[:place]:
            raise GateError(
                f"layer {layer} is given twice for {rule.plural}.\n"
                "Give each layer once, such as 0,2."
            )
        if not 0 <= layer < adapter.n_layers:
            raise GateError(
                f"layer {layer} does not exist: the model has layers 0 to {adapter.n_layers - 1}.\n"
                f"Write hw.{rule.plural}(layers=range({adapter.n_layers}))."
            )
    if layers and rule.site in adapter.missing:
        raise _missing(choice, adapter)
    return [Site(layer, rule.site) for layer in layers]


def _missing(choice: Choice, adapter: Adapter) -> UnavailableSiteError:
    rule = KINDS[choice.kind]
    # features are offered wherever there is a dictionary, and go without saying
    offered = [
        other.plural
        for other in KINDS.values()
        if other.site == "embed" or (other.site and other.site not in adapter.missing)
    ]
    return UnavailableSiteError(
        f"{adapter.family.name} has no {rule.plural}: {adapter.missing[rule.site]}.\n"
        f"It offers {', '.join(offered)}."
    )


def _count(unit: Unit, adapter: Adapter, coded: Coded | None) -> int:
    sizes = {
        "whole": 1,
        "head": adapter.n_heads,
        "kv_head": adapter.n_kv_heads,
        "neuron": adapter.d_mlp,
        "feature": None if coded is None else coded.dictionary.features,
        "channel": adapter.d_inner,
        "ssm_head": adapter.n_ssm_heads,
    }
    return sizes[unit]  # type: ignore[return-value]


def as_positions(positions: Positions) -> Literal["all", "each"] | tuple[int, ...]:
    """Return positions as they are kept: `"all"`, `"each"`, or a tuple of integers."""
    if isinstance(positions, str):
        return "each" if positions == "each" else "all"
    return tuple(int(one) for one in positions)
