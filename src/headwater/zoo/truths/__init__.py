"""Models whose exact effects, gradients and integrals are known in closed form.

Each stands beside the formulas of the numbers that every estimator must give on it:

    >>> from headwater.zoo.truths import truth
    >>> comparison = truth("saturated-softmax").compare()
    >>> comparison.agrees
    True

`print(comparison)` shows which estimators are right, which are wrong, and by how much. On the
command line: `headwater zoo` and `headwater zoo saturated-softmax`.
"""

from headwater.errors import UnknownTruthError, did_you_mean
from headwater.zoo.truths.cancellation import CANCELLATION, RMS_NORM, SUM_OF_SOFTMAX
from headwater.zoo.truths.comparison import Comparison, Result, compare
from headwater.zoo.truths.dictionary_edges import DICTIONARY_EDGES
from headwater.zoo.truths.induction import INDUCTION, INDUCTION_UNSATURATED
from headwater.zoo.truths.lens_flip import LENS_FLIP
from headwater.zoo.truths.logic import AND, LINEAR, OR
from headwater.zoo.truths.parameters import (
    COMPRESSED_COMPUTATION,
    GATED_FUNCTIONS,
    GATED_FUNCTIONS_BIASES,
    SUPERPOSITION,
)
from headwater.zoo.truths.saturation import SATURATED_SOFTMAX, SHARP_STEP
from headwater.zoo.truths.truth import Fact, ModelTruth, Truth
from headwater.zoo.truths.uniform_attention import UNIFORM_ATTENTION

TRUTHS: dict[str, Truth] = {
    one.name: one
    for one in (
        LINEAR,
        SATURATED_SOFTMAX,
        CANCELLATION,
        AND,
        OR,
        INDUCTION,
        INDUCTION_UNSATURATED,
        LENS_FLIP,
        GATED_FUNCTIONS,
        GATED_FUNCTIONS_BIASES,
        SUPERPOSITION,
        DICTIONARY_EDGES,
        UNIFORM_ATTENTION,
        COMPRESSED_COMPUTATION,
        SUM_OF_SOFTMAX,
        SHARP_STEP,
        RMS_NORM,
    )
}
"""Every ground-truth model by its name."""

__all__ = [
    "TRUTHS",
    "Comparison",
    "Fact",
    "ModelTruth",
    "Result",
    "Truth",
    "compare",
    "truth",
]


def truth(name: str) -> Truth:
    """Return a ground-truth model.

    Args:
        name: A key of `TRUTHS`, for example `saturated-softmax`.

    Raises:
        UnknownTruthError: If there is none of that name; the closest is offered.
    """
    if name not in TRUTHS:
        raise UnknownTruthError(
            f"no ground-truth model {name!r}.{did_you_mean(name, TRUTHS)}\n"
            f"There are {', '.join(TRUTHS)}."
        )
    return TRUTHS[name]
