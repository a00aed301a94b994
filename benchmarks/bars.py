"""How often a gradient check's error bar holds the slope; writes benchmarks/bars.md.

`python -m benchmarks.bars`; a quarter of a minute on one core. The functions are random and
analytic, so that their slopes are known by complex steps in extended precision.
"""

from pathlib import Path

import numpy as np
from tests.random_functions import bars_off, measured

KINDS = ("float64", "float32", "float32 inside", "noise")
FUNCTIONS = 7500


def row(kind: str) -> str:
    with np.errstate(all="ignore"):
        found = list(measured(kind, range(FUNCTIONS)))
    off = np.array([bars_off(one, truth) for _, one, truth in found if one.shape == "smooth"])
    shares = (f"{100 * np.mean(off <= bars):.2f} %" for bars in (1, 4))
    return f"| {kind} | {len(off)} of {FUNCTIONS} | {' | '.join(shares)} |"


def main() -> None:
    text = [
        "# Error bars of gradient checks",
        "",
        "`python -m benchmarks.bars` writes this file: random smooth functions, and how often the",
        "true slope lies within one and within four error bars of the measured one.",
        "`float32 inside`: a function of float64 that computes in float32; `noise`: a millionth of",
        "the value, added.",
        "",
        "| numbers | measured | within one bar | within four |",
        "|---|---|---|---|",
        *map(row, KINDS),
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
