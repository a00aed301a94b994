"""Parts of weights: gates that multiply parameters, in the toy models of parameter decomposition.

A component c is a set of weights P_c; its gate m_c multiplies them: `theta(m) = theta - sum_c
(1 - m_c) P_c`. Where a component holds both the input and the output weights of a neuron the metric
is of degree 2 in its gate, and by Euler's theorem the gradient is twice the effect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.estimators import Estimator, IntegratedGradients
from headwater.gates import GatedFunction
from headwater.zoo.truths.formulas import Table, closed_forms, table
from headwater.zoo.truths.truth import Fact, Truth

# --- four functions of one input, each switched on by a control bit ------------------------------

KNOTS = tuple(0.5 * j for j in range(10))
SWITCH = 100.0
"""What a control bit adds to every neuron of its function; without it the bias keeps them off."""
INPUTS = ((1.3, (1, 0, 1, 0)), (3.2, (0, 1, 1, 1)))
"""Input and control bits of each example."""
_CURVES = ((1.0, 1.0), (-0.6, 2.0), (1.5, 0.7), (0.8, 1.6))
_FUNCTIONS = ("f0", "f1", "f2", "f3")


def _heights(function: int) -> list[float]:
    """What a function is at the knots and at 5: a sine, and straight lines between."""
    height, frequency = _CURVES[function]
    return [height * math.sin(frequency * x) for x in (*KNOTS, 5.0)]


def _slope_of_cell(function: int, cell: int) -> float:
    heights = _heights(function)
    return (heights[cell + 1] - heights[cell]) / 0.5


def _bends(function: int) -> list[float]:
    """How much the slope changes at each knot: the output weights of the neurons."""
    slopes = [_slope_of_cell(function, cell) for cell in range(10)]
    return [after - before for before, after in zip([0.0, *slopes], slopes, strict=False)]


def switched(*, biases: bool) -> GatedFunction:
    """Ten neurons a function, `relu(x + (S - knot) bit - S)`; one component a function.

    Args:
        biases: Whether the components hold the neurons' biases -S too.
    """
    knots = torch.tensor(KNOTS, dtype=torch.float64)
    out = torch.tensor([_bends(i) for i in range(4)], dtype=torch.float64)
    x = torch.tensor([value for value, _ in INPUTS], dtype=torch.float64)
    bits = torch.tensor([chosen for _, chosen in INPUTS], dtype=torch.float64)

    def output(m: Tensor) -> Tensor:
        gate = m[..., None]  # [setting, batch, function, neuron]
        bias = -SWITCH * (gate if biases else 1.0)
        read = gate * (x[:, None, None] + (SWITCH - knots) * bits[..., None])
        return (gate * out * torch.relu(read + bias)).sum((-1, -2))

    return GatedFunction(output, _FUNCTIONS, batch=len(INPUTS), dtype=torch.float64)


def _value(function: int, x: float) -> float:
    """The function itself, by interpolation."""
    cell = int(x // 0.5)
    return _heights(function)[cell] + _slope_of_cell(function, cell) * (x - KNOTS[cell])


def _where_on(function: int, x: float, bit: int) -> float:
    return bit * _value(function, x)


def _gradient_with_biases_kept(function: int, x: float, bit: int) -> float:
    return bit * (2 * _value(function, x) + SWITCH * _slope_of_cell(function, int(x // 0.5)))


def _curvature_with_biases_kept(function: int, x: float, bit: int) -> float:
    # quadratic near t = 1, and 0 at t = 0 if continued: second order is right by coincidence
    return 2 * (_gradient_with_biases_kept(function, x, bit) - _where_on(function, x, bit))


def _kept_slope(t: float) -> Table:
    # y = t v relu(t (x + S - c) - S): a neuron is on where that is above 0, a hair below t = 1
    def one(function: int, x: float, bit: int) -> float:
        terms = [
            v * (2 * t * (x + SWITCH - c) - SWITCH)
            for v, c in zip(_bends(function), KNOTS, strict=True)
            if t * (x + SWITCH - c) > SWITCH
        ]
        return bit * sum(terms)

    return _for_each(one)


def _for_each(formula) -> Table:
    return [[formula(i, x, bits[i]) for i in range(4)] for x, bits in INPUTS]


_ADAPTIVE: Estimator = IntegratedGradients("component", tolerance=0.05)
_EXAMPLES = tuple(f"x {x:g}, {''.join(map(str, bits))}" for x, bits in INPUTS)

GATED_FUNCTIONS = Truth(
    name="gated-functions",
    shows="The hand-coded model of attribution-based parameter decomposition, biases kept: the "
    "gradient finds the functions that are on, and is wrong in size and often in sign.",
    formulas=(
        "y = sum_i m_i sum_j v_ij relu(m_i (x + (S - c_j) bit_i) - S), S = 100: F_i(x) where on",
        "exact = bit_i F_i; gradient = bit_i (2 F_i + S F_i'); off: exactly 0",
        "all of the effect arises within 5 % of the clean end of the path",
    ),
    names=_FUNCTIONS,
    build=lambda: switched(biases=False),
    examples=_EXAMPLES,
    expected=closed_forms(
        exact=_for_each(_where_on),
        gradient=_for_each(_gradient_with_biases_kept),
        curvature=_for_each(_curvature_with_biases_kept),
        shapley=_for_each(_where_on),
        own=_kept_slope,
        joint=_kept_slope,
    )
    | {_ADAPTIVE: table(_for_each(_where_on))},
)

GATED_FUNCTIONS_BIASES = Truth(
    name="gated-functions-biases",
    shows="The same model with the biases in the components: degree 2 in each gate, so the "
    "gradient is exactly twice the effect and two steps of an integral are enough.",
    formulas=(
        "y = sum_i m_i sum_j v_ij relu(m_i (x + (S - c_j) bit_i - S)) = sum_i m_i^2 bit_i F_i(x)",
        "exact = bit_i F_i; gradient = 2 bit_i F_i; every midpoint or Gauss sum = exact",
    ),
    names=_FUNCTIONS,
    build=lambda: switched(biases=True),
    examples=_EXAMPLES,
    expected=closed_forms(
        exact=_for_each(_where_on),
        gradient=_for_each(lambda i, x, bit: 2 * _where_on(i, x, bit)),
        curvature=_for_each(lambda i, x, bit: 2 * _where_on(i, x, bit)),
        shapley=_for_each(_where_on),
        own=lambda t: _for_each(lambda i, x, bit: 2 * t * _where_on(i, x, bit)),
        joint=lambda t: _for_each(lambda i, x, bit: 2 * t * _where_on(i, x, bit)),
    ),
)

# --- five features in two dimensions ------------------------------------------------------------

FIRST, SECOND = 0.8, 0.6
COSINE = math.cos(math.radians(72))
_FEATURES = tuple(f"w{k}" for k in range(5))


def _pentagon() -> Tensor:
    angles = torch.arange(5, dtype=torch.float64) * math.radians(72)
    return torch.stack((angles.cos(), angles.sin()))


def _present() -> Tensor:
    x = torch.zeros(2, 5, dtype=torch.float64)
    x[:, 0], x[1, 1] = FIRST, SECOND
    return x


def pentagon() -> GatedFunction:
    """`relu(W'W x - cos 72)` with W's columns on a pentagon; one component a column of W."""

    def first_output(m: Tensor) -> Tensor:
        w = _pentagon() * m[..., None, :]  # [setting, batch, 2, feature]
        hidden = (w @ _present()[..., None])[..., 0]
        return torch.relu((w[..., 0] * hidden).sum(-1) - COSINE)

    return GatedFunction(first_output, _FEATURES, batch=2, dtype=torch.float64)


