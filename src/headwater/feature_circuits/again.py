"""A circuit made ready to be run again: for audits, evaluations, contexts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from headwater.audits.again import estimator_from
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import DictionaryError, ModelGoneError, ResultError
from headwater.estimators import Estimator, Gradient
from headwater.feature_circuits.exact import NodeKey
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import Runs
from headwater.feature_circuits.sites import NodeSites, node_sites
from headwater.fingerprints import differing
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Reference, reference_from_dict
from headwater.sites import Site

if TYPE_CHECKING:
    from headwater.feature_circuits.nodes import Node
    from headwater.feature_circuits.result import FeatureCircuit


@dataclass
class Live:
    """What a circuit needs to be run again; the model weakly, unless it was made for it."""

    model: weakref.ref[Model]
    task: Task
    dictionaries: Dictionaries
    reference: Reference
    owner: Model | None = None


@dataclass(frozen=True)
class Again:
    """A circuit's model, task, node sites and off values."""

    model: Model
    task: Task
    dictionaries: Dictionaries
    nodes: NodeSites
    reference: Reference
    slopes: Estimator
    """Of the runs: those of the circuit where they decide on which pairs a node counts."""
    batch_size: int

    def runs(self) -> Runs:
        """Return the clean runs."""
        return Runs(
            self.model, self.task, self.nodes, self.slopes, self.reference, self.batch_size,
            checked=False,
        )  # fmt: skip

    def kept(self, circuit: FeatureCircuit) -> dict[Site, Kept]:
        """Return the circuit's nodes by site."""
        made = circuit.provenance
        threshold = made["node_threshold"] if made["mask"] == "original" else None
        by_site: dict[Site, list[NodeKey]] = {node.site: [] for node in self.nodes}
        for node in circuit.nodes:
            key = self.key(node)
            by_site[key.site].append(key)
        return {
            node.site: Kept(
                node,
                tuple(key.index for key in by_site[node.site]),
                tuple(key.slot or 0 for key in by_site[node.site])
                if made["aggregation"] == "none"
                else None,
                threshold,
            )
            for node in self.nodes
        }

    def key(self, node: Node) -> NodeKey:
        """Return which node of which site a record is of."""
        site = Site.parse(node.site)
        (place,) = (one for one in self.nodes if one.site == site)
        return NodeKey(site, place.features if node.index is None else node.index, node.position)


@contextmanager
def again(
    circuit: FeatureCircuit,
    *,
    model: Model | None = None,
    dictionaries: Dictionaries | None = None,
    batch_size: int | None = None,
) -> Iterator[Again]:
    """Yield a circuit made ready to be run again; the model is frozen meanwhile.

    Args:
        circuit: The circuit.
        model: Needed when the circuit no longer has its model.
        dictionaries: By default those it was found with, read from their files if need be.
        batch_size: Most pairs in a batch; by default as in the circuit.

    Raises:
        ModelGoneError: If the model is gone and none was given.
        ResultError: If the model or the dictionaries are others than the circuit's.
    """
    live, made = circuit.live, circuit.provenance
    model = _model_of(circuit, model)
    if dictionaries is None:
        dictionaries = live.dictionaries if live else Dictionaries.from_list(made["dictionaries"])
    else:
        refuse_others(made["dictionaries"], dictionaries)
    wide = torch.promote_types(model.dtype, torch.float32)
    dictionaries = dictionaries.to(dtype=wide, device=model.device)
    task = live.task if live else Task.from_dict(made["task"])
    reference = live.reference if live else reference_from_dict(made["reference"])
    nodes = node_sites(
        model.anatomy(), dictionaries, made["sites"], dtype=wide, device=model.device
    )
    with model.frozen(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(made["seed"])
        masked = made["mask"] == "original"
        slopes = estimator_from(made["estimator"]) if masked else Gradient()
        size = batch_size or made["batch_size"]
        yield Again(model, task, dictionaries, nodes, reference, slopes, size)


def _model_of(circuit: FeatureCircuit, model: Model | None) -> Model:
    there = circuit.provenance["model"]
    if model is None:
        model = None if circuit.live is None else circuit.live.model()
        if model is None:
            raise ModelGoneError(
                f"this circuit came from {there.get('name')!r}, which it does not hold (it was "
                "read from a folder, or the model is gone).\n"
                "Pass it: model=model, as in circuit.audit(model=model)."
            )
    if found := differing(there, model.fingerprint()):
        raise ResultError(
            f"the circuit came from {there['name']!r}; {model.name!r} differs from it in "
            f"{', '.join(found)}.\nLoad the model the circuit came from, or find it again."
        )
    return model


def refuse_others(there: list[Mapping[str, Any]], now: Dictionaries) -> None:
    """Refuse dictionaries that are not those a circuit was found with.

    Raises:
        DictionaryError: Naming the site.
    """
    listed = {entry["site"]: entry for entry in now.to_list()}
    if set(listed) != {entry["site"] for entry in there}:
        raise DictionaryError(
            f"the circuit was found with dictionaries at "
            f"{', '.join(entry['site'] for entry in there)}; given are "
            f"{', '.join(listed)}.\nGive those the circuit was found with."
        )
    for entry in there:
        own = listed[entry["site"]]
        if any(own[key] != entry[key] for key in ("features", "d_in", "d_out", "sha256")):
            raise DictionaryError(
                f"the dictionary at '{entry['site']}' is another than the circuit's: "
                f"{own['path'] or 'made in memory'} there, {entry['path'] or 'made in memory'} "
                "then.\nGive those the circuit was found with."
            )
