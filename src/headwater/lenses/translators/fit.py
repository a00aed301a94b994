"""`hw.fit_lens`: fit a translator to a corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.lenses.readout import Readout, refuse_unknown
from headwater.lenses.residuals import residuals
from headwater.lenses.rows import Row, rows_of
from headwater.lenses.translators.corpus import Corpus
from headwater.lenses.translators.identity import identity_of
from headwater.lenses.translators.jacobian import jacobians
from headwater.lenses.translators.moments import Moments
from headwater.lenses.translators.training import RATE, SHIFT_RATE, Maps, train
from headwater.lenses.translators.translator import Translator
from headwater.models import Model
from headwater.progress import Advance, progress_bar, silent
from headwater.prompts.streams import Dataset

Method = Literal["lstsq", "kl", "bias", "jacobian"]
Start = Literal["identity", "lstsq"]
STEPS = 250
FEW = 10
"""Tokens a direction, below which least squares is said to have few."""
_OPTIONS = {
    "lstsq": (),
    "kl": ("steps", "lr", "start"),
    "bias": ("steps", "lr"),
    "jacobian": ("skip",),
}


def fit_lens(
    model: Model,
    dataset: Dataset,
    method: Method = "lstsq",
    *,
    layers: Sequence[int] | None = None,
    sublayers: bool = False,
    limit: int | None = None,
    length: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    start: Start | None = None,
    skip: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Translator:
    """Fit a map from each row's residual stream to the final one's, to be applied before reading.

    Methods, from cheap to dear:

    - `"lstsq"`: least squares from a row to the final residual, with intercept; one pass, no
      setting to choose.
    - `"kl"`: an affine map trained on KL(final || row), the tuned lens (Belrose et al., 2023).
    - `"bias"`: a shift trained on the same.
    - `"jacobian"`: the mean Jacobian of the final residual (Gurnee et al., 2026), with standard
      errors over prompts. It says what a change does, and is no calibrated prediction.

    Prompts are read one window after another. Memory is a few `[d_model, d_model]` matrices a row.

    Args:
        model: A causal language model.
        dataset: Texts, lists of ids, rows with a text, a file with one a line (.txt, .jsonl), or
            a function that returns such things; a text is taken as a file's name.
        method: How to fit.
        layers: Only after these layers; the input always has a map, the last layer needs none.
        sublayers: Fit between attention and MLP too.
        limit: Read at most this many prompts.
        length: Cut each prompt to this many tokens.
        steps: Batches to take a step on (`"kl"`, `"bias"`); None: 250.
        lr: Rate of the first step, in units of the residual stream; None: 1 / d_model for
            `"kl"`, 0.02 for `"bias"`.
        start: Where `"kl"` begins: at the `"identity"` (None), the logit lens, or at `"lstsq"`.
        skip: Positions that `"jacobian"` leaves out at the front of a prompt; None: 16, of
            prompts shorter than 64 tokens a quarter.
        batch_size: Most prompts in a forward.
        seed: Of the order of batches.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        The translator, for `hw.lens(..., translator=...)`, `.evaluate()` and `.save()`.

    Raises:
        PromptError: If the dataset gives no prompt that can be used, or ends too early.
        UnknownOptionError: If there is no such method, layer or option of it.
        UnsupportedModelError: If the model is no causal language model with a head.
        NonFiniteError: If a residual, divergence or Jacobian is NaN or infinite.
    """
    given = {"steps": steps, "lr": lr, "start": start, "skip": skip}
    options = _checked(method, given)
    rows = rows_of(model.anatomy(), layers, sublayers=sublayers)
    corpus = Corpus(model, dataset, limit=limit, length=length, batch_size=batch_size)
    work = _Work(model, corpus, rows, options, seed)
    fit: Callable[[_Work, Advance], _Found] = FITTED[method]
    with model.frozen(), progress_bar(f"fit {method}", work.expected(method), show=progress) as go:
        found = fit(work, go)
    names = [row.name for row in rows[:-1]]

    def by_row(values: Tensor | None) -> dict[str, Any]:
        parts = [None] * len(names) if values is None else values.to("cpu", work.dtype).unbind()
        return dict(zip(names, (p if p is None else p.clone() for p in parts), strict=True))

    return Translator(
        method=method,
        weights=by_row(found.weight),
        biases=by_row(found.bias),
        model=identity_of(model),
        corpus=corpus.described,
        options={**options, "batch_size": batch_size, "seed": seed, "readout": "final-norm"},
        details=dict(zip(names, found.details, strict=True)),
        errors={} if found.errors is None else by_row(found.errors),
        seen=corpus.seen,
        notes=found.notes,
    )


@dataclass(frozen=True)
class _Work:
    """What all methods fit with."""

    model: Model
    corpus: Corpus
    rows: tuple[Row, ...]
    options: Mapping[str, Any]
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the maps: that of the logits."""
        return torch.float64 if self.model.dtype == torch.float64 else torch.float32

    def expected(self, method: str) -> float:
        """Return about how many prompts will be run, for the bar; 0 where nobody knows."""
        if method in ("kl", "bias"):
            return self.options["steps"] * self.corpus.batch_size
        return self.corpus.expected


