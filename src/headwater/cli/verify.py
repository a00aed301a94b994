"""`headwater verify`: exact checks until nothing above theta can be missing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headwater.cli.options import (
    AsJson,
    BatchSizeAgain,
    Device,
    MovedModel,
    Progress,
    Run,
    Seed,
)
from headwater.cli.spelling import typed


def verify(
    run: Run,
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
    seed: Seed = 0,
    model: MovedModel = None,
    batch_size: BatchSizeAgain = None,
    device: Device = None,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Check components exactly until no other one can reach theta, or the budget ends.

    What an audit or an earlier verify of the folder has run is not run again.
    """
    import headwater as hw
    from headwater.audits.bound import refuse_numbers
    from headwater.cli import choices

    refuse_numbers(theta, confidence)  # before a model is loaded
    scores = hw.Attribution.load(run)
    found = hw.verify(
        scores,
        theta=theta,
        confidence=confidence,
        budget=budget,
        magnitudes=magnitudes,
        seed=seed,
        model=choices.model_again(model, scores.provenance.model, device),
        batch_size=batch_size,
        progress=progress,
        out=run,
    )
    typer.echo(json.dumps(found.to_dict()) if as_json else typed(repr(found)))
