"""The Jacobian lens: how the final residual answers to a small change of a row's, on average.

    J = mean over prompts of mean over sources t of sum over targets t' >= t of dh_t' / dr_t

with h the final residual and r the row's (Gurnee et al., "Verbalizable Representations Form a
Global Workspace in Language Models", 2026). Sources and targets are the positions of a prompt but
for the first few and the last. A mean alone does not say how far prompts agree: beside it stand
the standard error over prompts, and the share of E||J||^2 that the mean makes up.

Costs `d_model` backward passes a prompt; copies of a prompt in one batch do several at once. All
directions are taken: there is no mode for the directions of chosen tokens. A pass through a scan
in plain PyTorch (Mamba without its CUDA kernels) grows with the square of a prompt's length.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import NonFiniteError, PromptError, UnknownOptionError
from headwater.lenses.rows import Row
from headwater.lenses.translators.corpus import Corpus
from headwater.models import Model
from headwater.progress import Advance, silent
from headwater.prompts import Batch
from headwater.taps import Tap

SKIP = 16
"""Positions left out at the front of a prompt; of one shorter than four times that, a quarter."""
LARGE = 5_000
"""Backward passes from which the cost is said before they start."""
log = logging.getLogger("headwater")
_TOKENS = 2**12
"""Tokens in a batch of copies on a CPU."""


@dataclass(frozen=True)
class Jacobians:
    """The mean over prompts, and how far they scatter."""

    mean: Float[Tensor, "row d_model d_model"]
    """Output first: what a row's change does to the final residual is `J @ change`."""
    squares: Float[Tensor, "row d_model d_model"]
    """Sums over prompts of squared differences to the mean."""
    prompts: int

    @property
    def errors(self) -> Float[Tensor, "row d_model d_model"]:
        """Return the standard error of each entry over prompts; NaN of a single prompt."""
        if self.prompts < 2:
            return torch.full_like(self.mean, torch.nan)
        return (self.squares / (self.prompts * (self.prompts - 1))).sqrt()

    def details(self, row: int) -> dict[str, float]:
        """Return the relative standard error in the Frobenius norm, and what the mean explains."""
        noise = float(self.errors[row].square().sum())
        mean = float(self.mean[row].square().sum())
        each = mean + float(self.squares[row].sum()) / self.prompts
        # the mean's square has its own noise on top of what it estimates
        return {
            "relative standard error": (noise / mean) ** 0.5,
            "share of E||J||^2": (mean - noise) / each,
        }


def jacobians(
    model: Model,
    corpus: Corpus,
    rows: Sequence[Row],
    *,
    skip: int | None = None,
    advance: Advance = silent,
) -> Jacobians:
    """Average the Jacobians of prompts.

    Says the cost in a log line before it starts, where that is large.

    Args:
        model: The model, frozen.
        corpus: The prompts.
        rows: The rows, the final one last.
        skip: How many positions to leave out at the front; None: 16, of prompts shorter than 64
            tokens a quarter.
        advance: Called with the prompts just done.

    Raises:
        PromptError: If a prompt is too short.
        UnknownOptionError: If `skip` is negative.
        NonFiniteError: If a Jacobian is NaN or infinite.
    """
    if skip is not None and skip < 0:
        raise UnknownOptionError(f"skip={skip} is negative.\nWrite skip=0 to leave none out.")
    width = model.anatomy().d_model
    _announce(width, corpus.expected)
    shape = (len(rows) - 1, width, width)
    mean = torch.zeros(shape, dtype=torch.float64, device=model.device)
    squares, count = torch.zeros_like(mean), 0
    for batch in corpus.batches():
        for column, found in _columns(model, batch, rows, _used(batch, skip)):
            place = slice(column, column + found.shape[1])
            _merge(mean[:, place], squares[:, place], count, found.to(torch.float64))
            advance(len(batch) * found.shape[1] / width)
        count += len(batch)
    if not bool(mean.isfinite().all()):
        raise NonFiniteError(
            "a Jacobian is NaN or infinite, so there is no mean.\nLook for overflow (float16?): "
            "load the model with dtype='float32'."
        )
    return Jacobians(mean.cpu(), squares.cpu(), count)


