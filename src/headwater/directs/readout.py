"""What follows the residual stream: final norm, unembedding, a scale or a soft cap of the logits.

Found by running the model's own modules; the result is held against the model's own logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.directs.linear import WIDE, LinearMap
from headwater.directs.norms import Norm, probed
from headwater.endings import Ending, cap_of, ending_of
from headwater.errors import UnsupportedModelError
from headwater.models import Model
from headwater.precision import true_float64

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far a sum may be from the model's own logit, in shares of the logits' spread ..."""
COARSE = 0.1
"""... and in narrower types, or where products of float32 keep ten bits."""


@dataclass(frozen=True, eq=False)
class Readout:
    """A model's final norm and unembedding."""

    model: Model
    norm: Norm
    rows: dict[int, Float[Tensor, " d_model"]] = field(default_factory=dict)
    """Directions in the normed residual, by token; asked for once each."""

    @classmethod
    def of(cls, model: Model) -> Readout:
        """Probe a model's final norm."""
        adapter = model.anatomy()
        norm = probed(adapter.final_norm, adapter.d_model, model.dtype, model.device)
        return cls(model, norm)

    @cached_property
    def unembed(self) -> LinearMap:
        """The unembedding; not copied, since it can be the largest matrix of a model."""
        adapter = self.model.anatomy()
        return LinearMap(
            adapter.unembed, adapter.d_model, self.model.dtype, self.model.device, wide=False
        )

    def directions(
        self, ids: Int[Tensor, "row n"], weights: Float[Tensor, "row n"]
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
        """Return the directions that weighted logits read from the normed residual, and biases."""
        wanted: list[int] = [one for one in ids.unique().tolist() if one not in self.rows]
        if wanted:
            # one-hot products are exact in any type, their sums would not be
            bias = self.unembed.bias
            hot = torch.zeros(len(wanted), len(bias), dtype=WIDE, device=bias.device)
            hot[range(len(wanted)), wanted] = 1
            self.rows.update(zip(wanted, self.unembed.pull(hot), strict=True))
        rows = torch.stack([self.rows[one] for one in ids.flatten().tolist()])
        rows = rows.unflatten(0, tuple(ids.shape))
        weights = weights.to(rows)
        biases = self.unembed.bias[ids]
        return (weights[..., None] * rows).sum(1), (weights * biases).sum(1)

    @torch.no_grad()
    def unembedded(self, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return what the unembedding itself makes of the normed residual, in the model's type."""
        unembed = self.model.anatomy().unembed
        place = next(unembed.parameters()).device
        given = normed[:, None].to(place, self.model.dtype)
        with true_float64():
            raw = unembed(given)
        return raw[:, 0].to(self.model.device, WIDE)


def proven_ending(
    model: Model, raw: Float[Tensor, "row vocab"], logits: Float[Tensor, "row vocab"]
) -> Ending:
    """Find scale or soft cap from logits before and after, or refuse.

    Args:
        model: Whose configuration names the cap, if it has one.
        raw: What the unembedding returned.
        logits: The model's own logits.

    Returns:
        What leads from one to the other.

    Raises:
        UnsupportedModelError: If neither does.
    """
    size = spread(logits.to(raw))
    allowed = tolerance(model.dtype) * size
    ending, off = ending_of(model, raw, logits, allowed)
    if off <= allowed:
        return ending
    raise UnsupportedModelError(
        f"{model.name}: the logits are not the unembedding of the normed last residual, scaled"
        f"{' or capped' if cap_of(model) else ''}: off by {off / size:.2g} of their spread.\n"
        "What lies between is not known here, so no sum of parts is the logit. Score what parts "
        "do instead: hw.attribute(model, task, components, hw.Exact(), reference=hw.Zero())."
    )


def tolerance(dtype: torch.dtype) -> float:
    """Return which share of the logits' spread rounding in a model of this type explains."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return COARSE
    return TOLERANCE.get(dtype, COARSE)


def spread(logits: Float[Tensor, "row vocab"]) -> float:
    """Return the distance from the smallest to the largest logit, the least over rows."""
    return max(float((logits.amax(1) - logits.amin(1)).min()), 1e-300)
