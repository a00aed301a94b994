"""From a value of the residual stream to logits, by the model's own norm and head.

What stands behind the final norm is the model's own forward with its layers stubbed: soft caps,
logit scales and projections are whatever the model does. Where that turns out to be its unembedding
with a scale or a soft cap, which is tried on a few rows, logits are computed in blocks of the
vocabulary instead, in float32 at least, so that no `[row, position, vocab]` tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headwater.architectures.adapter import Point
from headwater.endings import ending_of
from headwater.errors import UnknownOptionError, UnsupportedModelError, did_you_mean
from headwater.lenses.rows import Row
from headwater.models import Model
from headwater.precision import context_for
from headwater.sites import Site

Readings = Literal["final-norm", "next-norm", "none"]
READINGS: tuple[Readings, ...] = ("final-norm", "next-norm", "none")

TILE = 2**18
"""Logits computed at once on a CPU: they stay in its cache."""
WIDTH = 1024
"""Tokens of the vocabulary in one block."""
_TRIED = 4
"""Rows on which head and unembedding are compared."""


@dataclass(frozen=True)
class Tile:
    """A block of logits: some positions, all rows, some tokens of the vocabulary."""

    first: int
    """The first position."""
    token: int
    """The first token."""
    logits: Float[Tensor, "position row token"]


class Readout:
    """A model's norm and head, applied to any row.

    Args:
        model: The model; its last layers are run as they are.
        reading: Which norm stands before the head: the final one, for every row; that of the next
            layer, which its attention reads; or none. The last row is read through the final one.
        decode_with: The model's unembedding, or its embedding transposed.

    Raises:
        UnknownOptionError: If there is no such reading.
        UnsupportedModelError: If the model has no norm before its attention, or no head.
    """

    def __init__(
        self,
        model: Model,
        reading: Readings = "final-norm",
        decode_with: Literal["unembedding", "embedding"] = "unembedding",
    ) -> None:
        refuse_unknown_reading(reading, decode_with)
        self.model, self.reading, self.decode_with = model, reading, decode_with
        self.adapter = model.anatomy()
        double = model.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32
        self.norms = next_norms(model) if reading == "next-norm" else ()
        self.head = _elementwise_head(self, decode_with)

    @property
    def vocab(self) -> int:
        """How many tokens have a logit."""
        return self.adapter.vocab

    def normed(
        self, values: Float[Tensor, "row position d_model"], rows: Sequence[Row]
    ) -> Float[Tensor, "position row d_model"]:
        """Return what the head reads of each row, in the number format of the logits.

        Args:
            values: The residual stream, or a write, at each row.
            rows: The rows.
        """
        parts = []
        with self.model.lock, context_for(self.model.module):
            for value, row in zip(values, rows, strict=True):
                norm = self._norm(row)
                parts.append((value if norm is None else norm(value)).to(self.dtype))
        return torch.stack(parts, dim=1)

    def tiles(self, normed: Float[Tensor, "position row d_model"]) -> Iterator[Tile]:
        """Yield logits tile by tile: every position, row and token once.

        A tile's memory is used again for the next one.

        Args:
            normed: What `normed` returned.
        """
        if self.head is None:
            yield from self._replayed(normed)
            return
        positions, rows, _ = normed.shape
        together = self._positions_together(rows)
        buffer = normed.new_empty(min(together, positions), rows, min(WIDTH, self.vocab))
        for token in range(0, self.vocab, WIDTH):
            block = self.head.block(token, min(token + WIDTH, self.vocab), self.dtype)
            for first in range(0, positions, together):
                part = normed[first : first + together]
                out = buffer.view(-1)[: len(part) * rows * block.width]
                yield Tile(first, token, block(part, out.view(len(part), rows, block.width)))

    def at(
        self,
        normed: Float[Tensor, "position row d_model"],
        tokens: Int[Tensor, "position target"],
    ) -> Float[Tensor, "position row target"]:
        """Return the logits of each position's own tokens.

        They come from products of the shape that tiles have, so that tokens with the same
        embedding have the same logit here and there.

        Args:
            normed: What `normed` returned.
            tokens: Tokens of each position.
        """
        positions, rows, _ = normed.shape
        wanted = tokens.shape[1]
        found = normed.new_empty(positions, rows, wanted)
        if self.head is None:
            for tile in self._replayed(normed):
                place = slice(tile.first, tile.first + len(tile.logits))
                index = tokens[place, None, :].expand(-1, rows, -1)
                found[place] = tile.logits.gather(-1, index)
            return found
        width = min(WIDTH, self.vocab)
        together = max(1, min(self._positions_together(rows), width // max(wanted, 1)))
        for first in range(0, positions, together):
            part = normed[first : first + together]
            own = tokens[first : first + together]
            ids = own.flatten()
            for start in range(0, len(ids), width):
                some = ids[start : start + width]
                filled = torch.cat([some, some[:1].expand(width - len(some))])
                block = self.head.columns(filled, self.dtype)
                logits = block(part, part.new_empty(len(part), rows, width))
                column = torch.arange(len(some), device=logits.device)
                place, target = (start + column) // wanted, (start + column) % wanted
                found[first + place, :, target] = logits[place, :, column]
        return found

    def replay(self, normed: Float[Tensor, "many d_model"]) -> Float[Tensor, "many vocab"]:
        """Return the model's own logits of what its head reads, by its own forward."""
        given = normed.to(self.model.dtype)[:, None]
        ids = torch.zeros(len(given), 1, dtype=torch.long)
        taps: dict[Site, Any] = {}
        if self.adapter.final_norm is not None:
            taps[Site(None, "final_norm")] = lambda _: given
        start = (self.adapter.n_layers, given)
        # the mask keeps transformers from taking the ids for padding
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = self.model.forward(ids, mask=mask, taps=taps, start=start)
        return logits[:, 0].to(self.dtype)

    def _norm(self, row: Row) -> nn.Module | None:
        last = row.kind == "residual" and row.site.layer == self.adapter.n_layers - 1
        if self.reading == "final-norm" or last:
            return self.adapter.final_norm  # the last row is the model's own prediction
        if self.reading == "none":
            return None
        layer = row.site.layer or 0
        mid = self.adapter.points.get(Site(layer, "resid_mid"))
        if mid is not None and row.site.name in ("resid_mid", "attn.out"):
            return self._after_attention(mid, layer)
        following = layer if row.kind == "input" else layer + 1
        return self.norms[following] if following < len(self.norms) else self.adapter.final_norm

    def _after_attention(self, mid: Point, layer: int) -> nn.Module:
        """Return the norm through which a layer's MLP reads what is there after attention."""
        if mid.side != "input":
            raise UnsupportedModelError(
                f"readout='next-norm': layer {layer} of {self.model.name} reads no norm of the "
                "residual stream after attention.\nLeave sublayers and writes out, or use "
                "readout='final-norm'."
            )
        return mid.module

    def _replayed(self, normed: Tensor) -> Iterator[Tile]:
        positions, rows, width = normed.shape
        together = max(1, self._tile // (rows * self.vocab))
        for first in range(0, positions, together):
            part = normed[first : first + together]
            logits = self.replay(part.reshape(-1, width))
            yield Tile(first, 0, logits.unflatten(0, (len(part), rows)))

    def _positions_together(self, rows: int) -> int:
        return max(1, self._tile // (rows * min(WIDTH, self.vocab)))

    @property
    def _tile(self) -> int:
        return TILE if self.model.device.type == "cpu" else TILE * 64


@dataclass(frozen=True)
class _Head:
    """Logits as the unembedding's, times a scale, softly capped."""

    weight: Float[Tensor, "vocab d_model"]
    bias: Float[Tensor, " vocab"] | None
    scale: float
    cap: float | None

    def block(self, first: int, end: int, dtype: torch.dtype) -> _Block:
        """Return the head of consecutive tokens."""
        bias = None if self.bias is None else self.bias[first:end].to(dtype)
        return _Block(self, self.weight[first:end].to(dtype), bias)

    def columns(self, tokens: Int[Tensor, " token"], dtype: torch.dtype) -> _Block:
        """Return the head of chosen tokens."""
        tokens = tokens.to(self.weight.device)
        bias = None if self.bias is None else self.bias[tokens].to(dtype)
        return _Block(self, self.weight[tokens].to(dtype), bias)


@dataclass(frozen=True)
class _Block:
    """The head of some tokens, ready to be applied."""

    head: _Head
    weight: Float[Tensor, "token d_model"]
    bias: Float[Tensor, " token"] | None

    @property
    def width(self) -> int:
        """How many tokens."""
        return len(self.weight)

    def __call__(
        self,
        normed: Float[Tensor, "position row d_model"],
        out: Float[Tensor, "position row token"],
    ) -> Float[Tensor, "position row token"]:
        """Return the logits, written to `out`."""
        torch.mm(normed.flatten(0, 1), self.weight.mT, out=out.flatten(0, 1))
        if self.bias is not None:
            out += self.bias
        if self.head.scale != 1:
            out *= self.head.scale
        if self.head.cap is not None:
            out.div_(self.head.cap).tanh_().mul_(self.head.cap)
        return out


def refuse_unknown(option: str, word: str, known: Sequence[str]) -> None:
    """Refuse a word that an option does not know.

    Raises:
        UnknownOptionError: With the closest word.
    """
    if word not in known:
        raise UnknownOptionError(
            f"{option}={word!r} is unknown.{did_you_mean(str(word), known)}\n"
            f"Write one of {', '.join(map(repr, known))}."
        )


def refuse_unknown_reading(reading: str, decode_with: str) -> None:
    """Refuse a reading that does not exist.

    Raises:
        UnknownOptionError: With the closest word.
    """
    refuse_unknown("readout", reading, READINGS)
    refuse_unknown("decode_with", decode_with, ("unembedding", "embedding"))


def next_norms(model: Model) -> tuple[nn.Module, ...]:
    """Return the norm through which each layer's first part reads the residual stream.

    Found by looking: the first module of a layer that is called with what enters the layer.

    Raises:
        UnsupportedModelError: If a layer reads the residual stream without a norm.
    """
    adapter = model.anatomy()
    found: dict[int, nn.Module] = {}
    entering: dict[int, Tensor] = {}

    def watch(layer: int) -> Callable[..., None]:
        def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if module is adapter.layers[layer] and isinstance(given, Tensor):
                entering[layer] = given
            elif layer not in found and given is entering.get(layer) and not _has_parts(module):
                found[layer] = module

        return seen

    with model.lock, ExitStack() as stack:
        for layer, whole in enumerate(adapter.layers):
            for part in whole.modules():
                handle = part.register_forward_pre_hook(watch(layer), with_kwargs=True)
                stack.callback(handle.remove)
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long)
            model.forward(ids, mask=torch.ones_like(ids, dtype=torch.bool), read=1)
    lacking = [
        layer
        for layer in range(adapter.n_layers)
        if "norm" not in type(found.get(layer)).__name__.lower()
    ]
    if lacking:
        raise UnsupportedModelError(
            f"readout='next-norm': layer {lacking[0]} of {model.name} ({adapter.family.name}) "
            "reads the residual stream without a norm.\n"
            "Use readout='final-norm', or 'none'."
        )
    return tuple(found[layer] for layer in range(adapter.n_layers))


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children())


