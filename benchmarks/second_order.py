"""When the second order can be trusted: its correction beside its error; writes second_order.md.

Neurons, every one of some layers checked exactly. `python -m benchmarks.second_order`.
"""

from pathlib import Path

import torch

import headwater as hw
from benchmarks.accuracy import GRAMMAR, PYTHON

PAIRS = 8
PARTS = {
    "tiny": (GRAMMAR, hw.neurons(), (hw.Corrupted(), hw.PositionalMean(), hw.Zero())),
    "tiny-python": (PYTHON, hw.neurons(layers=[0, 2, 5]), (hw.Corrupted(),)),
}


def rows() -> list[list[str]]:
    table = []
    for name, (tasks, neurons, references) in PARTS.items():
        model = hw.load(name)
        for reference in references:
            for task in tasks:
                table.append([name, task, reference.name, *_row(model, task, neurons, reference)])
                print(" | ".join(table[-1]), flush=True)
    return table


def _row(model, task, neurons, reference) -> list[str]:
    """Correction over gradient; relative errors of gradient, second order, and what is picked."""
    pairs = hw.task(task)[:PAIRS]

    def scored(estimator: hw.Estimator) -> torch.Tensor:
        return hw.attribute(
            model, pairs, neurons, estimator, reference=reference, progress=False
        ).mean()

    exact, gradient = scored(hw.Exact()), scored(hw.Gradient())
    second, picked = scored(hw.SecondOrder()), scored(hw.Auto())
    errors = ((one - exact).norm() / exact.norm() for one in (gradient, second, picked))
    return [f"{float(x):.2f}" for x in ((second - gradient).norm() / gradient.norm(), *errors)]


def main() -> None:
    torch.set_num_threads(1)
    headings = ["model", "task", "reference", "correction / gradient"]
    headings += ["relative error: gradient", "second order", "Auto"]
    lines = [
        "# When the second order can be trusted",
        "",
        f"Scores of neurons ({PAIRS} pairs; all of `tiny`, three layers of `tiny-python`), every "
        "one checked exactly. `hw.Auto()` takes the second order where its correction is at most "
        "1.15 times the gradient. `python -m benchmarks.second_order` writes this file.",
        "",
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
        *(f"| {' | '.join(row)} |" for row in rows()),
    ]
    (Path(__file__).parent / "second_order.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
