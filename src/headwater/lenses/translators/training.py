"""Translators trained on KL(final || row): affine (Belrose et al., "Eliciting Latent Predictions
from Transformers with the Tuned Lens", 2023), or a shift alone.

A step costs one forward and three products with the unembedding a row; no tensor of logits
`[position, vocab]` is made. Training starts at the identity, where a translator reads what the
logit lens reads, or at least squares.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import NonFiniteError, PromptError
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import residuals, together
from headwater.lenses.rows import Row
from headwater.lenses.translators.corpus import Corpus
from headwater.lenses.translators.divergence import divergence
from headwater.lenses.translators.translator import translate
from headwater.models import Model
from headwater.progress import Advance, silent
from headwater.prompts import Batch

RATE, SHIFT_RATE = 1.0, 0.02
"""Of Adam's first step: of maps, times 1 / d_model, and of shifts alone."""
LASTING = 0.1
"""Share of the steps at the end whose mean KL is reported."""


@dataclass
class Maps:
    """The maps of all rows: `T(r) = r + r W^T + b`."""

    weight: Float[Tensor, "row d_model d_model"] | None
    """None: shifts only."""
    bias: Float[Tensor, "row d_model"]

    def __call__(
        self, values: Float[Tensor, "row position d_model"]
    ) -> Float[Tensor, "row position d_model"]:
        """Return the values, translated."""
        found = [
            translate(value, None if self.weight is None else self.weight[row], self.bias[row])
            for row, value in enumerate(values)
        ]
        return torch.stack(found)


@dataclass(frozen=True)
class Trained:
    """What training found."""

    maps: Maps
    first: Float[Tensor, " row"]
    """Mean KL of the first step's tokens, before any training."""
    last: Float[Tensor, " row"]
    """Mean KL over the last steps, each on tokens before it learned from them."""
    prompts: int
    """How many prompts were read, again and again those of a small corpus."""


def train(
    model: Model,
    readout: Readout,
    corpus: Corpus,
    rows: Sequence[Row],
    start: Maps | None,
    *,
    steps: int,
    rate: float,
    seed: int,
    advance: Advance = silent,
) -> Trained:
    """Minimize the mean of KL(final || row) over positions, each row for itself.

    Adam, its rate falling in a straight line to 0. The rate is in units of the residual stream: W
    moves by it times the size of what comes out over that of what goes in, b times the former.

    Args:
        model: The model, frozen.
        readout: Its norm and head.
        corpus: What to train on; gone through again until the steps are done.
        rows: The rows, the final one last.
        start: Where to begin; None: a shift, begun at the mean difference of the first batch.
        steps: How many batches to take a step on.
        rate: Of the first step.
        seed: Of the order of batches.
        advance: Called with the prompts just used.

    Raises:
        NonFiniteError: If the divergence becomes NaN or infinite.
        PromptError: If the corpus ends, and cannot be read again.
    """
    search: _Search | None = None
    losses: list[Tensor] = []
    read = 0
    for step, batch in enumerate(_forever(corpus, seed, steps)):
        values = residuals(model, batch, rows)
        if search is None:
            search = _Search(start or _mean_shift(values, readout.dtype), values[:-1], rate)
        loss = _stepped(search, step, readout, rows, values, 1 - step / steps)
        losses.append(loss)
        read += len(batch)
        advance(len(batch), f"KL {float(loss.mean()):.3f}")
    if search is None:
        nothing = torch.full((len(rows) - 1,), torch.nan, dtype=torch.float64)
        return Trained(start or _no_shift(model, readout, rows), nothing, nothing, read)
    lasting = max(1, round(LASTING * steps))
    return Trained(search.found(), losses[0], torch.stack(losses[-lasting:]).mean(0), read)


