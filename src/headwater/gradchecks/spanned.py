"""Coefficients along vectors as what a gradient is taken with respect to.

A dictionary's feature is a coefficient along a row of its decoder; a part of a weight likewise.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError
from headwater.gates.value import ValueFunction


class Spanned:
    """A function of coefficients along vectors, instead of the value itself.

    Args:
        function: The function of the value.
        basis: The vectors.
        coefficients: What they are in the run.
    """

    def __init__(
        self,
        function: ValueFunction,
        basis: Float[Tensor, "vector *shape"],
        coefficients: Float[Tensor, " vector"] | None,
    ) -> None:
        shape = function.value.shape
        if basis.shape[1:] != shape:
            raise GradcheckError(
                f"basis has shape {list(basis.shape)}; the value has {list(shape)}.\n"
                "Give vectors of that shape, stacked: [n, ...]."
            )
        if not len(basis):
            raise GradcheckError("basis is empty: there is no vector to move along.")
        if coefficients is None:
            coefficients = basis.new_zeros(len(basis))
        if coefficients.shape != (len(basis),):
            raise GradcheckError(
                f"coefficients has shape {list(coefficients.shape)}; the basis has {len(basis)} "
                "vectors. Give one number a vector."
            )
        self._function, self._basis = function, basis.detach().to(function.value)
        self.value, self.stacked = coefficients.detach().to(function.value), function.stacked

    def rows(self, points: Float[Tensor, "point vector"]) -> Float[Tensor, "point *entry"]:
        """Return the objective with each point's coefficients."""
        moved = torch.tensordot(points - self.value, self._basis, dims=1)
        return self._function.rows(self._function.value + moved)
