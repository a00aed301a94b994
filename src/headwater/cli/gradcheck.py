"""`headwater gradcheck`: is a gradient right, and does its sign mean what one thinks?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import AsJson, Device, ModelName, Out, Seed
from headwater.errors import UnknownOptionError

if TYPE_CHECKING:
    from headwater.gradchecks.report import GradientReport
    from headwater.gradchecks.tables import Table

DISAGREES, UNSETTLED = 1, 3
"""Exit codes: the gradient is wrong; nothing can be said of it, or there is none."""


def gradcheck(
    model: ModelName,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt, run alone.")],
    site: Annotated[
        str,
        typer.Option(
            "--site",
            "-s",
            help="A site (layers.1.mlp.post), a weight's name, a component (a1.h2), or kinds of "
            "components whose gates are checked (heads,mlps).",
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            help="prob:Mary, logprob:Mary, or with --answer and --wrong: logit-diff, prob-diff; "
            "kl, cross-entropy. Default: logprob of --answer, or logit-diff with --wrong."
        ),
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The right continuation.")] = None,
    wrong: Annotated[str | None, typer.Option(help="A wrong continuation.")] = None,
    position: Annotated[
        str, typer.Option(help="Which token's value: from 0, or -1 for the last; all.")
    ] = "-1",
    coordinates: Annotated[
        str | None,
        typer.Option(
            help="Entries checked one by one: all, a number n for the n steepest and n at random, "
            "or a list such as 3,17 or 5-9; default 8."
        ),
    ] = None,
    corrupted: Annotated[
        str | None, typer.Option(help="A corrupted prompt, for the gates of components.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float64 (true float64), or native: the model's own numbers.")
    ] = "float64",
    steps: Annotated[int, typer.Option(min=8, help="Steps a direction, half a decade each.")] = 24,
    device: Device = None,
    out: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Hold a gradient against central differences, and say what its sign means.

    Exit codes: 0 the gradient agrees, 1 it disagrees, 3 neither (constant, kink, saturated, ...).
    """
    import headwater as hw
    from headwater.cli import choices
    from headwater.components import SELECTORS
    from headwater.gradchecks import folder
    from headwater.gradchecks.arguments import refuse_choices
    from headwater.page.payload import finite

    # what was typed is judged before a model is loaded
    kinds = site.replace("+", ",").split(",")[0].strip() in SELECTORS
    where: Any = choices.components(site, None, None) if kinds else site
    number = choices.metric(metric)
    if number is None and answer is None:
        raise UnknownOptionError(
            "which number's gradient? There is neither --metric nor --answer.\n"
            "Write --metric prob:Mary, or --answer Mary and --wrong John."
        )
    token = _position(position)
    checked = _coordinates(coordinates)
    refuse_choices(dtype, steps)
    if out is not None:
        folder.claim(out)
    found = hw.gradcheck(
        hw.load(model, device=device),
        prompt,
        site=where,
        metric=number,
        answer=answer or (),
        wrong=wrong or (),
        position=token,
        coordinates=checked,
        corrupted=corrupted,
        dtype=dtype,  # type: ignore[arg-type]
        steps=steps,
        seed=seed,
    )
    page: Path | None = None
    if out is not None:  # before anything is printed: a reader may close the pipe
        found.save(out)
        page = found.page(out / folder.PAGE)
    with _whoever_reads():
        if as_json:
            typer.echo(json.dumps(finite(found.to_dict()), allow_nan=False))
        else:
            _show(found)
            if page is not None:
                typer.echo(f"\nsaved in {out}; the page: {page}")
    if not found.passed:
        raise typer.Exit(DISAGREES if found.verdict == "disagree" else UNSETTLED)


@contextmanager
def _whoever_reads() -> Iterator[None]:
    """Print though nobody may read to the end: the exit code tells of the gradient alone."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(found: GradientReport) -> None:
    """Show verdict and findings, the steps along the steepest direction, and every table."""
    from headwater.cli.terminal import Terminal
    from headwater.gradchecks import tables

    console = Terminal()
    console.print(found.title(), style="bold", highlight=False, markup=False)
    lead, *rest = found.sentences()
    console.print(f"\n{lead}", style="bold", highlight=False, markup=False)
    for sentence in rest:
        console.print(sentence, highlight=False, markup=False)
    first = found.checks[0]
    shown: list[Table] = [tables.directions(first), tables.steps(first, first.steepest)]
    if first.effects:
        shown.append(tables.effects(first))
    if first.entries:
        shown.append(tables.entries(first))
    if len(found.checks) > 1:
        shown.append(tables.sites(found.checks))
    for table in shown:
        console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
        for place, line in enumerate(tables.plain(table)):
            style = "dim" if place == 0 else ""
            console.print(line, style=style, highlight=False, markup=False)


def _position(text: str) -> Any:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise UnknownOptionError(
            f"--position {text!r} is no position.\nWrite a number such as -1, or all."
        ) from None


def _coordinates(text: str | None) -> Any:
    from headwater.cli import choices

    if text is None or text == "all":
        return text
    if text.isdigit():
        return int(text)
    return choices.numbers(text, "--coordinates")
