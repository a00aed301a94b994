"""`headwater dictionaries inspect | train`: what dictionaries are worth, and one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.lens import say, say_json
from headwater.cli.options import AsJson, Device, Dtype, ModelName, Progress, PromptBatch, Seed
from headwater.errors import UnknownOptionError

if TYPE_CHECKING:
    from headwater.dictionaries import Dictionary
    from headwater.models import Model
    from headwater.saes import Inspection
    from headwater.sites import Site

dictionaries_app = typer.Typer(
    name="dictionaries",
    help="Sparse dictionaries (SAEs, transcoders): look into them, or train one.",
    no_args_is_help=True,
    add_completion=False,
)

EMBEDDED = "embedded"
"""In place of a folder: the dictionaries that ship with an embedded model."""
TRAINED_ON, INSPECTED_ON = 1300, 128
"""Prompts drawn of an embedded model's own text."""

TEXTS = ("site", "kind", "model")
"""Columns that are no numbers."""
LEGEND = (
    "spliced, mean, zero: next-token cross-entropy with the reconstruction, the mean, zero in "
    "place of the values (clean {:.3f}); recovered: the share of what the mean costs"
)
"""Under the table of several."""

File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="A corpus, one prompt a line (.txt), or .jsonl; embedded models have their own.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most so many prompts.")]
Length = Annotated[int | None, typer.Option(min=2, help="Cut each prompt to this many tokens.")]
Skip = Annotated[
    int, typer.Option(min=0, help="Leave out so many positions at the front of each prompt.")
]


