"""`hw.lens`: read what every layer of a model already predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from headwater.errors import UnknownOptionError
from headwater.lenses.asked import Prompt, Prompts, batches, encoded
from headwater.lenses.measure import Measured, Plan, measure
from headwater.lenses.provenance import provenance
from headwater.lenses.readout import Readings, Readout, refuse_unknown_reading
from headwater.lenses.result import Lens
from headwater.lenses.rows import rows_of
from headwater.lenses.tally import Tally
from headwater.lenses.tokens import token_ids
from headwater.lenses.translators import Translator, as_translator, refuse_other_reading
from headwater.limits import notice_untrained
from headwater.models import Model, refuse_no_model
from headwater.progress import progress_bar

CONTROLS = 8
"""Tokens of other positions ranked at each, for a base rate."""
FOLLOWED = 8
"""Most tokens of a position that are followed through the rows."""


def lens(
    model: Model,
    prompts: Prompts,
    *,
    layers: Sequence[int] | int | None = None,
    sublayers: bool = False,
    writes: bool = False,
    readout: Readings = "final-norm",
    translator: Translator | str | Path | None = None,
    decode_with: Literal["unembedding", "embedding"] = "unembedding",
    tokens: Sequence[str | int] = (),
    best: int = 10,
    mixtures: bool = True,
    controls: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Lens:
    """Read the residual stream at every layer as a prediction of the next token.

    Position i has read the tokens up to and including i and predicts token i + 1, at every layer:
    the *input* token of a position is the last one read, the *next* token the one that follows.
    The row `input` is the residual stream entering layer 0, row `r3` the one after layer 3, and
    the last row is read as the model's own prediction (nostalgebraist, "interpreting GPT: the
    logit lens", 2020).

    Costs one forward and one product with the unembedding a row; mixtures take as long again.
    No tensor `[row, position, vocab]` is made.

    Args:
        model: A causal language model.
        prompts: One text or several, token ids, or a task (its clean prompts).
        layers: Read after these layers only; the input and the last layer are always read.
        sublayers: Read between attention and MLP too (`r3.mid`).
        writes: Read what attention and MLP write, each through a norm of its own (`a3`, `m3`):
            "renormalized" readings, which do not add up. `hw.attribute_logit` has those that do.
        readout: Which norm stands before the head: `"final-norm"`, `"next-norm"` (what the next
            layer reads) or `"none"`.
        translator: Applied before the norm: a `Translator`, or the folder of one.
        decode_with: `"embedding"` reads with the embedding's own table, for models whose
            unembedding is another.
        tokens: Words or token ids to rank at every position, beside input, next and the final
            row's best.
        best: How many of the best tokens to keep of each position and row.
        mixtures: Whether to compute Jensen-Shannon divergence and total variation.
        controls: How many tokens of other positions to rank at each: the base rate that
            `lens.rarity` needs, and otherwise reads the prompts once more for.
        batch_size: Most prompts in a forward.
        seed: Of the choice of controls.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        Statistics `[row, prompt, position]`, tables and a page.

    Raises:
        PromptError: If a prompt is empty, or has a token that the model does not know.
        UnknownOptionError: If there is no such layer, reading or word.
        UnsupportedModelError: If the model is no causal language model with a head.
        NonFiniteError: If logits are NaN or infinite.
        FailedProofError: If the readout is not the model's own.
    """
    refuse_no_model(model)
    if best < 1 or controls < 0:
        raise UnknownOptionError(
            f"best={best}, controls={controls}: at least one best token is kept, and the number of "
            "controls is not negative.\nWrite best=10, controls=8."
        )
    adapter = model.anatomy()
    asked = encoded(model, prompts)
    notice_untrained(model, max(len(one.ids) for one in asked))
    rows = rows_of(adapter, layers, sublayers=sublayers, writes=writes)
    translate = as_translator(translator, model, rows)
    if translate is not None:
        refuse_other_reading(readout, decode_with)
    refuse_unknown_reading(readout, decode_with)
    words, extra = token_ids(model, tokens)
    plan = Plan(
        rows,
        best=min(best, adapter.vocab),
        mixtures=(len(rows) - 1, 0) if mixtures else (),
        tokens=extra,
        controls=controls,
        seed=seed,
        followed=FOLLOWED,
        translate=None if translate is None else translate.applied,
    )
    read = partial(_read, asked, readout, decode_with, batch_size)
    return Lens.of(
        model,
        asked,
        plan,
        read(model, plan, progress),
        again=partial(_base_rate, read, replace(plan, followed=0)),
        words=words,
        translator=translator,
        provenance=provenance(
            model,
            readout=readout,
            translator=None if translate is None else translate.described,
            decode_with=decode_with,
            controls=controls,
            seed=seed,
        ),
    )


def _read(
    asked: Sequence[Prompt],
    readout: Readings,
    decode_with: Literal["unembedding", "embedding"],
    batch_size: int,
    model: Model,
    plan: Plan,
    progress: bool | None,
) -> list[Measured]:
    """Return what every batch of prompts says."""
    head, parts = Readout(model, readout, decode_with), []
    with model.frozen(), progress_bar("lens", len(asked), show=progress) as advance:
        for batch in batches(model, asked, batch_size):
            parts.append(measure(model, head, batch, plan, check=not parts))
            advance(len(batch))
    return parts


def _base_rate(read: Callable[..., list[Measured]], plan: Plan, model: Model) -> Tally:
    """Return the sums of another reading, in which tokens of other positions are ranked too."""
    tally = Tally(replace(plan, controls=CONTROLS))
    for part in read(model, replace(plan, controls=CONTROLS), False):
        tally.add(part)
    return tally
