"""`headwater verify`: exact checks until nothing above theta can be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    run: Annotated[Path, typer.Argument(help="Folder written by `headwater attribute --out`.")],
    theta: Annotated[
        float, typer.Option(help="The smallest effect that matters, in units of the metric.")
    ],
    confidence: Annotated[float, typer.Option(help="That the claim is right.")] = 0.95,
    budget: Annotated[
        int, typer.Option(help="Exact runs in all: components checked and subsets closed together.")
    ] = 200,
    magnitudes: Annotated[
        bool | None,
        typer.Option(
            "--magnitudes/--means",
            help="Bound mean |effect| or |mean effect|; default what the scores estimate.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the random subsets.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Where the model is, if it has moved.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: as in the run.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Default: a bar on a terminal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check components exactly until no other one can reach theta, or the budget ends.

    What an audit or an earlier verify of the folder has run is not run again.
    """
    import headwater as hw
    from headwater.audits.bound import refuse_numbers

    refuse_numbers(theta, confidence)  # before a model is loaded
    scores = hw.Attribution.load(run)
    said = scores.provenance.model
    found = hw.verify(
        scores,
        theta=theta,
        confidence=confidence,
        budget=budget,
        magnitudes=magnitudes,
        seed=seed,
        model=hw.load(model or said["name"], device=device, dtype=said["dtype"]),
        batch_size=batch_size,
        progress=progress,
        out=run,
    )
    typer.echo(json.dumps(found.to_dict()) if as_json else repr(found))
