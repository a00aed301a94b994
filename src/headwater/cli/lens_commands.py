"""`headwater lens fit | evaluate | logit`: translators, and a logit as a sum of writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.cli.lens import Limit, Sublayers, lens_app, say, say_json
from headwater.cli.options import (
    AsJson,
    Components,
    CorpusFile,
    Device,
    Dtype,
    Layers,
    ModelName,
    Out,
    Progress,
    PromptBatch,
    Seed,
)


@lens_app.command()
def fit(
    model: ModelName,
    file: CorpusFile,
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
    batch_size: PromptBatch = 8,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Fit a map from each layer's residual to the final one's, to be applied before reading."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.lenses.readout import refuse_unknown
    from headwater.lenses.rows import rows_of
    from headwater.lenses.translators import folder
    from headwater.lenses.translators.fit import FITTED, STEPS

    refuse_unknown("method", method, tuple(FITTED))
    chosen = None if layers is None else choices.numbers(layers, "--layers")
    folder.FOLDER.claim(out)
    loaded = hw.load(model, device=device, dtype=dtype)
    rows = rows_of(loaded.anatomy(), chosen, sublayers=sublayers)[:-1]
    corpus: Any = {"limit": limit, "length": length}
    shared: Any = {"batch_size": batch_size, "seed": seed}
    of_method: Any = {"readout": "final-norm"}
    if method in folder.TRAINED:
        of_method["steps"] = STEPS if steps is None else steps
    if method == "kl":
        of_method["start"] = "identity"
    folder.claim(out, loaded, file, method, rows, **corpus, **shared, **of_method)
    translator = hw.fit_lens(
        loaded,
        file,
        method,  # type: ignore[arg-type]
        layers=chosen,
        sublayers=sublayers,
        steps=steps,
        progress=progress,
        **corpus,
        **shared,
    )
    translator.save(out, overwrite=True)  # the same one, or none: it was claimed
    told(
        translator, translator.described, out, as_json,
        use=f"; use it: headwater lens --translator {out} ...",
    )  # fmt: skip


@lens_app.command()
def evaluate(
    translator: Annotated[Path, typer.Argument(help="Folder of `headwater lens fit`.")],
    model: ModelName,
    file: CorpusFile,
    controls_from: Annotated[
        Path | None, typer.Option(help="What controls are fitted to; default half of --file.")
    ] = None,
    limit: Limit = None,
    out: Out = None,
    batch_size: PromptBatch = 8,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Judge a translator on held-out prompts, beside the controls that it has to beat."""
    import headwater as hw
    from headwater.lenses.translators import folder

    fitted = hw.Translator.load(translator)
    if out is not None:
        folder.claim_evaluation(out, fitted.sha256)
    found = fitted.evaluate(
        hw.load(model, device=device, dtype=dtype),
        file,
        controls_from=controls_from,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    if out is not None:
        found.save(out)
    told(found, found.to_dict(), out, as_json)


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
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Split a logit into what each part writes toward it, the final norm frozen: an exact sum."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.directs import folder
    from headwater.directs.asked import task_of

    chosen: Any = choices.components(components, layers, None)
    if out is not None:
        folder.FOLDER.claim(out)
    loaded = hw.load(model, device=device, dtype=dtype)
    runner = loaded if dtype is None else loaded.to(dtype=dtype)
    if out is not None:
        folder.claim(out, runner, task_of(prompt, answer, against, position), chosen)
    found = hw.attribute_logit(
        runner,
        prompt,
        answer,
        against=against,
        position=position,
        components=chosen,
        audit=audit,
        sample=sample,
        seed=seed,
        progress=progress,
    )
    if out is not None:
        found.save(out)
    told(found, found.to_dict(), out, as_json)


def told(
    found: Any, data: Mapping[str, Any], out: Path | None, as_json: bool, *, use: str = ""
) -> None:
    """Print a result, or its plain data, and where it was saved."""
    if as_json:
        say_json(data)
        return
    say([repr(found), *(() if out is None else ("", f"saved in {out}{use}"))])
