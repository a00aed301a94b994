"""The commands. torch is imported inside them, so that `--help` stays quick."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.comparing import compare
from headwater.cli.dictionaries import dictionaries_app
from headwater.cli.features import audit_circuit, features
from headwater.cli.gradcheck import gradcheck
from headwater.cli.lens_commands import lens_app
from headwater.cli.options import (
    AsJson,
    At,
    BatchSize,
    BatchSizeAgain,
    Components,
    Device,
    DictionarySources,
    Draws,
    Dtype,
    Layers,
    MetricName,
    ModelName,
    MovedModel,
    Out,
    Over,
    Pairs,
    Positions,
    Progress,
    ReferenceName,
    Run,
    RunOrCircuit,
    Seed,
    TaskName,
    Top,
)
from headwater.cli.shift import shift_app
from headwater.cli.spelling import typed_words
from headwater.cli.survey import survey
from headwater.cli.verify import verify
from headwater.cli.zoo import zoo
from headwater.errors import HeadwaterError, UnknownOptionError

if TYPE_CHECKING:
    from headwater.attribution import Attribution

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="headwater",
    help="Which parts of a transformer a behavior flows from - audited against the truth.",
    epilog="Exit codes: 0 done, 1 unexpected failure, 2 refused (the message says why), "
    "130 interrupted. gradcheck: 1 also where the gradient disagrees, 3 where neither.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def attribute(
    model: ModelName,
    task: TaskName,
    components: Components = "heads,mlps",
    dictionaries: DictionarySources = None,
    estimator: Annotated[
        str,
        typer.Option(
            "--estimator",
            "-e",
            help="gradient (AtP), atp-star, ig, exact, auto, ...; options after colons: "
            "ig:path=inputs:steps=10.",
        ),
    ] = "gradient",
    at: At = "clean",
    reference: ReferenceName = "corrupted",
    over: Over = None,
    draws: Draws = 1,
    metric: MetricName = None,
    layers: Layers = None,
    positions: Positions = None,
    pairs: Pairs = None,
    audit: Annotated[
        int | None, typer.Option(min=1, help="Audit this many components right away.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Check exactly until every error bar is this short (half width)."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of the error bars; default 0.9.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most exact runs for --tolerance.")
    ] = None,
    out: Out = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Score components: how much the metric falls when each is switched off."""
    import headwater as hw
    from headwater.audits.adaptive import refuse_aim
    from headwater.cli import choices, show

    if tolerance is None and (confidence is not None or budget is not None):
        raise UnknownOptionError(
            "--confidence and --budget are of the error bars that --tolerance asks for.\n"
            "Add for example --tolerance 0.1."
        )
    confidence = 0.9 if confidence is None else confidence
    if tolerance is not None:
        refuse_aim(tolerance, confidence, budget)
    # what was typed is judged before a model is loaded
    method = choices.estimator(estimator, at)
    parts = choices.components(components, layers, positions, features=True)
    found = choices.selected_dictionaries(dictionaries, parts, model)
    off = choices.reference(reference, over, seed, draws)
    prompts = choices.task(task, metric, pairs)
    loaded = hw.load(model, device=device, dtype=dtype)
    if found is not None:
        parts = choices.coded(parts, hw.load_dictionaries(loaded, found))
    scores = hw.attribute(
        loaded,
        prompts,
        parts,
        method,
        reference=off,
        tolerance=tolerance,
        confidence=confidence,
        budget=budget,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        out=out,
    )
    if audit is not None:
        with scores.kept_in(out):
            scores.audit(model=loaded, sample=audit, seed=seed, progress=progress)
    _print(scores, as_json, partial(show.attribution, sample="--audit"))
    if out is not None and not as_json:
        show.next_steps(out, audited=scores.checked is not None)


