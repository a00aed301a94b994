"""Edits of gradients as changes of the function that has them.

Multiplying the gradient at a site by c is differentiating another function: one in which the
site's deviation from the run is multiplied by c. So a gradient that was edited that way has
differences to be held against. One that was edited in any other way is no gradient of anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError


def as_scale(
    site: str, edit: float | Tensor | Callable[[Tensor], Tensor | None], like: Tensor
) -> float | Float[Tensor, "*shape"]:
    """Return what an edit multiplies the gradient at a site by.

    Args:
        site: Where it is, for the message.
        edit: A number, a tensor that broadcasts to the site's value, or a function of the gradient
            that changes it in place or returns a new one.
        like: The site's value.

    Raises:
        GradcheckError: If it is a function that does more than multiply.
    """
    if isinstance(edit, int | float | Tensor) and not torch.as_tensor(edit).isfinite().all():
        raise GradcheckError(f"edit at {site}: a factor is not finite.\nWrite edits={{site: 0}}.")
    if isinstance(edit, int | float):
        return float(edit)
    if isinstance(edit, Tensor):
        try:
            torch.broadcast_shapes(edit.shape, like.shape)
        except RuntimeError:
            raise GradcheckError(
                f"edit at {site}: shape {list(edit.shape)} does not broadcast to the value's "
                f"{list(like.shape)}."
            ) from None
        return edit.to(like)
    if not callable(edit):
        raise GradcheckError(
            f"edit at {site}: {type(edit).__name__} is neither a number, a tensor nor a function "
            "of the gradient."
        )
    scale = _edited(site, edit, torch.ones_like(like))
    generator = torch.Generator().manual_seed(0)
    # an edit that bounds gradients is a factor of 1 for those that are small enough
    for size in (1.0, 1e-4, 1e4):
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        tried = (size * drawn).to(like)
        expected, found = scale * tried, _edited(site, edit, tried.clone())
        if not torch.allclose(found, expected, rtol=1e-6, atol=1e-12 * size):
            raise GradcheckError(
                f"the edit of the gradient at {site} does more than multiply it entry by entry, so "
                "the result is the gradient of no function and there is nothing to hold it "
                "against.\nWrite the edit as a factor (0 cuts the path), or judge the result by "
                "exact effects: hw.attribute(...).audit()."
            )
    return scale


def _edited(site: str, edit: Callable[[Tensor], Any], gradient: Tensor) -> Tensor:
    try:
        found: Any = edit(gradient)
    except Exception as error:
        raise GradcheckError(
            f"the edit of the gradient at {site} failed on a gradient of shape "
            f"{list(gradient.shape)}: {error}"
        ) from error
    if found is None:
        return gradient
    if not isinstance(found, Tensor) or found.shape != gradient.shape:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise GradcheckError(
            f"the edit of the gradient at {site} returned {shape} for a gradient of shape "
            f"{list(gradient.shape)}.\nReturn a tensor of that shape, or None after a change in "
            "place."
        )
    return found.detach()