@dataclass(frozen=True)
class _Found:
    """What a method found, by row; None where it has no such part."""

    weight: Tensor | None
    bias: Tensor | None
    details: Sequence[Mapping[str, float]]
    errors: Tensor | None = None
    notes: tuple[str, ...] = ()


def _least_squares(work: _Work, advance: Advance) -> _Found:
    moments = Moments()
    for batch in work.corpus.batches():
        moments.add(residuals(work.model, batch, work.rows))
        advance(len(batch))
    names = [row.name for row in work.rows[:-1]]
    solved = [moments.solve(row).to(work.dtype) for row in range(len(names))]
    width = len(solved[0].bias)
    notes = []
    if flat := [n for n, one in zip(names, solved, strict=True) if one.rank < width]:
        notes.append(
            f"The corpus does not vary in all {width} directions at {', '.join(flat)}: of the maps "
            "that fit as well, these change least."
        )
    if moments.count < FEW * width:
        notes.append(
            f"{moments.count:,} tokens are few for maps of {width} directions: expect them to be "
            f"worse on other texts. {FEW * width:,} or more are better."
        )
    return _Found(
        torch.stack([one.weight for one in solved]),
        torch.stack([one.bias for one in solved]),
        [{"rank": one.rank, "variance explained": one.explained} for one in solved],
        notes=tuple(notes),
    )


def _trained(work: _Work, advance: Advance) -> _Found:
    model, corpus, rows, options = work.model, work.corpus, work.rows, work.options
    readout = Readout(model)
    shape = (len(rows) - 1, model.anatomy().d_model)
    start, rate = None, SHIFT_RATE
    if "start" in options:
        start, rate = _start(work, shape), RATE / shape[-1]
    found = train(
        model,
        readout,
        corpus,
        rows,
        start,
        steps=options["steps"],
        rate=options["lr"] or rate,
        seed=work.seed,
        advance=advance,
    )
    details = [
        {"KL at first": first, "KL at last": last}
        for first, last in zip(found.first.tolist(), found.last.tolist(), strict=True)
    ]
    return _Found(
        found.maps.weight, found.maps.bias, details if options["steps"] else [{}] * shape[0]
    )


def _start(work: _Work, shape: tuple[int, int]) -> Maps:
    """Return the affine maps where training begins."""
    if work.options["start"] == "lstsq":
        solved = _least_squares(work, silent)
        assert solved.weight is not None
        assert solved.bias is not None
        return Maps(solved.weight, solved.bias)
    bias = torch.zeros(shape, dtype=work.dtype, device=work.model.device)
    return Maps(bias.new_zeros(*shape, shape[-1]), bias)


def _mean_jacobian(work: _Work, advance: Advance) -> _Found:
    found = jacobians(
        work.model, work.corpus, work.rows, skip=work.options["skip"], advance=advance
    )
    identity = torch.eye(found.mean.shape[-1], dtype=torch.float64)
    details = [found.details(row) for row in range(len(found.mean))]
    notes = ("A mean Jacobian says what a change does; it is no calibrated prediction.",)
    return _Found(found.mean - identity, None, details, found.errors, notes)


FITTED = {
    "lstsq": _least_squares,
    "kl": _trained,
    "bias": _trained,
    "jacobian": _mean_jacobian,
}


def _checked(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a method; those of others are refused."""
    refuse_unknown("method", method, tuple(FITTED))
    foreign = [name for name, value in given.items() if value is not None]
    foreign = [name for name in foreign if name not in _OPTIONS[method]]
    if foreign:
        users = [repr(one) for one, names in _OPTIONS.items() if foreign[0] in names]
        raise UnknownOptionError(
            f"method={method!r} has no {foreign[0]}.\nLeave it out, or write "
            f"method={' or '.join(users)}."
        )
    options = {name: given[name] for name in _OPTIONS[method]}
    if "steps" in options:
        options["steps"] = STEPS if options["steps"] is None else options["steps"]
    if "start" in options:
        options["start"] = options["start"] or "identity"
        refuse_unknown("start", options["start"], ("identity", "lstsq"))
    if options.get("steps", 0) < 0 or (options.get("lr") or 1) <= 0:
        raise UnknownOptionError(
            f"steps={options['steps']}, lr={options['lr']}: steps are not negative, and the "
            f"rate is positive.\nLeave them out for steps={STEPS} and the usual rate."
        )
    return options
