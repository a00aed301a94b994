"""Shapley values by sampled orders: each component's mean effect as gates open one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.estimators.choices import refuse_below, refuse_unswitched
from headwater.estimators.draws import RunningMean, generator
from headwater.estimators.estimator import Estimate, Estimator
from headwater.gates import Family, GatedFunction


@dataclass(frozen=True)
class Shapley(Estimator):
    """Open the gates one by one in random orders, and average what each one adds.

    Every order's effects sum to `f(1) - f(0)`, and so do the scores: what two components can do
    in each other's stead is split between them, where leaving one out gives both nothing, and what
    they only do together is split too, where leaving one out gives it to both. No derivative is
    taken. The scores carry the standard error over the orders.

    Costs `permutations * (components - 1) + 2` forwards a pair, none of which can start at a later
    layer: for 100 components and the default 16 orders about 1,600.

    Source: Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on
    sampling" (2009); antithetic orders: Mitchell et al., "Sampling permutations for Shapley value
    estimation" (arXiv 2104.12199).
    """

    permutations: int = 16
    """Orders drawn for each pair, each pair its own."""
    seed: int = 0
    """Seed of the orders; the same whatever the batch size."""
    antithetic: bool = True
    """Follow each order by its reverse, so that a component that came early comes late: where
    effects grow or shrink along the order this cancels. Needs an even number of orders, at least
    4; the standard error is that over the pairs of orders."""

    name: ClassVar[str] = "shapley"
    estimand: ClassVar[str] = (
        "each component's share of closing all of them, averaged over orders (Shapley)"
    )

    def __post_init__(self) -> None:
        refuse_unswitched(self, "antithetic")
        orders = "two antithetic pairs of orders" if self.antithetic else "two orders"
        why = f"a standard error takes at least {orders}"
        refuse_below(self, "permutations", 4 if self.antithetic else 2, example=16, why=why)
        refuse_below(self, "seed", 0, example=0)
        if self.antithetic and self.permutations % 2:
            raise UnknownOptionError(
                f"permutations={self.permutations} is odd, and antithetic orders come in pairs.\n"
                f"Type permutations={self.permutations + 1}, or antithetic=False."
            )

    @property
    def uses_slopes(self) -> bool:
        """Interventions only."""
        return False

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return the mean effect over the orders, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the scores and their standard errors over the orders.

        Raises:
            NestedComponentsError: If one component lies inside another: both are closed at once.
        """
        function = function.at("clean")
        generators = [generator(self.seed, pair) for pair in function.pairs]
        ends = _ends(function)
        scores = RunningMean(function.gates()[0])
        for _ in range(self.permutations // 2 if self.antithetic else self.permutations):
            rank = _ranks(len(function.names), generators).to(function.device)
            found = _along_order(function, rank, ends)
            if self.antithetic:
                reverse = len(function.names) - 1 - rank
                found = torch.lerp(found, _along_order(function, reverse, ends), 0.5)
            scores.add(found)
        return Estimate(scores.mean, scores.standard_error())

    def forwards(self, families: Sequence[Family]) -> float:
        """Both ends, the open one being the clean run, and what lies between along each order."""
        return 2.0 + self.permutations * (sum(len(family.columns) for family in families) - 1)


@torch.no_grad()
def _ends(function: GatedFunction) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return the metric with every gate closed and with every gate open."""
    gates = function.gates()
    return function(torch.zeros_like(gates))[0], function(gates)[0]


def _ranks(
    components: int, generators: Sequence[torch.Generator]
) -> Int[Tensor, "batch component"]:
    """Return when each component opens, counted from 0, in a random order for each example."""
    # a random permutation's inverse is one too: read as ranks, no inversion is needed
    return torch.stack([torch.randperm(components, generator=one) for one in generators])


@torch.no_grad()
def _along_order(
    function: GatedFunction,
    rank: Int[Tensor, "batch component"],
    ends: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]],
) -> Float[Tensor, "batch component"]:
    """Return what each component adds when it opens, with those before it open."""
    closed, open_ = ends
    opened = torch.arange(1, rank.shape[1], device=rank.device)
    between = [
        function((rank < count[:, None, None]).to(function.dtype))
        for count in opened.split(function.stacked)
        if len(count)
    ]
    values = torch.cat([closed[None], *between, open_[None]])
    return values.diff(dim=0).T.gather(1, rank)
