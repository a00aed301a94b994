"""Estimators: a gated function in, one score an example and component out.

To write your own, subclass `Estimator`, name the capabilities you need in `needs`, and return
scores in the library's sign: positive means that the component supports the behavior.
"""

from headwater.estimators.atp_star import AtPStar
from headwater.estimators.auto import Auto
from headwater.estimators.estimator import Estimate, Estimator, Gaps
from headwater.estimators.exact import Exact
from headwater.estimators.gradient import Gradient
from headwater.estimators.integrated import IntegratedGradients
from headwater.estimators.second_order import SecondOrder
from headwater.estimators.shapley import Shapley
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.estimators.trained_mask import TrainedMask
from headwater.estimators.trapezoid import Trapezoid

ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind
    for kind in (
        Auto,
        Gradient,
        AtPStar,
        IntegratedGradients,
        Exact,
        Trapezoid,
        SecondOrder,
        Shapley,
        TrainedMask,
    )
}
"""The command line's words."""

__all__ = [
    "ESTIMATORS",
    "AtPStar",
    "Auto",
    "Estimate",
    "Estimator",
    "Exact",
    "Gaps",
    "Gradient",
    "IntegratedGradients",
    "SecondOrder",
    "Shapley",
    "TrainedCircuit",
    "TrainedMask",
    "Trapezoid",
]
