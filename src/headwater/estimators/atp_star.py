"""AtP*: attribution patching with the softmax exact and cancellation counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GateError
from headwater.estimators.attention_fix import Fixed
from headwater.estimators.choices import refuse_unswitched
from headwater.estimators.estimator import ALONE, Estimator
from headwater.estimators.gradient import Gradient, refuse_stationary
from headwater.gates import ATTENTION, DROPS, Family, GatedFunction, Linearized, Replaced, Slopes


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
    a backward through the layers below each layer, (L - 1) / 2 in all.

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

    def __post_init__(self) -> None:
        refuse_unswitched(self, "queries", "keys", "grad_drop")

    @property
    def estimand(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The intervention this estimates, in words."""
        return f"{ALONE}, as a magnitude: mean over pairs of |effect|" if self.grad_drop else ALONE

    @property
    def leaves_one_out(self) -> bool:
        """True: magnitudes are sizes of such effects."""
        return True

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
        # made one by one where they are used: each holds rows of attention in float64
        fixes = (
            (part, Fixed(linear.rows[part.layer], part))
            for part in linear.replaced
            if (self.queries if part.kind == "query" else self.keys)
        )
        return _counted(linear, tuple(fixes)) if self.grad_drop else _effects(linear.slopes, fixes)

    def forwards(self, families: Sequence[Family]) -> float:
        """One run, whose graph serves every backward."""
        return 1.0


def _effects(
    slopes: Slopes, fixes: Iterable[tuple[Replaced, Fixed]]
) -> Float[Tensor, "batch component"]:
    """Return first-order effects, those of replaced queries and keys through their softmax."""
    scores = slopes.gates.clone()
    for part, fixed in fixes:
        slope = slopes.patterns.get(part.layer)
        scores[:, part.columns] = 0 if slope is None else fixed.effects(slope).to(scores)
    return scores


def _counted(
    linear: Linearized, fixes: Sequence[tuple[Replaced, Fixed]]
) -> Float[Tensor, "batch component"]:
    """Return the mean magnitude over dropped layers, with the plain effect's sign."""
    plain = _effects(linear.slopes, fixes)
    total = torch.zeros_like(plain)
    for layer in range(linear.depth):
        total += _effects(linear.dropped(layer), fixes).abs()
    terms = torch.tensor(linear.survivals, device=total.device, dtype=total.dtype)
    magnitude = total / terms
    # an effect that cancels exactly has no sign of its own: it counts as support
    return torch.where(plain < 0, -magnitude, magnitude)
