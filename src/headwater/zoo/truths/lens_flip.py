"""A residual stream whose logit lens turns from a wrong token to the answer at one layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headwater.gates import GatedFunction
from headwater.zoo.truths.formulas import Table, closed_forms, table
from headwater.zoo.truths.truth import Fact, Truth

VOCAB, LAYERS, FLIP = 16, 4, 2
WRONG_LOGIT, ANSWER_LOGIT = 3.0, 5.0
WRONG, ANSWER = 0, 1
_NAMES = ("input", *(f"m{layer}" for layer in range(LAYERS)))


class LensFlip(nn.Module):
    """Four linear layers on the residual stream; only layer 2 writes anything.

    The input is `a` on the wrong token; layer 2 takes it away and writes `G` on the answer. The
    unembedding is the identity, so the residual stream is read as logits anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(VOCAB, VOCAB, bias=False, dtype=torch.float64) for _ in range(LAYERS)
        )
        self.unembed = nn.Identity()
        with torch.no_grad():
            for layer in self.layers.parameters():
                layer.zero_()
            turning = self.layers[FLIP].weight
            assert isinstance(turning, Tensor)
            turning[ANSWER, WRONG] = ANSWER_LOGIT / WRONG_LOGIT
            turning[WRONG, WRONG] = -1.0
        self.requires_grad_(False)

    def forward(self, residual: Tensor) -> Tensor:
        """Return the logits."""
        for layer in self.layers:
            residual = residual + layer(residual)
        return self.unembed(residual)

    def lens(self) -> Tensor:
        """Return the log-probabilities read from the input and after each layer, [5, vocab]."""
        residual = embedded()
        read = [self.unembed(residual).log_softmax(-1)]
        for layer in self.layers:
            residual = residual + layer(residual)
            read.append(self.unembed(residual).log_softmax(-1))
        return torch.stack(read)


def embedded() -> Tensor:
    """Return the residual stream entering layer 0."""
    residual = torch.zeros(VOCAB, dtype=torch.float64)
    residual[WRONG] = WRONG_LOGIT
    return residual


def flip() -> GatedFunction:
    """The answer's log-probability, with gates on the input and on what each layer writes."""
    model = LensFlip()

    def log_probability(m: Tensor) -> Tensor:
        residual = m[..., :1] * embedded()
        for number, layer in enumerate(model.layers):
            residual = residual + m[..., number + 1, None] * layer(residual)
        return model.unembed(residual).log_softmax(-1)[..., ANSWER]

    return GatedFunction(log_probability, _NAMES, dtype=torch.float64)


def _norm(logit: float) -> float:
    """Z(s): the sum of exponentials with one logit s and the others 0."""
    return math.exp(logit) + VOCAB - 1


def _on(logit: float) -> float:
    """p1(s): the probability of the token with logit s."""
    return math.exp(logit) / _norm(logit)


def _off(logit: float) -> float:
    """p0(s): the probability of any other token."""
    return 1 / _norm(logit)


_G, _A = ANSWER_LOGIT, WRONG_LOGIT
_BEFORE, _AFTER = FLIP + 1, LAYERS - FLIP
FINAL_AGAINST_BEFORE = _G * _on(_G) - _A * _off(_G) + math.log(_norm(_A) / _norm(_G))
"""KL(final || layer) where the lens still shows the wrong token: 2.98419."""
BEFORE_AGAINST_FINAL = _A * _on(_A) - _G * _off(_A) + math.log(_norm(_G) / _norm(_A))
"""KL(layer || final) there: 3.11340."""


def _slopes(given: float, turned: float) -> tuple[float, float]:
    """df/d(input gate), df/d(layer 2's gate): f = G x - ln(e^(G x) + e^w + V - 2).

    x = given turned, w = a given (1 - turned).
    """
    right = math.exp(_G * given * turned)
    wrong = math.exp(_A * given * (1 - turned))
    norm = right + wrong + VOCAB - 2
    of_input = _G * turned - (_G * turned * right + _A * (1 - turned) * wrong) / norm
    of_layer = _G * given - (_G * given * right - _A * given * wrong) / norm
    return of_input, of_layer


