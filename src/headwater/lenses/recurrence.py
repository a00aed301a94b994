"""Is a token kept for later use? The residual at a token that recurs is taken away, and the output
just before it recurs is looked at.

Position j - 1 predicts token j. If token j was read before, at position i, and the residual at i is
what that prediction rests on, the token's log-probability falls when that residual is replaced.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.attribution.checks import refuse_modes
from headwater.errors import PromptError
from headwater.lenses.asked import Prompt, Prompts, batches
from headwater.lenses.causal.kept import Kept, Patched, kept_rows
from headwater.lenses.causal.places import Place, of_token
from headwater.lenses.causal.reader import Reader, refuse_no_sample
from headwater.lenses.provenance import provenance
from headwater.lenses.readout import refuse_unknown
from headwater.lenses.tokens import texts
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.taps import keeper

Off = Literal["mean", "resample"]
NEARBY = (2, 5)
"""How far a control lies from the position it stands beside: not next to it, where a model finds
what comes before a token and after it."""
_BATCH = 8


@dataclass(frozen=True)
class Use:
    """A position, and a later one at which the same, or another, token follows."""

    prompt: int
    source: int
    """The position whose residual is replaced."""
    target: int
    """The position whose token is predicted, by the one before it."""
    control: int | None = None
    """Another position, near the source, that is replaced beside it."""


def kept(
    model: Model,
    prompts: Prompts,
    *,
    layers: Sequence[int] | None = None,
    sublayers: bool = False,
    off: Off = "mean",
    sample: int = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> Kept:
    """Measure whether the residual at a token is what its recurrence is predicted from.

    Args:
        model: A causal language model.
        prompts: As for `hw.lens`.
        layers: Replace after these layers only; the input and the last layer are always there.
        sublayers: Replace between attention and MLP too.
        off: As for `kept_in`.
        sample: Likewise.
        seed: Likewise.
        progress: Likewise.

    Returns:
        Effects a row, with intervals over prompts.

    Raises:
        PromptError: If no token recurs, or there is no prompt.
        UnknownOptionError: If there is no such layer or option.
        ModelStateError: If dropout is active, or a mode of torch is in the way.
    """
    reader = Reader.of_prompts(model, prompts, layers=layers, sublayers=sublayers)
    return kept_in(reader, off=off, sample=sample, seed=seed, progress=progress)


def kept_in(
    reader: Reader,
    *,
    off: Off = "mean",
    sample: int = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> Kept:
    """Measure whether the residual at a token is what its recurrence is predicted from.

    For a token at position i that next recurs at j, the residual at i is replaced, a row at a
    time, and the log-probability of the token at position j - 1 is compared with that of the run
    as it is: positive effects support the prediction. Beside it stand the effect of replacing a
    position nearby, which shows what any damage does, and that of replacing a token that does not
    recur on the token that follows at the same distance. A prompt's first position is left out
    (models use it as a place to look at when there is nothing to look for), and so are tokens
    that recur at once, where nothing has to be kept.

    Args:
        reader: The lens: its prompts and rows, and how well it shows each token.
        off: What is put there: `"mean"`, the row's mean over all positions but first ones, or
            `"resample"`, the residual of a position drawn at random.
        sample: How many recurrences are looked at.
        seed: Of all draws.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        Effects a row, with intervals over prompts.

    Raises:
        PromptError: If no token recurs.
        UnknownOptionError: If there is no such option.
        ModelStateError: If dropout is active, or a mode of torch is in the way.
    """
    refuse_unknown("off", off, ("mean", "resample"))
    refuse_no_sample(sample)
    refuse_modes()
    model, draw = reader.model, random.Random(seed)
    recurring, once = uses(reader.prompts)
    if not recurring:
        raise PromptError(_without_recurrence(reader.prompts))
    chosen = sorted(draw.sample(range(len(recurring)), min(sample, len(recurring))))
    picked = [with_control(recurring[one], reader.prompts, draw) for one in chosen]
    beside = [alike(one, once, reader.prompts, draw) for one in picked]
    found: list[Patched] = []
    with model.frozen(), progress_bar("lens kept", len(picked), show=progress) as advance:
        values = _Off(reader, off, draw)
        for use, other in zip(picked, beside, strict=True):
            found += _patched(reader, values, use, other)
            advance(1)
    over = "prompts" if len({one.prompt for one in picked}) > 1 else "tokens"
    return Kept(
        figures=kept_rows(reader.rows, found, over, seed),
        findings=tuple(found),
        recurrences=len(recurring),
        over=over,
        vocabulary=_vocabulary(model, found),
        provenance=provenance(model, off=off, sample=sample, seed=seed),
    )


def uses(prompts: Sequence[Prompt]) -> tuple[list[Use], list[Use]]:
    """Return tokens with their first recurrence, and tokens that do not recur.

    Args:
        prompts: Encoded prompts.

    Returns:
        Two lists; the target of a token that does not recur is its prompt's end.
    """
    recurring, once = [], []
    for number, prompt in enumerate(prompts):
        ids = prompt.ids
        following: dict[int, int] = {}
        later: dict[int, int] = {}
        for position in reversed(range(len(ids))):
            if ids[position] in following:
                later[position] = following[ids[position]]
            following[ids[position]] = position
        for position in range(1, len(ids)):
            if position not in later:
                once.append(Use(number, position, len(ids)))
            elif later[position] > position + 1:
                recurring.append(Use(number, position, later[position]))
    return recurring, once


def with_control(use: Use, prompts: Sequence[Prompt], draw: random.Random) -> Use:
    """Return the same with a position nearby, before the target's, that holds another token."""
    ids = prompts[use.prompt].ids
    least, most = NEARBY
    near = [
        position
        for position in range(max(1, use.source - most), min(use.target, use.source + most + 1))
        if abs(position - use.source) >= least
        and position != use.target - 1
        and ids[position] != ids[use.target]
    ]
    return Use(use.prompt, use.source, use.target, draw.choice(near) if near else None)


