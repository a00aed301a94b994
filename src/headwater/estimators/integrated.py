"""Integrated gradients: the mean slope along a path from clean to reference, for four paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.estimators.adaptive import Integral, integrate
from headwater.estimators.choices import is_number, refuse_below, refuse_unknown
from headwater.estimators.estimator import ALONE, TOGETHER, Estimate, Estimator, Gaps
from headwater.estimators.quadrature import Rule, RuleName
from headwater.gates import INPUT_PATH, Family, GatedFunction

PathName = Literal["inputs", "family", "component", "joint"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "path": ("inputs", "family", "component", "joint"),
    "rule": ("gauss", "midpoint", "left"),
    "increments": ("reference", "path"),
}

_ESTIMANDS: dict[PathName, str] = {
    "component": ALONE,
    "family": "all components of one kind and layer together, split among them",
    "joint": TOGETHER,
    "inputs": "none of its own: the layer-0 input moves, no component is switched off",
}


@dataclass(frozen=True)
class IntegratedGradients(Estimator):
    """Average the gradient along a straight path, instead of taking it at one point.

    The paths differ in what moves, and with it in what is estimated:

    - `family` (the default): `int df/dm_i(1 - t e_F) dt`, F all components of i's kind and layer.
      Sums over F to the exact effect of closing F. Costs about half of `steps` forward-backwards
      a family.
    - `inputs`: the input of layer 0 goes from the corrupted prompt's to the clean one's, and the
      score is `(x_i - r_i) . int df/dx_i`, as in EAP-IG: `steps` forward-backwards for all
      components together. It has no intervention of its own: of a chain n = x^2, y = n^2 it gives
      the node n 2/3 of the exact effect, however many steps.
    - `component`: `int df/dm_i(1 - t e_i) dt`, which is the exact effect by the fundamental
      theorem of calculus, at more than its price. Worth it only to see where along the gate the
      effect arises.
    - `joint`: `int df/dm_i(t 1) dt`: Aumann-Shapley over all gates; sums to `f(1) - f(0)`.
      Early components come out too small where later ones are closed along with them.

    Source: Sundararajan et al., "Axiomatic attribution" (arXiv 1703.01365), equation 1; `inputs`:
    Hanna et al., "Have faith in faithfulness" (arXiv 2403.17806), equation 3; `family`: Marks et
    al., "Sparse feature circuits" (arXiv 2403.19647), equation 4; `increments="path"`: Dhamdhere
    et al., "How important is a neuron?" (arXiv 1805.12233), equation 2.
    """

    path: PathName = "family"
    """What moves: `"inputs"`, `"family"`, `"component"` or `"joint"`."""
    rule: RuleName = "gauss"
    """Where the gradient is taken. `"gauss"`: Gauss-Legendre points. `"midpoint"`: middles of equal
    cells, better at a sharp step. `"left"`: first ends of the cells, biased: on `"inputs"` from the
    corrupted end on, as EAP-IG, on the other paths from the clean end on, as feature-circuits."""
    steps: int = 8
    """Points on the path; with `tolerance`, on every piece of it."""
    tolerance: float | None = None
    """Halve the path where it pays until every sum of scores is this close to the exact change, in
    units of the metric, on every example. None: one piece, and the gap is reported."""
    increments: Literal["reference", "path"] = "reference"
    """For `path="inputs"`: what multiplies the gradient. `"reference"`: `x_i - r_i`, as EAP-IG.
    `"path"`: how x_i itself moves along the path (conductance), which sums to `f(1) - f(0)` over
    any cut; costs one more forward a step."""

    name: ClassVar[str] = "ig"

    def __post_init__(self) -> None:
        refuse_unknown(self, _CHOICES)
        refuse_below(self, "steps", 1, example=8, why="they are the points of the integral")
        if self.tolerance is not None and not (is_number(self.tolerance) and self.tolerance > 0):
            raise UnknownOptionError(
                f"tolerance={self.tolerance!r} is no number above 0: no sum of finitely many "
                "points is exact.\nType a gap you accept in units of the metric, such as "
                "tolerance=0.01."
            )
        if self.tolerance is not None and self.rule == "left":
            raise UnknownOptionError(
                'rule="left" with tolerance=: its gap only halves where a piece is halved, so it '
                'would take thousands of runs.\nType rule="gauss" or rule="midpoint".'
            )
        self._refuse_unfit()

    def _refuse_unfit(self) -> None:
        if self.path == "inputs":
            if self.tolerance is not None:
                raise UnknownOptionError(
                    'tolerance= needs a sum to check, and path="inputs" has none for its '
                    'components.\nRaise steps=, or use path="family".'
                )
            if self.increments == "path" and self.rule == "gauss":
                raise UnknownOptionError(
                    'increments="path" goes from cell to cell: Gauss points have no cells.\n'
                    'Type rule="midpoint".'
                )
        elif self.increments == "path":
            raise UnknownOptionError(
                f'increments="path" goes with path="inputs"; along path={self.path!r} gates move, '
                "and their increments are known."
            )

    @property
    def estimand(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The intervention this path estimates, in words."""
        return _ESTIMANDS[self.path]

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The layer-0 input, for `path="inputs"`."""
        return frozenset({INPUT_PATH}) if self.path == "inputs" else frozenset()

    @property
    def uses_slopes(self) -> bool:
        """A component's own path is checked against its exact effect."""
        return self.path != "component"

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return the integrals, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the integrals, their completeness gaps, and what did not converge."""
        if self.path == "inputs":
            return self._along_inputs(function)
        families = self._families(function)
        rule = Rule.of(self.rule, self.steps)
        found = integrate(function, [f.columns for f in families], rule, self.tolerance)
        scores = function.gates()[0].zero_()
        for family, integral in zip(families, found, strict=True):
            scores[:, list(family.columns)] = integral.score.to(scores)
        names = tuple(family.name for family in families)
        gaps = torch.stack([integral.gap for integral in found], 1)
        return Estimate(scores, gaps=Gaps(names, gaps), notes=_unfinished(names, found))

    def _families(self, function: GatedFunction) -> Sequence[Family]:
        if self.path == "component":
            return [Family(name, (i,)) for i, name in enumerate(function.names)]
        if self.path == "joint":
            return [Family("all components", tuple(range(len(function.names))))]
        return function.families

    def _along_inputs(self, function: GatedFunction) -> Estimate:
        path, rule = function.inputs(), Rule.of(self.rule, self.steps)
        if self.increments == "path":
            edges = [k / self.steps for k in range(self.steps + 1)]
            slopes = path.conductance(list(zip(edges, rule.points, edges[1:], strict=False)))
            weights = [1.0] * self.steps  # the increments of the cells are their weights
        else:
            slopes, weights = path.slopes(rule.points), list(rule.weights)
        gradients = [w * slope.gradient for w, slope in zip(weights, slopes, strict=True)]
        own = [w * slope.input for w, slope in zip(rule.weights, slopes, strict=True)]
        scores, gap = torch.stack(gradients).sum(0), torch.stack(own).sum(0) - path.change
        return Estimate(scores, gaps=Gaps(("layer-0 input (quadrature only)",), gap[:, None]))

    def forwards(self, families: Sequence[Family]) -> float:
        """One run at rest, then the points of each path, each run from the path's layer on.

        With `tolerance=` at least: pieces that are halved come on top.
        """
        if self.path == "inputs":
            # the input of the corrupted prompts is known already where tokens are scored
            ends = 1.0 + all(family.kind != "token" for family in families)
            return ends + (1.0 + 2 * self.steps if self.increments == "path" else self.steps)
        if self.path == "component":
            paths = sum(family.one_by_one for family in families)
        elif self.path == "joint":
            paths = max(family.share for family in families)
        else:
            paths = sum(family.share for family in families)
        return 1.0 + paths * (self.steps + 1)  # and one with the path's gates closed, for the gap


def _unfinished(names: Sequence[str], found: Sequence[Integral]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {integral.problem}"
        for name, integral in zip(names, found, strict=True)
        if integral.problem
    )
