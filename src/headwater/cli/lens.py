"""`headwater lens`: what each layer already predicts, of prompts or over a corpus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import AsJson, Device, Dtype, Layers, Progress, PromptBatch, Seed
from headwater.errors import UnknownOptionError

if TYPE_CHECKING:
    from headwater.lenses import Lens
    from headwater.models import Model

lens_app = typer.Typer(
    name="lens",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    subcommand_metavar="[fit | evaluate | logit] ...",
)

EXAMPLES = 3
"""Prompts of a corpus whose cells are on its page."""

Readout = Annotated[
    str,
    typer.Option(help="Norm before the head: final-norm, next-norm (the next layer's), none."),
]
Sublayers = Annotated[
    bool, typer.Option("--sublayers", help="Read between attention and MLP, too.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most so many prompts of a file.")]


@lens_app.callback()
def lens(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Embedded name (tiny), local folder, or hub id."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A prompt; may be given again.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="A corpus, one prompt a line (.txt), or .jsonl."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(help="Rows that all are compared with: final, first, a row (r2) or layer."),
    ] = "final,first",
    layers: Layers = None,
    sublayers: Sublayers = False,
    writes: Annotated[
        bool, typer.Option("--writes", help="Read what attention and MLP write, each alone, too.")
    ] = False,
    readout: Readout = "final-norm",
    decode_with: Annotated[
        str, typer.Option(help="unembedding, or embedding: read with its table instead.")
    ] = "unembedding",
    translator: Annotated[
        str | None, typer.Option(help="Folder of `headwater lens fit`, or a tuned-lens checkpoint.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Words to rank at every position: Mary,John.")
    ] = None,
    best: Annotated[int, typer.Option(min=1, help="Best tokens kept of each cell.")] = 10,
    rarity: Annotated[
        bool, typer.Option("--rarity", help="How long input tokens stay visible, by rarity.")
    ] = False,
    counts: Annotated[
        str,
        typer.Option(help="For --rarity: corpus, tokenizer, or a .json file of text -> count."),
    ] = "corpus",
    check: Annotated[
        int | None,
        typer.Option(min=1, help="Test the lens at so many positions by moving residuals."),
    ] = None,
    kept: Annotated[
        int | None,
        typer.Option(min=1, help="Test whether so many tokens that recur are kept for it."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a heat map: .png, .svg or .pdf (matplotlib).")
    ] = None,
    statistic: Annotated[str, typer.Option(help="Of --plot.")] = "kl(final||layer)",
    limit: Limit = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Longer prompts of a file are cut into pieces.")
    ] = 512,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the result and page.html; resumes a corpus."),
    ] = None,
    batch_size: PromptBatch = 8,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Read what every layer of a model already predicts: KL both ways, ranks, best tokens.

    Position i has read the tokens up to and including i and predicts token i + 1.
    """
    if context.invoked_subcommand is not None:
        return
    from headwater.lenses.readout import READINGS, refuse_unknown

    # what was typed is judged before a model is loaded
    if model is None:
        raise UnknownOptionError("which model? Write --model tiny, a local folder, or a hub id.")
    if bool(text) == (file is not None):
        raise UnknownOptionError(
            f"{'both --text and --file were' if text else 'neither --text nor --file was'} given.\n"
            'Write --text "Mary and John went to" for single prompts, --file corpus.txt for many.'
        )
    refuse_unknown("readout", readout, READINGS)
    _refuse_unused(context, of_corpus=file is not None, rarity=rarity, plot=plot, out=out)
    shared: dict[str, Any] = {
        "layers": _layers(layers),
        "sublayers": sublayers,
        "readout": readout,
        "decode_with": decode_with,
        "translator": translator,
        "batch_size": batch_size,
        "seed": seed,
        "progress": progress,
    }
    if file is not None:
        if not set(against.split(",")) <= {"final", "first"}:
            raise UnknownOptionError(f"--against {_OF_PROMPTS}")
        streamed = {"limit": limit, "max_tokens": max_tokens, "mixtures": True}
        run = _Corpus(file, shared, streamed, rarity, counts)
        run.go(_loaded(model, device, dtype), out, as_json)
        return
    assert text is not None
    if out is not None:
        from headwater.lenses.folder import FOLDER

        FOLDER.claim(out)  # other files: before a model is loaded
    ends = [int(one) if one.lstrip("-").isdigit() else one for one in against.split(",")]
    own = {"writes": writes, "best": best, "tokens": tokens.split(",") if tokens else ()}
    run = _Prompts(
        text, shared | own, ends, rarity, counts, check=check, kept=kept, plot=(plot, statistic)
    )
    run.go(_loaded(model, device, dtype), out, as_json)


