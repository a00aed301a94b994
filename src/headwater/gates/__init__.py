"""The metric as a function of gates: closed forms and models alike."""

from headwater.gates.function import Cost, End, GatedFunction
from headwater.gates.model import ModelGates
from headwater.gates.task import GatedTask

__all__ = ["Cost", "End", "GatedFunction", "GatedTask", "ModelGates"]
