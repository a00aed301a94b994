"""What happens if a model is fine-tuned so that every layer predicts the next token?

    python examples/lens_finetuning.py

A reader of "interpreting GPT: the logit lens" asked it there. Here is the experiment on the
embedded model `tiny`: before; after fine-tuning on the next token alone (`plain`, the control);
after fine-tuning with the lens's cross-entropy of every row of the table beside it (`lens`). Lens
and exact effects are measured alike on all three. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

import headwater as hw
from headwater.lenses import Lens
from headwater.zoo.behaviors import BEHAVIORS
from headwater.zoo.examination import accuracy
from headwater.zoo.grammar import window
from headwater.zoo.train import scheduled

MODEL, TASK = "tiny", "ioi"
REPEATED = 0.2
"""Share of windows that repeat one string, as in the later part of the model's own training."""

Figures = dict[str, dict[str, float]]
"""What is measured of one model: tables, lines, numbers."""


@dataclass(frozen=True)
class Setup:
    """Everything that decides the numbers, apart from the seeds."""

    steps: int = 300
    """Optimizer steps."""
    batch: int = 32
    """Windows a step."""
    weight: float = 1.0
    """What the lens's loss counts beside that of the model's own prediction."""
    learning_rate: float = 1e-3
    """Highest rate, half of what the model was trained with, brought to zero by a cosine."""
    warmup: int = 30
    """Steps of linear warm-up."""
    windows: int = 128
    """Fresh windows of the grammar that the lens reads."""
    pairs: int = 200
    """Pairs of each task."""


def windows(tokenizer: Any, rng: random.Random, count: int) -> Int[Tensor, "batch pos"]:
    """Draw windows of the grammar that the model was trained on, as token ids."""
    drawn = (window(rng, repeated=REPEATED) for _ in range(count))
    return torch.tensor([tokenizer.convert_tokens_to_ids(words) for words in drawn])


def lens_logits(module: Any, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "row batch pos vocab"]:
    """Return the lens's table with its graph: each row through the model's final norm and head.

    Args:
        module: A Llama of transformers.
        ids: Token ids.

    Returns:
        Logits from the row `input`, the residual stream entering layer 0, to the final row.
    """
    output = module(input_ids=ids, output_hidden_states=True, use_cache=False)
    # transformers hands out the last residual behind the final norm: its logits are the model's
    early = torch.stack(output.hidden_states[:-1])
    return torch.cat([module.lm_head(module.model.norm(early)), output.logits[None]])


def row_losses(
    logits: Float[Tensor, "row batch pos vocab"], ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, " row"]:
    """Return the cross-entropy of the next token in nats, a row, mean over all positions."""
    logprobs = logits[:, :, :-1].log_softmax(-1)
    following = ids[:, 1:, None].expand(len(logits), -1, -1, 1)
    return -logprobs.gather(-1, following).mean((1, 2, 3))


def objective(module: nn.Module, ids: Int[Tensor, "batch pos"], weight: float) -> Float[Tensor, ""]:
    """Return the loss that is fine-tuned on.

    Args:
        module: The model.
        ids: Token ids.
        weight: Of the mean over all rows and positions of the lens's cross-entropy.
    """
    losses = row_losses(lens_logits(module, ids), ids)
    return losses[-1] + weight * losses.mean()


