"""How many numbers flow at a site of a model, for each axis and for each position."""

from __future__ import annotations

import math

from headwater.architectures.adapter import Adapter
from headwater.sites import Site


def sizes(adapter: Adapter) -> dict[str, int | None]:
    """Return the size of every axis that a model fixes, by the axis' name.

    Args:
        adapter: Of the model.

    Returns:
        None where the model has no such axis.
    """
    return {
        "head": adapter.n_heads,
        "kv_head": adapter.n_kv_heads,
        "d_head": adapter.d_head,
        "d_model": adapter.d_model,
        "d_mlp": adapter.d_mlp,
        "d_inner": adapter.d_inner,
        "d_conv": adapter.d_conv,
        "ssm_head": adapter.n_ssm_heads,
        "d_ssm": _over(adapter.d_inner, adapter.n_ssm_heads),
        "vocab": adapter.vocab,
    }


def width(adapter: Adapter, site: Site) -> int | None:
    """Return how many numbers there are at a site for each position.

    Args:
        adapter: Of the model.
        site: A place that it offers.

    Returns:
        For `attn.z` heads times d_head; None where positions have no vector (`attn.pattern`).
    """
    known = sizes(adapter)
    axes = site.axes.removeprefix("batch pos ")
    found = [known.get(axis) for axis in axes.split()]
    return None if axes == site.axes else math.prod(size for size in found if size is not None)


def _over(whole: int | None, parts: int | None) -> int | None:
    return None if whole is None or parts is None else whole // parts
