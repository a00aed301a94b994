"""A prompt up to one position, and what the model says there with values put into the stream.

What stands behind the position has no influence on it, so it does not run. Runs with a changed
value begin at the layer behind it, many stacked, from the clean run's residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.gates.task import most_tokens
from headwater.gates.value import Objective, SiteFunction
from headwater.lenses.asked import Prompt, batches
from headwater.lenses.rows import Row
from headwater.models import Model
from headwater.prompts import Batch
from headwater.running import forward
from headwater.sites import Site
from headwater.taps import keeper

Patch = tuple[int, Float[Tensor, " d_model"]]
"""A position, and the value of the residual stream that is put there."""


class Place:
    """The beginning of a prompt, run once as the model is.

    Args:
        model: The model, frozen.
        rows: Rows of the residual stream.
        ids: The tokens up to the position whose prediction is looked at.
    """

    logprobs: Float[Tensor, " vocab"]
    """What the model predicts after the last of the tokens."""

    @torch.no_grad()
    def __init__(self, model: Model, rows: Sequence[Row], ids: Sequence[int]) -> None:
        self.model, self.rows = model, rows
        (self.batch,) = batches(model, [Prompt(tuple(ids), None)], 1)
        depth = model.anatomy().n_layers
        self._where = [_where(row, depth) for row in rows]
        wanted = set(self._where) | {_entering(site) for site in self._where}
        self._kept: dict[Site, Tensor] = {}
        taps = {site: keeper(self._kept, site) for site in wanted}
        logits = forward(model, self.batch, taps)
        self.logprobs = every_token(logits, self.batch)[0]

    def values(self, row: int) -> Float[Tensor, "pos d_model"]:
        """Return the residual stream of the clean run at a row."""
        return self._kept[self._where[row]][0]

    @torch.no_grad()
    def after(
        self, row: int, patches: Sequence[Patch], objective: Objective
    ) -> Float[Tensor, "patch *entry"]:
        """Return what the model predicts with each patch in turn.

        Args:
            row: Where the patches are put.
            patches: One a run.
            objective: What is read off the logits.
        """
        site = self._where[row]
        function = SiteFunction(
            self.model,
            self.batch,
            objective,
            site,
            0,
            (site.layer or 0, self._kept[_entering(site)]),
            tokens=most_tokens(self.model),
        )
        values = function.whole.repeat(len(patches), 1, 1)
        for number, (position, value) in enumerate(patches):
            values[number, position] = value
        parts = values.split(function.stacked)
        return torch.cat([function.everywhere(part) for part in parts])


def every_token(logits: Float[Tensor, "rows read vocab"], _: Batch) -> Float[Tensor, "rows vocab"]:
    """Return log-probabilities at the last position, in float32 at least."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits[:, -1].to(dtype).log_softmax(-1)


def of_token(token: int) -> Objective:
    """Return the log-probability of one token as an objective."""

    def objective(logits: Tensor, batch: Batch) -> Float[Tensor, " rows"]:
        return every_token(logits, batch)[:, token]

    return objective


def _where(row: Row, depth: int) -> Site:
    """Return the site of a row from which least has to run: what enters the next layer."""
    site = row.site
    if row.kind == "residual" and site.layer is not None and site.layer + 1 < depth:
        return Site(site.layer + 1, "resid_pre")
    return site


def _entering(site: Site) -> Site:
    return Site(site.layer, "resid_pre")
