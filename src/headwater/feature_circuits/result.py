"""The result: a circuit of features, what it leaves out, and how well its numbers add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headwater.errors import UnknownComponentError, did_you_mean
from headwater.feature_circuits.again import Live
from headwater.feature_circuits.annotations import Annotations, read_annotations
from headwater.feature_circuits.collect import Graph
from headwater.feature_circuits.folder import FOLDER
from headwater.feature_circuits.nodes import Edge, Node, SiteSummary
from headwater.feature_circuits.words import LOGITS, printed
from headwater.frames import frame
from headwater.gates import Cost
from headwater.page.circuit import circuit_fragment, write_circuit

if TYPE_CHECKING:
    import pandas

    from headwater.audits.report import Audit
    from headwater.dictionaries.collection import Dictionaries
    from headwater.feature_circuits.contexts import Contexts
    from headwater.feature_circuits.evaluate import Faithfulness
    from headwater.models import Model
    from headwater.prompts.streams import Dataset
    from headwater.references import Reference


@dataclass(eq=False)
class FeatureCircuit:
    """Nodes (features, errors, whole sites) and the direct edges between them.

    Attributes:
        graph: Nodes and edges as tensors.
        clean: The metric of the clean prompts, mean over pairs.
        tokens: The tokens of the first pairs' clean prompts.
        cost: What was run.
        provenance: Model, task, dictionaries, options and versions.
    """

    graph: Graph
    clean: float
    tokens: tuple[tuple[str, ...], ...]
    cost: Cost
    provenance: dict[str, Any]
    live: Live | None = field(default=None, repr=False)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last audit of `edges` and of `nodes`, as plain data."""
    evaluation: dict[str, Any] | None = None
    """The last evaluation, as plain data."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, in the order in which a forward pass computes them."""
        return self.graph.nodes

    @property
    def sites(self) -> tuple[SiteSummary, ...]:
        """One summary a site: completeness, slopes."""
        return self.graph.sites

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, the largest first."""
        names = [*(node.name for node in self.nodes), LOGITS]
        return tuple(
            Edge(names[source], names[target], weight)
            for source, target, weight in zip(
                self.graph.sources.tolist(),
                self.graph.targets.tolist(),
                self.graph.weights.tolist(),
                strict=True,
            )
        )

    @property
    def orphans(self) -> tuple[Node, ...]:
        """Nodes with an effect into which nothing flows: no slope leads to them."""
        return tuple(node for node in self.nodes if node.orphan)

    def node(self, name: str) -> Node:
        """Return a node by its name.

        Raises:
            UnknownComponentError: If the circuit has none of that name.
        """
        found = self._by_name.get(name)
        if found is None:
            raise UnknownComponentError(
                f"no node {name!r} among the {len(self.nodes)} of this circuit."
                f"{did_you_mean(name, list(self._by_name))}\nAll nodes: `circuit.nodes`."
            )
        return found

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def top(self, count: int = 10) -> list[Node]:
        """Return the nodes with the largest effects in size, largest first."""
        return sorted(self.nodes, key=lambda node: -abs(node.effect))[:count]

    def into(self, name: str) -> list[Edge]:
        """Return the edges into a node (or `logits`), the largest first."""
        if name != LOGITS:
            self.node(name)
        return [edge for edge in self.edges if edge.target == name]

    def out_of(self, name: str) -> list[Edge]:
        """Return the edges out of a node, the largest first."""
        self.node(name)
        return [edge for edge in self.edges if edge.source == name]

    def audit(
        self,
        sample: int = 64,
        *,
        of: Literal["edges", "nodes"] = "edges",
        top: int = 10,
        confidence: float = 0.95,
        seed: int = 0,
        model: Model | None = None,
        dictionaries: Dictionaries | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Audit:
        """Hold edges or nodes against exact interventions, on a sample of those in the circuit.

        An edge: put the source at its reference with every other site held, see what value the
        target takes, and run with the target alone at that value. A node: put it at its reference.

        Args:
            sample: How many to check; at least as many as there are checks all.
            of: `"edges"` or `"nodes"`.
            top: How many of the strongest count as "the top" for signs and recall.
            confidence: Of the intervals.
            seed: Of the sample.
            model: Needed when the circuit no longer has its model.
            dictionaries: Likewise, where no file holds them.
            batch_size: Most pairs in one forward; by default as in the circuit.
            progress: True, False, or None to show a bar only on a terminal.

        Raises:
            ModelGoneError: If the model is gone and none was given.
            ResultError: If the model is another, or there is nothing to check.
        """
        from headwater.feature_circuits.audit import audit_circuit  # it reads circuits

        checked = audit_circuit(
            self,
            of,
            sample=sample,
            seed=seed,
            top=top,
            confidence=confidence,
            model=model,
            dictionaries=dictionaries,
            batch_size=batch_size,
            progress=progress,
        )
        self.audits[of] = checked.to_dict()
        return checked

    def evaluate(
        self,
        *,
        reference: Reference | None = None,
        errors: Literal["circuit", "keep", "remove"] = "circuit",
        sizes: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        model: Model | None = None,
        dictionaries: Dictionaries | None = None,
        batch_size: int | None = None,
    ) -> Faithfulness:
        """Measure how much of the behavior the circuit's nodes carry, and how much the others do.

        Args:
            reference: What closed nodes are set to; by default what the circuit was found with.
                `hw.Mean()` is what feature-circuits takes.
            errors: What becomes of error nodes: `"circuit"` closes those that the circuit does not
                hold, `"keep"` leaves all of them, `"remove"` closes all.
            sizes: How many of the strongest nodes to keep; by default some sizes up to all.
            layers: Close nodes of these layers only, for example without early ones; None: all.
            model: Needed when the circuit no longer has its model.
            dictionaries: Likewise, where no file holds them.
            batch_size: Most pairs in one forward; by default as in the circuit.

        Raises:
            ModelGoneError: If the model is gone and none was given.
            ResultError: If the model is another.
            UnknownOptionError: If an option has a value it cannot have.
        """
        from headwater.feature_circuits.evaluate import evaluate_circuit  # it reads circuits

        found = evaluate_circuit(
            self,
            reference=reference,
            errors=errors,
            sizes=sizes,
            layers=layers,
            model=model,
            dictionaries=dictionaries,
            batch_size=batch_size,
        )
        self.evaluation = found.to_dict()
        return found

    def __repr__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        from headwater.feature_circuits.view import page_data  # it reads circuits

        return circuit_fragment(page_data(self))

    def page(
        self,
        path: str | Path,
        *,
        contexts: Contexts | str | Path | None = None,
        annotations: Annotations | str | Path | None = None,
    ) -> Path:
        """Write the circuit as one HTML file that loads nothing, and return its path.

        Args:
            path: The file; its folder is made if it does not exist.
            contexts: What `contexts` returned, or where it was saved.
            annotations: Text by name, or a file of them as `read_annotations` takes it.

        Raises:
            ResultError: If contexts are of another model's features, or annotations cannot be
                read.
            RunFolderError: If contexts cannot be read.
        """
        from headwater.feature_circuits.view import page_data  # it reads circuits

        return write_circuit(page_data(self, contexts, annotations), path)

    def contexts(
        self,
        corpus: Dataset,
        *,
        top: int = 5,
        before: int = 16,
        after: int = 6,
        skip: int = 0,
        length: int | None = None,
        limit: int | None = None,
        model: Model | None = None,
        dictionaries: Dictionaries | None = None,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> Contexts:
        """Find where in a corpus each feature of the circuit is strongest.

        Costs one forward of the corpus. However long it is, only the windows that are kept are
        held.

        Args:
            corpus: Prompts: a file with one a line (`.txt`, or `.jsonl` with `text`), a task,
                texts, token ids, or a function that yields such things.
            top: Places kept of each feature, each in another prompt.
            before: Most tokens shown before the strongest.
            after: Most tokens shown after it.
            skip: Positions at the front of each prompt that count for nothing: 1 leaves out a
                start token, on which many features of language models are strongest.
            length: Cut each prompt to this many tokens.
            limit: Read at most this many prompts.
            model: Needed when the circuit no longer has its model.
            dictionaries: Likewise, where no file holds them.
            batch_size: Most prompts in one forward.
            progress: True, False, or None to show a bar only on a terminal.

        Raises:
            ModelGoneError: If the model is gone and none was given.
            PromptError: If the corpus gives no prompts, or one cannot be used.
            ResultError: If the model is another.
            UnknownOptionError: If a number is out of range.
        """
        from headwater.feature_circuits.strongest import Around, contexts_of  # it reads circuits

        around = Around(top, before, after, skip, length, limit, batch_size)
        return contexts_of(
            self, corpus, around, model=model, dictionaries=dictionaries, progress=progress
        )

    def export(
        self,
        path: str | Path,
        *,
        slug: str | None = None,
        scan: str | None = None,
        source_set: str | None = None,
        annotations: Annotations | str | Path | None = None,
    ) -> Path:
        """Write the circuit as a graph that Neuronpedia and circuit-tracer open, as JSON.

        Two things there have no counterpart here and are placeholders: nodes whose positions are
        added up stand at the last token of the first prompt, and the metric, drawn as an output
        token, has "p=1.000". The graph's description says so.

        Args:
            path: The file.
            slug: The graph's name there; by default from task and model.
            scan: The model's name there; by default its name here.
            source_set: Where Neuronpedia finds dashboards of the features:
                `gemmascope-transcoder-16k`.
            annotations: Text by name, or a file of them.

        Returns:
            The file.

        Raises:
            ResultError: If the slug could not stand in an address, or annotations cannot be read.
        """
        from headwater.feature_circuits import neuronpedia  # it reads circuits

        if isinstance(annotations, str | Path):
            annotations = read_annotations(annotations)
        return neuronpedia.export(
            self, path, slug=slug, scan=scan, source_set=source_set, annotations=annotations or {}
        )

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a node as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((node.to_dict() for node in self.nodes), "circuit.nodes")

    def to_dict(self) -> dict[str, Any]:
        """Return the circuit as plain data, but for the edges beyond the tensors' file."""
        return {
            "clean": self.clean,
            "nodes": [node.to_dict() for node in self.nodes],
            "sites": [site.to_dict() for site in self.sites],
            "edges": len(self.graph.weights),
            "dropped": self.graph.dropped,
            "dropped_size": self.graph.dropped_size,
            "tokens": [list(one) for one in self.tokens],
            "cost": {
                "forwards": self.cost.forwards,
                "backwards": self.cost.backwards,
                "seconds": self.cost.seconds,
                "pairs": self.cost.pairs,
            },
            "provenance": self.provenance,
            "audits": self.audits,
            "evaluation": self.evaluation,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `circuit.json` and `circuit.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another circuit instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds other files or another circuit.
        """
        tensors = {
            "sources": self.graph.sources,
            "targets": self.graph.targets,
            "weights": self.graph.weights,
        }
        return FOLDER.write(Path(path), self.to_dict(), tensors, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> FeatureCircuit:
        """Read what `save` wrote; the model is not needed.

        Raises:
            RunFolderError: If the folder holds no circuit that this release can read.
        """
        there = Path(path)
        data, tensors = FOLDER.read(there)
        with FOLDER.reading(there):
            sites = [{k: v for k, v in one.items() if k != "gap"} for one in data["sites"]]
            return cls(
                Graph(
                    nodes=tuple(Node(**one) for one in data["nodes"]),
                    sources=tensors["sources"],
                    targets=tensors["targets"],
                    weights=tensors["weights"],
                    dropped=data["dropped"],
                    dropped_size=data["dropped_size"],
                    sites=tuple(SiteSummary(**one) for one in sites),
                ),
                clean=data["clean"],
                tokens=tuple(tuple(one) for one in data["tokens"]),
                cost=Cost(**data["cost"]),
                provenance=data["provenance"],
                audits=data["audits"],
                evaluation=data["evaluation"],
            )
