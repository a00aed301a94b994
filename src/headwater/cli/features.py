"""`headwater features`: a circuit of dictionary features, from one command."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import (
    AsJson,
    BatchSize,
    Device,
    DictionarySources,
    Draws,
    Dtype,
    MetricName,
    ModelName,
    Out,
    Over,
    Pairs,
    Progress,
    Seed,
    TaskName,
)
from headwater.errors import PromptError, UnknownOptionError

if TYPE_CHECKING:
    from headwater.feature_circuits.result import FeatureCircuit
    from headwater.prompts import Task
    from headwater.prompts.encoding import Tokenizer

OWN = 256
"""Prompts of an embedded model's own text for `--contexts embedded`."""


def features(
    model: ModelName,
    task: TaskName,
    dictionaries: DictionarySources = None,
    node_threshold: Annotated[
        float | None,
        typer.Option(help="Keep nodes whose effect exceeds this in size; default 0.1."),
    ] = None,
    edge_threshold: Annotated[
        float, typer.Option(help="Keep edges whose weight exceeds this in size.")
    ] = 0.01,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Keep this many nodes instead, the strongest.")
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            "--estimator", "-e", help="Of node effects: ig, gradient, exact, ...; ig:steps=20."
        ),
    ] = "ig:steps=10",
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            "-r",
            help="What a closed node is set to: corrupted, mean, positional-mean, resample, zero.",
        ),
    ] = "corrupted",
    over: Over = None,
    draws: Draws = 1,
    metric: MetricName = None,
    aggregation: Annotated[
        str, typer.Option(help="sum: a node is a feature. none: a feature at one position.")
    ] = "sum",
    slope: Annotated[
        str, typer.Option(help="Of the encoder: secant (adds up), or gradient.")
    ] = "secant",
    edges: Annotated[
        str, typer.Option(help="direct, or subtracted: equation 6 of the paper, as a check.")
    ] = "direct",
    mask: Annotated[
        str, typer.Option(help="aggregate: thresholds on means. original: on single pairs.")
    ] = "aggregate",
    edge_slope: Annotated[
        str, typer.Option(help="Of the metric, at edges: nodes (adds up into a node), or clean.")
    ] = "nodes",
    sites: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: sites that are nodes as a whole, beside the dictionaries'; "
            'default embed, "" for none.',
        ),
    ] = None,
    pairs: Pairs = None,
    usable_only: Annotated[
        bool,
        typer.Option(
            "--usable-only",
            help="Leave out pairs that cannot be used (answers of several tokens, prompts of "
            "unequal length), and say how many.",
        ),
    ] = False,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Only pairs of this many tokens, as --aggregation none needs."),
    ] = None,
    audit: Annotated[
        int | None, typer.Option(min=1, help="Check this many edges exactly, and as many nodes.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure faithfulness and completeness.")
    ] = False,
    contexts: Annotated[
        str | None,
        typer.Option(
            help="A corpus (.txt, .jsonl; embedded: tiny's own text) for the top contexts of each "
            "feature, shown on the page.",
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="What features mean, as JSON lines, for the page.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write a graph for Neuronpedia and circuit-tracer here.")
    ] = None,
    out: Out = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Find a circuit of dictionary features: which carry a behavior, and what flows between."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.feature_circuits.annotations import read_annotations, unmatched
    from headwater.feature_circuits.folder import ANNOTATIONS, beside
    from headwater.files import write_text
    from headwater.loading import embedded_names
    from headwater.zoo.corpus import texts

    own = contexts == "embedded"
    if contexts is not None and out is None:
        raise UnknownOptionError("--contexts are shown on the page.\nSay where: --out FOLDER.")
    if contexts is not None and not own and not Path(contexts).is_file():
        raise UnknownOptionError(
            f"--contexts {contexts!r} is no file.\nGive a .txt or .jsonl of prompts, or for an "
            "embedded model: --contexts embedded."
        )
    if own and model not in embedded_names():
        raise UnknownOptionError(
            f"--contexts embedded: {model!r} is no embedded model, so its text is not known.\n"
            "Give a .txt or .jsonl of prompts."
        )
    if export is not None and (export.is_dir() or not export.absolute().parent.is_dir()):
        raise UnknownOptionError(
            f"--export {str(export)!r} is no file that can be written.\nType --export graph.json."
        )
    # refused before anything is computed
    said = {} if annotations is None else read_annotations(annotations)
    # what was typed is judged before a model is loaded
    method = choices.estimator(estimator)
    off = choices.reference(reference, over, seed, draws)
    prompts = choices.task(task, metric, None)
    given = choices.dictionaries(dictionaries, model)
    loaded = hw.load(model, device=device, dtype=dtype)
    if usable_only:
        usable = prompts.usable(loaded.tokenizer, align=off.aligned, one_token=True)
        if usable.left_out:
            typer.echo(str(usable), err=True)
        prompts = usable.task
    if length is not None:
        prompts = _of_length(prompts, length, loaded.tokenizer)
    if pairs is not None:
        prompts = prompts[:pairs]
    circuit = hw.feature_circuit(
        loaded,
        prompts,
        hw.load_dictionaries(loaded, given),
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        nodes=nodes,
        estimator=method,
        reference=off,
        aggregation=aggregation,  # pyright: ignore[reportArgumentType]
        slope=slope,  # pyright: ignore[reportArgumentType]
        edges=edges,  # pyright: ignore[reportArgumentType]
        mask=mask,  # pyright: ignore[reportArgumentType]
        edge_slope=edge_slope,
        sites=None if sites is None else [one.strip() for one in sites.split(",") if one.strip()],
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        out=out,
    )
    if note := unmatched(said, circuit.nodes):
        typer.echo(note, err=True)
    if audit is not None:
        _audit(circuit, audit, model=loaded, seed=seed, progress=progress)
    if evaluate:
        circuit.evaluate(model=loaded)
    if export is not None:
        circuit.export(export, annotations=said)
    found = None
    if contexts is not None:
        corpus = list(islice(texts(loaded.name, held_out=True), OWN)) if own else Path(contexts)
        found = circuit.contexts(corpus, model=loaded, progress=progress)
    page = None
    if out is not None:
        circuit.save(out)
        if found is not None:
            found.save(out, overwrite=True)
        if annotations is not None:
            write_text(out / ANNOTATIONS, annotations.read_text(encoding="utf-8"))
        page = circuit.page(out / "page.html", **beside(out))
    _show(circuit, out, page, as_json)


