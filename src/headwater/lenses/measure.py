"""One batch of prompts read at every row: one forward, then one pass over the logits of all rows.

Memory: the residual stream at the rows, three times while it is put together and normed, and a few
tiles of logits. Nothing of the size `[row, position, vocab]` exists at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.errors import FailedProofError
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import prompts_of, read_rows
from headwater.lenses.rows import Row
from headwater.lenses.sums import Mixtures, Sums
from headwater.models import Model
from headwater.prompts import Batch

INPUT, NEXT, FINAL = range(3)
"""The first targets that are ranked: the token read, the token that follows, the model's choice."""
NO_TOKEN = -1

_PAIRS = 2**22
"""Most numbers `[position, row, row]` at once."""

Translate = Callable[[Float[Tensor, "row position d_model"], Sequence[Row]], Tensor]


@dataclass(frozen=True)
class Plan:
    """What is read, and which statistics of it."""

    rows: tuple[Row, ...]
    best: int = 10
    """How many of the best tokens are kept."""
    mixtures: tuple[int, ...] = ()
    """Rows that all others are compared with by JS and TV; none leaves the second pass out."""
    tokens: tuple[int, ...] = ()
    """Tokens that are ranked at every position."""
    controls: int = 0
    """How many tokens of other positions are ranked at each."""
    seed: int = 0
    followed: int = 0
    """How many tokens of each position are followed through the rows, for a page."""
    translate: Translate | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What a batch says, one entry a real token: position, row and what is counted."""

    prompt: Int[Tensor, " position"]
    place: Int[Tensor, " position"]
    """The token's number in its prompt."""
    targets: Int[Tensor, "position target"]
    """Input, next, final's best, then the plan's tokens, then controls; -1 where there is none."""
    rms: Float[Tensor, "position row"]
    log_norm: Float[Tensor, "position row"]
    mean_logit: Float[Tensor, "position row"]
    entropy: Float[Tensor, "position row"]
    kl: Float[Tensor, "position row row"]
    """KL(l || k), l before k."""
    logits: Float[Tensor, "position row target"]
    strict: Float[Tensor, "position row target"]
    ties: Float[Tensor, "position row target"]
    top: Int[Tensor, "position row best"]
    top_logits: Float[Tensor, "position row best"]
    js: Float[Tensor, "position row against"] | None
    tv: Float[Tensor, "position row against"] | None
    followed: Int[Tensor, "position followed"]
    """Tokens worth following through the rows; -1 where there are fewer."""
    followed_logits: Float[Tensor, "position row followed"]

    def kept(self, dtype: torch.dtype) -> Measured:
        """Return the same in the computer's own memory, floating numbers in this format."""
        changed = {
            one.name: value.to("cpu", dtype if value.is_floating_point() else value.dtype)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **changed)


