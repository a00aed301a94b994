"""Node effects: one number a feature and error, added up over batches and, if asked, positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import UnalignedPromptsError
from headwater.feature_circuits.runs import BatchRun, Runs
from headwater.feature_circuits.state import SiteState
from headwater.sites import Site

Aggregation = Literal["sum", "none"]
"""Over positions: a node is a feature wherever it is active, or a feature at one position."""


@dataclass(frozen=True)
class Fit:
    """A dictionary on the activations of a task."""

    explained: float | None
    """Explained variance: 1 minus the squared error over the squared distance from the mean; None
    where every token has the same value."""
    active: float
    """Active features at a token, on average."""


@dataclass(frozen=True)
class SiteEffects:
    """The effects of one site's nodes, and how well they add up."""

    mean: Float[Tensor, "slot node"]
    """Over pairs; one slot, or one for each position."""
    se: Float[Tensor, "slot node"] | None
    """Standard error over pairs; None for a single pair."""
    largest: Float[Tensor, "slot node"]
    """The largest in size on any single pair and position."""
    exact: float
    """What the metric loses, on the mean over pairs, when the whole site is at its reference."""
    fit: Fit | None
    """How well the dictionary reconstructs the site on the task's clean prompts; None without one.
    """

    @property
    def gap(self) -> float:
        """Sum of the effects minus `exact`: what the estimator leaves unaccounted for."""
        return float(self.mean.sum()) - self.exact


def measure(runs: Runs, aggregation: Aggregation) -> Mapping[Site, SiteEffects]:
    """Return the effects of every node.

    Raises:
        UnalignedPromptsError: If nodes are told apart by position and prompts differ in length.
    """
    if aggregation == "none":
        refuse_unequal(runs)
    sums: dict[Site, Moments] = {node.site: Moments() for node in runs.nodes}
    exact: dict[Site, float] = dict.fromkeys(sums, 0.0)
    largest: dict[Site, Tensor] = {}
    fits: dict[Site, _Fits] = {node.site: _Fits() for node in runs.nodes if node.features}
    for one in runs:
        for node in runs.nodes:
            state = one.state(node)
            if node.features:
                fits[node.site].add(state, one.batch.mask)
            found = of_positions(one, state)
            if aggregation == "none":
                # an answer's own tokens stand behind the prompt and are no positions of it
                found = found[:, : int(one.batch.prompt_lengths()[0])]
            size = found.abs().amax((0, 1) if aggregation == "sum" else 0).cpu()
            size = size[None] if aggregation == "sum" else size
            seen = largest.get(node.site)
            largest[node.site] = size if seen is None else torch.maximum(seen, size)
            if aggregation == "sum":
                found = found.sum(1, keepdim=True)
            sums[node.site].add(one.batch.pairs, found * one.weight)
            exact[node.site] += float(one.exact[node.site].double().sum()) * one.weight
    return {
        site: SiteEffects(
            *moments.result(),
            largest[site],
            exact[site] / runs.pairs,
            fits[site].result() if site in fits else None,
        )
        for site, moments in sums.items()
    }


def of_positions(one: BatchRun, state: SiteState) -> Float[Tensor, "batch pos node"]:
    """Return the effects of a site's nodes on each pair and position of a batch; 0 at padding."""
    effects = state.effects()
    real = one.batch.mask.to(effects.device)[..., None]
    return torch.where(real, effects, torch.zeros_like(effects))


def refuse_unequal(runs: Runs) -> None:
    """Refuse prompts of several lengths, whose positions are not the same places.

    Raises:
        UnalignedPromptsError: Naming the lengths.
    """
    lengths = sorted({int(n) for batch in runs.batches for n in batch.prompt_lengths()})
    whole = {int(n) for batch in runs.batches for n in batch.mask.sum(1)}
    if len(lengths) == 1 and len(whole) > 1:
        raise UnalignedPromptsError(
            'aggregation="none" tells nodes apart by position, but the answers behind the prompts '
            'differ in length.\nWrite aggregation="sum", or metric=hw.logit_diff().'
        )
    if len(lengths) > 1:
        raise UnalignedPromptsError(
            f'aggregation="none" tells nodes apart by position, but the prompts have lengths '
            f"{', '.join(map(str, lengths[:8]))}{' and more' if len(lengths) > 8 else ''}: "
            "position 5 would be another word in each.\n"
            'Write aggregation="sum", or take the prompts of one length: '
            f"task.by_length(model.tokenizer)[{lengths[0]}], on the command line "
            f"--length {lengths[0]}."
        )


class _Fits:
    """Sums for a dictionary's explained variance over real tokens."""

    def __init__(self) -> None:
        self._tokens, self._active = 0, 0
        self._error = self._squares = 0.0
        self._sum: Tensor | None = None

    def add(self, state: SiteState, mask: Bool[Tensor, "batch pos"]) -> None:
        """Take in one batch."""
        real = mask.to(state.written.device)
        written, features = state.written[real].double(), state.features[real]
        self._tokens += len(written)
        self._active += int((features != 0).sum())
        missed = state.node.dictionary.reconstruct(state.read[real], features).double() - written
        self._error += float(missed.square().sum())
        self._squares += float(written.square().sum())
        total = written.sum(0)
        self._sum = total if self._sum is None else self._sum + total

    def result(self) -> Fit:
        """Return the figures of all batches."""
        assert self._sum is not None
        spread = self._squares - float(self._sum.square().sum()) / self._tokens
        explained = 1 - self._error / spread if spread > 0 else None
        return Fit(explained, self._active / self._tokens)


class Moments:
    """Sums over pairs of numbers and of their squares; draws of one pair are added up first."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._count = 0
        self._open: tuple[tuple[int, ...], Tensor] | None = None

    def add(self, pairs: tuple[int, ...], values: Float[Tensor, "batch ..."]) -> None:
        """Take in one draw of some pairs; the draws of the same pairs follow one another."""
        if self._open is not None and self._open[0] == pairs:
            self._open = pairs, self._open[1] + values
            return
        self._close()
        self._open = pairs, values

    def result(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean over pairs, and its standard error."""
        self._close()
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._count
        if self._count < 2:
            return mean, None
        spread = (self._squares / self._count - mean**2).clamp(min=0)
        return mean, (spread / (self._count - 1)).sqrt()

    def _close(self) -> None:
        if self._open is None:
            return
        values = self._open[1].double().cpu()
        self._open = None
        self._count += len(values)
        total, squares = values.sum(0), (values**2).sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
