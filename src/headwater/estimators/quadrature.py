"""Quadrature on [0, 1]: points and weights that sum to one, and pieces that can be halved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

RuleName = Literal["gauss", "midpoint", "left"]


@dataclass(frozen=True)
class Rule:
    """Points in [0, 1] and their weights, which sum to one."""

    points: tuple[float, ...]
    weights: tuple[float, ...]

    @staticmethod
    def of(name: RuleName, steps: int) -> Rule:
        """Return a rule of `steps` points.

        `gauss` is Gauss-Legendre, exact for polynomials of degree `2 steps - 1`. `midpoint` takes
        the middles of equal cells: better where the integrand has a sharp step. `left` takes their
        left ends, `0, 1/n, ..., (n-1)/n`, which biases the integral by up to a cell.
        """
        if name == "gauss":
            points, weights = np.polynomial.legendre.leggauss(steps)
            return Rule(tuple((points + 1) / 2), tuple(weights / 2))
        shift = 0.5 if name == "midpoint" else 0.0
        return Rule(tuple((k + shift) / steps for k in range(steps)), (1 / steps,) * steps)


@dataclass(frozen=True)
class Panel:
    """A piece of the path, from `low` to `high`."""

    low: float = 0.0
    high: float = 1.0

    @property
    def width(self) -> float:
        """Length of the piece."""
        return self.high - self.low

    @property
    def middle(self) -> float:
        """Where it is halved."""
        return (self.low + self.high) / 2

    def halves(self) -> tuple[Panel, Panel]:
        """Return the two pieces."""
        return Panel(self.low, self.middle), Panel(self.middle, self.high)

    def points(self, rule: Rule) -> tuple[float, ...]:
        """Return the rule's points on this piece."""
        return tuple(self.low + self.width * point for point in rule.points)
