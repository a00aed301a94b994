"""`headwater zoo`: models whose scores are known, and how far each estimator is from them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headwater.cli.options import AsJson


def zoo(
    name: Annotated[
        str | None,
        typer.Argument(help="A ground-truth model, such as saturated-softmax; all if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show models with known answers: which estimators are right, which wrong, by how much.

    Every score is computed here and now and compared with its closed form; exit code 1 means that
    one of them is not.
    """
    from headwater.cli.terminal import Terminal
    from headwater.zoo.truths import TRUTHS, truth
    from headwater.zoo.truths.overview import comparisons, overview
    from headwater.zoo.truths.rendering import WIDTH, rendered

    found = comparisons(list(TRUTHS.values())) if name is None else [truth(name).compare()]
    if as_json:
        plain = [comparison.to_dict() for comparison in found]
        typer.echo(json.dumps(plain if name is None else plain[0]))
    else:
        console = Terminal(wraps=True, highlight=False)
        console.width = max(console.width, WIDTH)
        console.print(overview(found) if name is None else rendered(found[0]))
    if not all(comparison.agrees for comparison in found):
        raise typer.Exit(1)
