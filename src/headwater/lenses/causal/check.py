"""Does the output follow what a lens says? Residuals are moved, and the model runs on from there.

Costs, a place and row, one stacked run of the layers behind the row.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from headwater.attribution.checks import refuse_modes
from headwater.errors import PromptError, UnknownOptionError
from headwater.lenses.causal.claims import Cell, Claim, tested
from headwater.lenses.causal.exchanges import Exchange, exchanged
from headwater.lenses.causal.figures import Groups, claim_row, exchange_row
from headwater.lenses.causal.places import Place
from headwater.lenses.causal.reader import Reader, refuse_no_sample
from headwater.lenses.causal.result import LensCheck
from headwater.lenses.provenance import provenance
from headwater.lenses.readout import refuse_unknown
from headwater.progress import progress_bar

How = Literal["claim", "resample"]
SIZES = (1.0, 0.25, 0.5, 2.0)
"""Falls and rises tried, as multiples of the main one, which comes first."""


def check(
    reader: Reader,
    *,
    cells: Sequence[tuple[str | int, int, int]] | None = None,
    sample: int = 32,
    seed: int = 0,
    how: How = "claim",
    nats: float = 1.0,
    progress: bool | None = None,
) -> LensCheck:
    """Compare what a lens predicts of a changed residual with what the output does.

    A lens reads a layer by the final norm and head, as if no layer came after it. Whether the
    model takes it that way is tested by changing the residual and running on from there.

    Args:
        reader: The lens: `Reader.of_lens(model, lens)`, or `Reader.of_prompts(model, prompts)`.
        cells: What to test: row (its name or layer), prompt, position. None: a sample of places,
            each at every row.
        sample: How many places are drawn.
        seed: Of all draws.
        how: `"claim"` moves the residual along the gradient of the lens's log-probability of its
            best token, as far as makes the lens give it `nats` less (and 0.25, 0.5 and 2 times as
            much, and as much more); beside it stand random moves of the same length.
            `"resample"` puts the residual of another position in, and compares changes over the
            best tokens.
        nats: The main change.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        Slopes of the actual by the predicted change, a row each.

    Raises:
        UnknownOptionError: If there is no such row, option or number.
        PromptError: If there is no such prompt or position, or no other one to exchange with.
        ModelStateError: If dropout is active, or a mode of torch is in the way.
    """
    refuse_unknown("how", how, ("claim", "resample"))
    refuse_no_sample(sample)
    if not nats > 0:
        raise UnknownOptionError(f"nats={nats!r}: a change is above 0.\nWrite nats=1.0.")
    refuse_modes()
    tester = _Tester(reader, how, nats, seed)
    chosen = tester.drawn(sample) if cells is None else tester.given(cells)
    places: dict[tuple[int, int], list[int]] = {}
    for row, prompt, position in chosen:
        places.setdefault((prompt, position), []).append(row)
    found: list[Claim | Exchange] = []
    model = reader.model
    with model.frozen(), progress_bar("lens check", len(places), show=progress) as advance:
        for place, rows in places.items():
            found += tester.at(place, rows)
            advance(1)
    return tester.result(found)


class _Tester:
    """Draws places, tests each, and puts the findings together."""

    def __init__(self, reader: Reader, how: How, nats: float, seed: int) -> None:
        self.reader, self.nats, self.seed = reader, nats, seed
        self.how: How = how
        self.lengths = [len(one.ids) for one in reader.prompts]
        self.places = [
            (prompt, position)
            for prompt, length in enumerate(self.lengths)
            for position in range(length)
        ]
        if how == "resample" and len(self.places) < 2:
            raise PromptError(
                "one token was read, so there is no other residual to put in.\n"
                "Give more text, or how='claim'."
            )
        self.draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.asked = tuple(sign * nats * size for sign in (-1, 1) for size in SIZES)

    def drawn(self, sample: int) -> list[Cell]:
        places = self.draw.sample(self.places, min(sample, len(self.places)))
        rows = range(len(self.reader.rows))
        return [Cell(row, *place) for place in sorted(places) for row in rows]

    def given(self, cells: Iterable[tuple[str | int, int, int]]) -> list[Cell]:
        found = [Cell(self.reader.row(row), *place) for row, *place in cells]
        if not found:
            raise PromptError("cells is empty, so nothing is tested.\nLeave it out for a sample.")
        for cell in found:
            if (cell.prompt, cell.position) not in self.places:
                raise PromptError(
                    f"no position {cell.position} in prompt {cell.prompt}: "
                    f"{_listed(self.lengths)}.\nPositions and prompts count from 0."
                )
        return list(dict.fromkeys(found))

    def at(self, place: tuple[int, int], rows: Sequence[int]) -> Sequence[Claim | Exchange]:
        run = self._place(place)
        cells = [Cell(row, *place) for row in rows]
        if self.how == "claim":
            return tested(self.reader, run, cells, self.asked, self.generator)
        donor = place
        while donor == place:
            donor = self.draw.choice(self.places)
        other = self._place(donor)
        return [exchanged(self.reader, run, one, donor, other.values(one.row)[-1]) for one in cells]

    def result(self, found: Sequence[Claim | Exchange]) -> LensCheck:
        over = "prompts" if len({one.cell.prompt for one in found}) > 1 else "positions"
        groups = Groups(over, self.seed)
        figures = []
        for number, row in enumerate(self.reader.rows):
            of_row = [one for one in found if one.cell.row == number]
            claims = [one for one in of_row if isinstance(one, Claim)]
            exchanges = [one for one in of_row if isinstance(one, Exchange)]
            if claims:
                figures.append(claim_row(row, claims, self.nats, groups))
            elif exchanges:
                figures.append(exchange_row(row, exchanges, groups))
        return LensCheck(
            how=self.how,
            nats=self.nats,
            figures=tuple(figures),
            findings=tuple(found),
            final=self.reader.rows[-1].name if self.reader.is_model_at_the_end else None,
            over=over,
            provenance=provenance(
                self.reader.model,
                how=self.how,
                nats=self.nats,
                seed=self.seed,
                readout=self.reader.readout.reading,
                decode_with=self.reader.readout.decode_with,
                translated=self.reader.translate is not None,
            ),
        )

    def _place(self, place: tuple[int, int]) -> Place:
        prompt, position = place
        ids = self.reader.prompts[prompt].ids[: position + 1]
        return Place(self.reader.model, self.reader.rows, ids)


def _listed(lengths: Sequence[int]) -> str:
    if len(lengths) == 1:
        return f"there is one prompt, of {lengths[0]} tokens"
    return f"there are {len(lengths)} prompts, of {min(lengths)} to {max(lengths)} tokens"