def alike(
    use: Use, once: Sequence[Use], prompts: Sequence[Prompt], draw: random.Random
) -> Use | None:
    """Return a token that does not recur, and what follows it at the same distance.

    Of the same prompt if there is one.
    """
    distance = use.target - use.source
    fitting = [one for one in once if one.source + distance < len(prompts[one.prompt].ids)]
    own = [one for one in fitting if one.prompt == use.prompt]
    if not fitting:
        return None
    chosen = draw.choice(own or fitting)
    return Use(chosen.prompt, chosen.source, chosen.source + distance)


class _Off:
    """What is put in place of a residual, by row."""

    def __init__(self, reader: Reader, off: Off, draw: random.Random) -> None:
        self.reader, self.draw = reader, draw
        self.means = self._averaged() if off == "mean" else None
        self.places = [
            (prompt, position)
            for prompt, one in enumerate(reader.prompts)
            for position in range(1, len(one.ids))
        ]

    def of(self, use: Use) -> list[Float[Tensor, " d_model"]]:
        """Return what is put in for one use, by row."""
        if self.means is not None:
            return self.means
        own = (use.prompt, use.source)
        prompt, position = self.draw.choice([one for one in self.places if one != own])
        reader = self.reader
        place = Place(reader.model, reader.rows, reader.prompts[prompt].ids[: position + 1])
        return [place.values(row)[-1] for row in range(len(reader.rows))]

    @torch.no_grad()
    def _averaged(self) -> list[Float[Tensor, " d_model"]]:
        reader, rows = self.reader, range(len(self.reader.rows))
        total = torch.zeros(len(rows), reader.model.anatomy().d_model, dtype=torch.float64)
        count = 0
        for batch in batches(reader.model, reader.prompts, _BATCH):
            seen: dict[int, Tensor] = {}
            reader.model.forward(
                batch.clean,
                mask=batch.mask,
                position_ids=batch.position_ids,
                taps={reader.rows[row].site: keeper(seen, row) for row in rows},
                read=1,
            )
            real = batch.mask & (batch.position_ids > 0)
            for row in rows:
                stream = seen[row][real.to(seen[row].device)]
                total[row] += stream.to(torch.float64).sum(0).cpu()
            count += int(real.sum())
        return list((total / count).to(reader.model.dtype))


def _patched(reader: Reader, values: _Off, use: Use, other: Use | None) -> list[Patched]:
    """Return the effects of one recurrence and of what stands beside it, at every row."""
    off = values.of(use)
    token = reader.prompts[use.prompt].ids[use.target]
    place = _place(reader, use)
    beside = None if other is None else _place(reader, other)
    found = []
    for row in range(len(reader.rows)):
        own = _effects(reader, place, use, row, off[row])
        alike = math.nan
        if beside is not None and other is not None:
            alike = _effects(reader, beside, other, row, off[row]).effects[0]
        found.append(
            Patched(
                row=row,
                prompt=use.prompt,
                source=use.source,
                target=use.target,
                token=token,
                effect=own.effects[0],
                control=own.effects[1] if use.control is not None else math.nan,
                alike=alike,
                noise=own.noise,
                rank=_rank(reader, place.values(row)[use.source], row, token),
            )
        )
    return found


def _place(reader: Reader, use: Use) -> Place:
    return Place(reader.model, reader.rows, reader.prompts[use.prompt].ids[: use.target])


class _Effects(NamedTuple):
    effects: list[float]
    noise: float


def _effects(
    reader: Reader, place: Place, use: Use, row: int, off: Float[Tensor, " d_model"]
) -> _Effects:
    """Return what the target's log-probability loses by each replacement: f(clean) - f(patched)."""
    sources = [use.source] + ([] if use.control is None else [use.control])
    # the clean run is stacked with the others: all products have one shape
    patches = [(use.source, place.values(row)[use.source]), *((one, off) for one in sources)]
    token = reader.prompts[use.prompt].ids[use.target]
    logprobs = place.after(row, patches, of_token(token)).to("cpu", torch.float64)
    noise = abs(float(logprobs[0] - place.logprobs[token]))
    return _Effects((logprobs[0] - logprobs[1:]).tolist(), noise)


def _rank(reader: Reader, value: Float[Tensor, " d_model"], row: int, token: int) -> float:
    """Return a token's rank in the lens, those level with it counted half."""
    logprobs = reader.logprobs(value[None], row)[0]
    above, level = (logprobs > logprobs[token]).sum(), (logprobs == logprobs[token]).sum()
    return float(above + (level + 1) / 2)


def _vocabulary(model: Model, found: Sequence[Patched]) -> dict[int, str]:
    ids = sorted({one.token for one in found})
    return dict(zip(ids, texts(model, ids), strict=True))


def _without_recurrence(prompts: Sequence[Prompt]) -> str:
    longest = max(len(one.ids) for one in prompts)
    if longest == 1:
        return (
            "every prompt is one token, so no token can recur.\n"
            "Give texts in which words are said again."
        )
    many = "the prompt" if len(prompts) == 1 else f"any of the {len(prompts)} prompts"
    return (
        f"no token recurs later in {many} (the first position, and tokens that recur at once, "
        "left out), so there is nothing that could be kept for later.\n"
        "Give longer texts, in which words are said again."
    )
