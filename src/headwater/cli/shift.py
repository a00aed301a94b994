"""`headwater shift data | features | ablate`: take out what a classifier should not go by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.lens import say, say_json
from headwater.cli.options import (
    AsJson,
    Device,
    DictionarySources,
    Dtype,
    ModelName,
    Out,
    Progress,
    PromptBatch,
    Seed,
)
from headwater.cli.spelling import spelled
from headwater.errors import UnknownOptionError

if TYPE_CHECKING:
    from headwater.references import Reference
    from headwater.shifts import Examples

shift_app = typer.Typer(
    name="shift",
    help="Take out of a classifier what it should not go by: the features of spurious attributes.",
    no_args_is_help=True,
    add_completion=False,
)

COUNT, BIAS, SAMPLE = 400, 1.0, 100
ESTIMATOR = "ig:steps=10"
THRESHOLD = 0.5

TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="An embedded biased task, such as gender-by-number, in place of files.",
    ),
]
Biased = Annotated[
    Path | None,
    typer.Option(help='JSON lines: {"text": ..., "label": ..., "spurious": ...}, going together.'),
]
Balanced = Annotated[
    Path | None, typer.Option(help="The same, label and attribute independent of each other.")
]
Bias = Annotated[float, typer.Option(help="Of --task: how often label and attribute go together.")]
Count = Annotated[int, typer.Option(min=4, help="Of --task: texts of each set.")]
SiteName = Annotated[
    str | None,
    typer.Option(help="Where the probe reads; default the residual in the middle of the model."),
]
PoolingName = Annotated[str, typer.Option(help="Over a text's tokens: mean, or last.")]
Features = Annotated[int, typer.Option(min=1, help="How many of the strongest are judged.")]
Threshold = Annotated[
    float,
    typer.Option(
        help="Ablate a feature if this share of what it tells is about the spurious attribute."
    ),
]
EstimatorName = Annotated[
    str, typer.Option("--estimator", "-e", help="Of effects: ig, gradient, exact; ig:steps=20.")
]
OffName = Annotated[
    str, typer.Option("--reference", "-r", help="What an ablated feature is set to: zero or mean.")
]
Sample = Annotated[
    int, typer.Option(min=2, help="Examples that effects are measured on, of each set.")
]
Audit = Annotated[
    int, typer.Option(min=0, help="Effects to check by ablating each feature alone; 0 for none.")
]


@shift_app.command()
def data(
    task: Annotated[
        str, typer.Option("--task", "-t", help="An embedded biased task: gender-by-number, ...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two files.")],
    count: Count = COUNT,
    bias: Bias = BIAS,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write an embedded biased task as files, to see what files of your own should hold."""
    from headwater.zoo.biased import biased

    sets = biased(task, count, seed, bias=bias)
    paths = [
        one.write(out / f"{name}.jsonl")
        for name, one in zip(("biased", "balanced"), sets, strict=True)
    ]
    if as_json:
        say_json({"files": [str(path) for path in paths], "sets": [one.to_dict() for one in sets]})
        return
    say([f"wrote {paths[0]} and {paths[1]}", *(repr(one) for one in sets)])