@app.command()
def audit(
    run: RunOrCircuit,
    sample: Annotated[int, typer.Option(min=1, help="Components to check exactly.")] = 32,
    seed: Seed = 0,
    top: Top = 10,
    model: MovedModel = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Flag saturation, cancellation, jumps and rounding.")
    ] = False,
    curves: Annotated[
        int,
        typer.Option(min=0, help="Response curves of this many of the strongest, for the page."),
    ] = 0,
    batch_size: BatchSizeAgain = None,
    device: Device = None,
    dtype: Dtype = None,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Compare a sample of a run's scores with exact effects, and say how wrong they are.

    Of a circuit of features, edges and nodes are sampled.
    """
    import headwater as hw
    from headwater.cli import choices, show
    from headwater.feature_circuits.folder import holds_circuit

    if holds_circuit(run):
        if diagnose or curves or dtype is not None:
            raise UnknownOptionError(
                f"{run} holds a circuit: --diagnose, --curves and --dtype are of scores."
            )
        audit_circuit(
            run,
            sample,
            seed=seed,
            top=top,
            model=model,
            batch_size=batch_size,
            device=device,
            progress=progress,
            as_json=as_json,
        )
        return
    scores = hw.Attribution.load(run)
    loaded = choices.model_again(model, scores.provenance.model, device)
    with scores.kept_in(run):
        scores.audit(
            model=loaded,
            sample=sample,
            seed=seed,
            top=top,
            batch_size=batch_size,
            dtype=dtype,
            progress=progress,
        )
        if diagnose:
            scores.diagnose(model=loaded, batch_size=batch_size, progress=progress)
        if curves:
            scores.add_curves(curves, model=loaded, batch_size=batch_size, progress=progress)
    _print(scores, as_json, show.attribution)


app.command()(verify)


@app.command()
def page(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default RUN/page.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as one HTML file that opens anywhere and loads nothing from a network."""
    import headwater as hw
    from headwater.feature_circuits.folder import beside, holds_circuit
    from headwater.gradchecks.folder import holds_check
    from headwater.lenses.folder import holds_lens
    from headwater.lenses.tally.folder import holds_corpus

    kinds = {
        hw.GradientReport: holds_check,
        hw.Lens: holds_lens,
        hw.LensSummary: holds_corpus,
        hw.FeatureCircuit: holds_circuit,
    }
    kind = next((one for one, holds in kinds.items() if holds(run)), hw.Attribution)
    loaded = kind.load(run)
    options = beside(run) if isinstance(loaded, hw.FeatureCircuit) else {}
    path = loaded.page(out or run / "page.html", **options)
    typer.echo(json.dumps({"page": str(path)}) if as_json else f"wrote {path}")


@app.command()
def sites(
    model: Annotated[str, typer.Argument(help="Embedded name, local folder, or hub id.")],
    as_json: AsJson = False,
) -> None:
    """List the places of a model that can be read or gated, with their shapes."""
    import headwater as hw
    from headwater.architectures.overview import site_rows
    from headwater.cli import show

    listed = site_rows(hw.load(model).anatomy())
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
    else:
        show.sites(model, listed)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the model families headwater runs, and what each one lacks."""
    from headwater.architectures.overview import models_table
    from headwater.cli import show
    from headwater.loading import embedded_names

    table = models_table()
    if as_json:
        typer.echo(json.dumps({"embedded": embedded_names(), "families": table}, indent=1))
    else:
        show.models(embedded_names(), table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run and page.")] = Path(
        "demo"
    ),
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Attribute and audit the embedded model's indirect-object behavior; no network needed."""
    import headwater as hw
    from headwater.cli import show

    model, task = hw.load("tiny"), hw.task("ioi", count=100)
    components = hw.heads() + hw.mlps()
    scores = hw.attribute(model, task, components, hw.Gradient(), progress=progress)
    scores.audit(sample=32, progress=progress)
    scores.save(out, overwrite=True)
    path = scores.page(out / "page.html")
    _print(scores, as_json, show.attribution)
    if not as_json:
        typer.echo(f"\nThe page: {path}")


app.command()(compare)
app.command()(features)
app.command()(gradcheck)
app.add_typer(lens_app)
app.add_typer(dictionaries_app)
app.add_typer(shift_app)
app.command()(survey)
app.command()(zoo)


def _print(scores: Attribution, as_json: bool, show_it: Any) -> None:
    if as_json:
        typer.echo(json.dumps(scores.to_dict()))
    else:
        show_it(scores)


def main() -> None:
    """Run the command line; refusals become one message and exit code 2."""
    _quiet()
    try:
        app()
    except HeadwaterError as error:
        said = f"{type(error).__name__}: {error}"
        typer.echo("\n".join(filter(None, [said, typed_words(said, sys.argv)])), err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        typer.echo("interrupted", err=True)  # Typer says nothing of it
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _quiet() -> None:
    """Show our own log lines and keep the libraries' chatter away from the result."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("headwater").setLevel(logging.INFO)
