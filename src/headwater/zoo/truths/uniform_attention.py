"""Attention that looks everywhere alike: the share of earlier tokens that are x."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.gates import GatedFunction
from headwater.zoo.truths.formulas import Table, closed_forms
from headwater.zoo.truths.truth import Truth

PROMPTS = ("xyxx", "yxxy")
_LENGTH = 4
_NAMES = ("query", *(f"key @{t}" for t in range(_LENGTH)), *(f"value @{t}" for t in range(_LENGTH)))


def share_of_x() -> GatedFunction:
    """One head over four tokens, read at the last; its query weights are 0, so all scores are."""
    is_x = torch.tensor([[float(c == "x") for c in p] for p in PROMPTS], dtype=torch.float64)
    embedded = torch.stack((is_x, 1 - is_x), -1)  # [batch, pos, token]
    query_weight = torch.zeros(2, 2, dtype=torch.float64)
    key_weight = torch.tensor([[1.0, -0.5], [2.0, 1.5]], dtype=torch.float64)

    def output(m: Tensor) -> Tensor:
        query = m[..., :1] * (embedded[:, -1] @ query_weight)
        keys = m[..., 1 : 1 + _LENGTH, None] * (embedded @ key_weight)
        values = m[..., 1 + _LENGTH :] * embedded[..., 0]
        pattern = (keys @ query[..., None])[..., 0].softmax(-1)
        return (pattern * values).sum(-1)

    return GatedFunction(output, _NAMES, batch=len(PROMPTS), dtype=torch.float64)


_SHARES: Table = [[0.0] * (1 + _LENGTH) + [(c == "x") / _LENGTH for c in p] for p in PROMPTS]

UNIFORM_ATTENTION = Truth(
    name="uniform-attention",
    shows="With nothing to saturate or interact every estimator is right: a head that averages "
    "(the share of earlier tokens that are x).",
    formulas=(
        "f = mean over s <= t of is_x(s): attention scores all 0, read at the last of 4 tokens",
        "every score of value s = is_x(s) / (t + 1); of the query and the keys 0",
    ),
    names=_NAMES,
    build=share_of_x,
    examples=PROMPTS,
    expected=closed_forms(
        exact=_SHARES,
        gradient=_SHARES,
        curvature=[[0.0] * len(_NAMES) for _ in PROMPTS],
        shapley=_SHARES,
        own=lambda t: _SHARES,
        joint=lambda t: _SHARES,
    ),
)
