"""`headwater compare`: several estimators on one task, side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headwater.cli.options import (
    AsJson,
    BatchSize,
    Components,
    Device,
    Draws,
    Dtype,
    Layers,
    MetricName,
    ModelName,
    Out,
    Over,
    Pairs,
    Positions,
    Progress,
    ReferenceName,
    Seed,
    TaskName,
    Top,
)


def compare(
    model: ModelName,
    task: TaskName,
    components: Components = "heads,mlps",
    estimators: Annotated[
        str,
        typer.Option(
            "--estimators",
            "-e",
            help="Comma-separated; options after colons: gradient,ig:path=inputs:steps=10,exact.",
        ),
    ] = "gradient,atp-star,ig,exact",
    reference: ReferenceName = "corrupted",
    over: Over = None,
    draws: Draws = 1,
    metric: MetricName = None,
    layers: Layers = None,
    positions: Positions = None,
    pairs: Pairs = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Components to check exactly; default all, and all of an end whose exact is "
            "compared.",
        ),
    ] = None,
    top: Top = 10,
    out: Out = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Hold several estimators against the same exact effects, and say which to use here."""
    import headwater as hw
    from headwater.cli import choices, show

    # what was typed is judged before a model is loaded
    methods = choices.estimators(estimators)
    parts = choices.components(components, layers, positions)
    off = choices.reference(reference, over, seed, draws)
    prompts = choices.task(task, metric, pairs)
    found = hw.compare(
        hw.load(model, device=device, dtype=dtype),
        prompts,
        parts,
        methods,
        reference=off,
        sample=sample,
        top=top,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        out=out,
    )
    page = None if out is None else found.page(out / "page.html")
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    show.comparison(found)
    if page is not None:
        typer.echo(f"\nThe page: {page}")
