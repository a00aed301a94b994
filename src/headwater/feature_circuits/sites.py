"""The node sites of a circuit: where dictionaries are, and sites that are one node as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from headwater.architectures.adapter import Adapter
from headwater.architectures.widths import width
from headwater.coding import Coded
from headwater.components.coded_places import read_in_layer
from headwater.components.kinds import CODED
from headwater.dictionaries import Dictionary
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import UnavailableSiteError
from headwater.sites import EMBED, Site


@dataclass(frozen=True)
class NodeSite:
    """One site of a circuit; its nodes are features 0 to F - 1 and, as number F, the error.

    A site without a dictionary has no features: its error is the whole of it.
    """

    coded: Coded

    @property
    def site(self) -> Site:
        """Where its nodes are written."""
        return self.coded.site

    @property
    def dictionary(self) -> Dictionary:
        """Its dictionary; of a whole site one without features."""
        return self.coded.dictionary

    @property
    def features(self) -> int:
        """How many features it has: also the number of its error node."""
        return self.dictionary.features

    @property
    def reads(self) -> tuple[Site, ...]:
        """Where a run must be looked at to know its nodes, in the order of the run."""
        return (self.coded.reads, self.site) if self.coded.transcodes else (self.site,)

    @property
    def label(self) -> str:
        """What the names of its nodes begin with: `m3`."""
        return CODED[self.site.name].format(layer=self.site.layer)

    def name(self, index: int, position: int | None = None) -> str:
        """Return the name of a node: `m3.f77`, `m3.error`, or `m3` if the site has no features."""
        if index < self.features:
            name = f"{self.label}.f{index}"
        else:
            name = f"{self.label}.error" if self.features else self.label
        return name if position is None else f"{name}@{position}"


class NodeSites(Sequence[NodeSite]):
    """The node sites of a circuit, in the order in which a forward pass computes them."""

    def __init__(self, nodes: Sequence[NodeSite], adapter: Adapter) -> None:
        by_site = {node.site: node for node in nodes}
        self._nodes = sorted(by_site.values(), key=lambda node: node.site.order)
        self._places = {node.site: place for place, node in enumerate(self._nodes)}
        self.write_scale = adapter.write_scale
        self._writes = adapter.writes

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, index: int) -> NodeSite:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._nodes[index]

    def __iter__(self) -> Iterator[NodeSite]:
        return iter(self._nodes)

    @property
    def sites(self) -> list[Site]:
        """Where the nodes are written."""
        return [node.site for node in self._nodes]

    @property
    def read(self) -> list[Site]:
        """Every site that must be looked at."""
        return list(dict.fromkeys(site for node in self._nodes for site in node.reads))

    @property
    def dictionaries(self) -> Dictionaries:
        """Every site's dictionary; of a whole site the one without features."""
        return Dictionaries(
            {node.site: node.dictionary for node in self._nodes},
            {node.site: node.coded.reads for node in self._nodes},
        )

    def before(self, node: NodeSite) -> list[Site]:
        """Return the node sites before one: those that its reading may depend on."""
        return self.sites[: self._places[node.site]]

    def addends(self, node: NodeSite) -> dict[Site, float] | None:
        """Return the sites whose sum a residual is, and their factors, if all of them are nodes.

        Then each edge into the residual is the identity, and no model has to run.
        """
        parts = self.parts(node)
        return parts if parts and all(part in self._places for part in parts) else None

    def parts(self, node: NodeSite) -> dict[Site, float] | None:
        """Return the sites whose sum a residual is, and their factors; None for other sites.

        The residual before comes first: that between attention and MLP if it is a node.
        """
        site = node.site
        if site.name not in ("resid_post", "resid_mid") or node.coded.transcodes:
            return None
        assert site.layer is not None
        first = EMBED if site.layer == 0 else Site(site.layer - 1, "resid_post")
        writes = self._writes
        mid = Site(site.layer, "resid_mid")
        if site == mid:
            writes = writes[:1]
        elif mid in self._places:  # nothing of what lies before it passes it by
            first, writes = mid, writes[1:]
        return {first: 1.0} | {Site(site.layer, name): self.write_scale for name in writes}

    def position_wise(self, node: NodeSite) -> bool:
        """Whether a node's edges stay at their position: no attention in between that is no node.

        Only said where it is plain from the sites; otherwise every pair of positions is computed.
        """
        if self.addends(node) is not None:
            return True
        before = set(self.before(node))
        layer = node.site.layer
        if layer is None or node.site.name.startswith(("attn.", "mixer.")):
            return False
        previous = EMBED if layer == 0 else Site(layer - 1, "resid_post")
        mixing = Site(layer, self._writes[0])
        return previous in before and mixing in before


def node_sites(
    adapter: Adapter,
    dictionaries: Dictionaries,
    sites: Sequence[Site | str] | None,
    **where: object,
) -> NodeSites:
    """Return the node sites of a circuit.

    Args:
        adapter: The model's.
        dictionaries: By site.
        sites: Sites that are nodes beside those that have a dictionary; by default `embed`.
        **where: Number type and device of the dictionaries that stand for whole sites.

    Raises:
        DictionaryError: If a dictionary does not fit the model, or reads in another layer.
        UnavailableSiteError: If a site is none at which nodes can be.
    """
    dictionaries = dictionaries.fitted(adapter)
    given = [EMBED] if sites is None else sites
    named = (Site.parse(site) if isinstance(site, str) else site for site in given)
    chosen = list(dict.fromkeys([*named, *dictionaries]))
    for site in chosen:
        if site.name not in CODED:
            raise UnavailableSiteError(
                f"'{site}' cannot be a node of a circuit of features.\n"
                f"Nodes are at {', '.join(CODED)}."
            )
        adapter.point(site)  # says why if this model has no such site
    return NodeSites(
        [NodeSite(_coded(adapter, dictionaries, site, where)) for site in chosen], adapter
    )


def _coded(
    adapter: Adapter, dictionaries: Dictionaries, site: Site, where: Mapping[str, object]
) -> Coded:
    if site in dictionaries:
        read_in_layer(dictionaries.reads(site), site)  # others could not be closed
        return Coded(site, dictionaries.reads(site), dictionaries[site])
    size = width(adapter, site)
    assert size is not None  # a site of `CODED` has a vector at each position
    return Coded(site, site, without_features(size, **where))


def without_features(width: int, **where: object) -> Dictionary:
    """Return a dictionary of no features, whose error is the whole of what it reads."""
    empty = torch.zeros(width, 0, **where)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Dictionary(
        encoder=empty,
        encoder_bias=empty.new_zeros(0),
        decoder=empty.T,
        decoder_bias=empty.new_zeros(width),
    )
