"""Hold a circuit's numbers against exact interventions: its edges, or its nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.audits.again import estimator_from
from headwater.audits.compare import audit_scores
from headwater.audits.estimands import about_estimand
from headwater.audits.report import Audit
from headwater.errors import ResultError, UnknownOptionError
from headwater.feature_circuits.again import Again, again
from headwater.feature_circuits.choice import refuse_no_count
from headwater.feature_circuits.exact import EdgeKey, Interventions
from headwater.feature_circuits.words import LOGITS
from headwater.gates.task import most_tokens
from headwater.progress import progress_bar

if TYPE_CHECKING:
    from headwater.dictionaries.collection import Dictionaries
    from headwater.feature_circuits.result import FeatureCircuit
    from headwater.models import Model

Of = Literal["edges", "nodes"]


def audit_circuit(
    circuit: FeatureCircuit,
    of: Of,
    *,
    sample: int,
    seed: int,
    top: int,
    confidence: float,
    model: Model | None,
    dictionaries: Dictionaries | None,
    batch_size: int | None,
    progress: bool | None,
) -> Audit:
    """Check a sample of edges or nodes; see `FeatureCircuit.audit`.

    Raises:
        UnknownOptionError: If `of` is neither.
        ResultError: If there is nothing to check.
    """
    if of not in ("edges", "nodes"):
        raise UnknownOptionError(f"of={of!r} is unknown. Write of='edges' or of='nodes'.")
    names = [f"{one.source} -> {one.target}" for one in circuit.edges]
    estimates = [one.weight for one in circuit.edges]
    if of == "nodes":
        names = [node.name for node in circuit.nodes]
        estimates = [node.effect for node in circuit.nodes]
    if not names:
        raise ResultError(
            f"this circuit has no {of} to check.\nFind it again with a lower edge_threshold."
        )
    refuse_no_count(sample=sample, batch_size=batch_size)
    with again(circuit, model=model, dictionaries=dictionaries, batch_size=batch_size) as ready:
        runs = ready.runs()
        exact = Interventions(runs, ready.kept(circuit), most_tokens(ready.model))

        def effects(columns: Sequence[int]) -> Float[Tensor, "one index"]:
            if of == "nodes":
                keys = [ready.key(circuit.nodes[column]) for column in columns]
                return exact.of_nodes(keys)[None]
            return exact.of_edges([_edge(circuit, ready, column) for column in columns])[None]

        started = time.perf_counter()
        total = min(sample, len(names)) * runs.pairs * runs.off.draws
        with progress_bar(f"checking {of} exactly", total, show=progress) as exact.advance:
            checked = audit_scores(
                names,
                torch.tensor([estimates], dtype=torch.float64),
                effects,
                sample=sample,
                seed=seed,
                top=top,
                confidence=confidence,
            )
        runs.cost.seconds = time.perf_counter() - started
        if of == "nodes":
            checked = about_estimand(checked, estimator_from(circuit.provenance["estimator"]))
        checked = _of_circuit(checked, of)
        return checked.with_cost(f"{runs.cost}; rounding moves the metric by {exact.noise:.1g}")


_OTHER_WORDS = {
    " Strong effects that the estimate does not see may be among those not checked: "
    "hw.verify(scores, theta=...) looks for them.": " Strong ones that the estimate does not see "
    "may be among those not checked: a larger sample= looks at more.",
    "faithfulness, scores.trained_circuit": "faithfulness, circuit.evaluate()",
    "confirm with hw.Exact()": "check more of them",
    "use hw.Exact(), or another estimator or reference": "take another estimator or reference, or "
    "the exact values of those that matter",
}
"""What an audit advises, said of circuits."""


def _of_circuit(checked: Audit, of: Of) -> Audit:
    """Return an audit whose words are of edges or nodes."""
    agreement, verdict = checked.agreement.replace(" components ", f" {of} "), checked.verdict
    for said, instead in _OTHER_WORDS.items():
        verdict = verdict.replace(said, instead)
    return replace(checked, agreement=agreement, verdict=verdict)


def _edge(circuit: FeatureCircuit, ready: Again, column: int) -> EdgeKey:
    edge = circuit.edges[column]
    target = None if edge.target == LOGITS else ready.key(circuit.node(edge.target))
    return ready.key(circuit.node(edge.source)), target
