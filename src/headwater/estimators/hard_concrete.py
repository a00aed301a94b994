"""Gates that can be learned: a location for each, and from it a gate, drawn or settled."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class LearnedGates(ABC):
    """How a location becomes a gate in [0, 1]."""

    @abstractmethod
    def sample(
        self,
        location: Float[Tensor, " component"],
        uniform: Float[Tensor, "batch component"],
    ) -> Float[Tensor, "batch component"]:
        """Return gates to train with, from noise that is uniform on (0, 1)."""

    @abstractmethod
    def open_share(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return what the price is paid for: how far, or how likely, each gate is open."""

    @abstractmethod
    def settled(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return gates without noise."""

    @abstractmethod
    def location(self, open_share: float) -> float:
        """Return the location at which `open_share` has this value."""


@dataclass(frozen=True)
class HardConcrete(LearnedGates):
    """A stretched and clamped binary concrete variable: exactly 0 or 1 with positive probability.

    `z = clamp(s (high - low) + low, 0, 1)`, `s = sigmoid((log u - log(1 - u) + location) / beta)`.

    Source: Louizos, Welling and Kingma, "Learning sparse neural networks through L0
    regularization" (arXiv 1712.01312), equations 10 to 13.
    """

    beta: float = 2 / 3
    """Temperature: towards 0 the gates are drawn at the ends only."""
    low: float = -0.1
    high: float = 1.1
    """What s is stretched to before it is clamped."""

    def sample(
        self,
        location: Float[Tensor, " component"],
        uniform: Float[Tensor, "batch component"],
    ) -> Float[Tensor, "batch component"]:
        """Return gates drawn from the distribution, differentiable in the location."""
        smooth = torch.sigmoid((torch.logit(uniform) + location) / self.beta)
        return (smooth * (self.high - self.low) + self.low).clamp(0, 1)

    def open_share(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return the probability that a gate is not 0: `sigmoid(location - beta log(-low/high))`.

        In closed form, so the price has no sampling noise.
        """
        return torch.sigmoid(location - self.beta * math.log(-self.low / self.high))

    def settled(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return the source's test-time gate: `sigmoid(location)`, stretched and clamped."""
        return (torch.sigmoid(location) * (self.high - self.low) + self.low).clamp(0, 1)

    def location(self, open_share: float) -> float:
        """Return the location of a gate that is open with this probability."""
        return math.log(open_share / (1 - open_share)) + self.beta * math.log(-self.low / self.high)


@dataclass(frozen=True)
class Sigmoid(LearnedGates):
    """`sigmoid(location)`: no noise, and no end is ever reached."""

    def sample(
        self,
        location: Float[Tensor, " component"],
        uniform: Float[Tensor, "batch component"],
    ) -> Float[Tensor, "batch component"]:
        """Return the same gates for every example."""
        return torch.sigmoid(location).expand_as(uniform)

    def open_share(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return the gate itself."""
        return torch.sigmoid(location)

    def settled(self, location: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Return the gate itself."""
        return torch.sigmoid(location)

    def location(self, open_share: float) -> float:
        """Return the location of a gate that is this far open."""
        return math.log(open_share / (1 - open_share))


GATES: dict[str, LearnedGates] = {"hard-concrete": HardConcrete(), "sigmoid": Sigmoid()}
"""Kinds of gates, by the word that `TrainedMask` takes."""
