"""The metric as a function of gates: closed forms and models alike."""

from headwater.gates.averages import Averages
from headwater.gates.families import Family
from headwater.gates.function import (
    INPUT_PATH,
    Cost,
    End,
    GatedFunction,
    Move,
    Slope,
    lacking,
    refuse_flat,
)
from headwater.gates.linear import (
    ATTENTION,
    DROPS,
    AttentionRows,
    Linearized,
    Replaced,
    Slopes,
)
from headwater.gates.model import ModelGates
from headwater.gates.task import GatedTask

__all__ = [
    "ATTENTION",
    "DROPS",
    "INPUT_PATH",
    "AttentionRows",
    "Averages",
    "Cost",
    "End",
    "Family",
    "GatedFunction",
    "GatedTask",
    "Linearized",
    "ModelGates",
    "Move",
    "Replaced",
    "Slope",
    "Slopes",
    "lacking",
    "refuse_flat",
]
