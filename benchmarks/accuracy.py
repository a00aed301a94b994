"""How far every estimator is from exact effects on the embedded models; writes accuracy.md.

Every component is checked exactly, so these are figures of whole populations, not of samples.
`python -m benchmarks.accuracy [MODEL ...]`; a model's section is replaced, the others stay.
"""

import statistics
import sys
from pathlib import Path

import torch

import headwater as hw

GRAMMAR = ("ioi", "greater-than", "agreement", "induction", "capital", "language", "gender")
PYTHON = ("bracket", "quote", "self", "indent", "name")
TASKS = {"tiny": GRAMMAR, "tiny-gpt2": GRAMMAR, "tiny-mamba": GRAMMAR, "tiny-python": PYTHON}
PAIRS = 32
HEADS = {
    "heads, MLPs": hw.heads() + hw.mlps(),
    "queries, keys": hw.queries() + hw.keys(),
    "values": hw.values(),
    "neurons": hw.neurons(),
}
MIXERS = {"mixers": hw.mixers(), "conv": hw.conv(), "ssm": hw.ssm(), "channels": hw.channels()}
REFERENCES = {
    "corrupted": hw.Corrupted(),
    "positional mean": hw.PositionalMean(),
    "zero": hw.Zero(),
}
ESTIMATORS = {
    "gradient": hw.Gradient(),
    "AtP* without GradDrop": hw.AtPStar(grad_drop=False),
    "AtP*": hw.AtPStar(),
    "second order, 16 probes": hw.SecondOrder(),
    "IG inputs, 10 midpoints": hw.IntegratedGradients(path="inputs", rule="midpoint", steps=10),
    "IG family, 8 Gauss points": hw.IntegratedGradients(),
    "IG joint, 10 Gauss points": hw.IntegratedGradients(path="joint", steps=10),
}
FIGURES = ("r", "rho", "slope", "relative error", "sign agreement")


def section(name: str) -> list[str]:
    """One model's table: medians over its tasks, and the range of the relative error."""
    model = hw.load(name)
    heading = ["reference", "components", "estimator", *FIGURES, "rel err, range"]
    lines = [f"## {name}", "", "| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for reference_name, reference in REFERENCES.items():
        for kind, components in (MIXERS if name == "tiny-mamba" else HEADS).items():
            for estimator, cells in _rows(model, TASKS[name], components, reference).items():
                lines.append("| " + " | ".join([reference_name, kind, estimator, *cells]) + " |")
                print(name, lines[-1], flush=True)
    return lines


def _rows(model, tasks, components, reference) -> dict[str, list[str]]:
    """By estimator its medians over the tasks; those that cannot run with a reference are left."""
    named = {
        name: one
        for name, one in ESTIMATORS.items()
        if not (name.startswith("IG inputs") and not reference.corrupted_run)
    }
    values: dict[str, dict[str, list[float]]] = {one: {} for one in named}
    for task in tasks:
        found = hw.compare(
            model,
            hw.task(task)[:PAIRS],
            components,
            {**named, "exact": hw.Exact()},
            reference=reference,
            progress=False,
        )
        for row in found.rows[:-1]:
            for figure in FIGURES:
                if row.figures[figure] is not None:
                    values[row.name].setdefault(figure, []).append(row.figures[figure])
    return {name: _cells(figures) for name, figures in values.items()}


def _cells(figures: dict[str, list[float]]) -> list[str]:
    cells = [
        f"{statistics.median(figures[name]):.2f}" if figures.get(name) else "-" for name in FIGURES
    ]
    errors = figures.get("relative error") or [float("nan")]
    return [*cells, f"{min(errors):.2f} to {max(errors):.2f}"]


def main() -> None:
    torch.set_num_threads(1)
    path = Path(__file__).parent / "accuracy.md"
    wanted = sys.argv[1:] or list(TASKS)
    there = _sections(path.read_text()) if path.exists() else {}
    there |= {name: section(name) for name in wanted}
    lines = [
        "# Estimators against exact effects",
        "",
        f"Median over a model's tasks, {PAIRS} pairs each, every component checked. AtP* with "
        "GradDrop is held against |exact|; the others, whatever their estimand, against closing "
        "each component alone.",
        "`python -m benchmarks.accuracy` writes this file.",
    ]
    for name in TASKS:
        if name in there:
            lines += ["", *there[name]]
    path.write_text("\n".join(lines) + "\n")


def _sections(text: str) -> dict[str, list[str]]:
    parts = text.split("\n## ")[1:]
    return {part.split("\n")[0]: ["## " + part.rstrip()] for part in parts if "IG " in part}


if __name__ == "__main__":
    main()
