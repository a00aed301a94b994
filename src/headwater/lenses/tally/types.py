"""What becomes of each token type along the rows, at its own positions and at others.

A token that is common may rank high everywhere, read or not. So beside the rank of the token that
was read at a position stand the ranks of tokens that were read at *other* positions, each put down
to the token that was ranked: the base rate of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_START = 256
"""Types there is room for at first; the room doubles when it is full."""

RECURS, ONCE = range(2)
"""Whether the token occurs again later in its prompt: a model may keep it to say it again."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The tokens that some positions are about, and what the rows say of them."""

    token: Int[Tensor, " position"]
    recurs: Bool[Tensor, " position"]
    log_rank: Float[Tensor, "position row"]
    kl_ref: Float[Tensor, "position row"]
    """KL(first || layer)."""
    kl_layer: Float[Tensor, "position row"]
    """KL(layer || first)."""
    control: Int[Tensor, " pair"]
    """Tokens of other positions."""
    control_log_rank: Float[Tensor, "pair row"]


@dataclass(eq=False)
class Types:
    """Sums over positions, of each token type that was seen; grows with the vocabulary in use."""

    rows: int
    kept_rank: float
    """A token counts as kept as long as its rank is at most this."""
    kept_kl: float
    """The first row's prediction counts as kept as long as KL is at most this, in nats."""
    tokens: list[int] = field(default_factory=list)
    """The types, in the order in which they were first seen."""
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._places = {token: place for place, token in enumerate(self.tokens)}
        if not self.sums:
            self.sums = {
                name: torch.zeros(_START, *shape) for name, shape in self._shapes().items()
            }
            self.sums = {name: one.to(torch.float64) for name, one in self.sums.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        own, control = (2, self.rows), (self.rows,)
        return {
            "count": (2,),
            "log_rank": own,
            "kl_ref": own,
            "kl_layer": own,
            "kept": own,
            "kept_ref": own,
            "kept_layer": own,
            "control_count": (),
            "control_log_rank": control,
            "control_kept": control,
        }

    def add(self, seen: Seen) -> None:
        """Take positions in."""
        own, control = self._placed(seen.token), self._placed(seen.control)
        group = torch.where(seen.recurs, RECURS, ONCE)
        bar = torch.tensor(self.kept_rank, dtype=torch.float64).log()
        ours = {
            "count": torch.ones(len(own), dtype=torch.float64),
            "log_rank": seen.log_rank,
            "kl_ref": seen.kl_ref,
            "kl_layer": seen.kl_layer,
            "kept": _so_far(seen.log_rank <= bar),
            "kept_ref": _so_far(seen.kl_ref <= self.kept_kl),
            "kept_layer": _so_far(seen.kl_layer <= self.kept_kl),
        }
        for name, values in ours.items():
            self.sums[name].flatten(0, 1).index_add_(0, 2 * own + group, values)
        theirs = {
            "control_count": torch.ones(len(control), dtype=torch.float64),
            "control_log_rank": seen.control_log_rank,
            "control_kept": _so_far(seen.control_log_rank <= bar),
        }
        for name, values in theirs.items():
            self.sums[name].index_add_(0, control, values)

    def of(self, name: str) -> Tensor:
        """Return a sum of each type, `[type, ...]`."""
        return self.sums[name][: len(self.tokens)]

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors."""
        tokens = torch.tensor(self.tokens, dtype=torch.int64)
        kept = torch.tensor([self.kept_rank, self.kept_kl], dtype=torch.float64)
        return {
            "tokens": tokens,
            "kept": kept,
            **{f"sum.{name}": self.of(name) for name in self.sums},
        }

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> Types:
        """Return what `state` was of."""
        sums = {name[4:]: value.clone() for name, value in state.items() if name[:4] == "sum."}
        rank, kl = state["kept"].tolist()
        return cls(sums["log_rank"].shape[-1], rank, kl, state["tokens"].tolist(), sums)

    def _placed(self, tokens: Int[Tensor, " position"]) -> Int[Tensor, " position"]:
        """Return where each token's sums are, with room for new ones."""
        known, which = tokens.unique(return_inverse=True)
        for token in known.tolist():
            if token not in self._places:
                self._places[token] = len(self.tokens)
                self.tokens.append(token)
        room = len(self.sums["count"])
        while room < len(self.tokens):
            room = max(2 * room, _START)
        for name, values in self.sums.items():
            if len(values) < room:
                more = values.new_zeros(room - len(values), *values.shape[1:])
                self.sums[name] = torch.cat([values, more])
        places = torch.tensor([self._places[token] for token in known.tolist()], dtype=torch.int64)
        return places[which]


def _so_far(kept: Bool[Tensor, "position row"]) -> Float[Tensor, "position row"]:
    """Return 1 at the rows before the first at which it is not kept."""
    return kept.to(torch.float64).cumprod(-1)


def recurring(
    tokens: Int[Tensor, " position"], place: Int[Tensor, " position"]
) -> Bool[Tensor, " position"]:
    """Return where a token occurs again later in its prompt.

    Args:
        tokens: The tokens of prompts that stand one after another.
        place: Their number in the prompt: a prompt begins at 0.
    """
    prompt = (place == 0).cumsum(0)
    order = torch.argsort(tokens, stable=True)
    order = order[torch.argsort(prompt[order], stable=True)]  # by prompt, token, position
    same = (tokens[order][1:] == tokens[order][:-1]) & (prompt[order][1:] == prompt[order][:-1])
    found = torch.zeros(len(tokens), dtype=torch.bool)
    found[order[:-1][same]] = True
    return found