def _outputs() -> Tensor:
    w = _pentagon()
    return torch.relu(_present() @ w.T @ w - COSINE)


def _output(k: int, second: float) -> float:
    read = FIRST * math.cos(math.radians(72 * k)) + second * math.cos(math.radians(72 * (k - 1)))
    return max(0.0, read - COSINE)


def _of_features(first, second) -> Table:
    """Rows for w absent and w present: features 0 and 1, the others 0."""
    return [[first(w), second(w), 0.0, 0.0, 0.0] for w in (0.0, SECOND)]


def _column_alone(t: float) -> Table:
    # column 0 at t: out_0 = relu(t^2 v + t w c - c); column 1 at t: v + t w c - c, always on
    return _of_features(
        lambda w: 2 * t * FIRST + w * COSINE if t**2 * FIRST + t * w * COSINE > COSINE else 0.0,
        lambda w: w * COSINE,
    )


def _columns_together(t: float) -> Table:
    # every column at t: out_0 = relu(t^2 (v + w c) - c)
    def on(w: float) -> bool:
        return t**2 * (FIRST + w * COSINE) > COSINE

    return _of_features(
        lambda w: t * (2 * FIRST + w * COSINE) if on(w) else 0.0,
        lambda w: t * w * COSINE if on(w) else 0.0,
    )


