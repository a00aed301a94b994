"""Edges between dictionary features around a residual MLP: through the skip path, and beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headwater.gates import GatedFunction
from headwater.zoo.truths.formulas import Table, closed_forms, table
from headwater.zoo.truths.parameters import reflection
from headwater.zoo.truths.truth import Fact, Truth

CLEAN = (1.2, 0.5, -0.8)
"""Activations of the features before the MLP."""
REFERENCE = (0.2, -0.9, 0.1)
MIXING = ((0.5, -1.0, 0.25), (0.75, 0.5, 1.0), (-0.5, 0.25, 0.5))
"""What the MLP reads: A[j][i] from feature i into feature j."""
READ_OUT = (1.0, -2.0, 0.5)
"""g: how the metric reads the features after the MLP."""
_ALL = range(3)


class SkipMlp(nn.Module):
    """`y = x + relu(A x)`, written in a dictionary of orthonormal features."""

    def __init__(self) -> None:
        super().__init__()
        self.dictionary = reflection(3)
        self.read = torch.tensor(MIXING, dtype=torch.float64) @ self.dictionary.T

    def mlp(self, x: Tensor) -> Tensor:
        """Return what the MLP adds to the residual stream."""
        return torch.relu(x @ self.read.T) @ self.dictionary.T

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after the MLP."""
        return x + self.mlp(x)


def _activations() -> tuple[Tensor, Tensor, Tensor]:
    clean, reference, read_out = (
        torch.tensor(numbers, dtype=torch.float64) for numbers in (CLEAN, REFERENCE, READ_OUT)
    )
    return clean, reference, read_out


def edges() -> GatedFunction:
    """The metric as a function of gates on the features before the MLP."""
    model = SkipMlp()
    clean, reference, read_out = _activations()

    def metric(m: Tensor) -> Tensor:
        x = torch.lerp(reference, clean, m) @ model.dictionary.T
        return model(x) @ model.dictionary @ read_out

    return GatedFunction(metric, tuple(f"feature {i}" for i in _ALL), dtype=torch.float64)


DELTA = tuple(clean - off for clean, off in zip(CLEAN, REFERENCE, strict=True))


def _before(j: int, activations: list[float]) -> float:
    return sum(MIXING[j][i] * activations[i] for i in _ALL)


def _score(i: int, activations: list[float]) -> float:
    """Delta_i sum_j g_j (delta_ij + on_j A_ji)."""
    return DELTA[i] * sum(
        READ_OUT[j] * ((i == j) + (_before(j, activations) > 0) * MIXING[j][i]) for j in _ALL
    )


def _alone(t: float) -> Table:
    def moved(i: int) -> list[float]:
        return [CLEAN[k] - (1 - t) * DELTA[k] * (k == i) for k in _ALL]

    return [[_score(i, moved(i)) for i in _ALL]]


def _together(t: float) -> Table:
    activations = [CLEAN[k] - (1 - t) * DELTA[k] for k in _ALL]
    return [[_score(i, activations) for i in _ALL]]


def _effect(i: int, present: tuple[float, ...]) -> float:
    """sum_j g_j (delta_ij Delta_i + relu with feature i clean - relu with it at its reference)."""
    there, gone = list(present), list(present)
    there[i], gone[i] = CLEAN[i], REFERENCE[i]
    return sum(
        READ_OUT[j]
        * ((i == j) * DELTA[i] + max(0.0, _before(j, there)) - max(0.0, _before(j, gone)))
        for j in _ALL
    )


def _edge(i: int, j: int, *, direct: bool, indirect: bool) -> float:
    on = _before(j, list(CLEAN)) > 0
    return READ_OUT[j] * (direct * (i == j) + indirect * on * MIXING[j][i]) * DELTA[i]


def _edge_table(*, direct: bool, indirect: bool) -> Tensor:
    return table([[_edge(i, j, direct=direct, indirect=indirect) for i in _ALL] for j in _ALL])


def _measured(*, skip: bool, mlp: bool) -> Tensor:
    """g_j dz_j/da_i Delta_i by a dense Jacobian, with the skip path or the MLP cut."""
    model = SkipMlp()
    clean, reference, read_out = _activations()

    def after(activations: Tensor) -> Tensor:
        x = activations @ model.dictionary.T
        y = (x if skip else x.detach()) + (model.mlp(x) if mlp else model.mlp(x.detach()))
        return y @ model.dictionary

    rows = torch.autograd.functional.jacobian(after, clean)
    assert isinstance(rows, Tensor)
    return read_out[:, None] * rows * (clean - reference)


DICTIONARY_EDGES = Truth(
    name="dictionary-edges",
    shows="Feature circuits around a residual MLP: an edge is a part through the skip path plus a "
    "part through the MLP; leaving out the second leaves edges of 0 between different features.",
    formulas=(
        "y = x + relu(A x) in an orthonormal dictionary, f = g . y, gates on the features of x",
        "edge i -> j: g_j (delta_ij + on_j A_ji) Delta_i; gradient_i = their sum over j",
        "exact_i = sum_j g_j (delta_ij Delta_i + relu(A x)_j - relu(A (x - Delta_i e_i))_j)",
    ),
    names=tuple(f"feature {i}" for i in _ALL),
    build=edges,
    expected=closed_forms(
        exact=[[_effect(i, CLEAN) for i in _ALL]],
        gradient=[[sum(_edge(i, j, direct=True, indirect=True) for j in _ALL) for i in _ALL]],
        curvature=[[0.0, 0.0, 0.0]],
        restored=[[_effect(i, REFERENCE) for i in _ALL]],
        own=_alone,
        joint=_together,
    ),
    facts=(
        Fact(
            "edges [to, from]",
            _edge_table(direct=True, indirect=True),
            lambda: _measured(skip=True, mlp=True),
        ),
        Fact(
            "their part through the MLP",
            _edge_table(direct=False, indirect=True),
            lambda: _measured(skip=False, mlp=True),
        ),
        Fact(
            "their part through the skip path",
            _edge_table(direct=True, indirect=False),
            lambda: _measured(skip=True, mlp=False),
        ),
    ),
)
