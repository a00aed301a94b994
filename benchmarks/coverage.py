"""How often what bounds and error bars promise holds; writes benchmarks/coverage.md.

`python -m benchmarks.coverage`; about ten minutes on one core. Effects are known, because they are
planted, or because every one of an embedded model's was computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tests.planted import planted, population

import headwater as hw
from headwater.audits.error_bars import CONFORMAL, ErrorBar
from headwater.components import Selection

THETA, BUDGETS = 0.1, (100, 150, 200, 300)
TOGETHER = ((2, 0.09), (5, 0.09), (10, 0.07), (20, 0.09), (20, 0.05))
"""Components that lose something once together, and how much."""
OPPOSITE = ((5, 0.12), (10, 0.3), (30, 0.3))
"""Components in each of two such sets of opposite sign."""
ATTEMPTS = (100, 125, 150, 175, 200, 250, 300, 400)
SYNTHETIC = {"flat": (np.inf, 2.2, 1.9, 1.6), "gauss": (np.inf, 1.8, 1.2, 0.9),
             "heavy-tailed": (np.inf, 2.0, 1.0, 0.5)}  # fmt: skip
"""Tolerances."""
SHARES = (1.6, 1.0, 0.6)
"""Of the median half width of one untightened run: the tolerances on models."""


def claims_wrongly(function: hw.GatedFunction, theta: float, seed: int, *budgets: int) -> bool:
    """Whether one of these attempts claims that no unchecked effect reaches theta, and one does."""
    exact = function.effects(range(len(function.names))).abs().mean(1).tolist()
    size = dict(zip(function.names, exact, strict=True))
    for budget in budgets:
        scores = hw.attribute(function, estimator=hw.Gradient())
        found = hw.verify(scores, theta=theta, budget=budget, seed=seed, progress=False)
        if found.holds:
            return any(size[row.name] >= theta for row in found.unchecked)
    return False


def opposite(seed: int, count: int, size: float) -> hw.GatedFunction:
    """Two sets that each work as one, of opposite sign: random sets of them cancel."""
    estimate, exact = population(seed)
    estimate[100 : 100 + 2 * count] = exact[100 : 100 + 2 * count] = 0.0
    function = planted(estimate, exact)
    additive = function.fn

    def fn(m: torch.Tensor) -> torch.Tensor:
        kept = [m[..., first : first + count].prod(-1) for first in (100, 100 + count)]
        once = [1 - (1 - one) ** 2 for one in kept]
        return additive(m) + size * (once[0] - once[1])

    function.fn = fn
    return function


def together(seed: int, count: int, size: float) -> hw.GatedFunction:
    """A set that loses `size` once; with what each does alone, its members just reach theta."""
    estimate, exact = population(seed)
    estimate[150 : 150 + count], exact[150 : 150 + count] = 0.0, THETA + 0.0025 - size
    return planted(estimate, exact, together=[range(150, 150 + count)], size=size)


def verified() -> Iterator[tuple[str, str]]:
    """Yield what was planted, and how many verifications claimed wrongly."""
    for hidden in ([150], [150, 170, 190]):
        for budget in BUDGETS:
            made = (planted(*population(s, hidden, THETA + 1e-9)) for s in range(300))
            wrong = sum(claims_wrongly(f, THETA, s, budget) for s, f in enumerate(made))
            yield f"{len(hidden)} just at theta, unseen; budget {budget}", f"{wrong} of 300"
    for count, size in TOGETHER:
        wrong = sum(claims_wrongly(together(s, count, size), THETA, s, 200) for s in range(60))
        yield f"{count} that lose {size:g} together, just above theta; budget 200", f"{wrong} of 60"
    for count, size in OPPOSITE:
        wrong = sum(claims_wrongly(opposite(s, count, size), THETA, s, 200) for s in range(60))
        yield f"two sets of {count}, {size:+g} and {-size:+g}; budget 200", f"{wrong} of 60"
    made = (planted(*population(s, [150], THETA + 1e-9)) for s in range(150))
    wrong = sum(claims_wrongly(f, THETA, s, *ATTEMPTS) for s, f in enumerate(made))
    yield f"1 just at theta; {len(ATTEMPTS)} budgets tried until one holds", f"{wrong} of 150"


def synthetic(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and effects of a population that stays the same."""
    draw = np.random.default_rng(5)
    if name == "flat":
        estimate = draw.choice([-1, 1], 200) * draw.uniform(0.9, 1.1, 200)
        return estimate, estimate + draw.normal(0, 1, 200)
    if name == "gauss":
        estimate = draw.normal(0, 1, 300)
        return estimate, 2 * estimate + draw.normal(0, 0.5, 300)
    exact = draw.standard_t(2, 200)
    noise = np.exp(0.5 * draw.normal(size=200)), 0.05 * draw.normal(size=200)
    return 0.5 * exact * noise[0] + noise[1], exact


