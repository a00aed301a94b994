"""Windows of bytes to train `tiny-python` on and to measure it on.

Half of the windows begin anywhere, as prompts cut out of a file do; the other half begins where a
line begins, as a prompt that somebody types does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from headwater.zoo.byte_tokenizer import START_ID

_LINE_FEED = ord("\n")


@dataclass(frozen=True)
class Windows:
    """The places in a text where a window of one length may begin; none spans two files."""

    data: UInt8[Tensor, " byte"]
    """All files, one after the other."""

    anywhere: Int[Tensor, " start"]
    """Every start."""

    lines: Int[Tensor, " line"]
    """The starts where a line begins."""

    size: int
    """Bytes in a window."""

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Windows:
        """Return the windows of `size` bytes in these files; shorter files have none."""
        files = [_bytes(text) for text in texts if len(text.encode()) >= size]
        starts, lines, offset = [], [], 0
        for file in files:
            fitting = len(file) - size + 1
            starts.append(torch.arange(fitting) + offset)
            begins = torch.ones(fitting, dtype=torch.bool)
            begins[1:] = file[: fitting - 1] == _LINE_FEED
            lines.append(begins.nonzero()[:, 0] + offset)
            offset += len(file)
        return cls(torch.cat(files), torch.cat(starts), torch.cat(lines), size)

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, "count pos"]:
        """Return token ids of windows drawn at random, each with the start token in front."""
        at_lines = count // 2
        starts = torch.cat(
            (
                _drawn(self.anywhere, count - at_lines, generator),
                _drawn(self.lines, at_lines, generator),
            )
        )
        windows = self.data[starts[:, None] + torch.arange(self.size)].long()
        return torch.cat((torch.full((count, 1), START_ID), windows), dim=1)


def bits_per_byte(model: nn.Module, windows: Windows, *, batches: int = 64, seed: int = 0) -> float:
    """Return the mean loss a byte, in bits, of windows that begin anywhere or at a line.

    Args:
        model: A causal language model of transformers.
        windows: What to draw from.
        batches: How many batches of 32 windows.
        seed: Which windows.
    """
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    with torch.no_grad():
        for _ in range(batches):
            tokens = windows.draw(32, generator)
            total += model(input_ids=tokens, labels=tokens, use_cache=False).loss.item()
    return total / batches / math.log(2)


def _bytes(text: str) -> UInt8[Tensor, " byte"]:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _drawn(starts: Int[Tensor, " n"], count: int, generator: torch.Generator) -> Tensor:
    return starts[torch.randint(len(starts), (count,), generator=generator)]