@shift_app.command()
def features(
    model: ModelName,
    task: TaskName = None,
    biased: Biased = None,
    balanced: Balanced = None,
    count: Count = COUNT,
    bias: Bias = BIAS,
    by_rule: Annotated[
        bool,
        typer.Option("--by-rule", help="Fill judgments in by the rule, on balanced examples."),
    ] = False,
    dictionaries: DictionarySources = None,
    site: SiteName = None,
    pooling: PoolingName = "mean",
    top: Features = 50,
    threshold: Threshold = THRESHOLD,
    contexts: Annotated[int, typer.Option(min=0, help="Places shown of each feature.")] = 5,
    estimator: EstimatorName = ESTIMATOR,
    reference: OffName = "zero",
    sample: Sample = SAMPLE,
    audit: Audit = 32,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to judge the features in: judge.jsonl.")
    ] = None,
    batch_size: PromptBatch = 32,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Fit a probe to biased texts, and show which features it goes by, to be judged."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.shifts import candidates
    from headwater.shifts.judgments import refuse_existing

    # what was typed is judged before a model is loaded
    method, off = choices.estimator(estimator), _reference(reference)
    if threshold != THRESHOLD and not by_rule:
        raise UnknownOptionError("--threshold is of the rule that judges.\nAdd --by-rule.")
    if out is not None:
        refuse_existing(out)
    train, others = _sets(task, biased, balanced, count, bias, seed, both=by_rule)
    given = choices.dictionaries(dictionaries, model)
    loaded = hw.load(model, device=device, dtype=dtype)
    found = candidates(
        loaded,
        train,
        hw.load_dictionaries(loaded, given),
        balanced=others if by_rule else None,
        site=site,
        pooling=pooling,  # pyright: ignore[reportArgumentType]
        features=top,
        threshold=threshold,
        estimator=method,
        reference=off,
        sample=sample,
        audit=audit,
        contexts=contexts,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    if out is not None:
        found.write(out)
    if as_json:
        say_json(found.to_dict())
        return
    told = [repr(found)]
    if out is not None:
        again = {
            "--model": model, "--task": task, "--biased": biased,
            "--balanced": balanced or (biased and "BALANCED.jsonl"),
            "--count": None if count == COUNT else count, "--bias": None if bias == BIAS else bias,
            "--dictionaries": dictionaries, "--site": site,
            "--pooling": None if pooling == "mean" else pooling,
            "--reference": None if reference == "zero" else reference,
            "--estimator": None if estimator == ESTIMATOR else estimator,
            "--sample": None if sample == SAMPLE else sample,
            "--device": device, "--dtype": dtype, "--seed": seed or None, "--judged": out,
        }  # fmt: skip
        told += [
            "",
            f'wrote {out}: set each "judgment" to "ablate" or "keep", then type',
            f"headwater shift ablate {spelled(again)}",
        ]
    say(told)


@shift_app.command()
def ablate(
    model: ModelName,
    task: TaskName = None,
    biased: Biased = None,
    balanced: Balanced = None,
    count: Count = COUNT,
    bias: Bias = BIAS,
    judged: Annotated[
        Path | None,
        typer.Option(help="A file of judgments; default: a rule judges, on balanced examples."),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Features to ablate, in place of a file: r1.f31,m0.f93.")
    ] = None,
    dictionaries: DictionarySources = None,
    site: SiteName = None,
    pooling: PoolingName = "mean",
    top: Features = 50,
    threshold: Threshold = THRESHOLD,
    estimator: EstimatorName = ESTIMATOR,
    reference: OffName = "zero",
    sample: Sample = SAMPLE,
    audit: Audit = 32,
    draws: Annotated[
        int, typer.Option(min=0, help="Sets of random features to compare with; 0: no baselines.")
    ] = 5,
    out: Out = None,
    batch_size: PromptBatch = 32,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    progress: Progress = None,
    as_json: AsJson = False,
) -> None:
    """Ablate features judged irrelevant, and measure the classifier before and after."""
    import headwater as hw
    from headwater.cli import choices
    from headwater.shifts import shift

    if judged is not None and names is not None:
        raise UnknownOptionError("both --judged and --names were given.\nGive one of them.")
    method, off = choices.estimator(estimator), _reference(reference)
    train, others = _sets(task, biased, balanced, count, bias, seed, both=True)
    assert others is not None
    listed = None if names is None else [one.strip() for one in names.split(",")]
    given = choices.dictionaries(dictionaries, model)
    loaded = hw.load(model, device=device, dtype=dtype)
    found = shift(
        loaded,
        train,
        others,
        hw.load_dictionaries(loaded, given),
        judged if listed is None else listed,
        site=site,
        pooling=pooling,  # pyright: ignore[reportArgumentType]
        features=top,
        threshold=threshold,
        estimator=method,
        reference=off,
        sample=sample,
        audit=audit,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        out=out,
    )
    if as_json:
        say_json(found.to_dict())
        return
    say([repr(found), *(() if out is None else ("", f"saved in {out}"))])


def _sets(
    task: str | None,
    biased: Path | None,
    balanced: Path | None,
    count: int,
    bias: float,
    seed: int,
    *,
    both: bool,
) -> tuple[Examples, Examples | None]:
    """Return the biased and the balanced examples that were typed."""
    from headwater.shifts import Examples
    from headwater.zoo import biased as embedded

    if (task is None) == (biased is None):
        typed = "neither was" if task is None else "both were"
        raise UnknownOptionError(
            f"--task or --biased: {typed} given.\nWrite --task gender-by-number for an embedded "
            "task, or --biased biased.jsonl --balanced balanced.jsonl for your own texts."
        )
    if task is not None:
        if balanced is not None:
            raise UnknownOptionError("--task has a balanced set of its own.\nLeave --balanced out.")
        return embedded.biased(task, count, seed, bias=bias)
    assert biased is not None
    if (count, bias) != (COUNT, BIAS):
        raise UnknownOptionError(
            "--count and --bias are of --task; files are read as they are.\nLeave them out."
        )
    if both and balanced is None:
        raise UnknownOptionError(
            "--biased was given without --balanced: whether a classifier goes by the label or by "
            "what goes along with it shows only where the two are independent.\n"
            "Write --balanced balanced.jsonl."
        )
    return Examples.read(biased), None if balanced is None else Examples.read(balanced)


def _reference(word: str) -> Reference:
    from headwater.errors import did_you_mean
    from headwater.references import Mean, Zero

    known = {"zero": Zero(), "mean": Mean(over="clean")}
    if word not in known:
        raise UnknownOptionError(
            f"--reference {word!r} is unknown.{did_you_mean(word, known)}\n"
            "Write --reference zero, or --reference mean: over the biased texts."
        )
    return known[word]