def _stepped(
    search: _Search,
    step: int,
    readout: Readout,
    rows: Sequence[Row],
    values: Tensor,
    decay: float,
) -> Float[Tensor, " row"]:
    """Take one step; refuse to go on where the rate has led out of all numbers."""
    what = "KL(final || row) is infinite"
    try:
        loss = search.step(readout, rows, values, decay)
        if bool(loss.isfinite().all()):
            return loss
    except NonFiniteError:
        if step == 0:
            raise  # nothing is trained yet: it is the model's
        what = "a logit is NaN or infinite"
    raise NonFiniteError(
        f"{what} at step {step}, so training cannot go on.\nWrite lr={search.rate / 10:.1g}, or "
        "method='lstsq', which has no rate."
    )


class _Search:
    """Adam on the differences to the start, in units of the residual stream.

    Args:
        start: Where to begin.
        values: Residuals of the rows that have a map, to take the units from.
        rate: Of the first step.
    """

    def __init__(
        self, start: Maps, values: Float[Tensor, "row position d_model"], rate: float
    ) -> None:
        self.start = start
        self.weight = None if start.weight is None else _free(start.weight)
        self.bias = _free(start.bias)
        free = [one for one in (self.weight, self.bias) if one is not None]
        self.adam = torch.optim.Adam(free, lr=rate)
        self.rate = rate
        # the size of what comes out, over that of what goes in
        into = values.to(self.bias.dtype).square().mean((1, 2)).sqrt()
        self.size = start(values).to(self.bias.dtype).square().mean((1, 2)).sqrt()
        self.gain = self.size / into.clamp(min=torch.finfo(into.dtype).tiny)

    def step(
        self, readout: Readout, rows: Sequence[Row], values: Tensor, decay: float
    ) -> Float[Tensor, " row"]:
        """Take one step; return the mean divergence before it."""
        own = values[:-1]
        with torch.no_grad():
            final = readout.normed(values[-1:], rows[-1:])[:, 0]
        count = own.shape[1]
        total = torch.zeros(len(own), dtype=torch.float64, device=own.device)
        width = together(own.device, 4 * own.shape[0] * own.shape[-1])
        self.adam.zero_grad()
        for first in range(0, count, width):
            place = slice(first, first + width)
            with torch.enable_grad():
                normed = readout.normed(self.found(detach=False)(own[:, place]), rows[:-1])
                lost = divergence(readout, final[place], normed).sum(0) / count
                lost.sum().backward()
            total += lost.detach()
        for group in self.adam.param_groups:
            group["lr"] = self.rate * decay
        self.adam.step()
        return total.cpu()

    def found(self, *, detach: bool = True) -> Maps:
        """Return the maps as they are now."""
        weight, bias, start = self.weight, self.bias, self.start
        if detach:
            bias = bias.detach()
            weight = None if weight is None else weight.detach()
        if weight is not None and start.weight is not None:
            weight = start.weight + self.gain[:, None, None] * weight
        return Maps(weight, start.bias + self.size[:, None] * bias)


def _mean_shift(values: Float[Tensor, "row position d_model"], dtype: torch.dtype) -> Maps:
    """Return the shift that gives each row the final row's mean."""
    means = torch.stack([value.mean(0, dtype=torch.float64) for value in values])
    return Maps(None, (means[-1:] - means[:-1]).to(dtype))


def _no_shift(model: Model, readout: Readout, rows: Sequence[Row]) -> Maps:
    width = model.anatomy().d_model
    return Maps(None, torch.zeros(len(rows) - 1, width, dtype=readout.dtype, device=model.device))


def _free(like: Tensor) -> Tensor:
    return torch.zeros_like(like, requires_grad=True)


def _forever(corpus: Corpus, seed: int, steps: int) -> Iterator[Batch]:
    """Yield a batch a step, the corpus again and again, in another order each time."""
    order = random.Random(seed)
    done = 0
    while done < steps:
        try:
            for batch in corpus.batches(order):
                if done == steps:
                    return
                done += 1
                yield batch
        except PromptError as error:
            if not done:
                raise
            raise PromptError(f"after {done} of {steps} steps: {error}") from None
