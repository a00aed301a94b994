"""The statistics of a lens by name, each `[position, row]`, with its definition.

Rows are compared with two of them: `final`, the last residual, whose reading is the model's own
prediction, and `first`, the residual that enters layer 0. All divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError, did_you_mean
from headwater.lenses.measure import FINAL, INPUT, NEXT, NO_TOKEN, Measured

Scale = Literal["linear", "log", "diverging"]
Group = Literal["KL", "rank", "distance", "own"]
TARGETS = {"input": INPUT, "next": NEXT, "final": FINAL}
"""Tokens that every position has, by name."""


@dataclass(frozen=True)
class Statistic:
    """One number a position and row."""

    key: str
    """What `lens["..."]`, tables, files and the command line call it."""
    title: str
    unit: str
    explain: str
    scale: Scale
    group: Group
    of: Callable[[Measured], Float[Tensor, "position row"] | None]
    """None where it was not computed."""


def logprob(measured: Measured, target: int) -> Float[Tensor, "position row"]:
    """Return the log-probability of a target, NaN where there is none."""
    found = measured.logits[..., target] - measured.log_norm
    return _where_known(measured, target, found)


def rank(measured: Measured, target: int) -> Float[Tensor, "position row"]:
    """Return the mid-rank of a target, from 1: those above, and half of those level with it."""
    found = measured.strict[..., target] + measured.ties[..., target] / 2
    return _where_known(measured, target, found)


def _where_known(measured: Measured, target: int, found: Tensor) -> Tensor:
    unknown = measured.targets[:, target] == NO_TOKEN
    return found.masked_fill(unknown[:, None], torch.nan)


def _kl(reference: int, *, forward: bool) -> Callable[[Measured], Tensor]:
    def of(measured: Measured) -> Tensor:
        return measured.kl[:, reference, :] if forward else measured.kl[:, :, reference]

    return of


def _mixture(name: str, place: int) -> Callable[[Measured], Tensor | None]:
    def of(measured: Measured) -> Tensor | None:
        found: Tensor | None = getattr(measured, name)
        return None if found is None else found[..., place]

    return of


def _of_target(
    function: Callable[[Measured, int], Tensor], target: str
) -> Callable[[Measured], Tensor]:
    return lambda measured: function(measured, TARGETS[target])


def _best(measured: Measured) -> Tensor:
    return (measured.top_logits[..., 0] - measured.log_norm).exp()


def _margin(measured: Measured) -> Tensor | None:
    if measured.top_logits.shape[-1] < 2:
        return None
    return measured.top_logits[..., 0] - measured.top_logits[..., 1]


def _agrees(measured: Measured) -> Tensor:
    # nothing above the final row's best token: ties count as agreement
    return (measured.strict[..., FINAL] == 1).to(torch.float64)


def _centered(measured: Measured, target: int) -> Tensor:
    found = measured.logits[..., target] - measured.mean_logit
    return _where_known(measured, target, found)


_WHAT = {"final": "the final row", "first": "the input row"}
_WHOSE = {
    "input": "the token read at this position",
    "next": "the token that follows",
    "final": "the token that the final row ranks first",
}


def _divergences() -> list[Statistic]:
    found = []
    for reference, row in (("final", -1), ("first", 0)):
        for forward in (True, False):
            pair = (reference, "layer") if forward else ("layer", reference)
            told = "the layer" if forward else _WHAT[reference]
            found.append(
                Statistic(
                    f"kl({pair[0]}||{pair[1]})",
                    f"KL({pair[0]} || {pair[1]})",
                    "nats",
                    f"Sum of p (log p - log q) over the vocabulary, p of {_WHAT[reference]} and q "
                    f"of the layer: what is lost by taking {told} for it."
                    if forward
                    else "Sum of p (log p - log q) over the vocabulary, p of the layer and q of "
                    f"{_WHAT[reference]}: what is lost by taking {told} for the layer.",
                    "log",
                    "KL",
                    _kl(row, forward=forward),
                )
            )
    return found


def _mixtures() -> list[Statistic]:
    return [
        Statistic(
            f"{name}({reference})",
            f"{title} to {reference}",
            unit,
            f"{explain} Against {_WHAT[reference]}.",
            "linear",
            "distance",
            _mixture(name, place),
        )
        for place, reference in enumerate(("final", "first"))
        for name, title, unit, explain in (
            ("js", "Jensen-Shannon divergence", "nats",
             "KL of each of the two to their mean, averaged: symmetric, at most ln 2."),
            ("tv", "total variation", "",
             "Half the sum of the absolute differences of probabilities: 0 to 1."),
        )
    ]  # fmt: skip


def _targets() -> list[Statistic]:
    found = []
    for name, whose in _WHOSE.items():
        found += [
            Statistic(
                f"rank({name})",
                f"rank of {name}",
                "",
                f"Rank of {whose} among all tokens, from 1; ties count half.",
                "log",
                "rank",
                _of_target(rank, name),
            ),
            Statistic(
                f"logprob({name})",
                f"log-probability of {name}",
                "nats",
                f"Log-probability of {whose}"
                + ("; its negative is the cross-entropy." if name == "next" else "."),
                "linear",
                "own",
                _of_target(logprob, name),
            ),
            Statistic(
                f"centered({name})",
                f"centered logit of {name}",
                "",
                f"Logit of {whose} minus the mean logit: logits are defined up to a shift.",
                "diverging",
                "own",
                _of_target(_centered, name),
            ),
        ]
    return found


STATISTICS: tuple[Statistic, ...] = (
    *_divergences(),
    *(one for one in _targets() if one.group == "rank"),
    *_mixtures(),
    Statistic("agrees", "same best token as final", "", "1 where no token has a higher logit than "
              "the final row's best one.", "linear", "own", _agrees),
    Statistic("entropy", "entropy", "nats", "-sum of p log p: its exponential is how many tokens "
              "are effectively in play.", "linear", "own", lambda one: one.entropy),
    *(one for one in _targets() if one.group != "rank"),
    Statistic("max-prob", "probability of the best token", "", "The largest probability.",
              "linear", "own", _best),
    Statistic("margin", "margin", "", "Best logit minus the second best.", "linear", "own",
              _margin),
    Statistic("rms", "size of the residual", "", "Root mean square of the value that is read, "
              "before any norm.", "log", "own", lambda one: one.rms),
)  # fmt: skip

BY_KEY = {one.key: one for one in STATISTICS}


def columns(measured: Measured) -> dict[str, Float[Tensor, "position row"]]:
    """Return every statistic that was computed, by key."""
    found = {one.key: one.of(measured) for one in STATISTICS}
    return {key: value for key, value in found.items() if value is not None}


def not_computed(key: str, computed: Iterable[str]) -> UnknownOptionError:
    """Return the error that there is no such statistic, or that it was left out.

    Args:
        key: What was asked for.
        computed: The keys of those that there are.
    """
    if key in BY_KEY:
        option = "mixtures=True" if BY_KEY[key].group == "distance" else "best=2"
        return UnknownOptionError(f"{key} was not computed.\nRead with {option} for it.")
    computed = list(computed)
    return UnknownOptionError(
        f"no statistic {key!r}.{did_you_mean(key, computed)}\nStatistics: {', '.join(computed)}."
    )
