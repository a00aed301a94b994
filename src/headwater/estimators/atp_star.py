"""AtP*: attribution patching with the softmax exact and cancellation counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GateError
from headwater.estimators.attention_fix import Fixed
from headwater.estimators.estimator import Estimator
from headwater.estimators.gradient import Gradient, refuse_stationary
from headwater.gates import ATTENTION, DROPS, GatedFunction, Linearized, Slopes


@dataclass(frozen=True)
class AtPStar(Estimator):
    """First order, except where first order fails predictably: in the softmax and by cancellation.

    - **Query fix** (Kramár et al., section 3.1.1, equation 7): for a query the change of its row of
      the attention pattern is computed, `sum_k (p_k - p'_k) df/dp_k`, with p' the softmax of the
      row with the query at its off value.
    - **Key fix** (section 3.1.1, equations 8 and 9; algorithm 4 in a form that is stable for
      saturated rows): for a key at one position, the same in every row that sees it. A component
      that covers all positions (`positions="all"`) has all its keys replaced at once.
    - **GradDrop** (section 3.1.2, equations 11 and 12): with what layer l adds to the residual held
      constant, effects that cancel through it appear. The score is
      `1 / (L - 1) sum_l |I_l|` over the L layers, where l = the component's own layer gives 0; the
      input of layer 0 and residuals, which are in no layer, have L terms. A layer is dropped whole,
      attention and MLP. The score is a *magnitude*: it carries the sign of the fixed gradient, and
      an audit compares it with the mean over pairs of |exact effect|.

    Everything else (values, head outputs, MLPs, neurons) is plain attribution patching. Cost: one
    forward, one backward, one product of queries and keys for each of the two fixes; GradDrop adds
    a backward through the layers below each layer, about L / 2 in all.

    Source: Kramár, Lieberum, Shah, Nanda, "AtP*: An efficient and scalable method for localizing
    LLM behaviour to components" (arXiv 2403.00745), with the opposite sign: theirs is the change of
    the metric, ours what it loses.
    """

    queries: bool = True
    """Whether queries are scored by the query fix."""
    keys: bool = True
    """Whether keys are scored by the key fix."""
    grad_drop: bool = True
    """Whether layers are held constant in turn. Without it scores are signed effects."""

    name: ClassVar[str] = "atp-star"

    @property
    def estimand(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The intervention this estimates, in words."""
        alone = "each component alone, by intervention"
        return f"{alone}, as a magnitude: mean over pairs of |effect|" if self.grad_drop else alone

    @property
    def magnitudes(self) -> bool:
        """With GradDrop scores are magnitudes with a sign attached."""
        return self.grad_drop

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attention rows for the fixes, layers held constant for GradDrop."""
        fixes = {ATTENTION} if self.queries or self.keys else set()
        return frozenset(fixes | ({DROPS} if self.grad_drop else set()))

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return scores, [batch, component].

        Raises:
            StationaryMetricError: If the metric's derivative is zero at the clean end.
            GateError: If layers are to be dropped in a model that has one layer.
        """
        refuse_stationary(function, "clean")
        if not self.needs:  # every part is off
            return Gradient().scores(function)
        linear = function.linearized(attention=self.queries or self.keys, drops=self.grad_drop)
        if self.grad_drop and linear.depth < 2:
            raise GateError(
                "GradDrop holds one layer constant and looks at the others, but this model has "
                f"{linear.depth} layer.\nWrite hw.AtPStar(grad_drop=False)."
            )
        fixes = [
            (part, Fixed(linear.rows[part.layer], part))
            for part in linear.replaced
            if (self.queries if part.kind == "query" else self.keys)
        ]

        def effects(slopes: Slopes) -> Float[Tensor, "batch component"]:
            scores = slopes.gates.clone()
            for part, fixed in fixes:
                slope = slopes.patterns.get(part.layer)
                scores[:, part.columns] = 0 if slope is None else fixed.effects(slope).to(scores)
            return scores

        plain = effects(linear.slopes)
        return self._counted(plain, linear, effects) if self.grad_drop else plain

    def _counted(self, plain: Tensor, linear: Linearized, effects) -> Tensor:
        """Return the mean magnitude over dropped layers, with the plain effect's sign."""
        total = torch.zeros_like(plain)
        for layer in range(linear.depth):
            total += effects(linear.dropped(layer)).abs()
        terms = torch.tensor(linear.survivals, device=total.device, dtype=total.dtype)
        magnitude = total / terms
        # an effect that cancels exactly has no sign of its own: it counts as support
        return torch.where(plain < 0, -magnitude, magnitude)

    def forwards(self, shares: Sequence[float]) -> float:
        """One run, whose graph serves every backward."""
        return 1.0