def _announce(width: int, prompts: float) -> None:
    """Say a large cost; a number of prompts that nobody knows may be large."""
    if width * prompts < LARGE:
        return
    known = math.isfinite(prompts)
    each = f"{width:,} backward passes a prompt"
    whole = f"{prompts:,.0f} prompts, {width * prompts:,.0f} in all"
    log.warning(
        "fit jacobian: %s; %s. limit= reads fewer prompts, length= less of each.",
        each,
        whole if known else "how many prompts there are is not known",
    )


def _used(batch: Batch, skip: int | None) -> Bool[Tensor, "batch pos"]:
    """Return which positions are sources and targets."""
    lengths = batch.mask.sum(-1, keepdim=True)
    first = (lengths // 4).clamp(max=SKIP) if skip is None else torch.full_like(lengths, skip)
    place = batch.position_ids
    used = batch.mask & (place >= first) & (place < lengths - 1)
    short = (~used.any(-1)).nonzero()
    if len(short):
        number = int(short[0])
        tokens, least = int(lengths[number]), int(first[number]) + 2
        raise PromptError(
            f"prompt {batch.pairs[number]} has {tokens} tokens; with the first "
            f"{int(first[number])} and the last left out, none remains.\n"
            f"Give prompts of {least} tokens at least, or a smaller skip=."
        )
    return used


def _columns(
    model: Model, batch: Batch, rows: Sequence[Row], used: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Yield parts of each prompt's Jacobian: first output, and [row, output, prompt, input]."""
    width = model.anatomy().d_model
    room = _TOKENS if model.device.type == "cpu" else 16 * _TOKENS
    copies = max(1, min(width, room // batch.mask.numel()))
    whole = batch.repeat(copies)
    values, final = _run(model, whole, rows)
    share = used.double() / used.sum(-1, keepdim=True)
    for column in range(0, width, copies):
        many = min(copies, width - column)
        pull = final.new_zeros(copies, *used.shape, width)
        for copy in range(many):
            pull[copy, ..., column + copy] = used.to(final.dtype)
        found = torch.autograd.grad(
            final, values, pull.flatten(0, 1), retain_graph=column + copies < width
        )
        # in float64: what each position adds is averaged over a prompt's sources
        parts = [one.unflatten(0, (copies, -1))[:many].double() for one in found]
        means = [torch.einsum("cbpd,bp->cbd", part, share) for part in parts]
        yield column, torch.stack(means)


@torch.enable_grad()
def _run(model: Model, batch: Batch, rows: Sequence[Row]) -> tuple[list[Tensor], Tensor]:
    """Return every row's residual and the final one, with the graph between them."""
    kept: dict[str, Tensor] = {}

    def enter(value: Tensor) -> Tensor:
        kept[rows[0].name] = value.detach().requires_grad_()
        return kept[rows[0].name]

    def keep(name: str) -> Tap:
        def tap(value: Tensor) -> None:
            kept[name] = value

        return tap

    taps = {row.site: keep(row.name) for row in rows[1:]}
    model.forward(
        batch.clean,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps={rows[0].site: enter, **taps},
        read=1,
    )
    return [kept[row.name] for row in rows[:-1]], kept[rows[-1].name]


def _merge(mean: Tensor, squares: Tensor, count: int, found: Tensor) -> None:
    """Take prompts into mean and squares, [row, output, input], in place."""
    new = found.shape[2]
    own = found.mean(2)
    spread = (found - own[:, :, None]).square().sum(2)
    apart = own - mean
    share = new / (count + new)
    squares += spread + apart.square() * (count * share)
    mean += apart * share