SUPERPOSITION = Truth(
    name="superposition",
    shows="Five features share two dimensions (toy model of superposition): a column of W is used "
    "twice, so its gradient is about twice its effect; a neighbor's interference is linear and "
    "right.",
    formulas=(
        "out_0 = relu(w_0 . W x - c), columns w_k on a pentagon, c = cos 72; x = v e_0 + w e_1",
        "exact = (v + w c - c, w c); gradient = (2 v + w c, w c); other columns 0",
    ),
    names=_FEATURES,
    build=pentagon,
    examples=(f"v {FIRST:g}", f"v {FIRST:g}, w {SECOND:g}"),
    expected=closed_forms(
        exact=_of_features(lambda w: FIRST + w * COSINE - COSINE, lambda w: w * COSINE),
        gradient=_of_features(lambda w: 2 * FIRST + w * COSINE, lambda w: w * COSINE),
        restored=_of_features(lambda w: FIRST - COSINE, lambda w: 0.0),
        curvature=_of_features(lambda w: 2 * FIRST, lambda w: 0.0),
        shapley=_of_features(lambda w: FIRST - COSINE + w * COSINE / 2, lambda w: w * COSINE / 2),
        own=_column_alone,
        joint=_columns_together,
    ),
    facts=(
        Fact(
            "outputs",
            table([[_output(k, w) for k in range(5)] for w in (0.0, SECOND)]),
            _outputs,
        ),
    ),
)

# --- a residual MLP with a neuron a feature -----------------------------------------------------

READ = (1.5, -0.7, 0.4)
_NEURONS = ("neuron 0", "neuron 1", "neuron 2")


def reflection(size: int) -> Tensor:
    """Return an orthonormal basis without zeros: the reflection that turns a plane around."""
    direction = torch.arange(1.0, size + 1, dtype=torch.float64)
    direction = direction / direction.norm()
    return torch.eye(size, dtype=torch.float64) - 2 * direction[:, None] * direction


def computing() -> GatedFunction:
    """`y = x + W_out relu(W_in x)`; a component is a neuron's row of W_in and column of W_out."""
    basis = reflection(3)
    x = basis @ torch.tensor(READ, dtype=torch.float64)

    def output(m: Tensor) -> Tensor:
        into, out = m[..., None] * basis.T, basis * m[..., None, :]
        y = x + (out @ torch.relu(into @ x)[..., None])[..., 0]
        return (y @ basis).sum(-1)

    return GatedFunction(output, _NEURONS, dtype=torch.float64)


_RECTIFIED = [max(0.0, x) for x in READ]

COMPRESSED_COMPUTATION = Truth(
    name="compressed-computation",
    shows="A neuron's input and output weights in one component: the gradient is exactly twice "
    "the effect, the integral is the effect.",
    formulas=(
        "y = x + W_out relu(W_in x), f = sum_i y_i, so neuron i adds m_i^2 relu(x_i)",
        "exact = relu(x_i); gradient = 2 relu(x_i)",
    ),
    names=_NEURONS,
    build=computing,
    expected=closed_forms(
        exact=[_RECTIFIED],
        gradient=[[2 * r for r in _RECTIFIED]],
        curvature=[[2 * r for r in _RECTIFIED]],
        shapley=[_RECTIFIED],
        own=lambda t: [[2 * t * r for r in _RECTIFIED]],
        joint=lambda t: [[2 * t * r for r in _RECTIFIED]],
    ),
)
