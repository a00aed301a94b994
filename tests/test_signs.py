"""The table of sign conventions in docs/conventions.md, row by row, with plain autograd."""

from pathlib import Path

import pytest
import torch

from headwater.estimators import Gradient
from headwater.gates import GatedFunction

# A small curved "model": component values x, references r, logits = tanh(x) @ w.
X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
R = torch.tensor([-0.2, 0.4, 0.9], dtype=torch.float64)
W = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)


def logits(x):
    return torch.tanh(x) @ W


def metric(x):
    """Headwater's f: answer logit minus wrong logit."""
    right, wrong = logits(x).unbind(-1)
    return right - wrong


def ours():
    def gated(m):
        return metric(torch.lerp(R, X, m))

    function = GatedFunction(gated, ["a", "b", "c"], dtype=torch.float64)
    return Gradient().scores(function)[0]


def first_order(loss, delta):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    return delta * gradient


def feature_circuits_metric(x):
    clean, patch = logits(x).unbind(-1)
    return patch - clean


CONVENTIONS = {
    "AtP and AtP\\* papers, with `L = f`": (metric, -1),
    "AtP and AtP\\* papers, with a loss": (lambda x: -metric(x), 1),
    "EAP, EAP-IG, MIB circuit track": (lambda x: -metric(x), 1),
    "feature-circuits": (feature_circuits_metric, 1),
}


@pytest.mark.parametrize("tool", CONVENTIONS)
def test_each_convention_times_its_factor_is_our_score(tool):
    loss, factor = CONVENTIONS[tool]
    torch.testing.assert_close(factor * first_order(loss, R - X), ours(), rtol=1e-12, atol=0)


def test_the_documented_factors_are_the_tested_ones():
    page = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    documented = {row[0].strip(): row[-1].strip(" `") for row in rows if "`" in row[-1]}
    for tool, (_, factor) in CONVENTIONS.items():
        assert documented[tool] == f"{factor:+d}"
