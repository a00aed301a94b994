"""Features held at their reference everywhere in a run, whatever else is in the text.

At every site they are read again from what the run has there, with earlier ablations in it, and
taken out by their decoder rows; the error and all other features stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headwater.coding import Coded, joined
from headwater.components.kinds import CODED
from headwater.components.names import parse_component
from headwater.components.table import Group
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import DictionaryError, UnfitReferenceError, UnknownComponentError
from headwater.gates.coded import CodedGates
from headwater.models import Model
from headwater.prompts import Batch, Pair, Task
from headwater.references import Mean, Off, PositionalMean, Reference, Zero
from headwater.shifts.examples import Examples
from headwater.sites import Site
from headwater.taps import Tap


class Ablation:
    """The features of a run that are held at their reference.

    Args:
        model: The model.
        dictionaries: Whose features.
        names: Which: `r2.f17`, or `r2.error` for what a site's features leave out.
        reference: What they are set to: `hw.Zero()` by default, or `hw.Mean(over="clean")`.
        examples: Those that a mean is taken over.
        batch_size: Most texts in one forward, for a mean.

    Raises:
        UnknownComponentError: If a name is of no feature of these dictionaries.
        UnfitReferenceError: If the reference is of another kind.
    """

    def __init__(
        self,
        model: Model,
        dictionaries: Dictionaries,
        names: Iterable[str],
        *,
        reference: Reference | None = None,
        examples: Examples | None = None,
        batch_size: int = 32,
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.reference = Zero() if reference is None else reference
        if not isinstance(self.reference, Zero | Mean | PositionalMean):
            raise UnfitReferenceError(
                f"reference={type(self.reference).__name__}: a text that is classified has no "
                "other prompt to take values from.\n"
                'Write hw.Zero(), or hw.Mean(over="clean") for the mean over the examples.'
            )
        self._held = _held(dictionaries, self.names)
        self._off = self._prepared(model, examples, batch_size)

    def taps(self, batch: Batch) -> Mapping[Site, Tap]:
        """Return what to give to `Model.forward` for a batch.

        Args:
            batch: The texts of the run.
        """
        if self._off is None:
            return {}
        off = self._off(batch).values
        parts: list[dict[Site, Tap]] = []
        for place, groups in self._held.items():
            gates = {
                group: one.to(batch.clean.device).expand(1, len(batch), -1)
                for group, one in groups.items()
            }
            parts.append(CodedGates(place, gates, off[place], batch, len(batch), 1.0).taps())
        return joined(parts)

    def _prepared(self, model: Model, examples: Examples | None, batch_size: int) -> Off | None:
        if not self._held:
            return None
        texts = ["-"] if examples is None else examples.texts
        task = Task([Pair(text) for text in texts], name="examples")
        if isinstance(self.reference, Zero):
            return self.reference.prepare(model, task, (), list(self._held))
        with model.frozen():
            batches = task.batches(
                model.tokenizer,
                batch_size=batch_size,
                device=model.device,
                pad=model.anatomy().pads,
            )
            return self.reference.prepare(model, task, batches, list(self._held))


def _held(dictionaries: Dictionaries, names: Sequence[str]) -> dict[Coded, dict[Group, Tensor]]:
    """Return gates of each site's features and error: 0 for those named, else 1."""
    columns: dict[Site, list[int]] = defaultdict(list)
    for site, index in (place_of(name, dictionaries) for name in names):
        columns[site].append(index)
    held: dict[Coded, dict[Group, Tensor]] = {}
    for site in dictionaries:
        if site not in columns:
            continue
        place = Coded(site, dictionaries.reads(site), dictionaries[site])
        open_ = torch.ones(place.dictionary.features + 1)
        open_[columns[site]] = 0
        whole = Group("feature", site, place.dictionary.features, None, 0, "h", place)
        groups = {whole: open_[:-1], replace(whole, kind="error", count=1): open_[-1:]}
        held[place] = {group: one for group, one in groups.items() if bool((one == 0).any())}
    return held


def place_of(name: str, dictionaries: Dictionaries) -> tuple[Site, int]:
    """Return the site of a feature and its number; of an error the number of features.

    Args:
        name: `r2.f17` or `r2.error`.
        dictionaries: Whose features there are.

    Raises:
        UnknownComponentError: If it is none of theirs.
    """
    component = parse_component(name)
    if component.kind not in ("feature", "error") or component.position is not None:
        raise UnknownComponentError(
            f"{name!r} is no feature at all positions.\nNames of features are like r2.f17, "
            "m1.f3 or r2.error."
        )
    sites = {CODED[site.name].format(layer=site.layer): site for site in dictionaries}
    label = name.rpartition(".")[0]
    if label not in sites:
        raise UnknownComponentError(
            f"{name!r} is a feature of {label!r}, where there is no dictionary.\n"
            f"There are dictionaries of {', '.join(sites)}."
        )
    site = sites[label]
    count = dictionaries[site].features
    index = count if component.index is None else component.index
    if index > count or (index == count and component.index is not None):
        raise UnknownComponentError(
            f"no feature {name!r}: the dictionary at '{site}' has {count:,}, from {label}.f0 to "
            f"{label}.f{count - 1}."
        )
    return site, index


def up_to(dictionaries: Dictionaries, site: Site) -> Dictionaries:
    """Return the dictionaries that a probe's site can depend on: those before it, or at it.

    Args:
        dictionaries: Of the model.
        site: Where the probe reads.

    Raises:
        DictionaryError: If there is none.
    """
    found = {there: one for there, one in dictionaries.items() if there.order <= site.order}
    if not found:
        listed = ", ".join(str(there) for there in dictionaries) or "none"
        raise DictionaryError(
            f"no dictionary lies before the probe at '{site}': there are {listed}.\n"
            f"Let the probe read later, such as site='{next(iter(dictionaries), site)}'."
        )
    return Dictionaries(found, {there: dictionaries.reads(there) for there in found})
