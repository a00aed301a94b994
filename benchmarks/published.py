"""The comparison on every embedded task; writes docs/ablation.md.

`python -m benchmarks.published`; a few minutes on one core.
"""

from pathlib import Path

import torch

import headwater as hw
from benchmarks.accuracy import TASKS

PAIRS = 32
ESTIMATORS = [hw.Gradient(), hw.AtPStar(), hw.SecondOrder(), hw.IntegratedGradients(), hw.Exact()]
PARTS = {
    "heads and MLPs": hw.heads() + hw.mlps(),
    "queries and keys": hw.queries() + hw.keys(),
}
MIXERS = {
    "mixers, each position": hw.mixers(positions="each"),
    "state inputs, each position": hw.ssm(positions="each"),
}
ABOUT = {
    "tiny": "A Llama with grouped heads, trained on a made-up grammar.",
    "tiny-gpt2": "A GPT-2, trained on the same made-up grammar.",
    "tiny-mamba": "A Mamba, trained on the same made-up grammar. Its induction is unreliable (77 % "
    "right), and the least saturated: there a gradient is nearly exact.",
    "tiny-python": "A byte-level Llama that has read the Python standard library: real text.",
}
HEADER = """# Gradient against ablation, task by task

How accurate are gradient attributions compared with switching components off? The same question is
asked whenever gradients are used to attribute; here it is answered for every embedded model and
task: {pairs} pairs each, the corrupted prompt as reference, every component checked exactly.
`F` and `B` are forwards and backwards a pair; AtP\\* is held against |exact|; the other columns are
those of `headwater compare`, which prints the same table for your model:

```
headwater compare --model tiny --task ioi --components heads,mlps --pairs {pairs}
```

`python -m benchmarks.published` writes this page; [estimators](estimators.md) says what each is.

{reading}
"""


def tables(name: str) -> tuple[list[str], list[hw.Comparison]]:
    """The tables of one model."""
    model, found = hw.load(name), []
    parts = MIXERS if name == "tiny-mamba" else PARTS
    lines = [f"## {name}", "", ABOUT[name]]
    for task in TASKS[name]:
        lines += ["", f"### {task}"]
        for title, components in parts.items():
            pairs = hw.task(task)[:PAIRS]
            one = hw.compare(model, pairs, components, ESTIMATORS, diagnosis=False, progress=False)
            found.append(one)
            lines += ["", f"{title} ({one.components}):", "", *_table(one), "", one.advice[0]]
            print(name, task, title, flush=True)
    return lines, found


def _table(found: hw.Comparison) -> list[str]:
    headings = ["estimator", *found.headings()]
    rows = [[row.name, *found.cells(row)] for row in found.rows]
    return [f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *rows]]


def _reading(found: dict[str, list[hw.Comparison]]) -> str:
    """How often, by model, the gradient ranks well, and how often it has the size."""
    lines = ["| model | tables | gradient r >= 0.8 | gradient within 20 % | IG within 20 % |"]
    lines += ["|---|---|---|---|---|"]
    for name, comparisons in found.items():
        figures = [{row.name: row.figures for row in one.rows} for one in comparisons]
        ranked = sum((f["gradient"]["r"] or 0) >= 0.8 for f in figures)
        sized = sum((f["gradient"]["relative error"] or 9) <= 0.2 for f in figures)
        integrated = sum((f["ig"]["relative error"] or 9) <= 0.2 for f in figures)
        lines.append(f"| {name} | {len(figures)} | {ranked} | {sized} | {integrated} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    parts: list[str] = []
    found: dict[str, list[hw.Comparison]] = {}
    for name in TASKS:
        lines, found[name] = tables(name)
        parts += ["", *lines]
    text = HEADER.format(pairs=PAIRS, reading=_reading(found)) + "\n".join(parts) + "\n"
    (Path(__file__).parents[1] / "docs" / "ablation.md").write_text(text)


if __name__ == "__main__":
    main()