@torch.no_grad()
def measure(model: Model, readout: Readout, batch: Batch, plan: Plan, *, check: bool) -> Measured:
    """Run a batch once and read every row.

    Args:
        model: The model, frozen.
        readout: Its norm and head.
        batch: Prompts, padded on the left.
        plan: What to read.
        check: Whether to hold the readout of the last row against the model's own logits.

    Raises:
        FailedProofError: If the two differ.
        NonFiniteError: If a logit is NaN or infinite.
    """
    values, logits = read_rows(model, batch, plan.rows)
    if check:
        last = values[-1:, batch.mask.sum(-1).cumsum(0) - 1]
        _prove(readout, last, plan.rows[-1], logits)
    del logits
    flat = _Flat.of(batch)
    step = max(16, _PAIRS // len(plan.rows) ** 2)
    parts = [
        _Part(readout, plan, flat, first, min(first + step, len(flat))).measured(values)
        for first in range(0, len(flat), step)
    ]
    return joined(parts)


@dataclass(frozen=True, eq=False)
class _Flat:
    """The real tokens of a batch, one after another."""

    prompt: Int[Tensor, " position"]
    place: Int[Tensor, " position"]
    token: Int[Tensor, " position"]
    following: Int[Tensor, " position"]

    def __len__(self) -> int:
        return len(self.token)

    @classmethod
    def of(cls, batch: Batch) -> _Flat:
        mask, ids = batch.mask, batch.clean
        following = torch.full_like(ids, NO_TOKEN)
        following[:, :-1] = ids[:, 1:]
        return cls(prompts_of(batch), batch.position_ids[mask], ids[mask], following[mask])


class _Part:
    """Some positions of a batch: the sums over the vocabulary, and what follows from them."""

    def __init__(self, readout: Readout, plan: Plan, flat: _Flat, first: int, end: int) -> None:
        self.readout, self.plan, self.flat = readout, plan, flat
        self.place = slice(first, end)

    def measured(self, values: Float[Tensor, "row position d_model"]) -> Measured:
        readout, plan, flat, place = self.readout, self.plan, self.flat, self.place
        own = values[:, place]
        # row by row: in float64 all rows at once would take several times the residual's memory
        sizes = [one.to(torch.float64, copy=True).square_().mean(-1).sqrt() for one in own]
        rms = torch.stack(sizes, dim=1)
        if plan.translate is not None:
            own = plan.translate(own, plan.rows)
        normed = readout.normed(own, plan.rows)
        targets = self._targets(normed)
        known = targets.clamp(min=0)
        sums = Sums(readout.at(normed, known), known, plan.best, self._where)
        for tile in readout.tiles(normed):
            sums.add(tile)
        log_norm = sums.log_norm()
        js = tv = None
        if plan.mixtures:
            mixtures = Mixtures(log_norm, plan.mixtures)
            for tile in readout.tiles(normed):
                mixtures.add(tile)
            js, tv = mixtures.js, mixtures.tv
        strict, ties = sums.ranks()
        followed = _followed(targets, sums.tokens[..., 0], plan.followed)
        return Measured(
            prompt=flat.prompt[place],
            place=flat.place[place],
            targets=targets,
            rms=rms,
            log_norm=log_norm,
            mean_logit=sums.mean_logit(),
            entropy=sums.entropy(),
            kl=sums.divergences(),
            logits=sums.wanted,
            strict=strict,
            ties=ties,
            top=sums.tokens,
            top_logits=sums.best,
            js=js,
            tv=tv,
            followed=followed,
            followed_logits=readout.at(normed, followed.clamp(min=0)),
        ).kept(readout.dtype)

    def _targets(self, normed: Tensor) -> Int[Tensor, "position target"]:
        """Return the tokens that are ranked at each position."""
        flat, plan, place = self.flat, self.plan, self.place
        chosen = self._choice(normed[:, -1:])
        count = len(chosen)
        given = torch.tensor(plan.tokens, dtype=torch.long, device=chosen.device)
        columns = [flat.token[place], flat.following[place], chosen]
        columns += [one.expand(count) for one in given]
        if plan.controls:
            columns += list(control_tokens(flat.token, plan.controls, plan.seed)[:, place])
        return torch.stack(columns, dim=1)

    def _choice(self, final: Float[Tensor, "position one d_model"]) -> Int[Tensor, " position"]:
        """Return the best token of the final row."""
        best = final.new_full((len(final),), -torch.inf)
        token = torch.zeros(len(final), dtype=torch.long, device=final.device)
        for tile in self.readout.tiles(final):
            place = slice(tile.first, tile.first + len(tile.logits))
            value, index = tile.logits[:, 0].max(-1)
            better = value > best[place]
            token[place] = torch.where(better, index + tile.token, token[place])
            best[place] = torch.where(better, value, best[place])
        return token

    def _where(self, position: int, row: int) -> str:
        position += self.place.start
        prompt, place = int(self.flat.prompt[position]), int(self.flat.place[position])
        return f"prompt {prompt}, position {place}, row {self.plan.rows[row].name}"


def _followed(
    targets: Int[Tensor, "position target"], best: Int[Tensor, "position row"], count: int
) -> Int[Tensor, "position followed"]:
    """Return input, next, and the best token of every row, the last rows first, none twice."""
    listed = torch.cat([targets[:, [INPUT, NEXT]], best.flip(-1)], dim=1)
    found = []
    for tokens in listed.tolist() if count else [()] * len(listed):
        once = [one for one in dict.fromkeys(tokens) if one != NO_TOKEN][:count]
        found.append(once + [NO_TOKEN] * (count - len(once)))
    return torch.tensor(found, device=listed.device, dtype=torch.long).view(len(listed), count)


def control_tokens(
    tokens: Int[Tensor, " position"], count: int, seed: int
) -> Int[Tensor, "control position"]:
    """Return tokens of other positions, each a permutation of all of them."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(tokens), generator=generator) for _ in range(count)]
    return torch.stack([tokens[order.to(tokens.device)] for order in orders])


def joined(parts: Sequence[Measured]) -> Measured:
    """Return the parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    columns = {}
    for one in fields(Measured):
        found = [getattr(part, one.name) for part in parts]
        columns[one.name] = None if found[0] is None else torch.cat(found)
    return Measured(**columns)


def _prove(
    readout: Readout,
    last: Float[Tensor, "one batch d_model"],
    row: Row,
    logits: Float[Tensor, "batch vocab"],
) -> None:
    """Refuse a readout that does not make the model's own logits of its last residual."""
    if readout.decode_with == "embedding":
        return  # another reading, on purpose
    own = logits.to(readout.dtype)
    found = torch.full_like(own, torch.nan)
    for tile in readout.tiles(readout.normed(last, [row])):
        rows, tokens = tile.logits.shape[0], tile.logits.shape[-1]
        found[tile.first : tile.first + rows, tile.token : tile.token + tokens] = tile.logits[:, 0]
    usable = own.isfinite()
    if usable.sum() < 2:
        return  # no prediction at all: the sums will say where
    spread = own[usable].std()
    error = (found - own)[usable].abs().max() / spread
    allowed = max(1e-4, 8 * torch.finfo(readout.model.dtype).eps)
    if not error <= allowed:
        raise FailedProofError(
            f"the readout of the last residual differs from the logits of {readout.model.name} by "
            f"{float(error):.1e} of their spread (allowed {allowed:.0e}), so what it says of "
            "earlier layers could not be trusted.\nIs a hook of yours on the head? Remove it, or "
            "wrap the module anew."
        )
