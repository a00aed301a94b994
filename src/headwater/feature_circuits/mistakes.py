"""Mistakes that were made with equation 6, restated, so that what they do can be measured.

Each is a few lines of plain torch in place of one step of `Subtraction`. They are those of the
first published code for sparse feature circuits (https://github.com/saprmarks/feature-circuits,
July 2024), of a later state of it (`"errors lost"`), and of the equation as it is written, for
blocks whose MLP reads what attention wrote (`"taken twice"`). Nothing else in headwater uses them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from headwater.dictionaries.collection import Dictionaries
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.estimators import Gradient
from headwater.feature_circuits.choice import NodeRule
from headwater.feature_circuits.cotangents import Cotangents, Weights, cotangents
from headwater.feature_circuits.edges import Parent
from headwater.feature_circuits.effects import measure
from headwater.feature_circuits.kept import Kept
from headwater.feature_circuits.runs import BatchRun, Runs
from headwater.feature_circuits.sites import NodeSite, NodeSites, node_sites
from headwater.feature_circuits.subtracted import Subtraction, refuse_unfit
from headwater.models import Model
from headwater.prompts import Task
from headwater.references import Corrupted
from headwater.sites import Site

Mistake = Literal["contracted", "misplaced", "one entry", "errors lost", "taken twice"]
"""`"contracted"`: the gradient by a mediator is multiplied by the mediator's change, and its error
summed over the width. `"misplaced"`: numbers of which each error has one are read as if it had one
for each coordinate. `"one entry"`: of a mediator only the node that has the downstream node's own
number is differentiated. `"errors lost"`: the gradient of an error is zero when it is read.
`"taken twice"`: what passes attention and then the MLP is taken away with each of them."""


def contracted(
    gradients: Float[Tensor, "row batch pos coded"], change: Float[Tensor, "batch pos coded"],
    features: int,
) -> Float[Tensor, "row batch pos node"]:  # fmt: skip
    """Return gradient times change: one number a feature, and one for the error.

    Args:
        gradients: By a site's features and error.
        change: Of the same.
        features: How many of the numbers are features.
    """
    product = gradients * change
    error = product[..., features:].sum(-1, keepdim=True)
    return torch.cat([product[..., :features], error], -1)


def misplaced(
    numbers: Float[Tensor, "row batch pos node"], coded: int
) -> Float[Tensor, "row batch pos coded"]:
    """Return a row's numbers, laid one behind the other, cut into pieces of another length.

    Args:
        numbers: Features + 1 at each position.
        coded: Features + width: the length of the pieces.
    """
    rows, batch, positions, _ = numbers.shape
    flat = numbers.new_zeros(rows, batch * positions * coded)
    flat[:, : numbers[0].numel()] = numbers.flatten(1)
    return flat.view(rows, batch, positions, coded)


def one_entry(
    gradients: Float[Tensor, "row batch pos coded"], features: int, entries: Sequence[int]
) -> Float[Tensor, "row batch pos coded"]:
    """Return the gradients with all but one node of all prompts and positions left out.

    Args:
        gradients: By a site's features and error.
        features: How many of the numbers are features.
        entries: Of each row the node that stays, counted through prompts, positions, features and
            error: a number that means a node of another site.
    """
    rows, batch, positions, coded = gradients.shape
    stays = gradients.new_zeros(rows, batch * positions * (features + 1))
    for row, entry in enumerate(entries):
        if entry < stays.shape[1]:
            stays[row, entry] = 1
    stays = stays.view(rows, batch, positions, features + 1)
    width = coded - features
    return gradients * torch.cat([stays[..., :-1], stays[..., -1:].expand(-1, -1, -1, width)], -1)


class MistakenSubtraction(Subtraction):
    """Equation 6 with mistakes.

    Args:
        *given: As for `Subtraction`.
        mistakes: Which ones.
        rows: Each row's node, by its number; the error is number F.
    """

    def __init__(self, *given: Any, mistakes: Collection[Mistake], rows: Sequence[int]) -> None:
        super().__init__(*given)
        self.mistakes, self.rows = mistakes, rows
        self.picks: list[Float[Tensor, " pick"]] = []
        """What `"one entry"` found: for each downstream node at a position, one of a mediator."""

    def gradients(self, mediator: Site, at: Cotangents) -> Float[Tensor, "row batch pos coded"]:
        """Return what is taken for the gradient by a mediator."""
        right = super().gradients(mediator, at)
        if "one entry" not in self.mistakes:
            return self._moved(mediator, right)
        # a row of the original is one node at one position of one prompt: each looks for its own
        found, features = torch.zeros_like(right), self.states[mediator].node.features
        for place, alone in _places(right):
            moved, first = self._moved(mediator, alone), place * (self.node.features + 1)
            entry = one_entry(moved, features, [first + number for number in self.rows])
            there = alone.flatten(1).any(1)
            self.picks.append(entry[there].flatten(1).abs().amax(1))
            found += entry
        return found

    def twice(self, at: Cotangents) -> Float[Tensor, "row batch pos width"] | float:
        """Return what passes attention and then the MLP, or nothing."""
        return 0.0 if "taken twice" in self.mistakes else super().twice(at)

    def _moved(self, mediator: Site, right: Tensor) -> Tensor:
        """Return gradients multiplied and moved as the mistakes have it."""
        state, found = self.states[mediator], right
        features, coded = state.node.features, right.shape[-1]
        if "contracted" in self.mistakes:
            change = torch.cat([state.change, state.error_change], -1)
            found = pad(contracted(right, change, features), (0, coded - features - 1))
        if "misplaced" in self.mistakes:
            found = misplaced(found[..., : features + 1], coded)
        return found


@dataclass
class ResidualEdges:
    """Edges between the residuals around a layer, kept nodes only, on the mean over pairs."""

    total: Float[Tensor, "row column"]
    """RR: everything that flows from one residual to the next."""
    edges: Float[Tensor, "row column"]
    """What is left of it when the indirect terms are taken away."""
    rows: list[str]
    """Names of the nodes after the layer."""
    columns: list[str]
    """Names of the nodes before it."""
    picks: int = 0
    """With `"one entry"`: nodes of mediators that were differentiated."""
    nonzero: int = 0
    """How many of them had a gradient."""

    @property
    def indirect(self) -> Float[Tensor, "row column"]:
        """RMR + RAR - RAMR: what was taken away."""
        return self.total - self.edges

    def error_of(self, right: ResidualEdges) -> float:
        """Return the size of the difference from the right edges, relative to their size."""
        return float((self.edges - right.edges).norm() / right.edges.norm())


def residual_edges(
    model: Model, task: Task, dictionaries: Dictionaries, layer: int,
    mistakes: Collection[Mistake] = (), *, node_threshold: float = 0.0, batch_size: int = 32,
) -> ResidualEdges:  # fmt: skip
    """Compute the edges between the residuals around a layer by subtraction, with mistakes.

    Slopes are those of the clean run, thresholds on single pairs and positions, as in the code that
    the mistakes come from; `hw.feature_circuit(..., estimator=hw.Gradient(), slope="gradient",
    mask="original")` has the same edges.

    Args:
        model: The model.
        task: Prompt pairs and metric; the reference is the corrupted prompt.
        dictionaries: Of everything the layer writes and of both residuals.
        layer: Which one.
        mistakes: Which ones to make; none: equation 6 as it should be.
        node_threshold: Keep nodes whose effect exceeds this in size.
        batch_size: Most pairs in a batch.

    Raises:
        UnknownOptionError: If there is no such mistake, or the sites do not suffice.
        DictionaryError: If the layer's residual has no dictionary.
    """
    for one in mistakes:
        if one not in get_args(Mistake):
            raise UnknownOptionError(
                f"no mistake {one!r}.{did_you_mean(one, get_args(Mistake))}\n"
                f"There are: {', '.join(get_args(Mistake))}."
            )
    downstream = Site(layer, "resid_post")
    dictionaries[downstream]  # refuses a layer without one
    wide = torch.promote_types(model.dtype, torch.float32)
    found = dictionaries.to(dtype=wide, device=model.device)
    nodes = node_sites(model.anatomy(), found, None, dtype=wide, device=model.device)
    refuse_unfit(nodes)
    node = nodes[nodes.sites.index(downstream)]
    with model.frozen():
        runs = Runs(model, task, nodes, Gradient(), Corrupted(), batch_size)
        rule = NodeRule(node_threshold, None, "original")
        kept = rule.chosen(nodes, measure(runs, "sum"), "sum")
        first, _ = _around(nodes, node)
        shape = len(kept[node.site]), len(kept[first])
        total, edges = torch.zeros(2, *shape).double()
        result = ResidualEdges(total, edges, kept[node.site].names, kept[first].names)
        for one in runs:
            _add(result, runs, one, kept, node, mistakes)
    return result


def _add(
    result: ResidualEdges, runs: Runs, one: BatchRun, kept: Mapping[Site, Kept], node: NodeSite,
    mistakes: Collection[Mistake],
) -> None:  # fmt: skip
    """Add the edges of one batch."""
    state, own = one.state(node), kept[node.site]
    first, mediators = _around(runs.nodes, node)
    weights = Weights.of(state, state.gradient_slopes, own.mask_of(one), secant=False)
    at = cotangents(state, weights, own.rows.indices)
    subtraction = MistakenSubtraction(
        runs.direct(one),
        {place.site: one.state(place) for place in runs.nodes},
        node, first, mediators, mistakes=mistakes, rows=own.indices,
    )  # fmt: skip
    parent = Parent(one.state(runs.nodes[runs.nodes.sites.index(first)]), kept[first])
    total, edges = (
        parent.projected(pulled)[0].sum(1).double().cpu() * one.weight / runs.pairs
        for pulled in (subtraction.total(at), subtraction.pulled(at))
    )
    if "errors lost" in mistakes and kept[first].rows.error:
        edges[:, -1] = 0
    result.total += total
    result.edges += edges
    picks = torch.cat([torch.zeros(0), *(pick.cpu() for pick in subtraction.picks)])
    result.picks += len(picks)
    result.nonzero += int((picks != 0).sum())


def _around(nodes: NodeSites, node: NodeSite) -> tuple[Site, list[Site]]:
    """Return the residual before a residual, and what is added to it in between."""
    addends = nodes.addends(node)
    assert addends is not None
    first, *mediators = addends
    return first, mediators


def _places(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each prompt and position, counted through, with what rows hold there alone."""
    for place, held in enumerate(rows.flatten(1, 2).unbind(1)):
        if bool(held.any()):
            alone = torch.zeros_like(rows)
            alone.flatten(1, 2)[:, place] = held
            yield place, alone
