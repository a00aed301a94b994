"""How often each head's attention is saturated on a corpus: counted batch by batch, no gradients.

Holds one layer's attention pattern of one batch at a time, and two numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.audits.saturation import SATURATED, largest_share
from headwater.errors import HeadwaterError, PairFileError, PromptError
from headwater.models import Model
from headwater.progress import Advance
from headwater.prompts import Batch
from headwater.prompts.batches import Row, pack
from headwater.prompts.encoding import Encoder
from headwater.sites import Site
from headwater.taps import Tap

CHUNK = 1024
"""Prompts encoded at a time; batches are made of prompts of similar length within a chunk."""


@dataclass(frozen=True)
class HeadSaturation:
    """How often one head's rows are saturated."""

    name: str
    layer: int
    head: int
    rows: int
    """Rows that count: those of every real token but the first."""
    saturated: float
    """Share of them with p > 0.99."""
    at_start: float
    """Share of the saturated ones that look at the first token (or at a sink)."""


@dataclass
class Counted:
    """Counts over the prompts seen so far."""

    prompts: int = 0
    tokens: int = 0
    cut: int = 0
    """Prompts of which only the beginning was run."""
    rows: int = 0
    saturated: Int[Tensor, "layer head"] | None = None
    at_start: Int[Tensor, "layer head"] | None = None

    def heads(self) -> tuple[HeadSaturation, ...]:
        """Return one record a head, in layer order."""
        assert self.saturated is not None
        assert self.at_start is not None
        return tuple(
            HeadSaturation(
                name=f"a{layer}.h{head}",
                layer=layer,
                head=head,
                rows=self.rows,
                saturated=count / max(self.rows, 1),
                at_start=start / max(count, 1),
            )
            for layer, (counts, starts) in enumerate(
                zip(self.saturated.tolist(), self.at_start.tolist(), strict=True)
            )
            for head, (count, start) in enumerate(zip(counts, starts, strict=True))
        )


def count_saturated(
    model: Model,
    prompts: Iterable[tuple[str, str]],
    *,
    limit: int,
    batch_size: int,
    advance: Advance,
) -> Counted:
    """Count the saturated rows of every head.

    Args:
        model: A model whose attention can be seen.
        prompts: Where each stands (for errors), and its text; read as they are needed.
        limit: Longer prompts are run up to this many tokens; the model has positions for them.
        batch_size: Most prompts in a forward.
        advance: Called with the prompts just run.

    Raises:
        UnavailableSiteError: If the model shows no attention pattern; says why.
        UnknownWordError: If the tokenizer has no token for a word, by its place.
    """
    adapter = model.anatomy()
    for layer in range(adapter.n_layers):
        adapter.point(Site(layer, "attn.pattern"))  # refuses by name
    counted = Counted()
    shape = (adapter.n_layers, adapter.n_heads or 0)
    counted.saturated = torch.zeros(shape, dtype=torch.long)
    counted.at_start = torch.zeros(shape, dtype=torch.long)
    source = iter(prompts)
    while chunk := list(islice(source, CHUNK)):
        for batch in _batches(model, chunk, limit, batch_size, counted):
            _count(model, batch, counted)
            advance(len(batch))
    return counted


def _batches(
    model: Model,
    chunk: Sequence[tuple[str, str]],
    limit: int,
    batch_size: int,
    counted: Counted,
) -> Iterator[Batch]:
    encoder = Encoder(model.tokenizer)
    encoder.prime((text for _, text in chunk), special=True)
    rows = []
    for number, (place, text) in enumerate(chunk):
        try:
            ids = encoder.prompt(text)
        except HeadwaterError as error:
            raise type(error)(f"{place}: {error}") from None
        counted.cut += len(ids) > limit
        rows.append(Row(number, ids[:limit]))
    pads = model.anatomy().pads
    for batch in pack(rows, batch_size=batch_size, pad_id=encoder.pad_id, pad=pads):
        yield batch.to(model.device)


@torch.no_grad()
def _count(model: Model, batch: Batch, counted: Counted) -> None:
    real = batch.mask & (batch.position_ids > 0)  # the first token has nothing else to look at
    first = batch.mask.long().argmax(1)
    assert counted.saturated is not None
    assert counted.at_start is not None
    taps: dict[Site, Tap] = {
        Site(layer, "attn.pattern"): _counting(
            real, first, counted.saturated[layer], counted.at_start[layer]
        )
        for layer in range(len(counted.saturated))
    }
    # no logits are wanted: the unembedding runs at one position
    model.forward(batch.clean, mask=batch.mask, position_ids=batch.position_ids, taps=taps, read=1)
    counted.prompts += len(batch)
    counted.tokens += int(batch.mask.sum())
    counted.rows += int(real.sum())


def _counting(real: Tensor, first: Tensor, saturated: Tensor, at_start: Tensor) -> Tap:
    def tap(pattern: Float[Tensor, "batch head query key"]) -> None:
        wide = pattern.float()
        # padding's rows are not rows of anything; a fully masked one looks everywhere
        hit = (largest_share(wide) > SATURATED) & real[:, None].to(pattern.device)
        index = first.to(pattern.device)[:, None, None, None].expand(*wide.shape[:3], 1)
        start = wide.gather(3, index)[..., 0]
        sink = 1 - wide.sum(-1)
        saturated.add_(hit.sum((0, 2)).cpu())
        at_start.add_((hit & (torch.maximum(start, sink) > SATURATED)).sum((0, 2)).cpu())

    return tap


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each prompt of a text file stands, and the prompt: one a line, blank ones left.

    Raises:
        PairFileError: If there is no such file, or it is not UTF-8.
        PromptError: If it holds no prompt.
    """
    if not path.is_file():
        raise PairFileError(f"no file {str(path)!r}.\nName a text file with one prompt a line.")
    empty = True
    with path.open(encoding="utf-8") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                text = line.strip("\r\n")
                if text and not text.isspace():
                    empty = False
                    yield f"{path.name}, line {number}", text
        except UnicodeDecodeError as error:
            raise PairFileError(
                f"{path} is not UTF-8: {error.reason}.\nSave it as UTF-8."
            ) from None
    if empty:
        raise PromptError(f"{path} holds no prompt.\nWrite one prompt a line.")
