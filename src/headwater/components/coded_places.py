"""Where the features of dictionaries are gated in one model: checked, and in its number type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.coding import Coded
from headwater.components.kinds import CODED
from headwater.dictionaries import Dictionary
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import DictionaryError, GateError, UnavailableSiteError
from headwater.sites import Site


class CodedPlaces:
    """The coded sites of a model; dictionaries that are given twice are placed once.

    Args:
        adapter: Of the model.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._placed: dict[int, tuple[Dictionaries, dict[Site, Coded]]] = {}

    def of(self, dictionaries: Dictionaries, layers: Sequence[int] | None) -> list[Coded]:
        """Return the coded sites of some layers, in the order of a forward pass.

        Args:
            dictionaries: Whose sites are meant.
            layers: Which layers; None means every site that has a dictionary.

        Raises:
            DictionaryError: If a dictionary does not fit the model, or spans layers.
            UnavailableSiteError: If one is at a site whose features have no names.
            GateError: If a layer has no dictionary, or is given twice.
        """
        if id(dictionaries) not in self._placed:
            self._placed[id(dictionaries)] = (dictionaries, self._coded(dictionaries))
        _, coded = self._placed[id(dictionaries)]
        if layers is None:
            return list(coded.values())
        for place, layer in enumerate(layers):
            if layer in layers[:place]:
                raise GateError(
                    f"layer {layer} is given twice for features.\n"
                    "Give each layer once, such as 0,2."
                )
            if not any(site.layer == layer for site in coded):
                raise GateError(
                    f"no dictionary at layer {layer}: there are some at "
                    f"{', '.join(str(site) for site in coded)}."
                )
        return [one for site, one in coded.items() if site.layer in layers]

    def _coded(self, dictionaries: Dictionaries) -> dict[Site, Coded]:
        for site in dictionaries:
            if site.name not in CODED:
                raise UnavailableSiteError(
                    f"a dictionary at '{site}' has no place in a circuit.\n"
                    f"Features are gated at {', '.join(CODED)}."
                )
        fitted = dictionaries.fitted(self.adapter)
        return {
            site: Coded(site, read_in_layer(fitted.reads(site), site), self._converted(one, site))
            for site, one in fitted.items()
        }

    def _converted(self, dictionary: Dictionary, site: Site) -> Dictionary:
        """Return a dictionary where its layer is, and as precise as its layer at least."""
        layer = self.adapter.layers[site.layer or 0]
        weight = next((one for one in layer.parameters() if one.is_floating_point()), None)
        if weight is None or weight.is_meta:  # nothing to go by, or weights that are elsewhere
            return dictionary
        own: Tensor = dictionary.decoder
        dtype = torch.promote_types(own.dtype, weight.dtype)
        if (own.dtype, own.device) == (dtype, weight.device):
            return dictionary
        return dictionary.to(dtype=dtype, device=weight.device)


def read_in_layer(reads: Site, site: Site) -> Site:
    """Return where a dictionary's input passes in the layer that it writes in.

    Runs may start at that layer, so what leaves the layer before is read where it enters.

    Args:
        reads: What the dictionary encodes.
        site: What it writes.

    Raises:
        DictionaryError: If it passes in another layer only, or after what it writes.
    """
    if reads.name == "resid_post" and reads.layer is not None and site.layer == reads.layer + 1:
        return replace(reads, layer=site.layer, name="resid_pre")
    if (reads.layer or 0) != (site.layer or 0) or reads.order > site.order:
        raise DictionaryError(
            f"a dictionary that reads '{reads}' and writes '{site}' cannot be gated: its features "
            "are computed where they are written, from what passes before that in the same layer.\n"
            "Use transcoders of one layer, such as ('layers.3.mlp.in', 'layers.3.mlp.out')."
        )
    return reads
