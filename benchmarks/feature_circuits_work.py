"""One piece of headwater's work on a subject, in a process of its own; prints JSON.

python -m benchmarks.feature_circuits_work WORK SUBJECT [field=value ...]
"""

import sys
import time
from collections.abc import Callable

import torch

import headwater as hw
from benchmarks import feature_circuits_subject as subjects
from headwater.dictionaries import Dictionary
from headwater.dictionaries.collection import Dictionaries
from headwater.estimators import Estimator
from headwater.feature_circuits.choice import NodeRule
from headwater.feature_circuits.collect import collected
from headwater.feature_circuits.edges import EdgeRule, connect
from headwater.feature_circuits.effects import measure, of_positions
from headwater.feature_circuits.into_metric import into_metric
from headwater.feature_circuits.runs import Runs
from headwater.feature_circuits.sites import node_sites
from headwater.sites import Site

LEFT = hw.IntegratedGradients(steps=10, rule="left")
"""What feature-circuits estimates node effects with."""
AUDITED = 64


class Works:
    """What can be asked of one subject."""

    def __init__(self, subject: subjects.Subject) -> None:
        self.subject = subject
        self.model = hw.wrap(subject.module, subject.tokenizer)
        self.dictionaries = Dictionaries(
            {
                site_of(name): Dictionary(encoder, bias, decoder, torch.zeros(subject.width))
                for name, (encoder, bias, decoder) in subject.dictionaries.items()
            }
        )
        texts = [[_text(row) for row in ids.tolist()] for ids in subject.ids]
        answers = [answer.tolist() for answer in subject.answers]
        self.task = hw.Task(
            [
                hw.Pair(clean, corrupted, answer=right, wrong=wrong)
                for clean, corrupted, right, wrong in zip(*texts, *answers, strict=True)
            ],
            metric=hw.logit_diff(),
        )

    def whole(self) -> dict:
        """A circuit as `feature_circuit` finds it unless told otherwise."""
        return _counts(self._circuit(nodes=self.subject.nodes))

    def as_peer(self) -> dict:
        """A circuit with every choice as feature-circuits makes it."""
        return _counts(self.parity())

    def nodes(self) -> dict:
        """Node effects, by integrated gradients of ten points."""
        measure(self.runs(), "sum")
        return {}

    def edges(self) -> dict:
        """Edges alone: the clock starts when the node effects are there."""
        runs = self.runs()
        with self.model.frozen():
            effects = measure(runs, "sum")
            kept = NodeRule(None, self.subject.nodes).chosen(runs.nodes, effects, "sum")
            start = time.process_time()
            edges = connect(runs, kept, EdgeRule())
            collected(runs, kept, effects, edges, into_metric(runs, kept, edges), 0.0)
            seconds = time.process_time() - start
            return {
                "seconds": seconds,
                "distinct": sum(map(len, kept.values())),
                "triples": self._active(runs, kept),
            }

    def rows(self) -> dict:
        """How many nodes, and (pair, position, node), exceed the subject's threshold."""
        runs = self.runs(LEFT)
        over = [
            of_positions(one, one.state(node)).abs().flatten(0, 1) > self.subject.threshold
            for one in runs
            for node in runs.nodes
        ]
        return {
            "triples": sum(int(each.sum()) for each in over),
            "distinct": sum(int(each.any(0).sum()) for each in over),
        }

    def audit(self) -> dict:
        """Exact interventions on a sample of edges: the clock starts when the circuit is there."""
        circuit = self._circuit(nodes=self.subject.nodes)
        start = time.process_time()
        audit = circuit.audit(sample=AUDITED)
        return {"seconds": time.process_time() - start, "checked": len(audit.rows)}

    def forward(self) -> dict:
        """One forward and backward of all pairs, to compare with."""
        clean, _ = self.subject.ids
        inputs = self.subject.module.gpt_neox.embed_in(clean).detach().requires_grad_()
        logits = self.subject.module(inputs_embeds=inputs, use_cache=False).logits
        torch.autograd.grad(logits[:, -1].sum(), inputs)
        return {}

    def _circuit(self, **choices) -> hw.FeatureCircuit:
        return hw.feature_circuit(
            self.model, self.task, self.dictionaries, edge_threshold=0.0, progress=False, **choices
        )

    def parity(self) -> hw.FeatureCircuit:
        return self._circuit(
            node_threshold=self.subject.threshold,
            estimator=LEFT,
            mask="original",
            slope="gradient",
            edge_slope="nodes",
            batch_size=self.subject.pairs,
        )

    def runs(self, estimator: Estimator | None = None) -> Runs:
        sites = node_sites(self.model.anatomy(), self.dictionaries, None, dtype=torch.float32)
        estimator = hw.IntegratedGradients(steps=10) if estimator is None else estimator
        with self.model.frozen():
            return Runs(self.model, self.task, sites, estimator, hw.Corrupted(), self.subject.pairs)

    def _active(self, runs: Runs, kept) -> int:
        """How often the kept features are active: what a pass for each would be made of."""
        return sum(
            int((one.state(node).change[..., list(kept[node.site].rows.features)] != 0).sum())
            for one in runs
            for node in runs.nodes
        )


def _counts(circuit: hw.FeatureCircuit) -> dict[str, int]:
    return {"nodes": len(circuit.nodes), "edges": len(circuit.graph.weights)}


def site_of(name: str) -> Site:
    """The site of a name of feature-circuits': `attn_3`."""
    kind, _, layer = name.partition("_")
    site = {"embed": "embed", "attn": "attn.out", "mlp": "mlp.out", "resid": "resid_post"}[kind]
    return Site(int(layer) if layer else None, site)


def _text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def main() -> None:
    torch.set_num_threads(1)
    work, *words = sys.argv[1:]
    works = Works(subjects.given(words))
    small = Works(subjects.given([*words, "pairs=2", "nodes=20"]))
    done: Callable[[], dict] = getattr(works, work)
    subjects.measured(small.whole, done)


if __name__ == "__main__":
    main()
