"""The clean runs of a task, batch by batch: values, slopes and off values at every node site.

They are read twice, once for node effects and once for edges. What fits is kept in between; what
does not is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.coding import Place, flat
from headwater.estimators import Estimator, IntegratedGradients
from headwater.estimators.quadrature import Rule
from headwater.feature_circuits.sites import NodeSite, NodeSites
from headwater.feature_circuits.state import SiteState
from headwater.gates import Cost
from headwater.gates.direct import DirectPaths
from headwater.gates.slopes import SitePaths, SiteRun, clean_run
from headwater.gates.task import most_tokens
from headwater.models import Model
from headwater.prompts import Batch, Task
from headwater.references import OffValues, Reference, capture
from headwater.sites import Site

HELD = 2**30
"""Bytes of runs to keep between the first reading and the second."""
SHOWN_PAIRS = 5
"""Pairs whose tokens a circuit keeps."""
CODED_BYTES = 2**28
"""Bytes that the features of all node sites of one batch may take."""


@dataclass(frozen=True)
class BatchRun:
    """One batch in its clean run, with one draw of off values."""

    batch: Batch
    run: SiteRun
    off: OffValues
    slopes: Mapping[Site, Float[Tensor, "batch pos ..."]]
    """`df/dx` at each node site as the node effects take it: clean, or averaged along a path."""
    exact: Mapping[Site, Float[Tensor, " batch"]]
    """What the metric loses when a whole site is put at its reference."""
    weight: float
    """Of its examples among all draws of them."""

    def state(self, node: NodeSite, *, clean: bool = False) -> SiteState:
        """Return what a node site is here.

        Args:
            node: Which one.
            clean: Take the slope of the clean run, whatever the node effects take.
        """
        slope = (self.run.slopes if clean else self.slopes)[node.site]
        read = node.reads[0]
        return SiteState(
            node=node,
            read=flat(self.run.values[read]),
            written=flat(self.run.values[node.site]),
            slope=flat(slope),
            off=self.off.values[node.coded],
            off_read=self.off.values[read] if node.coded.transcodes else None,
        )

    @property
    def nbytes(self) -> int:
        """What it holds."""
        tensors = [
            *self.run.values.values(),
            *self.run.slopes.values(),
            *self.run.residuals.values(),
            *self.slopes.values(),
            *self.off.values.values(),
        ]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@dataclass
class Runs:
    """Every batch of a task, for each draw of its off values.

    Args:
        model: A frozen model.
        task: Pairs and metric.
        nodes: The node sites.
        estimator: `Gradient()` or `IntegratedGradients(path="family")`.
        reference: The off values.
        batch_size: Most pairs in a batch.
    """

    model: Model
    task: Task
    nodes: NodeSites
    estimator: Estimator
    reference: Reference
    batch_size: int
    checked: bool = True
    """Whether the first reading measures what the metric loses with each whole site closed."""
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.batches = self._batches()
        places: list[Place] = [node.coded for node in self.nodes]
        places += [node.coded.reads for node in self.nodes if node.coded.transcodes]
        self.off = self.reference.prepare(self.model, self.task, self.batches, places)
        self.reference = self.reference.keeping(self.off)
        self.cost.pairs = len(self.task.pairs)
        self.cost.ran(self.off.prepared)
        self._held: list[BatchRun] | None = None
        self._clean: dict[int, float] = {}

    @property
    def pairs(self) -> int:
        """Pairs of the task."""
        return len(self.task.pairs)

    def direct(self, one: BatchRun) -> DirectPaths:
        """Return how the nodes of a batch depend on each other directly."""
        return DirectPaths(self.model, one.batch, self.nodes.sites, one.run.values, self.cost)

    @property
    def forwards(self) -> float:
        """Passes over one prompt that a first reading takes."""
        depth = self.model.anatomy().n_layers
        rule = self._rule()
        points = 1 + (0 if rule is None else len(rule.points))
        paths = sum(points * (1 - (node.site.layer or 0) / depth) for node in self.nodes)
        return self.pairs * (1 + paths * self.off.draws)

    def clean(self) -> float:
        """Return the metric of the clean prompts, mean over the pairs that were read."""
        return sum(self._clean.values()) / len(self._clean)

    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """Return the tokens of the first pairs' clean prompts."""
        found = {
            pair: tuple(row)
            for batch in self.batches
            if min(batch.pairs) < SHOWN_PAIRS
            for pair, row in zip(batch.pairs, batch.tokens(self.model.tokenizer), strict=True)
        }
        return tuple(found[pair] for pair in sorted(found)[:SHOWN_PAIRS])

    def __iter__(self) -> Iterator[BatchRun]:
        if self._held is not None:
            yield from self._held
            return
        held: list[BatchRun] = []
        size = 0
        for one in self._made():
            size += one.nbytes
            self._clean |= zip(one.batch.pairs, one.run.metric.double().tolist(), strict=True)
            if size <= HELD:
                held.append(one)
            yield one
        if size <= HELD:
            self._held = held
        self.checked = False  # a second reading is for edges

    def _batches(self) -> list[Batch]:
        adapter = self.model.anatomy()
        batches = self.task.batches(
            self.model.tokenizer,
            batch_size=self.batch_size,
            device=self.model.device,
            pad=adapter.pads,
            align=self.reference.aligned,
        )
        features = sum(node.features + node.dictionary.d_out for node in self.nodes)
        split: list[Batch] = []
        for batch in batches:
            rows = max(1, CODED_BYTES // (4 * features * batch.clean.shape[1]))
            split += [batch.rows(i, min(i + rows, len(batch))) for i in range(0, len(batch), rows)]
        return split

    def _made(self) -> Iterator[BatchRun]:
        metric, tokens = self.task.metric, most_tokens(self.model)
        for batch in self.batches:
            if "clean_logits" in metric.needs and batch.clean_logits is None:
                _, logits = capture(self.model, batch.clean, batch, ())
                batch = batch.with_clean_logits(logits)
            run = clean_run(self.model, batch, metric, self.nodes.read, self.cost)
            paths = SitePaths(self.model, batch, metric, run, self.cost, tokens)
            for draw in range(self.off.draws):
                off = self.off(batch, draw)
                self.cost.ran(off.forwards)
                one = BatchRun(batch, run, off, run.slopes, {}, 1 / self.off.draws)
                yield self._along_paths(one, paths)

    def _along_paths(self, one: BatchRun, paths: SitePaths) -> BatchRun:
        """Take slopes along each site's path if the estimator asks for it, and exact changes."""
        rule = self._rule()
        slopes, exact = dict(one.run.slopes), {}
        for node in self.nodes:
            state = one.state(node)
            values = one.run.values[node.site]
            off = state.reference.reshape(values.shape).to(values.dtype)
            if rule is not None:
                shares = [1 - point for point in rule.points]
                slopes[node.site] = paths.average(node.site, off, shares, rule.weights)
            if self.checked:
                with torch.no_grad():
                    exact[node.site] = one.run.metric - paths.at(node.site, off)
        return replace(one, slopes=slopes, exact=exact)

    def _rule(self) -> Rule | None:
        if isinstance(self.estimator, IntegratedGradients):
            return Rule.of(self.estimator.rule, self.estimator.steps)
        return None
