"""Of which other place a wrong gradient is the right one, and how exact the model's own one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gates.value import SiteFunction, ValueFunction
from headwater.gradchecks.asked import Asked
from headwater.gradchecks.check import gradient_of
from headwater.gradchecks.hints import same
from headwater.gradchecks.lines import Weighed
from headwater.gradchecks.positions import positions_of, where
from headwater.gradchecks.result import Precision
from headwater.sites import Site


def elsewhere(
    function: SiteFunction,
    siblings: Sequence[Site],
    make: Callable[[Site], SiteFunction],
    asked: Asked,
    claimed: Float[Tensor, "*shape"],
) -> str:
    """Say of which other position or site a gradient is the right one; empty if of none tried.

    Args:
        function: The function whose gradient was claimed.
        siblings: Sites whose gradient it may be instead.
        make: Makes the function of such a site.
        asked: Prompt and objective.
        claimed: The gradient.
    """
    weights = weights_of(function, asked)
    for sibling in siblings:
        other = gradient_of(Weighed(make(sibling), weights))
        if other is not None and other.shape == claimed.shape and same(claimed, other):
            return f"this is the gradient at {sibling}"
    if not isinstance(function.columns, int):
        return ""
    with torch.enable_grad():
        leaf = function.whole.clone().requires_grad_()
        total = Weighed(function, weights).sum(function.everywhere(leaf))[0]
        (whole,) = torch.autograd.grad(total, leaf)
    for column, other in enumerate(whole[0].unbind(function.axis - 1)):
        if column != function.columns and same(claimed, other):
            positions = positions_of(asked, function.site, range(column, column + 1))
            return f"this is the gradient at {where(asked, positions)}"
    return ""


def precision(
    natively: Callable[[], ValueFunction], asked: Asked, gradient: Float[Tensor, "*shape"]
) -> Precision | None:
    """Compare a gradient with the one in the model's own numbers; None if either is nothing.

    Args:
        natively: Makes the function in the model's own numbers.
        asked: Prompt and objective.
        gradient: The gradient in float64.
    """
    function = natively()
    found = gradient_of(Weighed(function, weights_of(function, asked)))
    if found is None:
        return None
    right, rough = gradient.double().flatten(), found.double().flatten()
    largest = right.abs().max()
    if not largest > 0:
        return None
    moving = right != 0
    return Precision(
        dtype=str(function.value.dtype).removeprefix("torch."),
        largest=float((rough - right).abs().max() / largest),
        cosine=float(torch.cosine_similarity(right, rough, dim=0)),
        signs=float((right.sign() == rough.sign())[moving].double().mean()),
    )


def weights_of(function: ValueFunction, asked: Asked) -> Float[Tensor, "*entry"] | None:
    """Return the weights of the metric's entries, or None for a metric of one number."""
    if asked.grad_outputs is None:
        return None
    with torch.no_grad():
        return asked.weights(function.rows(function.value[None]))