def holds(bar: ErrorBar, effect: float) -> bool:
    """Whether an interval holds an effect."""
    assert bar.low is not None
    assert bar.high is not None
    return bar.low - 1e-12 <= effect <= bar.high + 1e-12


def tightened(
    estimate: np.ndarray, exact: np.ndarray, tolerance: float, seeds: int
) -> tuple[float, float, float]:
    """Return coverage of unchecked intervals, share of runs that leave some, median half width."""
    inside, left, some, widths = 0, 0, 0, []
    for seed in range(seeds):
        scores = hw.attribute(
            planted(estimate, exact), tolerance=tolerance, seed=seed, progress=False
        )
        bars = scores.error_bars()
        assert bars is not None
        bounds = [row for row in bars.rows if row.how == CONFORMAL]
        held = [holds(row, exact[int(row.name[1:])]) for row in bounds]
        inside, left, some = inside + sum(held), left + len(held), some + bool(held)
        widths += [np.median([row.half_width for row in bounds])] if bounds else []
    middle = float(np.median(widths)) if widths else 0.0
    return inside / left if left else float("nan"), some / seeds, middle


def barred() -> Iterator[tuple[str, str, str, str]]:
    """Yield population, tolerance, coverage, and how many runs left something unchecked."""
    for name, tolerances in SYNTHETIC.items():
        for tolerance in tolerances:
            covered, some, _ = tightened(*synthetic(name), tolerance, 150)
            yield name, f"{tolerance:g}", share(covered), share(some, 0)
    parts: dict[str, Callable[[], Selection]] = {
        "heads and MLPs, each position": lambda: (
            hw.heads(positions="each") + hw.mlps(positions="each")
        ),
        "neurons": hw.neurons,
    }
    for model, task in (("tiny", "greater-than"), ("tiny", "agreement"), ("tiny-gpt2", "ioi")):
        for part, components in parts.items():
            given = hw.load(model), hw.task(task)[:8], components()
            estimate, exact = (
                hw.attribute(*given, one, progress=False).mean().double().numpy()
                for one in (hw.Gradient(), hw.Exact())
            )
            name = f"{model}, {task}, {part}"
            covered, some, _ = tightened(estimate, exact, np.inf, 60)
            yield name, "inf", share(covered), share(some, 0)
            _, _, usual = tightened(estimate, exact, np.inf, 1)
            for part_of_usual in SHARES:
                tolerance = part_of_usual * usual
                covered, some, _ = tightened(estimate, exact, tolerance, 60)
                yield name, f"{tolerance:.2g}", share(covered), share(some, 0)


def share(value: float, digits: int = 1) -> str:
    """Return a share in percent; `-` where there was nothing to share."""
    return "-" if np.isnan(value) else f"{100 * value:.{digits}f} %"


def table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for row in rows:
        print(*row, sep=" | ", flush=True)
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    text = [
        "# How often promises hold",
        "",
        "`python -m benchmarks.coverage` writes this file.",
        "",
        f"Wrong claims of `hw.verify(theta={THETA})` at 95 % confidence, on 200 planted "
        "components:",
        "",
        *table(["planted", "wrong"], verified()),
        "",
        "Error bars at 90 % asked for with a tolerance: of the intervals of components that were",
        "not checked at the end, the share that holds the exact effect, over 150 samples (60 of",
        "the models), and the share of runs that left any. On models the tolerances are 1.6, 1 and",
        "0.6 of the median half width of one untightened run.",
        "",
        *table(["population", "tolerance", "hold", "runs with unchecked"], barred()),
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
