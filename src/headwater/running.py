"""One run of a batch of prompts: to the end, or only as far as the sites that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.models import Model
from headwater.prompts import Batch
from headwater.sites import Site
from headwater.taps import Tap, in_turn

Start = tuple[int, Float[Tensor, "batch pos d_model"]]
"""The first layer that runs, and the residual that enters it."""


def forward(
    model: Model, batch: Batch, taps: Mapping[Site, Tap], start: Start | None = None
) -> Float[Tensor, "batch read vocab"]:
    """Run the clean prompts of a batch, and return the logits that its metric reads.

    Args:
        model: The model.
        batch: The prompts.
        taps: What to call at which site.
        start: Where the run begins; None: at the prompt.
    """
    return model.forward(
        batch.clean,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps=taps,
        start=start,
        read=batch.read,
    )


def as_far_as(
    model: Model,
    targets: Sequence[Site],
    ids: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None,
    position_ids: Int[Tensor, "batch pos"] | None,
    *,
    taps: Mapping[Site, Tap],
    start: Start | None = None,
) -> dict[Site, Tensor]:
    """Run until the last of some sites, and return the values at all of them, with their graph.

    Args:
        model: The model.
        targets: In the order of the run; it ends at the last.
        ids: As for `Model.forward`, and so the others.
        mask: True where a token is real.
        position_ids: Position of each token.
        taps: What to call at which site; one at a target acts before its value is taken.
        start: Where the run begins; None: at the prompt.
    """
    seen: dict[Site, Tensor] = {}
    arrived = _ArrivedError()

    def look(site: Site) -> Tap:
        def tap(value: Tensor) -> None:
            seen[site] = value
            if site == targets[-1]:
                raise arrived

        return in_turn(taps[site], tap) if site in taps else tap

    try:
        model.forward(
            ids,
            mask=mask,
            position_ids=position_ids,
            taps={**taps, **{site: look(site) for site in targets}},
            start=start,
            read=1,
        )
    except _ArrivedError as error:
        if error is not arrived:  # a run around this one has arrived
            raise
    return seen


class _ArrivedError(Exception):
    """The run has reached its last target: nothing behind it is needed."""
