"""The response curve of one gate: what the metric does between open and closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater import page as pages
from headwater.attribution.plot import text_plot
from headwater.errors import ResultError

BAND = (0.1, 0.9)
"""Quantiles over pairs between which the page's band lies."""


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """`f(m)` of one component's gate, all other gates at rest, on every pair.

    The slope where the gate rests is the gradient score (the tangent), the difference of the ends
    is the exact effect (the chord), and the weighted sum of the slopes at the quadrature points is
    the integrated gradient along the component's own path.
    """

    name: str
    metric: str
    rest: float
    """Where the gate rests: 1 at the clean end, 0 at the corrupted one."""
    gates: Float[Tensor, " point"]
    """From 0 (closed) to 1 (open)."""
    values: Float[Tensor, "pair point"]
    tangent: Float[Tensor, " pair"]
    """`df/dm` where the gate rests."""
    nodes: Float[Tensor, " step"]
    """Quadrature points."""
    weights: Float[Tensor, " step"]
    """Their weights, which sum to one."""
    slopes: Float[Tensor, "pair step"]
    """`df/dm` there."""

    @property
    def chord(self) -> Float[Tensor, " pair"]:
        """`f(1) - f(0)` of the gate: the exact effect on each pair."""
        return self.values[:, -1] - self.values[:, 0]

    @property
    def integral(self) -> Float[Tensor, " pair"]:
        """Sum of weights times slopes: the integrated gradient on each pair."""
        return self.slopes @ self.weights.to(self.slopes)

    def mean(self) -> Float[Tensor, " point"]:
        """Return the curve of the mean metric."""
        return self.values.mean(0)

    @property
    def sentence(self) -> str:
        """The three readings side by side."""
        return ", ".join(pages.readings(self.summary(), lambda value: f"{value:+.4g}"))

    def __repr__(self) -> str:
        pairs = len(self.values)
        of = f"mean over {pairs} pairs" if pairs > 1 else "1 pair"
        title = f"{self.name}: {self.metric} by its gate, {of}"
        return "\n".join([title, text_plot(self.summary()), self.sentence])

    def summary(self) -> dict[str, Any]:
        """Return the mean curve, the band between pairs and the readings, as plain data."""
        low, high = self.values.double().quantile(torch.tensor(BAND, dtype=torch.float64), dim=0)
        return {
            "name": self.name,
            "metric": self.metric,
            "rest": self.rest,
            "pairs": len(self.values),
            "gates": self.gates.tolist(),
            "values": self.mean().tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "tangent": float(self.tangent.mean()),
            "chord": float(self.chord.mean()),
            "integral": float(self.integral.mean()),
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "slopes": self.slopes.mean(0).tolist(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return every number as plain data; `from_dict` reads it back."""
        return {
            "name": self.name,
            "metric": self.metric,
            "rest": self.rest,
            "gates": self.gates.tolist(),
            "values": self.values.tolist(),
            "tangent": self.tangent.tolist(),
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "slopes": self.slopes.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Curve:
        """Read a curve back.

        Raises:
            ResultError: If the data lack something or are no curve at all.
        """
        plain = ("name", "metric", "rest")
        try:
            read: dict[str, Any] = {
                key: value if key in plain else torch.tensor(value, dtype=torch.float64)
                for key, value in data.items()
            }
            return cls(**read)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(
                f"these data are not a curve: {type(error).__name__}: {error}.\n"
                "Make it again: scores.curve(name)."
            ) from None

    def page(self, path: str | Path) -> Path:
        """Write the curve as one HTML file that loads nothing, and return its path."""
        return pages.write_curve(self.summary(), path)

    def _repr_html_(self) -> str:
        return pages.figure(self.summary())
