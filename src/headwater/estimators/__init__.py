"""Estimators: a gated function in, one score an example and component out.

To write your own, subclass `Estimator`, name the capabilities you need in `needs`, and return
scores in the library's sign: positive means that the component supports the behavior.
"""

from headwater.estimators.estimator import Estimator
from headwater.estimators.exact import Exact
from headwater.estimators.gradient import Gradient

ESTIMATORS: dict[str, type[Estimator]] = {"gradient": Gradient, "exact": Exact}
"""The command line's words."""

__all__ = ["ESTIMATORS", "Estimator", "Exact", "Gradient"]