def finetuned(seed: int, weight: float, setup: Setup) -> hw.Model:
    """Fine-tune a fresh copy of the embedded model.

    Args:
        seed: Of the text; both conditions of a seed read the same text in the same order.
        weight: Of the lens's loss; 0 for the control.
        setup: How long, how fast.
    """
    fresh = hw.load(MODEL)
    # plain AdamW steps in evaluation mode: the model has no dropout
    module = fresh.module.requires_grad_(True)
    rng = random.Random(f"lens fine-tuning {seed}")
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(setup.steps):
        for group in optimizer.param_groups:
            group["lr"] = scheduled(
                setup.learning_rate, step, warmup=setup.warmup, steps=setup.steps
            )
        loss = objective(module, windows(fresh.tokenizer, rng, setup.batch), weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return hw.wrap(module.requires_grad_(False), fresh.tokenizer)


def measured(model: hw.Model, setup: Setup) -> Figures:
    """Measure one model: tasks, the lens on fresh windows, exact effects."""
    ids = windows(model.tokenizer, random.Random("fresh windows"), setup.windows)
    task = hw.task(TASK, count=setup.pairs)
    return {
        **lens_figures(read(model, ids)),
        "answer": answer_figures(model, task),
        **effect_figures(model, task),
        **task_figures(model, setup.pairs),
    }


def read(model: hw.Model, prompts: Any) -> Lens:
    """Return the lens of a model on prompts."""
    return hw.lens(model, prompts, mixtures=False, controls=0, best=1, progress=False)


def task_figures(model: hw.Model, pairs: int) -> Figures:
    """Return accuracy and mean metric on the embedded tasks."""
    found = {name: accuracy(model.module, model.tokenizer, name, count=pairs) for name in BEHAVIORS}
    return {
        "accuracy": {name: one.accuracy for name, one in found.items()},
        "metric": {name: one.clean for name, one in found.items()},
    }


def lens_figures(lens: Lens) -> Figures:
    """Return what a lens says by row, mean (ranks: median) over all positions."""
    values = {
        "cross-entropy": lens.cross_entropy(),
        "kl(final||row)": lens.kl(against="final"),
        "kl(row||final)": lens.kl(against="final", direction="layer||ref"),
        "kl(input||row)": lens.kl(against="first"),
    }
    at = lens.decided().at[lens.mask].double()
    by_row = {key: value.nanmean((1, 2)) for key, value in values.items()}
    by_row["rank(next)"] = lens.rank("next").flatten(1).nanmedian(1).values
    by_row["rank(input)"] = lens.rank("input").flatten(1).nanmedian(1).values
    by_row["decided"] = (at <= torch.arange(len(lens.names))[:, None]).double().mean(1)
    figures = {
        key: dict(zip(lens.names, value.tolist(), strict=True)) for key, value in by_row.items()
    }
    jumps = lens.jumps().jumps
    figures["jumps"] = {one.title: one.largest.value for one in jumps}
    figures["jumps at"] = {one.title: one.rows.index(one.at[0]) for one in jumps}
    return figures


def answer_figures(model: hw.Model, task: hw.Task) -> dict[str, float]:
    """Return the cross-entropy of a task's answers by row, mean over pairs of one length."""
    lens = read(model, [f"{pair.clean}{pair.answer[0]}" for pair in task.pairs])
    # the last position but one is where the answer is predicted
    return dict(zip(lens.names, lens.cross_entropy()[:, :, -2].mean(1).tolist(), strict=True))


def effect_figures(model: hw.Model, task: hw.Task) -> Figures:
    """Return the exact effect of every attention and MLP, and which layers they stand in."""
    parts = hw.attentions() + hw.mlps()
    scores = hw.attribute(model, task, parts, hw.Exact(), progress=False)
    effects = dict(zip(scores.names, scores.mean().tolist(), strict=True))
    layers = model.anatomy().n_layers
    sizes = [abs(effects[f"a{layer}"]) + abs(effects[f"m{layer}"]) for layer in range(layers)]
    shares = {f"layer {layer}": size / sum(sizes) for layer, size in enumerate(sizes)}
    return {"effects": effects, "effect shares": shares}


@dataclass(frozen=True)
class Claim:
    """Something that fine-tuning on the lens might do."""

    words: str
    direction: str
    """`higher` or `lower`: how the number differs from the control's if the claim is right."""
    of: Callable[[Figures], float]
    """The number, from what was measured of one model."""


@dataclass(frozen=True)
class Conditions:
    """The same figures of the model before, and after each kind of fine-tuning, a seed each."""

    before: Figures
    plain: MutableSequence[Figures]
    lens: MutableSequence[Figures]

    def line(self, name: str, of: Callable[[Figures], float], claimed: str | None = None) -> str:
        """Return one line of a table: numbers, and what the seeds' ranges say.

        Args:
            name: What the line is about.
            of: The number, from what was measured of one model.
            claimed: The direction that is asked for; None to write down whichever there is.
        """
        before, plain, lens = [of(self.before)], [*map(of, self.plain)], [*map(of, self.lens)]
        said = against(lens, plain)
        if claimed is not None and said in ("higher", "lower"):
            said = "yes" if said == claimed else "no, the opposite"
        name = name.replace("|", "\\|")
        return f"| {' | '.join([name, cell(before), cell(plain), cell(lens), said])} |"


def cell(values: Sequence[float]) -> str:
    """Return mean and range."""
    mean = f"{sum(values) / len(values):.3g}"
    return f"{mean} ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else mean


def against(lens: Sequence[float], plain: Sequence[float]) -> str:
    """Return `higher` or `lower` where the seeds' ranges are apart, else `overlap`."""
    if len(lens) < 2 or len(plain) < 2:
        return "one seed"
    if min(lens) > max(plain):
        return "higher"
    return "lower" if max(lens) < min(plain) else "overlap"


def table(key: str, heading: str, found: Conditions) -> list[str]:
    """Return a measured table in markdown."""
    lines = [found.line(name, lambda one, n=name: one[key][n]) for name in found.before[key]]
    return [f"## {heading}", "", *HEADINGS, *lines, ""]


def report(found: Conditions, setup: Setup, seconds: float) -> str:
    """Return the page of results in markdown."""
    seeds = len(found.plain)
    lines = [found.line(one.words, one.of, one.direction) for one in CLAIMS]
    about = (
        f"`{MODEL}`; {setup.steps} steps of {setup.batch} windows, highest learning rate "
        f"{setup.learning_rate:g}, lens weight {setup.weight:g}, "
        f"{seeds} seed{'s' if seeds > 1 else ''} of the text; read on {setup.windows} fresh "
        f"windows, {setup.pairs} pairs a task, exact effects on `{TASK}`. torch "
        f"{torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}; {seconds:.0f} core-seconds."
    )
    parts = [INTRODUCTION, about, "", "## In short", "", *HEADINGS, *lines, "", LIMITS]
    for key, heading in TABLES.items():
        parts += table(key, heading, found)
    return "\n".join(parts).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> Conditions:
    """Run the experiment and write its page.

    Args:
        arguments: Command line without the program's name; by default the process's own.

    Returns:
        Everything that was measured.
    """
    here = Path(__file__)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many orders of the text")
    parser.add_argument("--out", type=Path, default=here.with_suffix(".md"), help="file to write")
    for one in fields(Setup):
        option = f"--{one.name.replace('_', '-')}"
        parser.add_argument(option, type=type(one.default), default=one.default)
    given = vars(parser.parse_args(arguments))
    out, seeds, setup = given.pop("out"), given.pop("seeds"), Setup(**given)
    if seeds < 1:
        parser.error(f"--seeds {seeds}: at least one order of the text is needed")
    # one thread: sums in another order would give other weights
    torch.set_num_threads(1)
    started = time.process_time()
    found = experiment(seeds, setup)
    out.write_text(report(found, setup, time.process_time() - started), encoding="utf-8")
    print(f"written to {out}", flush=True)
    return found


def experiment(seeds: int, setup: Setup) -> Conditions:
    """Measure the model before, and after both kinds of fine-tuning for every seed."""
    found = Conditions(measured(hw.load(MODEL), setup), [], [])
    for seed in range(seeds):
        for weight, results in ((0.0, found.plain), (setup.weight, found.lens)):
            results.append(measured(finetuned(seed, weight, setup), setup))
            cost = list(results[-1]["cross-entropy"].values())
            told = "  ".join(f"{one:.2f}" for one in cost)
            print(f"seed {seed}, lens weight {weight:g}: cross-entropy by row {told}", flush=True)
    return found


HEADINGS = ("| | before | plain | lens | lens against plain |", "|---|---|---|---|---|")
TABLES = {
    "cross-entropy": "Cross-entropy of the next token by row, nats",
    "kl(final||row)": "KL(final||row), nats",
    "kl(row||final)": "KL(row||final), nats",
    "kl(input||row)": "KL(input||row), nats",
    "rank(next)": "Median rank of the next token",
    "rank(input)": "Median rank of the input token",
    "decided": "Share of positions decided at this row or before",
    "jumps": "Largest change in one layer, as a share of all changes of the mean over positions",
    "jumps at": "The layer of that change",
    "answer": f"Cross-entropy of the answer on `{TASK}` by row, nats",
    "effects": f"Exact effects on `{TASK}`, logit difference",
    "effect shares": "Share of a layer in the sizes of all exact effects",
    "accuracy": "Accuracy",
    "metric": "Mean metric on the clean prompts",
}
"""What is measured, and the headings of the page."""


def _mean(key: str, lines: slice = slice(None)) -> Callable[[Figures], float]:
    return lambda figures: fmean(list(figures[key].values())[lines])


def _later_half(figures: Figures) -> float:
    shares = list(figures["effect shares"].values())
    return sum(shares[len(shares) // 2 :])


CLAIMS = (
    Claim("Rows between input and final predict the next token better: mean cross-entropy",
          "lower", _mean("cross-entropy", slice(1, -1))),
    Claim("Decided earlier: share of positions that are before the final row, mean of rows",
          "higher", _mean("decided", slice(0, -1))),
    Claim("The largest jump of KL(final||row) is a smaller share of all its changes", "lower",
          lambda figures: figures["jumps"]["KL(final||layer)"]),
    Claim("The largest jump of the final best token's log rank is a smaller share", "lower",
          lambda figures: figures["jumps"]["log rank(final)"]),
    Claim("Rows are further from the input row: KL(input||row), mean of the others", "higher",
          _mean("kl(input||row)", slice(1, None))),
    Claim(f"Rows between input and final know the answer on `{TASK}`: mean cross-entropy",
          "lower", _mean("answer", slice(1, -1))),
    Claim(f"The row before the final one knows the answer on `{TASK}`: cross-entropy", "lower",
          _mean("answer", slice(-2, -1))),
    Claim("The later half of the layers matters less: share in the sizes of exact effects",
          "lower", _later_half),
    Claim("The model's own prediction pays: cross-entropy of the final row", "higher",
          _mean("cross-entropy", slice(-1, None))),
    Claim("The tasks pay: accuracy, mean of all", "lower", _mean("accuracy")),
    Claim("Answers are less clear: metric, mean of all tasks", "lower", _mean("metric")),
)  # fmt: skip
"""What the fine-tuning might do, in the order of the page."""

INTRODUCTION = """\
# Fine-tuned so that every row predicts the next token

Asked in the comments of "interpreting GPT: the logit lens" (nostalgebraist, 2020): what happens
when a model is fine-tuned so that every entry of the lens's table predicts a token, not the last
row's alone? `python examples/lens_finetuning.py` does it and writes this file.

Three conditions: the model *before*; *plain*, fine-tuned on the next token alone, the control
without which nothing could be said; *lens*, with the mean cross-entropy of the next token over all
rows and positions beside it, each row read through the model's own final norm and head. Both read
the same text in the same order. Rows: `input` enters layer 0, `r0` leaves it; the last row is the
model's own prediction. Numbers are means over seeds, with their range. An answer is given where the
ranges of lens and plain are apart: with three seeds each, chance alone does that for one line in
ten.
"""

LIMITS = """\
What cannot be concluded: this is one model of four layers and 0.4 million weights, on a made-up
grammar whose tasks it solves; one length, rate and weight of fine-tuning; seeds differ in the text
only. The unembedding is the embedding, so that the row `input` can predict anything but its own
token only by moving the table that every other row is read with. A lower cross-entropy of early
rows was trained for: that it falls shows that the fine-tuning worked, and says nothing about how
larger models predict. Exact effects close one part at a time on one task, and parts that stand in
for each other can hide that way; effects are differences of logits and shrink where all logits do,
which is why shares are compared. A mean over rows or positions can hide some that go the other way:
read the tables, which are by row.
"""

if __name__ == "__main__":
    main()
