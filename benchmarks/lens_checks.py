"""Lenses of the embedded models put to the test, and tokens kept; writes lens_checks.md."""

import random
import time
from pathlib import Path

import torch

import headwater as hw
from headwater.lenses.causal import LensCheck
from headwater.lenses.causal.kept import Kept
from headwater.zoo.grammar import window

WINDOWS, PLACES, RECURRENCES = 16, 48, 64


def texts(repeated: float) -> list[str]:
    """Windows of the grammar; the tokenizer adds the start token."""
    rng = random.Random(0)
    return [" ".join(window(rng, repeated=repeated)[1:]) for _ in range(WINDOWS)]


def python_texts() -> list[str]:
    """The clean prompts of the tasks of `tiny-python`."""
    task = hw.task("name", count=WINDOWS)
    return [pair.clean for pair in task.pairs[:WINDOWS]]


def tabled(found: LensCheck | Kept) -> list[str]:
    table = found.table()
    lines = [f"| {' | '.join(table['headings'])} |", "|---" * len(table["headings"]) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in table["rows"])]


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Lenses put to the test",
        "",
        f"{time.strftime('%Y-%m-%d')}; {WINDOWS} prompts each.",
    ]
    for name, what, prompts in (
        ("tiny", "windows of its grammar", texts(0.2)),
        ("tiny", "strings of words said again and again", texts(1.0)),
        ("tiny-python", "pieces of Python", python_texts()),
    ):
        model = hw.load(name)
        lens = hw.lens(model, prompts, sublayers=True, mixtures=False, progress=False)
        lines += ["", f"## {name}, {what}"]
        for how in ("claim", "resample"):
            found = lens.check(sample=PLACES, how=how, progress=False)
            lines += ["", f"### `lens.check(how={how!r})`, {PLACES} places", "", *tabled(found)]
        kept = lens.kept(sample=RECURRENCES, progress=False)
        lines += ["", f"### `lens.kept()`, {RECURRENCES} recurrences", "", *tabled(kept)]
    text = "\n".join([*lines, ""])
    (Path(__file__).parent / "lens_checks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
