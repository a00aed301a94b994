"""A norm with its scale frozen, found by probing the module: no table of norm classes.

Every norm here has the form `gain * P(x) / s(x) + bias`: P subtracts the mean or does nothing, and
s is the size of P(x). With s frozen at one input the norm is linear there. The form is checked on
that input; a module without it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headwater.directs.linear import WIDE, widened
from headwater.errors import UnsupportedModelError
from headwater.precision import true_float64

LARGE, LARGE_IN_HALF = 2.0**20, 2.0**10
"""Entries of a probe: so large that no epsilon under the root shows; float16 ends at 65,504."""
OFF, OFF_NARROW = 1e-9, 0.02
"""How far from its form a norm may be, relative: in float64, and where it has no such copy."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm found by probing; `module=None` is no norm at all, where a model leaves it out."""

    module: nn.Module | None
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centers: bool
    """Whether it subtracts the mean."""
    dtype: torch.dtype = WIDE
    """What the module takes."""

    @torch.no_grad()
    def __call__(self, value: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return the normed value, its scale computed anew."""
        if self.module is None:
            return value
        value = value.to(self.dtype)
        with true_float64():
            return self.module(value).to(WIDE)

    def centered(self, value: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Return the value without its mean, if the norm subtracts it."""
        return value - value.mean(-1, keepdim=True) if self.centers else value

    def frozen(self, value: Float[Tensor, "row d_model"]) -> Frozen:
        """Return the norm with its scale frozen at `value`.

        Raises:
            UnsupportedModelError: If the module is no norm of this form there.
        """
        if self.module is None:
            return Frozen(self, torch.ones_like(value[:, :1]))
        shape, normed = self.gain * self.centered(value), self(value)
        # least squares, so that neither the kind of mean nor the epsilon need be known
        size = shape.square().sum(-1, keepdim=True)
        aligned = ((normed - self.bias) * shape).sum(-1, keepdim=True)
        inverse = torch.where(size > 0, aligned / size.clamp(min=torch.finfo(WIDE).tiny), 0)
        off = float((shape * inverse + self.bias - normed).norm() / normed.norm().clamp(min=1e-300))
        if not off <= (OFF if self.dtype == WIDE else OFF_NARROW):
            raise UnsupportedModelError(
                f"{type(self.module).__name__} is not gain * (x - mean) / size + bias: off by "
                f"{off:.2g} of its output, so its scale cannot be frozen and no sum of parts is "
                "the logit.\nScore what parts do instead: hw.attribute(model, task, components, "
                "hw.Exact(), reference=hw.Zero())."
            )
        return Frozen(self, inverse)


@dataclass(frozen=True, eq=False)
class Frozen:
    """A norm whose scale is that of one input a row."""

    norm: Norm
    inverse: Float[Tensor, "row 1"]
    """1 / s."""

    def pull(self, direction: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return the direction of the input that each direction of the output reads."""
        # P is symmetric
        return self.norm.centered(self.norm.gain * direction) * self.inverse


def probed(
    module: nn.Module | None, d_model: int, model_dtype: torch.dtype, home: torch.device
) -> Norm:
    """Find gain, bias and centering of a norm from what it makes of a few inputs.

    Args:
        module: The norm; None where the model has none.
        d_model: Width of its input.
        model_dtype: What it takes, where it cannot be copied to float64.
        home: Where values come from and go to.

    Returns:
        The norm, in float64 if its weights can be converted.
    """
    zeros = torch.zeros(1, d_model, dtype=WIDE, device=home)
    if module is None:
        return Norm(None, zeros[0] + 1, zeros[0], centers=False)
    twin = widened(module, home)
    dtype = model_dtype if twin is module and not _is_wide(module) else WIDE
    large = LARGE_IN_HALF if dtype == torch.float16 else LARGE
    signs = 1 - 2 * (torch.arange(d_model, device=home) % 2).to(WIDE)
    bare = Norm(twin, zeros[0] + 1, zeros[0], centers=True, dtype=dtype)
    bias, probe, moved = bare(torch.stack([zeros[0], large * signs, large * (signs + 1)]))
    centers = bool((moved - probe).norm() < 1e-3 * (probe - bias).norm())
    shape = bare.centered(signs) if centers else signs
    # entries of the probe are +-1 but for its mean, so every gain is seen equally well
    gain = (probe - bias) * shape.square().mean().sqrt() / shape
    return Norm(twin, gain, bias, centers, dtype)


def _is_wide(module: nn.Module) -> bool:
    return all(one.dtype == WIDE for one in module.parameters())
