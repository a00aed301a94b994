"""What a probe reads: one vector a text, from a run that stops at the probe's site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import NonFiniteError, UnavailableSiteError, UnknownOptionError, did_you_mean
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Batch, prompt_batches
from headwater.running import as_far_as
from headwater.sites import Site
from headwater.taps import Tap

Pooling = Literal["mean", "last"]
"""Mean over the tokens of a text, padding left out; or its last token."""
Taps = Callable[[Batch], Mapping[Site, Tap]]
"""What changes a run of a batch."""


def pooled(
    model: Model,
    texts: Sequence[str],
    site: Site,
    pooling: Pooling = "mean",
    *,
    taps: Taps | None = None,
    batch_size: int = 32,
    title: str = "reading",
    progress: bool | None = None,
) -> Float[Tensor, "example d"]:
    """Return what a probe reads of texts, in float64 on the CPU.

    Args:
        model: A frozen model.
        texts: The texts.
        site: Where it reads; heads side by side.
        pooling: Over positions.
        taps: What changes each run: `Ablation.taps`.
        batch_size: Most texts in one forward.
        title: What is being done, for the bar.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        NonFiniteError: If an activation is NaN or infinite; names the text.
    """
    batches = prompt_batches(
        texts,
        model.tokenizer,
        batch_size=batch_size,
        device=model.device,
        pad=model.anatomy().pads,
    )
    found: list[tuple[tuple[int, ...], Tensor]] = []
    with torch.no_grad(), progress_bar(title, len(texts), show=progress) as advance:
        for batch in batches:
            seen = as_far_as(
                model,
                [site],
                batch.clean,
                batch.mask,
                batch.position_ids,
                taps=taps(batch) if taps else {},
            )
            value = seen[site]
            found.append((batch.pairs, pooled_at(value.double(), batch.mask, pooling).cpu()))
            advance(len(batch))
    places = [place for pairs, _ in found for place in pairs]
    rows = torch.cat([rows for _, rows in found])
    result = torch.empty_like(rows)
    result[places] = rows
    _refuse_non_finite(result, texts, site)
    return result


def pooled_at(
    value: Float[Tensor, "batch pos ..."], mask: Bool[Tensor, "batch pos"], pooling: Pooling
) -> Float[Tensor, "batch d"]:
    """Return one vector a row; rows are padded on the left.

    Args:
        value: At every position.
        mask: True where a token is real.
        pooling: Over positions.
    """
    value = value.flatten(2)
    if pooling == "last":
        return value[:, -1]
    real = mask.to(value)[..., None]
    return (value * real).sum(1) / real.sum(1)


def site_of(model: Model, site: Site | str | None) -> Site:
    """Return where a probe reads, checked against a model.

    Args:
        model: The model.
        site: The site or its path; None: the residual in the middle of the model.

    Raises:
        UnknownSiteError: If there is no such site.
        UnavailableSiteError: If the model does not offer it, or it holds no vector a position.
    """
    adapter = model.anatomy()
    if site is None:
        return Site(adapter.n_layers // 2, "resid_post")
    site = Site.parse(site) if isinstance(site, str) else site
    adapter.point(site)
    inside = site.layer is not None or site.name == "embed"
    if not (inside and site.axes.startswith("batch pos")):
        raise UnavailableSiteError(
            f"'{site}' holds [{site.axes}]; a probe reads one vector at each position, inside the "
            f"model.\nType site='layers.{adapter.n_layers - 1}.resid_post'."
        )
    return site


def refuse_pooling(pooling: str) -> None:
    """Refuse a word that names no pooling.

    Raises:
        UnknownOptionError: With the closest one.
    """
    known = get_args(Pooling)
    if pooling not in known:
        raise UnknownOptionError(
            f"pooling={pooling!r} is unknown.{did_you_mean(pooling, known)}\n"
            f"Write {' or '.join(f'pooling={word!r}' for word in known)}."
        )


def _refuse_non_finite(found: Tensor, texts: Sequence[str], site: Site) -> None:
    bad = (~torch.isfinite(found)).any(1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"'{site}' is NaN or infinite in {len(bad)} of {len(texts)} texts, the first "
            f"{texts[bad[0]]!r:.60}.\nRun in a wider dtype: hw.load(name, dtype='float32')."
        )
