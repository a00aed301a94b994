"""How a dictionary is trained: the settings, and what of them decides its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headwater.dictionaries import Activation, Relu, TopK
from headwater.errors import UnknownOptionError, did_you_mean
from headwater.saes.reading import refuse_not_positive

Kind = Literal["topk", "relu"]
K = 32
L1 = 0.1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a dictionary's numbers besides the model, the site and the corpus.

    Raises:
        UnknownOptionError: If a setting has no meaning, or belongs to the other kind.
    """

    features: int
    """How many features."""
    activation: Kind = "topk"
    """`topk`: the k largest at each position. `relu`: all that are positive, at a price."""
    k: int | None = None
    """Of `topk`; None: 32."""
    l1: float | None = None
    """Price of the sum of a position's features, of `relu`; None: 0.1. In units in which an
    activation varies by 1 a coordinate, over the square root of the width, beside the share of the
    variance that is lost."""
    steps: int = 2000
    """Steps of Adam."""
    tokens: int = 1024
    """Tokens a step."""
    learning_rate: float = 1e-3
    """Highest rate: reached after a twentieth of the steps, brought to zero in the last fifth."""
    buffer: int = 2**16
    """Tokens that are shuffled together."""
    batch_size: int = 8
    """Most prompts in a forward."""
    limit: int | None = None
    """Read at most this many prompts."""
    length: int | None = None
    """Cut each prompt to this many tokens."""
    skip: int = 0
    """Positions at the front of each prompt that are left out."""
    seed: int = 0
    """Of the initial weights, the order of tokens, and the features that are begun anew."""

    def __post_init__(self) -> None:
        refuse_unknown(self.activation)
        for name, of in {"k": "topk", "l1": "relu"}.items():
            if getattr(self, name) is not None and self.activation != of:
                raise UnknownOptionError(
                    f"activation={self.activation!r} has no {name}.\nLeave it out, or write "
                    f"activation={of!r}."
                )
        numbers = ("features", "k", "steps", "tokens", "learning_rate", "batch_size")
        refuse_not_positive(**{name: getattr(self, name) for name in (*numbers, "limit", "length")})
        if self.k is not None and self.k > self.features:
            raise UnknownOptionError(
                f"k={self.k} of {self.features} features: at most as many can be active as there "
                f"are.\nWrite k={max(1, self.features // 16)}."
            )
        for name in ("l1", "skip"):
            if (getattr(self, name) or 0) < 0:
                raise UnknownOptionError(f"{name}={getattr(self, name)}: it cannot be negative.")
        if self.buffer < self.tokens:
            raise UnknownOptionError(
                f"buffer={self.buffer} tokens are less than the {self.tokens} of a step.\n"
                f"Write buffer={16 * self.tokens}."
            )

    @property
    def price(self) -> float:
        """What a feature's activation costs."""
        if self.activation == "topk":
            return 0.0
        return L1 if self.l1 is None else self.l1

    def function(self) -> Activation:
        """Return the activation that is trained."""
        if self.activation == "relu":
            return Relu()
        return TopK(min(K, self.features) if self.k is None else self.k)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, numbered from 0."""
        rising = (step + 1) / max(1, round(self.steps / 20))
        falling = (self.steps - step) / max(1, round(self.steps / 5))
        return self.learning_rate * min(1.0, rising, falling)


def refuse_unknown(activation: str) -> None:
    """Refuse an activation that cannot be trained.

    Args:
        activation: As it was given.

    Raises:
        UnknownOptionError: If there is none of that name.
    """
    if activation not in get_args(Kind):
        raise UnknownOptionError(
            f"no activation {activation!r}.{did_you_mean(activation, get_args(Kind))} "
            f"Known: {', '.join(get_args(Kind))}."
        )
