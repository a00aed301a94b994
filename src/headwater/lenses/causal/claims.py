"""One claim of a lens put to the test: its best token at a place.

The residual stream is moved along the gradient of the lens's own log-probability of its best
token, just so far that the lens gives the token so many nats less, or more. That is what the lens
predicts; the model then runs on from there, and says what happens to the token at its output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.lenses.causal.moves import steps_for
from headwater.lenses.causal.places import Place, every_token, of_token
from headwater.lenses.causal.reader import Reader

RANDOM = 4
"""Random moves beside each claim, two directions to and fro."""
_FARTHEST = 4.0
"""Longest move, in lengths of the residual."""


class Cell(NamedTuple):
    """One place that a lens reads."""

    row: int
    prompt: int
    position: int


@dataclass(frozen=True)
class Claim:
    """What moving one residual did, beside what the lens says it does."""

    cell: Cell
    token: int
    """The lens's best token there."""
    logprob: float
    """Its log-probability in the lens ..."""
    output: float
    """... and at the output."""
    asked: tuple[float, ...]
    """Changes of the lens's log-probability that were asked for, in nats."""
    predicted: tuple[float, ...]
    """Changes that the moves make in the lens; NaN where none reaches what was asked for."""
    actual: tuple[float, ...]
    """What the same moves change at the output."""
    size: tuple[float, ...]
    """Length of each move, as a share of the residual's."""
    random: float
    """Mean size of the change at the output by random moves as long as the main one."""
    random_lens: float
    """The same in the lens."""
    noise: float
    """Change at the output where the own value is put in."""
    direct: float = 0.0
    """Change at the output by the main move added to the last row instead: no layer reads it."""


def tested(
    reader: Reader,
    place: Place,
    cells: Sequence[Cell],
    asked: Sequence[float],
    generator: torch.Generator,
) -> list[Claim]:
    """Test what a lens says at rows of one place.

    Args:
        reader: The lens.
        place: The prompt up to the cells' position.
        cells: One a row.
        asked: Changes in nats, the main one first.
        generator: Draws the random directions.
    """
    pairs = [_tested(reader, place, cell, asked, generator) for cell in cells]
    last, row = cells[0].position, len(place.rows) - 1
    value = place.values(row)[last]
    patches = [(last, value), *((last, value + move.to(value.device)) for _, move in pairs)]
    logprobs = place.after(row, patches, every_token)
    return [
        replace(claim, direct=float(logprobs[number, claim.token] - logprobs[0, claim.token]))
        for number, (claim, _) in enumerate(pairs, start=1)
    ]


def _tested(
    reader: Reader,
    place: Place,
    cell: Cell,
    asked: Sequence[float],
    generator: torch.Generator,
) -> tuple[Claim, Float[Tensor, " d_model"]]:
    """Return the claim without `direct`, and its main move."""
    last = cell.position
    value = place.values(cell.row)[last]
    before = reader.logprobs(value[None], cell.row)[0]
    token = int(before.argmax())
    points, length = _moved(reader, value, cell.row, token, asked)
    move = points[0] - value
    around = _around(value, move, length[0], generator)
    every = torch.cat([value[None], points, around])
    read = _changes(reader.logprobs(every, cell.row)[:, token])
    output = place.after(cell.row, [(last, point) for point in every], of_token(token))
    found = _changes(output)
    moves, others = slice(1, 1 + len(asked)), slice(1 + len(asked), None)
    reached = length > 0
    claim = Claim(
        cell=cell,
        token=token,
        logprob=float(before[token]),
        output=float(place.logprobs[token]),
        asked=tuple(asked),
        predicted=_known(read[moves], reached),
        actual=_known(found[moves], reached),
        size=_known(length / value.to(length.dtype).norm(), reached),
        random=float(found[others].abs().mean()) if reached[0] else math.nan,
        random_lens=float(read[others].abs().mean()) if reached[0] else math.nan,
        noise=abs(float(output[0] - place.logprobs[token])),
    )
    return claim, move


def _moved(
    reader: Reader,
    value: Float[Tensor, " d_model"],
    row: int,
    token: int,
    asked: Sequence[float],
) -> tuple[Float[Tensor, "move d_model"], Float[Tensor, " move"]]:
    """Return the value moved for each change, and how far: 0 where no move reaches it."""
    gradient = reader.gradient(value, row, token)
    slope, size = float(gradient.norm()), float(value.to(gradient.dtype).norm())
    wanted = torch.tensor(asked, dtype=gradient.dtype, device=value.device)
    if not (math.isfinite(slope) and slope > 0):
        return value.expand(len(asked), -1), torch.zeros_like(wanted)

    def at(steps: Float[Tensor, " step"]) -> Float[Tensor, "step d_model"]:
        return (value + steps[:, None] * (gradient / slope)).to(value.dtype)

    before = reader.logprobs(value[None], row)[0, token]

    def change(steps: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
        return reader.logprobs(at(steps), row)[:, token] - before

    steps = steps_for(change, slope, wanted, _FARTHEST * size).nan_to_num(0.0)
    points = at(steps)
    # in bfloat16 a value moves by more or less than was asked for
    return points, (points - value).to(gradient.dtype).norm(dim=-1)


def _around(
    value: Float[Tensor, " d_model"],
    move: Float[Tensor, " d_model"],
    length: Float[Tensor, ""],
    generator: torch.Generator,
) -> Float[Tensor, "move d_model"]:
    """Return the value moved as far in random directions at a right angle to a move."""
    shape = (RANDOM // 2, len(value))
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    along = move.to("cpu", torch.float64)
    along = along / along.norm().clamp(min=torch.finfo(torch.float64).tiny)
    drawn = drawn - (drawn @ along)[:, None] * along
    drawn = drawn / drawn.norm(dim=-1, keepdim=True) * float(length)
    return (value + torch.cat([drawn, -drawn]).to(value.device)).to(value.dtype)


def _changes(logprobs: Float[Tensor, " point"]) -> Float[Tensor, " point"]:
    """Return the changes from the first, the value as it is."""
    wide = logprobs.to("cpu", torch.float64)
    return wide - wide[0]


def _known(values: Float[Tensor, " move"], reached: Bool[Tensor, " move"]) -> tuple[float, ...]:
    known = values.cpu().to(torch.float64).masked_fill(~reached.cpu(), torch.nan)
    return tuple(known.tolist())
