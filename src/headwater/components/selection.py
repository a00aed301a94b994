"""Which components to score: `heads() + mlps(layers=[0, 1])`, expanded for one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.architectures.adapter import Adapter
from headwater.coding import Coded
from headwater.components.kinds import CODED, KINDS, Kind, Unit
from headwater.components.table import ComponentTable, Group
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import GateError, UnavailableSiteError
from headwater.sites import Site

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
                _refuse_missing(choice, site, adapter)
                positions = choice.positions
                if positions == "each":
                    positions = tuple(range(length or 0))
                coded = _coded(choice, site)
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
        """Return the selection written by `to_list`."""
        return Selection(
            tuple(
                Choice(
                    kind=entry["kind"],
                    layers=None if entry["layers"] is None else tuple(entry["layers"]),
                    positions=as_positions(entry["positions"]),
                    dictionaries=Dictionaries.from_list(entry["dictionaries"])
                    if "dictionaries" in entry
                    else None,
                )
                for entry in data
            )
        )


def _refuse_missing(choice: Choice, site: Site, adapter: Adapter) -> None:
    if site.layer is None or site.name not in adapter.missing:
        return
    offered = [
        rule.plural
        for rule in KINDS.values()
        if rule.site == "embed" or rule.site not in adapter.missing
    ]
    raise UnavailableSiteError(
        f"{adapter.family.name} has no {KINDS[choice.kind].plural}: {adapter.missing[site.name]}.\n"
        f"It offers {', '.join(offered)}."
    )


def _sites(choice: Choice, adapter: Adapter) -> list[Site]:
    rule = KINDS[choice.kind]
    if choice.kind in ("feature", "error") and choice.dictionaries is None:
        raise GateError(
            "features are those of dictionaries, and none are given here.\n"
            "Write hw.features(hw.dictionaries(model, 'FOLDER'))."
        )
    if choice.dictionaries is not None:
        return _coded_sites(choice, choice.dictionaries, adapter)
    if rule.site == "embed":
        if choice.layers is not None:
            raise GateError(
                "tokens are the input of layer 0 and have no layers.\n"
                "For the residual after a layer write hw.residual(layers=[...])."
            )
        return [Site(None, "embed")]
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
    return [Site(layer, rule.site) for layer in layers]


def _coded_sites(choice: Choice, dictionaries: Dictionaries, adapter: Adapter) -> list[Site]:
    dictionaries.check(adapter)
    for site in dictionaries:
        if site.name not in CODED:
            raise UnavailableSiteError(
                f"a dictionary at '{site}' has no place in a circuit.\n"
                f"Features are gated at {', '.join(CODED)}."
            )
    if choice.layers is None:
        return list(dictionaries)
    missing = set(choice.layers) - {site.layer for site in dictionaries}
    if missing:
        raise GateError(
            f"no dictionary at layer {min(missing)}: there are some at "
            f"{', '.join(str(site) for site in dictionaries)}."
        )
    return [site for site in dictionaries if site.layer in choice.layers]


def _coded(choice: Choice, site: Site) -> Coded | None:
    if choice.dictionaries is None:
        return None
    return Coded(site, choice.dictionaries.reads(site), choice.dictionaries[site])


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