def _variance_alone() -> float:
    """Variance under p of how fast the logits move with the input's gate: G on the answer."""
    return _G**2 * _on(_G) * (1 - _on(_G))


def _variance_turned() -> float:
    """The same with layer 2's gate: G on the answer, -a on the wrong token."""
    mean = _G * _on(_G) - _A * _off(_G)
    return _G**2 * _on(_G) + _A**2 * _off(_G) - mean**2


def _placed(of_input: float, of_layer: float) -> Table:
    return [[of_input, *(of_layer if layer == FLIP else 0.0 for layer in range(LAYERS))]]


def _final_against_layers() -> Tensor:
    read = LensFlip().lens()
    return (read[-1].exp() * (read[-1] - read)).sum(-1)


def _layers_against_final() -> Tensor:
    read = LensFlip().lens()
    return (read.exp() * (read - read[-1])).sum(-1)


def _input_against_layers() -> Tensor:
    read = LensFlip().lens()
    return (read[0].exp() * (read[0] - read)).sum(-1)


def _ranks() -> Tensor:
    read = LensFlip().lens()
    return (read > read[:, ANSWER, None]).sum(-1).double()


def _vector(*parts: tuple[int, float]) -> Tensor:
    return table([[value for count, value in parts for _ in range(count)]])[0]


LENS_FLIP = Truth(
    name="lens-flip",
    shows="A logit lens that turns at one layer, with the KL divergences both ways; the gradient "
    "of a log-probability near 0 is saturated, as a softmax's is.",
    formulas=(
        "residual: a on the wrong token; layer 2 replaces it by G on the answer; V = 16, a = 3, "
        "G = 5; f = log p(answer)",
        "p1(s) = e^s / Z(s), p0(s) = 1 / Z(s), Z(s) = e^s + V - 1",
        "exact: input ln p1(G) + ln V, layer 2 ln p1(G) + ln Z(a), other layers 0",
        "gradient: input G (1 - p1(G)), layer 2 that + a p0(G)",
        "KL(final || layer) = G p1(G) - a p0(G) + ln Z(a)/Z(G) before layer 2, 0 after",
        "rank of the answer: tokens with a strictly larger logit (14 others tie with it before)",
    ),
    names=_NAMES,
    build=flip,
    expected=closed_forms(
        exact=_placed(math.log(_on(_G) * VOCAB), math.log(_on(_G) * _norm(_A))),
        gradient=_placed(_G * (1 - _on(_G)), _G * (1 - _on(_G)) + _A * _off(_G)),
        curvature=_placed(-_variance_alone(), -_variance_turned()),
        restored=_placed(math.log(VOCAB / _norm(_A)), 0.0),
        shapley=_placed(
            (math.log(VOCAB / _norm(_A)) + math.log(_on(_G) * VOCAB)) / 2,
            (math.log(_on(_G) * VOCAB) - math.log(VOCAB / _norm(_A))) / 2,
        ),
        own=lambda t: _placed(_slopes(t, 1.0)[0], _slopes(1.0, t)[1]),
        joint=lambda t: _placed(*_slopes(t, t)),
    ),
    facts=(
        Fact(
            "KL(final || layer)",
            _vector((_BEFORE, FINAL_AGAINST_BEFORE), (_AFTER, 0.0)),
            _final_against_layers,
        ),
        Fact(
            "KL(layer || final)",
            _vector((_BEFORE, BEFORE_AGAINST_FINAL), (_AFTER, 0.0)),
            _layers_against_final,
        ),
        Fact(
            "KL(input || layer)",
            _vector((_BEFORE, 0.0), (_AFTER, BEFORE_AGAINST_FINAL)),
            _input_against_layers,
        ),
        Fact("rank of the answer", _vector((_BEFORE, 1.0), (_AFTER, 0.0)), _ranks),
    ),
)
