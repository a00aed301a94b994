"""`headwater survey`: does saturation come up in a model, on a text or on pairs?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    MetricName,
    ModelName,
    Out,
    Over,
    Progress,
    Seed,
)
from headwater.cli.spelling import typed
from headwater.errors import PromptError, UnavailableSiteError, UnknownOptionError

if TYPE_CHECKING:
    from headwater.audits.survey_result import Survey
    from headwater.models import Model


def survey(
    model: ModelName,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A text file, one prompt a line.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "--pairs",
            "-t",
            help="Pairs on which effects are taken: an embedded task, or a .jsonl, .json or .csv "
            "file. Without --file its clean prompts are the corpus, too.",
        ),
    ] = None,
    metric: MetricName = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            help="corrupted, mean, positional-mean, resample, zero; default corrupted for pairs, "
            "positional-mean over the corpus for text.",
        ),
    ] = None,
    over: Over = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Components checked exactly.")] = 128,
    tested: Annotated[int, typer.Option(min=1, help="Prompts on which effects are taken.")] = 32,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Longer prompts are counted up to here.")
    ] = 512,
    out: Out = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Say how often attention saturates, and how much of the effects a gradient misses for it."""
    import headwater as hw
    from headwater.cli import choices

    if file is None and task is None:
        raise PromptError(
            "there is nothing to survey.\nType --file corpus.txt (one prompt a line) or --task ioi."
        )
    if over is not None and reference is None:
        raise UnknownOptionError(
            "--over goes with --reference mean or positional-mean, and no --reference was given.\n"
            f"Type --reference positional-mean --over {over}."
        )
    pairs = None if task is None else choices.task(task, metric, None)
    prompts = file if file is not None else pairs
    assert prompts is not None
    loaded = hw.load(model, device=device, dtype=dtype)
    _refuse_blind(loaded, f"-m {model} -t {task or 'ioi'}")
    found = hw.survey(
        loaded,
        prompts,
        task=pairs,
        metric=metric,
        reference=None if reference is None else choices.reference(reference, over, seed),
        sample=sample,
        tested=tested,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    path = None if out is None else found.save(out)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    show(found)
    if path is not None:
        typer.echo(f"\nsaved in {path}")


def _refuse_blind(model: Model, typed_so_far: str) -> None:
    """Refuse a model whose attention cannot be seen, with what to run instead.

    Args:
        model: The model.
        typed_so_far: Model and task as options.

    Raises:
        UnavailableSiteError: Saying why.
    """
    anatomy = model.anatomy()
    if why := anatomy.missing.get("attn.pattern"):
        raise UnavailableSiteError(
            f"a survey counts saturated rows of attention, and {anatomy.family.name} shows none: "
            f"{why}.\nWhat a gradient misses of its components says: headwater compare "
            f"{typed_so_far} -c {'heads,mlps' if anatomy.n_heads else 'mixers'}"
        )


def show(found: Survey) -> None:
    """Show the answer, the most saturated heads, and the components that are not seen."""
    from rich.markup import escape
    from rich.table import Table

    from headwater.audits.words import counted
    from headwater.cli.terminal import Terminal

    console = Terminal()
    console.print(
        f"[bold]{escape(found.model)} on {escape(found.corpus)}[/]: "
        f"{counted(found.prompts, 'prompt')}, {counted(found.tokens, 'token')}\n",
        highlight=False,
    )
    console.print(f"[bold]{escape(typed(found.sentence))}[/]\n", highlight=False)
    checked = {row.name: row for row in found.rows}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("most saturated", no_wrap=True)
    for heading in ("p > 0.99", "at start", "q exact", "q gradient", "k exact", "k gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
    shared = found.shared_keys
    for head in found.most_saturated()[:12]:
        query = checked.get(f"{head.name}<q>")
        key = checked.get(shared.get(head.name, ""))
        numbers = [
            "" if row is None else f"{value:+.3g}"
            for row in (query, key)
            for value in ((0, 0) if row is None else (row.exact, row.estimates["gradient"]))
        ]
        table.add_row(escape(head.name), f"{head.saturated:.1%}", f"{head.at_start:.0%}", *numbers)
    console.print(table)
    console.print(
        f"\nexact effects of {len(found.rows):,} of {counted(found.components, 'component')} on "
        f"{counted(found.tested, 'prompt')}: {escape(found.metric)}, reference "
        f"{escape(found.reference)}",
        highlight=False,
    )
    for note in found.notes:
        console.print(f"note: {escape(typed(note))}", highlight=False, style="yellow")
    console.print(f"cost: {escape(found.cost)}", highlight=False, style="dim")