@dictionaries_app.command()
def inspect(
    folder: Annotated[
        str,
        typer.Argument(
            help="A dictionary's file or folder, a folder of several, or: embedded.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Measure on this model; without it, only look."),
    ] = None,
    file: File = None,
    site: Annotated[
        str | None, typer.Option(help="Its place, if its file names none: layers.3.mlp.out.")
    ] = None,
    reads: Annotated[str | None, typer.Option(help="What a transcoder encodes, likewise.")] = None,
    limit: Limit = None,
    length: Length = None,
    skip: Skip = 0,
    batch_size: PromptBatch = 8,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Say what dictionaries are and, on a model, how well they reconstruct it.

    Explained variance, active features, dead features, and how much of the next-token loss that
    ablating the site costs is recovered by its reconstruction.
    """
    from headwater.saes import inspect_dictionary

    if reads is not None and site is None:
        raise UnknownOptionError("--reads goes with --site: where a transcoder writes.")
    if model is None:
        for option, value in {"--file": file, "--site": site, "--limit": limit}.items():
            if value is not None:
                raise UnknownOptionError(
                    f"{option} goes with --model: without one nothing is measured.\n"
                    "Add for example --model tiny."
                )
        if folder == EMBEDDED:
            raise UnknownOptionError("which embedded model's? Add --model tiny.")
        _told([inspect_dictionary(one) for one in _looked_at(folder)], None, as_json)
        return
    _refuse_no_corpus(model, file)
    loaded = _loaded(model, device, dtype)
    corpus, said = _corpus(model, file, seed, limit or INSPECTED_ON, held_out=True)
    found = [
        inspect_dictionary(
            one,
            loaded,
            corpus,
            written,
            reads=read if one.transcoder else None,
            limit=limit,
            length=length,
            skip=skip,
            batch_size=batch_size,
            progress=progress,
        )
        for written, read, one in _placed(loaded, folder, site, reads)
    ]
    _told(found, said, as_json)


@dictionaries_app.command()
def train(
    model: ModelName,
    site: Annotated[str, typer.Option(help="Where: layers.1.mlp.out; `headwater sites MODEL`.")],
    features: Annotated[int, typer.Option(min=1, help="How many features.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for it; resumes there.")],
    file: File = None,
    activation: Annotated[
        str, typer.Option(help="topk (the k largest), or relu (with a price on their sum).")
    ] = "topk",
    k: Annotated[int | None, typer.Option(min=1, help="Of topk; default 32.")] = None,
    l1: Annotated[float | None, typer.Option(min=0, help="Price, of relu; default 0.1.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam.")] = 2000,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    buffer: Annotated[int, typer.Option(min=1, help="Tokens shuffled together.")] = 2**16,
    limit: Limit = None,
    length: Length = None,
    skip: Skip = 0,
    batch_size: PromptBatch = 8,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Train a dictionary of one site; typed again it goes on where it was ended."""
    import json

    from headwater.saes import Inspection, train_dictionary
    from headwater.saes.recipe import refuse_unknown

    refuse_unknown(activation)
    _refuse_no_corpus(model, file)
    loaded = _loaded(model, device, dtype)
    corpus, said = _corpus(model, file, seed, limit or TRAINED_ON, held_out=False)
    found = train_dictionary(
        loaded,
        corpus,
        site,
        features=features,
        activation=activation,  # type: ignore[arg-type]
        k=k,
        l1=l1,
        steps=steps,
        tokens=tokens,
        learning_rate=learning_rate,
        buffer=buffer,
        limit=limit,
        length=length,
        skip=skip,
        out=out,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    if as_json:
        say_json({"dictionary": Inspection(found).to_dict(), "text": said, "training": record})
        return
    last = record["last_steps"]
    say(
        [
            *Inspection(found).lines(),
            f"text: {said}",
            f"last steps: explained variance {last['explained_variance']:.4f}, "
            f"{last['active_features']:.1f} features active a token, "
            f"{last['silent_features']:,} of {features:,} silent",
            "",
            f"saved in {out}; judge it on other text: headwater dictionaries inspect {out} "
            f"--model {model}{'' if file is None else ' --file OTHER'}",
        ]
    )


def _loaded(model: str, device: str | None, dtype: str | None) -> Model:
    import headwater as hw

    return hw.load(model, device=device, dtype=dtype)


def _refuse_no_corpus(model: str, file: Path | None) -> None:
    """Refuse a model whose kind of text is not known, before it is loaded."""
    from headwater.loading import embedded_names

    if file is None and model not in embedded_names():
        raise UnknownOptionError(
            f"no text is known for {model!r}: only the embedded models "
            f"({', '.join(embedded_names())}) have their own.\n"
            "Give a corpus: --file corpus.txt, one prompt a line, or .jsonl."
        )


def _corpus(
    model: str, file: Path | None, seed: int, count: int, *, held_out: bool
) -> tuple[Any, str]:
    """Return what is read, and what it is in words."""
    if file is not None:
        return file, f"the file {file}"
    from itertools import islice

    from headwater.zoo import corpus

    said = f"{count:,} prompts of {corpus.described(model)}"
    more = ", other ones than `train` draws" if held_out else ""
    drawn = list(islice(corpus.texts(model, seed, held_out=held_out), count))
    return drawn, f"{said} (seed {seed}{more})"


def _looked_at(folder: str) -> list[Dictionary]:
    """Return the dictionaries of a folder; a single one need not name its place."""
    from headwater.dictionaries import Dictionaries, read_dictionary
    from headwater.dictionaries.source import weights_in

    path = Path(folder)
    if path.is_dir() and len(weights_in(path)) != 1:
        return list(Dictionaries.read(path).values())
    return [read_dictionary(path)]


def _placed(
    model: Model, folder: str, site: str | None, reads: str | None
) -> list[tuple[Site, Site, Dictionary]]:
    """Return what is written, what is read, and the dictionary, in the order of a forward pass."""
    from headwater.dictionary_loading import load_dictionaries

    place: Any = site if reads is None else (reads, site)
    found = load_dictionaries(model, folder, sites=place)
    return [(one, found.reads(one), found[one]) for one in found]


def _told(found: list[Inspection], text: str | None, as_json: bool) -> None:
    """Print one dictionary in full, several as a table."""
    if as_json:
        plain = [one.to_dict() for one in found]
        say_json({"text": text, "dictionaries": plain})
        return
    if len(found) == 1:
        say([*found[0].lines(), *([f"text: {text}"] if text else [])])
        return
    lines = _table(found)
    if text:
        clean = found[0].figures.clean if found[0].figures else float("nan")
        lines += ["", f"text: {text}", LEGEND.format(clean)]
    lines += [
        f"note: {one.figures.site}: {sentence}"
        for one in found
        if one.figures is not None
        for sentence in one.warnings()
    ]
    say(lines)


def _table(found: list[Inspection]) -> list[str]:
    """Return a line a dictionary under a line of headings."""
    rows = [_row(one) for one in found]
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    place = [str.ljust if name in TEXTS else str.rjust for name in rows[0]]
    lines = [
        "  ".join(put(cell, size) for put, cell, size in zip(place, row, wide, strict=True))
        for row in cells
    ]
    return [line.rstrip() for line in lines]


def _row(one: Inspection) -> dict[str, str]:
    figures, origin = one.figures, one.dictionary.origin
    hooks = " -> ".join(hook for hook in (origin.hook, origin.hook_out) if hook)
    row = {
        "site": hooks if figures is None else figures.site,
        "kind": origin.kind or one.dictionary.activation.name,
        "features": f"{one.dictionary.features:,}",
    }
    if figures is None:
        return row | {"width": str(one.dictionary.d_out), "model": origin.model or "-"}
    return row | {
        "explained": f"{figures.explained_variance:.4f}",
        "active": f"{figures.active:.1f}",
        "dead": f"{figures.dead:,}",
        "spliced": f"{figures.spliced:.3f}",
        "mean": f"{figures.mean_ablated:.3f}",
        "zero": f"{figures.zero_ablated:.3f}",
        "recovered": f"{figures.loss_recovered:.4f}",
    }
