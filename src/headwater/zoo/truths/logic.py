"""Gates that add up, gates that need each other, gates that stand in for each other."""

from __future__ import annotations

import torch

from headwater.gates import GatedFunction
from headwater.zoo.truths.formulas import closed_forms
from headwater.zoo.truths.truth import Truth

WEIGHTS = (3.0, -1.0, 0.25, 0.0)


def _sum() -> GatedFunction:
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return GatedFunction(lambda m: m @ weights, ("a", "b", "c", "d"), dtype=torch.float64)


def _both() -> GatedFunction:
    return GatedFunction(lambda m: m.prod(-1), ("a", "b"), dtype=torch.float64)


def _either() -> GatedFunction:
    return GatedFunction(lambda m: 1 - (1 - m).prod(-1), ("a", "b"), dtype=torch.float64)


LINEAR = Truth(
    name="linear",
    shows="Where nothing interacts, every estimator gives the weight.",
    formulas=(
        "f = 3 a - b + c / 4 + 0 d",
        "gradient = exact = every integral = the weight",
    ),
    names=("a", "b", "c", "d"),
    build=_sum,
    expected=closed_forms(
        exact=[WEIGHTS],
        gradient=[WEIGHTS],
        curvature=[[0, 0, 0, 0]],
        shapley=[WEIGHTS],
        own=lambda t: [WEIGHTS],
        joint=lambda t: [WEIGHTS],
    ),
)

AND = Truth(
    name="and",
    shows="Two parts that need each other: adding either one to the corrupted run does nothing, "
    "and the joint path gives each half.",
    formulas=(
        "f = a b",
        "at the clean end: exact = gradient = 1; at the corrupted end both are 0",
        "every gate at t: df/da = t, so the joint path gives 1/2 (Shapley too); one gate at t: 1",
    ),
    names=("a", "b"),
    build=_both,
    expected=closed_forms(
        exact=[[1, 1]],
        gradient=[[1, 1]],
        curvature=[[0, 0]],
        shapley=[[0.5, 0.5]],
        restored=[[0, 0]],
        own=lambda t: [[1, 1]],
        joint=lambda t: [[t, t]],
    ),
)

OR = Truth(
    name="or",
    shows="A backup: leaving either part out changes nothing, so leave-one-out effects are 0 "
    "although the behavior rests on nothing else.",
    formulas=(
        "f = a + b - a b",
        "at the clean end: exact = gradient = 0; at the corrupted end both are 1",
        "every gate at t: df/da = 1 - t, so the joint path gives 1/2 (Shapley too); one gate: 0",
    ),
    names=("a", "b"),
    build=_either,
    expected=closed_forms(
        exact=[[0, 0]],
        gradient=[[0, 0]],
        curvature=[[0, 0]],
        shapley=[[0.5, 0.5]],
        restored=[[1, 1]],
        own=lambda t: [[0, 0]],
        joint=lambda t: [[1 - t, 1 - t]],
    ),
)
