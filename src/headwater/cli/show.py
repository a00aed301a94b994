"""What the terminal shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from headwater.cli.spelling import typed
from headwater.cli.terminal import Terminal

if TYPE_CHECKING:
    from headwater.attribution import Attribution
    from headwater.audits.comparison import Comparison


SHOWN = 10
"""Components in a printed table, the strongest ones."""
DIGITS = 4
"""Of the largest number in a column."""


def attribution(scores: Attribution, sample: str = "--sample") -> None:
    """Show the ten strongest components, the audit in words, and the cost.

    Args:
        scores: The result.
        sample: The option that says how many components are audited.
    """
    console = Terminal()
    say = partial(typed, chosen=[scores.provenance.estimator["name"]], sample=sample)
    parts = scores.parts
    console.print(f"[bold]{escape(scores.title())}[/]")
    ends = {"clean": float(parts.clean.mean())}
    if parts.corrupted is not None:
        ends["corrupted"] = float(parts.corrupted.mean())
    form = column_form(ends.values())
    metric = "f" if scores.task is None else scores.task.metric.name
    console.print(
        f"{metric}: {', '.join(f'{end} {value:+{form}}' for end, value in ends.items())}, "
        f"mean over {len(parts.clean)} pair{'s' if len(parts.clean) > 1 else ''}\n",
        highlight=False,
    )
    count = len(scores.names)
    if count > SHOWN:
        console.print(f"strongest {SHOWN} of {count:,} components", highlight=False)
    console.print(_strongest(scores))
    console.print(f"\n{scores.stability()}", highlight=False, markup=False)
    if sums := scores.sums():
        console.print(sums, highlight=False, markup=False)
    for sentence in (said := scores.said_of_truth()):
        console.print(escape(say(sentence)), highlight=False)
    if scores.checked is not None:
        console.print(f"[bold]{escape(say(scores.checked.verdict))}[/]", highlight=False)
        if scores.checked.cost:
            console.print(f"audit cost: {scores.checked.cost}", highlight=False, style="dim")
    elif not said and not scores.is_exact:
        console.print("Not audited: how far these are from the truth is not known yet.")
    for warning in scores.warnings():
        console.print(f"note: {escape(say(warning))}", highlight=False, style="yellow")
    console.print(f"cost: {scores.cost}", highlight=False, style="dim")


def _strongest(scores: Attribution) -> Table:
    rows = scores.top(SHOWN)
    form = column_form([row.score for row in rows] + [row.exact or 0.0 for row in rows])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for heading in ("score", "se", "ranks", "exact", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sign", no_wrap=True)
    table.add_column("", style="yellow")
    for row in rows:
        table.add_row(
            escape(row.name),
            f"{row.score:+{form}}",
            "-" if row.se is None else f"{row.se:{form}}",
            row.ranks or "-",
            escape(row.truth(f"+{form}")),
            "" if row.size is None else f"{row.size:.2f}",
            "supports" if row.score > 0 else "opposes" if row.score < 0 else "none",
            # names only: the numbers of a flag stand in the page and in `scores.rows()`
            escape(", ".join(flag.partition(" (")[0] for flag in row.flags)),
        )
    return table


def column_form(values: Iterable[float]) -> str:
    """Return how a column is written: the same decimals for all, four digits for the largest."""
    size = math.floor(math.log10(max(map(abs, values)) or 1.0))
    return f".{max(0, DIGITS - 1 - size)}f" if -5 <= size <= 6 else f".{DIGITS - 1}e"


def comparison(found: Comparison) -> None:
    """Show one row an estimator, what the figures rest on, and which to use."""
    console = Terminal()
    console.print(f"[bold]{escape(found.title)}[/]\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("estimator", overflow="fold")
    for heading in found.headings():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(escape(row.name), *found.cells(row))
    console.print(table)
    console.print(f"\n{found.checked_words()}", highlight=False, style="dim")
    for place, sentence in enumerate(found.advice):
        said = typed(sentence, [row.name for row in found.rows])
        console.print(escape(said), highlight=False, style="bold" if place == 0 else "")


def next_steps(folder: Path, *, audited: bool) -> None:
    """Say what to type next."""
    console = Terminal()
    console.print(f"\nsaved in {folder}", highlight=False)
    steps = (
        [f"headwater page {folder}"]
        if audited
        else [f"headwater audit {folder}", f"headwater page {folder}"]
    )
    for label, step in zip(("next: ", "      "), steps, strict=False):
        console.print(f"{label}{step}", highlight=False)


def sites(model: str, listed: Sequence[Mapping[str, Any]]) -> None:
    """Show the sites of a model with their shapes."""
    console = Terminal()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("site", "shape", "meaning"):
        # the meaning is what a reader needs whole; shapes may wrap
        table.add_column(
            heading, no_wrap=heading == "site", ratio=2 if heading == "meaning" else None
        )
    for row in listed:
        table.add_row(*(escape(str(row[key])) for key in ("site", "shape", "meaning")))
    console.print(f"[bold]sites of {escape(model)}[/]")
    console.print(table)


def models(embedded: Sequence[str], families: Sequence[Mapping[str, str]]) -> None:
    """Show the table of model families; what is refused, and why, as numbered notes below it."""
    console = Terminal()
    console.print(f"embedded, no download: {', '.join(embedded)}\n", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    short = {"queries, keys, values": "q/k/v"}
    kinds = [key for key in families[0] if key != "refused"]
    for heading in (*kinds, "note"):
        table.add_column(short.get(heading, heading), no_wrap=True)
    notes: dict[str, int] = {}
    for row in families:
        reasons = [reason for reason in row["refused"].split("; ") if reason]
        numbers = [str(notes.setdefault(reason, len(notes) + 1)) for reason in reasons]
        table.add_row(*(escape(row[kind]) for kind in kinds), ", ".join(numbers))
    console.print(table)
    console.print()
    for reason, number in notes.items():
        console.print(f"{number}  {escape(reason)}", highlight=False)