@torch.no_grad()
def _elementwise_head(readout: Readout, decode_with: str) -> _Head | None:
    """Return the head as unembedding, scale and cap; None if the model's own head is another."""
    adapter, unembed = readout.adapter, readout.adapter.unembed
    head = None
    if type(unembed) is nn.Linear:  # no subclass: quantized ones compute otherwise
        usable = unembed.weight.device.type != "meta" and unembed.weight.is_floating_point()
        head = _tried(readout) if usable else None
    if decode_with == "unembedding":
        return head
    module: Any = readout.model.module
    table = getattr(module.get_input_embeddings(), "weight", None)
    fits = isinstance(table, Tensor) and table.shape == (adapter.vocab, adapter.d_model)
    if head is None or not fits:
        raise UnsupportedModelError(
            f"decode_with='embedding': {readout.model.name} has no plain table of embeddings and "
            "unembedding of one shape.\nUse decode_with='unembedding'."
        )
    assert isinstance(table, Tensor)
    return _Head(table, None, head.scale, head.cap)


def _tried(readout: Readout) -> _Head | None:
    """Hold unembedding, scale and cap against the model's own head on a few rows."""
    unembed: Any = readout.adapter.unembed
    if unembed.in_features != readout.adapter.d_model:
        return None
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(_TRIED, readout.adapter.d_model, generator=generator, dtype=torch.float64)
    sample = sample.to(readout.model.device, readout.model.dtype)
    with context_for(readout.model.module):
        raw = unembed(sample).to(torch.float64)
    own = readout.replay(sample).to(torch.float64)
    allowed = 32 * torch.finfo(readout.model.dtype).eps * float(own.std())
    ending, off = ending_of(readout.model, raw, own, allowed)
    if not off <= allowed:
        return None
    return _Head(unembed.weight.detach(), unembed.bias, ending.scale, ending.cap)
