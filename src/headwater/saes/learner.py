"""A dictionary while it learns: its weights, a step, and features that are begun anew.

Activations are centered and scaled by what the first buffer of them holds, so one learning rate and
one price do for all sites; at the end that is folded into the weights. Decoder rows have norm 1, so
a feature's activation is its size.

Sources: TopK is Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093); ReLU
with an L1 price, decoder rows of norm 1, and starting dead features anew toward what is
reconstructed worst is Bricken et al., "Towards monosemanticity" (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.dictionaries import Dictionary
from headwater.errors import NonFiniteError
from headwater.saes.recipe import Recipe
from headwater.saes.stream import drawing

WEIGHTS = ("encoder", "encoder_bias", "decoder", "decoder_bias")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each weight."""

REVIVALS = 10
"""Times in a training at which dead features could be begun anew; before the last three."""
PRICED = 0.1
"""Share of the steps over which the price of activations rises to its full height."""
LASTING = 0.1
"""Share of the steps at the end over which figures are taken."""
MODEST = {"relu": 0.2, "topk": 1.0}
"""Length of the encoder of a feature that is begun anew, beside others; with less than the full
length it would never be among the k largest."""

_INITIAL, _REVIVED = 0, 1
"""What random numbers are drawn for."""


@dataclass(frozen=True)
class Units:
    """What activations are measured in while learning: `(x - mean) * scale`."""

    mean: Float[Tensor, " width"]
    scale: Float[Tensor, ""]

    @staticmethod
    def of(values: Float[Tensor, "token width"]) -> Units:
        """Return the units in which values have mean 0 and vary by 1 a coordinate."""
        mean = values.double().mean(0)
        variance = sum(  # in pieces: a buffer in float64 would be twice as large
            float((part.double() - mean).square().sum()) for part in values.split(2**14)
        )
        spread = math.sqrt(variance / values.numel())
        scale = torch.tensor(1.0 if spread == 0 else 1 / spread, dtype=torch.float64)
        return Units(mean.to(values), scale.to(values))

    def __call__(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """Return values in these units."""
        return (x - self.mean) * self.scale


class Learner:
    """Weights, Adam's moments, and what is known of each feature.

    Args:
        recipe: How to train.
        units: Of the activations.
    """

    def __init__(self, recipe: Recipe, units: Units) -> None:
        self.recipe, self.units = recipe, units
        self.activation = recipe.function()
        like, features = units.mean, recipe.features
        draw = drawing(recipe.seed, -1, _INITIAL)
        rows = torch.randn(features, len(like), generator=draw, dtype=torch.float64)
        rows = (rows / rows.norm(dim=-1, keepdim=True)).to(like)
        self.decoder = rows.requires_grad_()
        self.encoder = rows.detach().T.clone(memory_format=torch.contiguous_format).requires_grad_()
        self.encoder_bias = torch.zeros(features).to(like).requires_grad_()
        self.decoder_bias = torch.zeros_like(like).requires_grad_()
        self.adam = torch.optim.Adam([getattr(self, name) for name in WEIGHTS])
        self.silent: Int[Tensor, " feature"] = torch.zeros(
            features, dtype=torch.int64, device=like.device
        )
        """Tokens since each feature was active."""
        self.done = 0
        """Steps taken."""
        self.lost = self.active = 0.0
        """Sums over the last steps: share of the variance lost, features active a token."""

    def step(self, x: Float[Tensor, "token width"]) -> tuple[float, float]:
        """Learn from tokens.

        Args:
            x: Their activations.

        Returns:
            The share of the variance that was lost, and the features active a token, before.

        Raises:
            NonFiniteError: If the loss has become NaN or infinite.
        """
        recipe, z = self.recipe, self.units(x)
        with torch.enable_grad():
            found = self.activation(z @ self.encoder + self.encoder_bias)
            error = z - (found @ self.decoder + self.decoder_bias)
            loss = error.square().mean()
            size = found.sum(-1).mean() / math.sqrt(z.shape[1])
            price = recipe.price * min(1.0, (self.done + 1) / (PRICED * recipe.steps))
            objective = loss + price * size
            self.adam.zero_grad()
            objective.backward()
        lost, on = float(loss.detach()), found.detach() > 0
        if not math.isfinite(lost):
            raise NonFiniteError(
                f"training the dictionary diverged at step {self.done}.\n"
                f"Lower learning_rate={recipe.learning_rate:g}."
            )
        self._move()
        self.silent = torch.where(on.any(0), 0, self.silent + len(x))
        self.done += 1
        active = float(on.sum(-1).double().mean())
        if self.done > recipe.steps - self.lasting:
            self.lost, self.active = self.lost + lost, self.active + active
        self._revive(error.detach())
        return lost, active

    @property
    def lasting(self) -> int:
        """Steps at the end over which figures are taken."""
        return max(1, round(LASTING * self.recipe.steps))

    @torch.no_grad()
    def _move(self) -> None:
        """Take Adam's step along the decoder rows' spheres."""
        gradient = self.decoder.grad
        assert gradient is not None
        gradient -= (gradient * self.decoder).sum(-1, keepdim=True) * self.decoder
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.rate(self.done)
        self.adam.step()
        self.decoder /= self.decoder.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def _revive(self, error: Float[Tensor, "token width"]) -> None:
        """Point features that were silent for a tenth of the training at what is lost most."""
        every = max(1, self.recipe.steps // REVIVALS)
        if self.done % every or self.done > self.recipe.steps - 3 * every:
            return
        dead = self.silent >= every * len(error)
        squares = error.square().sum(-1).double().cpu()
        if not bool(dead.any()) or float(squares.sum()) == 0:
            return
        draw = drawing(self.recipe.seed, self.done, _REVIVED)
        count = int(dead.sum())
        tokens = torch.multinomial(squares, count, replacement=True, generator=draw)
        toward = error[tokens.to(error.device)]
        toward = toward / toward.norm(dim=-1, keepdim=True)
        alive = self.encoder[:, ~dead].norm(dim=0)
        length = float(alive.mean()) if len(alive) else 1.0
        self.decoder[dead] = toward
        self.encoder[:, dead] = toward.T * length * MODEST[self.recipe.activation]
        self.encoder_bias[dead] = 0
        for weight, place in (
            (self.decoder, dead),
            (self.encoder, (slice(None), dead)),
            (self.encoder_bias, dead),
        ):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.adam.state[weight][moment][place] = 0
        self.silent[dead] = 0

    def figures(self) -> dict[str, float]:
        """Return how well the last steps' tokens were reconstructed, before learning from them."""
        steps = min(self.done, self.lasting)
        return {
            "explained_variance": 1 - self.lost / steps,
            "active_features": self.active / steps,
            "silent_features": int((self.silent >= self.lasting * self.recipe.tokens).sum()),
        }

    def found(self) -> Dictionary:
        """Return the dictionary of the activations as they are."""
        units, scale = self.units, self.units.scale.double()
        encoder, decoder = self.encoder.detach(), self.decoder.detach()
        # both activations commute with a positive factor, so it may stand behind them
        bias = self.encoder_bias.detach().double() / scale - units.mean.double() @ encoder.double()
        back = self.decoder_bias.detach().double() / scale + units.mean.double()
        return Dictionary(
            encoder=encoder.clone(),
            encoder_bias=bias.to(encoder),
            decoder=decoder.clone(),
            decoder_bias=back.to(decoder),
            activation=self.activation,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, on the CPU, to be saved."""
        numbers = [float(self.done), self.lost, self.active]
        saved = {name: getattr(self, name) for name in WEIGHTS}
        saved |= {"silent": self.silent, "mean": self.units.mean, "scale": self.units.scale}
        saved["numbers"] = torch.tensor(numbers, dtype=torch.float64)
        for name in WEIGHTS:
            state = self.adam.state[getattr(self, name)]
            saved |= {f"adam.{name}.{moment}": state[moment] for moment in MOMENTS}
        return {name: value.detach().cpu().clone() for name, value in saved.items()}

    @staticmethod
    def names() -> set[str]:
        """Return the names of `tensors`."""
        moments = {f"adam.{name}.{moment}" for name in WEIGHTS for moment in MOMENTS}
        return {*WEIGHTS, "silent", "mean", "scale", "numbers", *moments}

    @staticmethod
    def restored(recipe: Recipe, saved: dict[str, Tensor], device: torch.device) -> Learner:
        """Return the learner that was saved.

        Args:
            recipe: How to train: as then.
            saved: What `tensors` returned.
            device: Where to go on.
        """
        learner = Learner(recipe, Units(saved["mean"].to(device), saved["scale"].to(device)))
        with torch.no_grad():
            for name in WEIGHTS:
                getattr(learner, name).copy_(saved[name])
        learner.silent = saved["silent"].to(device)
        done, learner.lost, learner.active = saved["numbers"].tolist()
        learner.done = int(done)
        whole = learner.adam.state_dict()
        state = {
            number: {moment: saved[f"adam.{name}.{moment}"] for moment in MOMENTS}
            for number, name in enumerate(WEIGHTS)
        }
        learner.adam.load_state_dict(whole | {"state": state})
        return learner
