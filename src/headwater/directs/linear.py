"""Linear modules by what they do, not by their weights: pulled back, column by column, at zero.

Quantized, adapted and transposed projections are all alike here.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headwater.precision import true_float64

WIDE = torch.float64
"""What is computed here is in this type, so that only the model's own rounding is left over."""


def widened(module: nn.Module, home: torch.device) -> nn.Module:
    """Return a float64 copy of a small module; the module itself if it cannot be converted.

    Args:
        module: A norm or a projection; it stays as it is.
        home: Where the copy goes.

    Returns:
        A copy without gradients. Quantized and offloaded weights have no float64: then `module`.
    """
    weights = list(module.parameters())
    held = [*weights, *module.buffers()]
    # one byte a number: quantized, with a scale that the module's own code applies
    if any(one.is_meta or not one.is_floating_point() or one.itemsize < 2 for one in held):
        return module
    memo: dict[int, Any] = {
        id(one): nn.Parameter(one.detach().to(home, WIDE), requires_grad=False) for one in weights
    }
    return copy.deepcopy(module, memo).to(home, WIDE)  # the rest are buffers


class LinearMap:
    """A module that is linear but for its bias.

    Args:
        module: For example an output projection.
        width: Of its input.
        dtype: What the module takes.
        home: Where values come from and go to.
        wide: Whether to use a float64 copy; costs the module's memory twice.
    """

    def __init__(
        self,
        module: nn.Module,
        width: int,
        dtype: torch.dtype,
        home: torch.device,
        *,
        wide: bool = True,
    ) -> None:
        self._module = widened(module, home) if wide else module
        copied = self._module is not module
        self._dtype, self._home = WIDE if copied else dtype, home
        first = next(module.parameters(), None)
        self._device = home if copied or first is None else first.device
        self.width = width
        self.bias: Float[Tensor, " out"] = self(self._zeros(1))[0]

    @torch.no_grad()
    def __call__(self, value: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
        """Return what the module makes of `value`, bias included, in float64."""
        value = value.to(self._device, self._dtype)  # outside: inside nothing is cast down
        with true_float64():
            return self._module(value).to(self._home, WIDE)

    @torch.enable_grad()
    def pull(self, direction: Float[Tensor, "row out"]) -> Float[Tensor, "row width"]:
        """Return the direction of the input that each direction of the output reads.

        One vector-Jacobian product: `pull(w) . x = w . (map(x) - bias)` for every x.
        """
        value = self._zeros(len(direction)).requires_grad_()
        with true_float64():
            output = self._module(value)
        (found,) = torch.autograd.grad(output, value, direction.to(output))
        return found.to(self._home, WIDE)

    def columns(self, start: int, stop: int) -> Float[Tensor, "entry out"]:
        """Return what each entry of the input from `start` up to `stop` writes at 1, alone."""
        units = self._zeros(stop - start)
        units[:, start:stop].fill_diagonal_(1)
        return self(units) - self.bias

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.width, dtype=self._dtype, device=self._device)
