"""How far gradient scores are from exact effects on the embedded models; writes accuracy.md.

Every component is checked exactly, so these are figures of whole populations, not of samples.
"""

import statistics
from pathlib import Path

import torch

import headwater as hw

TASKS = ("ioi", "greater-than", "agreement", "induction", "capital", "language", "gender")
PAIRS = 64
COMPONENTS = {
    "heads, MLPs": hw.heads() + hw.mlps(),
    "queries, keys": hw.queries() + hw.keys(),
    "values": hw.values(),
    "neurons": hw.neurons(),
}
REFERENCES = {
    "corrupted": hw.Corrupted(),
    "positional mean": hw.PositionalMean(),
    "zero": hw.Zero(),
}
FIGURES = ("r", "rho", "slope", "relative error", "sign agreement")


def rows(model: hw.Model) -> list[list[str]]:
    table = []
    for reference_name, reference in REFERENCES.items():
        for kind, components in COMPONENTS.items():
            figures: dict[str, list[float]] = {name: [] for name in FIGURES}
            for task in TASKS:
                pairs = hw.task(task)[:PAIRS]
                scores = hw.attribute(model, pairs, components, reference=reference, progress=False)
                audit = scores.audit(sample=len(scores.names), progress=False)
                for name in FIGURES:
                    value = audit.statistic(name).value
                    if value is not None:
                        figures[name].append(value)
            cells = [_range(figures[name]) for name in FIGURES]
            table.append([reference_name, kind, *cells])
            print(" | ".join(table[-1]), flush=True)
    return table


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Gradient scores against exact effects",
        "",
        f"Median over the seven embedded tasks (and the range), {PAIRS} pairs each, every "
        "component checked.",
        "`python -m benchmarks.accuracy` writes this file.",
    ]
    for name in ("tiny", "tiny-gpt2"):
        lines += ["", f"## {name}", "", "| reference | components | " + " | ".join(FIGURES) + " |"]
        lines += ["|" + "---|" * (2 + len(FIGURES))]
        lines += ["| " + " | ".join(row) + " |" for row in rows(hw.load(name))]
    (Path(__file__).parent / "accuracy.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
