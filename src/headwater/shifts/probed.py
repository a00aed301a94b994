"""A model that ends in a probe: its only logit is the probe's, and nothing behind the site runs.

It is a `Model`, so whatever runs models runs it: `hw.attribute` with any estimator, its audits,
`hw.feature_circuit`. A run stops where the probe reads; layers behind that do not exist.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.models import Model
from headwater.running import as_far_as
from headwater.shifts.pooling import pooled_at
from headwater.sites import Site
from headwater.taps import Tap

if TYPE_CHECKING:
    from headwater.shifts.probe import Probe


class ProbedModel(Model):
    """A model whose output is the logit of a probe.

    Args:
        model: The model; it shares its modules.
        probe: The probe.
    """

    def __init__(self, model: Model, probe: Probe) -> None:
        super().__init__(
            model.module,
            model.tokenizer,
            name=f"{model.name} with a probe at {probe.site}",
            adapter=_cut(model.anatomy(), probe.site),
            notes=model.notes,
        )
        self._whole, self._probe = model, probe
        wide = torch.promote_types(model.dtype, torch.float32)
        self._direction = probe.fitted.direction.to(model.device, wide)

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        *,
        mask: Bool[Tensor, "batch pos"] | None = None,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        taps: Mapping[Site, Tap] | None = None,
        start: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
        read: int | Sequence[int] | None = None,
    ) -> Float[Tensor, "batch one one"]:
        """Run as far as the probe reads.

        Args:
            ids: As for `Model.forward`, and so the others.
            mask: True where a token is real.
            position_ids: Position of each token.
            taps: What to call at which site; one at the probe's own site acts before it reads.
            start: A layer number and the residual that enters it.
            read: Has no meaning here: there is one logit for the whole prompt.

        Returns:
            The probe's logit.
        """
        site = self._probe.site
        leaving = site.layer if site.name == "resid_post" else None
        if start is not None and leaving is not None and start[0] > leaving:
            value = start[1]  # what leaves the probe's layer is given
        else:
            seen = as_far_as(
                self._whole, [site], ids, mask, position_ids, taps=taps or {}, start=start
            )
            value = seen[site]
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        pooled = pooled_at(value, mask, self._probe.pooling)
        logits = pooled.to(self._direction.dtype) @ self._direction + self._probe.fitted.offset
        return logits[:, None, None]

    def fingerprint(self) -> dict[str, str]:
        """Hashes of model and probe."""
        found = super().fingerprint()
        both = f"{found['weights_hash']} {self._probe.sha256()}"
        return found | {"weights_hash": hashlib.sha256(both.encode()).hexdigest()}

    def to(
        self, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
    ) -> ProbedModel:
        """A converted copy of the model, with the same probe."""
        return ProbedModel(self._whole.to(dtype=dtype, device=device), self._probe)


def _cut(adapter: Adapter, site: Site) -> Adapter:
    """Return a model's parts up to the layer of a site; its vocabulary is one logit."""
    depth = 1 if site.layer is None else site.layer + 1
    return dataclasses.replace(
        adapter,
        n_layers=depth,
        layers=adapter.layers[:depth],
        vocab=1,
        points={
            there: point
            for there, point in adapter.points.items()
            if there.layer is None or there.layer < depth
        },
    )
