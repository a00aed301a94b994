"""The values at a site of a batch of prompts, real tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import UnknownOptionError, UnknownSiteError
from headwater.models import Model
from headwater.prompts.batches import Batch, Row, pack
from headwater.running import as_far_as
from headwater.sites import Site


def site_for(model: Model, site: Site | str) -> Site:
    """Return a site whose values a dictionary can be of.

    Args:
        model: The model.
        site: A place, or its path.

    Raises:
        UnknownSiteError: If there is no such site, or it has no vector at each position.
        UnavailableSiteError: If the model does not offer it.
    """
    found = Site.parse(site) if isinstance(site, str) else site
    model.anatomy().point(found)
    if found.axes.split()[:2] != ["batch", "pos"] or found.name == "logits":
        raise UnknownSiteError(
            f"'{found}' is [{found.axes}]: a dictionary is of a vector at each position inside the "
            "model.\nChoose for example 'layers.0.mlp.out'; `headwater sites MODEL` lists all."
        )
    return found


def packed(model: Model, rows: Sequence[Row], batch_size: int, length: int | None) -> list[Batch]:
    """Return prompts as batches of similar length, where the model takes its tokens.

    Args:
        model: Which says whether prompts may be padded.
        rows: The prompts.
        batch_size: Most prompts in a batch.
        length: Cut each prompt to this many tokens.
    """
    cut = [replace(row, clean=row.clean[:length]) for row in rows]
    batches = pack(cut, batch_size=batch_size, pad_id=0, pad=model.anatomy().pads)
    return [batch.to(model.device) for batch in batches]


def counted(batch: Batch, skip: int) -> Bool[Tensor, "batch pos"]:
    """Return which positions count: real tokens, without the first `skip` of each prompt."""
    return batch.mask & (batch.position_ids >= skip)


@torch.no_grad()
def values_at(model: Model, batch: Batch, site: Site, skip: int) -> Float[Tensor, "token width"]:
    """Run a batch as far as a site and return the values there, prompt after prompt.

    Args:
        model: The model, frozen.
        batch: Prompts, padded on the left.
        site: Where; heads are laid side by side.
        skip: Positions at the front of each prompt that are left out.

    Returns:
        In float32, or float64 if the model is.
    """
    seen = as_far_as(model, [site], batch.clean, batch.mask, batch.position_ids, taps={})
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    return seen[site].flatten(2)[counted(batch, skip)].to(wide)


def refuse_not_positive(**numbers: int | float | None) -> None:
    """Refuse numbers that are zero or negative; None stands for a number chosen elsewhere.

    Raises:
        UnknownOptionError: Names the argument.
    """
    for name, value in numbers.items():
        if value is not None and value <= 0:
            raise UnknownOptionError(f"{name}={value}: it must be positive.")
