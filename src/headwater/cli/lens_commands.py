"""`headwater lens fit | evaluate | logit`: translators, and a logit as a sum of writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.cli.lens import Limit, Sublayers, lens_app, say, say_json
from headwater.cli.options import (
    AsJson,
    Components,
    Device,
    Dtype,
    Layers,
    ModelName,
    Progress,
    Seed,
)

File = Annotated[
    Path, typer.Option("--file", "-f", help="A corpus, one prompt a line (.txt), or .jsonl.")
]


@lens_app.command()
def fit(
    model: ModelName,
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the translator.")],
    method: Annotated[
        str,
        typer.Option(help="lstsq (least squares), kl (tuned lens), bias (a shift only), jacobian."),
    ] = "lstsq",
    layers: Layers = None,
    sublayers: Sublayers = False,
    limit: Limit = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Cut each prompt to this many tokens.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of kl and bias; default 250.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts in one forward.")] = 8,
    device: Device = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Fit a map from each layer's residual to the final one's, to be applied before reading."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.lenses.readout import refuse_unknown
    from headwater.lenses.translators.fit import FITTED
    from headwater.lenses.translators.folder import OURS, claim

    refuse_unknown("method", method, tuple(FITTED))
    claim(out, OURS, "translator")
    translator = hw.fit_lens(
        hw.load(model, device=device),
        file,
        method,  # type: ignore[arg-type]
        layers=None if layers is None else choices.numbers(layers, "--layers"),
        sublayers=sublayers,
        limit=limit,
        length=length,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    translator.save(out)
    if as_json:
        say_json(translator.described)
        return
    say([repr(translator), "", f"saved in {out}; use it: headwater lens --translator {out} ..."])


@lens_app.command()
def evaluate(
    translator: Annotated[Path, typer.Argument(help="Folder of `headwater lens fit`.")],
    model: ModelName,
    file: File,
    controls_from: Annotated[
        Path | None, typer.Option(help="What controls are fitted to; default half of --file.")
    ] = None,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the result.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts in one forward.")] = 8,
    device: Device = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Judge a translator on held-out prompts, beside the controls that it has to beat."""
    import headwater as hw

    fitted = hw.Translator.load(translator)
    found = fitted.evaluate(
        hw.load(model, device=device),
        file,
        controls_from=controls_from,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    if out is not None:
        found.save(out)
    if as_json:
        say_json(found.to_dict())
        return
    say([repr(found), *(() if out is None else ("", f"saved in {out}"))])


@lens_app.command()
def logit(
    model: ModelName,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt.")],
    answer: Annotated[str, typer.Option(help="The token whose logit is taken apart.")],
    against: Annotated[str | None, typer.Option(help="A token whose logit is subtracted.")] = None,
    components: Components = "heads,mlps",
    layers: Layers = None,
    position: Annotated[int, typer.Option(help="Whose logits: from 0, or -1 for the last.")] = -1,
    audit: Annotated[
        bool, typer.Option("--audit", help="Compare with exact direct and total effects.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Components whose totals are checked.")] = 32,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the result.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Split a logit into what each part writes toward it, the final norm frozen: an exact sum."""
    import headwater as hw
    from headwater.cli import choices

    chosen: Any = choices.components(components, layers, None)
    found = hw.attribute_logit(
        hw.load(model, device=device),
        prompt,
        answer,
        against=against,
        position=position,
        components=chosen,
        audit=audit,
        sample=sample,
        dtype=dtype,
        seed=seed,
        progress=progress,
    )
    if out is not None:
        found.save(out)
    if as_json:
        say_json(found.to_dict())
        return
    say([repr(found), *(() if out is None else ("", f"saved in {out}"))])
