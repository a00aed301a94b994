"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="Embedded name (tiny), local folder, or hub id.")
]
TaskName = Annotated[
    str, typer.Option("--task", "-t", help="Embedded task (ioi), or a .jsonl, .json or .csv file.")
]
Components = Annotated[
    str,
    typer.Option(
        "--components",
        "-c",
        help="Comma-separated: tokens heads queries keys values attentions mlps neurons residual "
        "mixers channels conv ssm ssm_heads nodes.",
    ),
]
Layers = Annotated[
    str | None, typer.Option("--layers", help="Only these layers: 0,2 or 0-5; default all.")
]
DictionarySources = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionaries",
        "-d",
        help="embedded (those of tiny; the default), or a folder in any known format; repeat it "
        "for several. FOLDER=SITE for a dictionary whose file names no place.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        "--positions",
        help="all, each, or a list such as 0,-1 (from the first real token; -1 is the last).",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to save the run in.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default the model's.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float64 (true float64), ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most pairs in one forward.")]
BatchSizeAgain = Annotated[int | None, typer.Option(min=1, help="Default: as in the run.")]
Run = Annotated[Path, typer.Argument(help="Folder written by `headwater attribute --out`.")]
RunOrCircuit = Annotated[
    Path, typer.Argument(help="Folder written by `headwater attribute` or `features`, with --out.")
]
MovedModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the model is, if it has moved.")
]
PromptBatch = Annotated[int, typer.Option(min=1, help="Most prompts in one forward.")]
CorpusFile = Annotated[
    Path, typer.Option("--file", "-f", help="A corpus, one prompt a line (.txt), or .jsonl.")
]
Seed = Annotated[int, typer.Option(help="Seeds whatever draws random numbers.")]
Progress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Default: a bar on a terminal.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
At = Annotated[str, typer.Option(help="End of the path: clean or corrupted.")]
ReferenceName = Annotated[
    str,
    typer.Option(
        "--reference",
        "-r",
        help="corrupted, mean, positional-mean, resample, zero, tangent, tangent:at=mean.",
    ),
]
Over = Annotated[
    str | None,
    typer.Option(help="Prompts a mean is taken over: corrupted, clean, or a .txt or .jsonl file."),
]
Draws = Annotated[
    int, typer.Option(min=1, help="Donors a pair, for --reference resample; scores get errors.")
]
MetricName = Annotated[
    str | None,
    typer.Option(help="logit-diff prob-diff prob logprob kl cross-entropy; default the task's."),
]
Pairs = Annotated[int | None, typer.Option(min=1, help="Only the first this many pairs.")]
Top = Annotated[int, typer.Option(min=1, help="How many count as the top.")]
