"""What a translator has to beat: a marginal that reads no prompt, and fits to broken data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.architectures.adapter import resolve
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import residuals
from headwater.lenses.rows import Row
from headwater.lenses.translators.corpus import Corpus
from headwater.lenses.translators.divergence import log_norm
from headwater.lenses.translators.moments import Moments
from headwater.lenses.translators.training import Maps
from headwater.models import Model
from headwater.progress import Advance, silent

Mapped = Callable[[Float[Tensor, "row position d_model"]], Tensor]
"""What returns the residual stream of all rows but the final one, mapped."""


class Marginal:
    """The mean of the final row's distribution over a corpus: what is known without a prompt."""

    def __init__(self, vocab: int) -> None:
        self.total = torch.zeros(vocab, dtype=torch.float64)
        self.count = 0

    def add(self, readout: Readout, final: Float[Tensor, "position row d_model"]) -> None:
        """Take in what the head reads of the final residual."""
        self.total = self.total.to(final.device)
        spread = log_norm(readout, final)
        for tile in readout.tiles(final):
            place = slice(tile.first, tile.first + len(tile.logits))
            chances = (tile.logits - spread[place, :, None].to(tile.logits.dtype)).exp_()
            end = tile.token + chances.shape[-1]
            self.total[tile.token : end] += chances.sum((0, 1), dtype=torch.float64)
        self.count += len(final)

    def divergence(
        self, readout: Readout, final: Float[Tensor, "position row d_model"]
    ) -> Float[Tensor, " position"]:
        """Return KL(final || marginal) in nats."""
        tiny = torch.finfo(torch.float64).tiny
        known = (self.total / self.count).clamp(min=tiny).log()
        spread = log_norm(readout, final)
        found = torch.zeros(len(final), dtype=torch.float64, device=final.device)
        for tile in readout.tiles(final):
            place = slice(tile.first, tile.first + len(tile.logits))
            logs = tile.logits[:, 0] - spread[place].to(tile.logits.dtype)
            apart = logs - known[tile.token : tile.token + logs.shape[-1]]
            chances = logs.exp()
            found[place] += (chances * apart.masked_fill(chances == 0, 0)).sum(-1)
        return found


class Fitted:
    """Least squares, the same on shuffled residuals, and the marginal; one pass over a corpus.

    Args:
        model: The model, frozen.
        readout: Its norm and head.
        corpus: What to fit to.
        rows: The rows, the final one last.
        seed: Of the shuffles.
        advance: Called with the prompts just read.
    """

    def __init__(
        self,
        model: Model,
        readout: Readout,
        corpus: Corpus,
        rows: Sequence[Row],
        *,
        seed: int = 0,
        advance: Advance = silent,
    ) -> None:
        self.marginal = Marginal(readout.vocab)
        own, broken = Moments(), Moments()
        generator = torch.Generator().manual_seed(seed)
        for batch in corpus.batches():
            values = residuals(model, batch, rows)
            own.add(values)
            order = torch.randperm(values.shape[1], generator=generator).to(values.device)
            # whatever a row knew of its own position is gone, how residuals are spread is not
            broken.add(torch.cat([values[:-1, order], values[-1:]]))
            with torch.no_grad():
                self.marginal.add(readout, readout.normed(values[-1:], rows[-1:]))
            advance(len(batch))
        self.means = own.means
        """[row, d_model], the final row last."""
        self.least_squares = _maps(own, len(rows) - 1, readout.dtype)
        self.shuffled = _maps(broken, len(rows) - 1, readout.dtype)


def untrained(model: Model, seed: int = 0) -> Model | None:
    """Return a copy of a model with the weights that it had before training, drawn anew.

    Args:
        model: The model.
        seed: Of the weights.

    Returns:
        None where the model's class does not make itself from its configuration.
    """
    module: Any = model.module
    if getattr(module, "is_quantized", False) or not hasattr(module, "config"):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            twin = type(module)(copy.deepcopy(module.config))
        except (TypeError, ValueError, AttributeError):
            return None  # a class of the user's own
    twin = twin.to(model.device, model.dtype).eval().requires_grad_(False)
    known = model.anatomy()
    adapter = dataclasses.replace(resolve(twin, known.family), pads=known.pads)
    return Model(twin, model.tokenizer, name=f"untrained {model.name}", adapter=adapter)


def _maps(moments: Moments, rows: int, dtype: torch.dtype) -> Maps:
    solved = [moments.solve(row).to(dtype) for row in range(rows)]
    return Maps(
        torch.stack([one.weight for one in solved]), torch.stack([one.bias for one in solved])
    )
