"""The numbers of a lens as arrays: from batches of positions to `[row, prompt, position]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.lenses.measure import NO_TOKEN, Measured
from headwater.lenses.statistics import columns


@dataclass(frozen=True, eq=False)
class Arrays:
    """Everything a lens measured; NaN, and -1 for tokens, where a prompt has no token."""

    ids: Int[Tensor, "prompt position"]
    values: Mapping[str, Float[Tensor, "row prompt position"]]
    """Every statistic by its key."""
    kl: Float[Tensor, "row row prompt position"]
    """KL(l || k), l before k."""
    targets: Int[Tensor, "target prompt position"]
    """Input, next, the final row's best, then the words that were ranked too."""
    strict: Float[Tensor, "target row prompt position"]
    ties: Float[Tensor, "target row prompt position"]
    logprob: Float[Tensor, "target row prompt position"]
    top: Int[Tensor, "row prompt position best"]
    top_logprob: Float[Tensor, "row prompt position best"]
    followed: Int[Tensor, "prompt position followed"]
    followed_logprob: Float[Tensor, "row prompt position followed"]


def arrays_of(parts: Sequence[Measured], lengths: Sequence[int], targets: int) -> Arrays:
    """Return what batches measured as arrays.

    Args:
        parts: What each batch measured.
        lengths: Tokens of each prompt.
        targets: How many targets are kept; controls behind them are not.
    """
    filler = _Filler(parts, lengths)
    kept = slice(0, targets)
    unknown = [part.targets[:, kept] == NO_TOKEN for part in parts]

    def of_targets(found: Sequence[Tensor]) -> Tensor:
        masked = [
            one[..., kept].masked_fill(no[:, None], torch.nan)
            for one, no in zip(found, unknown, strict=True)
        ]
        return filler.placed(masked).permute(3, 2, 0, 1)

    found = [columns(part) for part in parts]
    values = {key: filler.placed([one[key] for one in found]).permute(2, 0, 1) for key in found[0]}
    norms = [part.log_norm[..., None] for part in parts]
    return Arrays(
        ids=filler.placed([part.targets[:, 0] for part in parts]),
        values=values,
        kl=filler.placed([part.kl for part in parts]).permute(2, 3, 0, 1),
        targets=filler.placed([part.targets[:, kept] for part in parts]).permute(2, 0, 1),
        strict=of_targets([part.strict for part in parts]),
        ties=of_targets([part.ties for part in parts]),
        logprob=of_targets([part.logits - norm for part, norm in zip(parts, norms, strict=True)]),
        top=filler.placed([part.top for part in parts]).permute(2, 0, 1, 3),
        top_logprob=filler.placed(
            [part.top_logits - norm for part, norm in zip(parts, norms, strict=True)]
        ).permute(2, 0, 1, 3),
        followed=filler.placed([part.followed for part in parts]),
        followed_logprob=filler.placed(
            [part.followed_logits - norm for part, norm in zip(parts, norms, strict=True)]
        ).permute(2, 0, 1, 3),
    )


class _Filler:
    """Puts what stands in batches, one entry a real token, at its prompt and position."""

    def __init__(self, parts: Sequence[Measured], lengths: Sequence[int]) -> None:
        self.shape = (len(lengths), max(lengths))
        self.prompt = torch.cat([part.prompt for part in parts]).cpu()
        self.place = torch.cat([part.place for part in parts]).cpu()

    def placed(self, found: Sequence[Tensor]) -> Tensor:
        """Return `[prompt, position, ...]`."""
        whole = torch.cat([one.cpu() for one in found])
        fill = torch.nan if whole.is_floating_point() else NO_TOKEN
        out = whole.new_full((*self.shape, *whole.shape[1:]), fill)
        out[self.prompt, self.place] = whole
        return out