@dataclass(frozen=True)
class _Prompts:
    """Single prompts: the whole result, with a cell for every row and position."""

    texts: list[str]
    given: dict[str, Any]
    """For `hw.lens`."""
    against: list[Any]
    rarity: bool
    counts: str
    check: int | None
    kept: int | None
    plot: tuple[Path | None, str]
    """Where to draw, and which statistic."""

    def go(self, model: Model, out: Path | None, as_json: bool) -> None:
        import headwater as hw
        from headwater.lenses import folder, words
        from headwater.lenses.plot import refuse_format
        from headwater.lenses.rows import index_of, rows_of
        from headwater.lenses.translators import as_translator

        path, statistic = self.plot
        counts = _counts(self.counts) if self.rarity else None
        if path is not None:
            refuse_format(path)
        rows = rows_of(
            model.anatomy(), **{one: self.given[one] for one in ("layers", "sublayers", "writes")}
        )
        for one in self.against:
            index_of(rows, one)  # refuses before anything runs
        given = {**self.given, "translator": as_translator(self.given["translator"], model, rows)}
        if out is not None:
            self._claim(out, model, rows, given)
        found = hw.lens(model, self.texts, **given)
        drawn = {one: given[one] for one in ("seed", "progress")}
        tests: list[Any] = []
        if self.check:
            tests.append(found.check(sample=self.check, **drawn))
        if self.kept:
            tests.append(found.kept(sample=self.kept, **drawn))
        rare = found.rarity(counts) if self.rarity else None
        if path is not None:
            found.plot(path, statistic)
        page = None
        if out is not None:
            found.save(out)
            page = found.page(out / folder.PAGE)
        if as_json:
            more = {} if rare is None else {"rarity": rare.to_dict()}
            say_json(found.to_dict() | more | {"tests": [one.to_dict() for one in tests]})
            return
        lines = [words.title(found), words.CONVENTION, "", *words.sentences(found)]
        for number in range(len(found.texts)):
            lines += ["", *words.grid(found, number, width=terminal().width)]
        lines += ["", "Means over positions (ranks: medians)", *words.table(found, self.against)]
        lines += [line for one in (*tests, rare) if one is not None for line in ("", repr(one))]
        say(lines)
        if page is not None:
            typer.echo(f"\nsaved in {out}; the page: {page}")

    def _claim(self, out: Path, model: Model, rows: Any, given: dict[str, Any]) -> None:
        """Refuse a folder that holds another lens, before anything runs."""
        from headwater.lenses import folder

        translator = given["translator"]
        folder.claim(
            out,
            model,
            self.texts,
            rows,
            translator=None if translator is None else translator.described,
            controls=0,
            **{one: given[one] for one in ("tokens", "best", "readout", "decode_with", "seed")},
        )


@dataclass(frozen=True)
class _Corpus:
    """A corpus: means, quantiles and questions, streamed."""

    file: Path
    given: dict[str, Any]
    """For `hw.lens` and `hw.lens_dataset`."""
    streamed: dict[str, Any]
    """For `hw.lens_dataset` alone."""
    rarity: bool
    counts: str

    def go(self, model: Model, out: Path | None, as_json: bool) -> None:
        import headwater as hw

        counts = _counts(self.counts)
        found = hw.lens_dataset(model, self.file, out=out, **self.given, **self.streamed)
        rare = found.rarity(counts) if self.rarity else None
        page = None
        if out is not None:
            from headwater.lenses import folder

            page = found.page(
                out / folder.PAGE, counts=counts, examples=self._examples(model, max_tokens=64)
            )
        if as_json:
            say_json(found.to_dict() | ({} if rare is None else {"rarity": rare.to_dict()}))
            return
        lines = found.told(rarity=rare is None)
        say([*lines, *(("", repr(rare)) if rare is not None else ())])
        if page is not None:
            typer.echo(f"\nsaved in {out}; the page: {page}")

    def _examples(self, model: Model, max_tokens: int) -> Lens:
        """Return the first prompts of the corpus, read cell by cell."""
        import headwater as hw
        from headwater.prompts.streams import DATASET, Reading

        reading = Reading(self.file, EXAMPLES, DATASET)
        rows = next(reading.windows(model, EXAMPLES))
        ids = [list(row.clean[:max_tokens]) for row in rows]
        return hw.lens(model, ids, **{**self.given, "progress": False})


def _loaded(model: str, device: str | None, dtype: str | None) -> Model:
    import headwater as hw

    return hw.load(model, device=device, dtype=dtype)


def _layers(text: str | None) -> list[int] | None:
    from headwater.cli import choices

    return None if text is None else choices.numbers(text, "--layers")


def _counts(words: str) -> Any:
    """Return counts of tokens: a word that the analysis knows, or a JSON file of them."""
    if words in ("corpus", "tokenizer"):
        return words
    path = Path(words)
    if not path.is_file():
        raise UnknownOptionError(
            f"--counts {words!r} is neither corpus or tokenizer nor a file.\n"
            'A file is JSON, counts by token text: {" the": 120, " plasma": 2}.'
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnknownOptionError(f"--counts {words}: not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise UnknownOptionError(f"--counts {words}: not an object of text -> count.")
    return found


_OF_PROMPTS = (
    "goes with --text: of a corpus single positions are not kept, and its rows are compared with "
    "final and first.\nGive some prompts with --text."
)


def _refuse_unused(
    context: typer.Context, *, of_corpus: bool, rarity: bool, plot: Path | None, out: Path | None
) -> None:
    """Refuse options that were typed and would change nothing."""
    instead: dict[str, str] = {}
    if of_corpus:
        for name in ("writes", "tokens", "best", "check", "kept", "plot", "statistic"):
            instead[name] = _OF_PROMPTS
    else:
        instead["limit"] = "goes with --file: every --text is read."
        instead["max_tokens"] = "goes with --file: a --text is read whole."
        if plot is None:
            instead["statistic"] = "goes with --plot: it says what is drawn."
    if not rarity and not (of_corpus and out is not None):  # a corpus's page shows rarity
        instead["counts"] = "goes with --rarity: it says how common tokens are."
    for name, why in instead.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UnknownOptionError(f"--{name.replace('_', '-')} {why}")


def say_json(data: Any) -> None:
    """Print plain data as JSON; what is not finite becomes null."""
    from headwater.page.payload import finite

    typer.echo(json.dumps(finite(data), allow_nan=False, default=str))


def say(lines: list[str]) -> None:
    """Print lines, the first of them bold."""
    console = terminal()
    for place, line in enumerate(lines):
        style = "bold" if place == 0 else None
        console.print(line, style=style, highlight=False, markup=False)


def terminal() -> Any:
    """Return the console that results are printed on."""
    from headwater.cli.terminal import Terminal

    return Terminal()