def _of_length(task: Task, length: int, tokenizer: Tokenizer | None) -> Task:
    """Return the pairs whose prompts have so many tokens."""
    groups = task.by_length(tokenizer)
    if length not in groups:
        raise PromptError(
            f"no pair of '{task.name}' has {length} tokens; there are pairs of "
            f"{', '.join(map(str, groups))}.\nType --length {next(iter(groups))}."
        )
    return groups[length]


def audit_circuit(
    run: Path,
    sample: int,
    *,
    seed: int,
    top: int,
    model: str | None,
    batch_size: int | None,
    device: str | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Check edges and nodes of a circuit's folder exactly, and write it and its page anew."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.feature_circuits.folder import beside

    circuit = hw.FeatureCircuit.load(run)
    loaded = choices.model_again(model, circuit.provenance["model"], device)
    options = {"seed": seed, "top": top, "batch_size": batch_size, "progress": progress}
    _audit(circuit, sample, model=loaded, **options)
    circuit.save(run)
    _show(circuit, run, circuit.page(run / "page.html", **beside(run)), as_json)


def _audit(circuit: FeatureCircuit, sample: int, **options: Any) -> None:
    if circuit.edges:
        circuit.audit(sample, **options)
    else:
        typer.echo("no edge exceeds the threshold: only nodes are checked.", err=True)
    circuit.audit(sample, of="nodes", **options)


def _show(circuit: FeatureCircuit, out: Path | None, page: Path | None, as_json: bool) -> None:
    if as_json:
        listed = [edge.to_dict() for edge in circuit.edges]
        typer.echo(json.dumps({**circuit.to_dict(), "edges": listed}))
        return
    typer.echo(repr(circuit))
    if out is not None:
        typer.echo(f"\nsaved in {out}; the page: {page}")
