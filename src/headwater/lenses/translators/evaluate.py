"""A translator judged on prompts it has not seen, beside everything it has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import UnknownOptionError
from headwater.lenses.provenance import provenance
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import prompts_of, residuals, together
from headwater.lenses.rows import Row, rows_of
from headwater.lenses.translators.controls import Fitted, Mapped, Marginal, untrained
from headwater.lenses.translators.corpus import Corpus, key_of
from headwater.lenses.translators.divergence import divergence
from headwater.lenses.translators.evaluation import Evaluation
from headwater.lenses.translators.training import SHIFT_RATE, Maps, train
from headwater.lenses.translators.translator import Translator
from headwater.models import Model
from headwater.progress import Advance, progress_bar
from headwater.prompts.streams import Dataset

BIAS_STEPS = 100
"""Steps of training the shift that a translator is compared with."""


def evaluate_lens(
    translator: Translator,
    model: Model,
    held_out: Dataset,
    *,
    controls_from: Dataset | None = None,
    limit: int | None = None,
    length: int | None = None,
    untrained_model: bool = True,
    steps: int = BIAS_STEPS,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Judge a translator on prompts it was not fitted to, beside the controls it has to beat.

    Mean KL(final || row) with standard errors over prompts, of the translator and of

    - the logit lens: no translator at all;
    - bias only: a trained shift;
    - marginal: one distribution for every position, the mean of the model's own predictions;
    - shuffled: least squares on residuals of other positions;
    - an untrained copy of the model, with a translator fitted to it: a small KL there is no
      success, because such a model predicts much the same everywhere.

    Prompts that the translator was fitted to are left out, and counted. Controls are fitted to
    `controls_from`, or to one half of the prompts; all are judged on what is left, no prompt of
    which was fitted to. Halves are chosen by a hash of a prompt's ids.

    Args:
        translator: What to judge.
        model: The model it belongs to.
        held_out: Texts, ids, or a file, as for `hw.fit_lens`.
        controls_from: What to fit controls to, such as the translator's own corpus, which makes
            the comparison fair where that is large.
        limit: Read at most this many held-out prompts.
        length: Cut each prompt to this many tokens; None: as the translator's corpus was.
        untrained_model: Whether to compare with an untrained copy, which takes as much memory.
        steps: Of training the shift.
        batch_size: Most prompts in a forward.
        seed: Of the shuffles, the order of batches and the untrained weights.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        The table, and in words where the translator is no better than a control.

    Raises:
        ResultError: If the translator was fitted to another model.
        PromptError: If no prompt is left that was not fitted to, or an iterator is given, which
            can be read only once.
        UnknownOptionError: If `steps` is negative.
    """
    if steps < 0:
        raise UnknownOptionError(f"steps={steps} is negative.\nWrite steps={BIAS_STEPS}.")
    translator.refuse(model)
    rows = _rows(translator, model)
    length = translator.corpus.get("length") if length is None else length
    options = {"length": length, "batch_size": batch_size}
    corpora = _Corpora(model, translator, held_out, controls_from, limit, **options)
    total = (1 + untrained_model) * (corpora.judged.expected + corpora.controls.expected)
    total += steps * batch_size
    with model.frozen(), progress_bar("evaluate", total, show=progress) as advance:
        work = _Work(model, Readout(model), advance)
        fitted = Fitted(model, work.readout, corpora.controls, rows, seed=seed, advance=advance)
        lenses: dict[str, Mapped | None] = {
            "logit lens": None,
            "translator": lambda values: translator.applied(values, rows[:-1]),
            "bias only": _shift(work, fitted, corpora.controls, rows, steps, seed),
            "shuffled": fitted.shuffled,
        }
        found, tokens = _scored(work, corpora.judged, rows, lenses, fitted.marginal)
        notes = corpora.notes()
        twin = untrained(model, seed) if untrained_model else None
        if twin is not None:
            found |= _of_untrained(twin, corpora, rows, seed, advance)
        elif untrained_model:
            notes.append(f"{model.name} cannot be made anew, so there is no untrained copy of it.")
    return Evaluation(
        rows=tuple(row.name for row in rows),
        sums=found,
        tokens=tokens,
        method=translator.method,
        notes=tuple(notes),
        provenance=provenance(
            model,
            translator=translator.described,
            judged_on=corpora.judged.described,
            controls_fitted_to=corpora.controls.described,
            steps=steps,
            seed=seed,
        ),
    )


class _Corpora:
    """What controls are fitted to, and what all are judged on: no prompt is in both."""

    def __init__(
        self,
        model: Model,
        translator: Translator,
        held_out: Dataset,
        controls_from: Dataset | None,
        limit: int | None,
        **options: Any,
    ) -> None:
        self.split = controls_from is None
        self.fitted = set(translator.seen.tolist())
        self.same = translator.corpus.get("sha256")
        self.overlap: set[int] = set()
        self.of_controls: set[int] = set()
        source, most = (held_out, limit) if controls_from is None else (controls_from, None)
        self.controls = Corpus(model, source, limit=most, keep=self._fits, **options)
        self.judged = Corpus(model, held_out, limit=limit, keep=self._judges, **options)

    def _fits(self, number: int, ids: tuple[int, ...]) -> bool:
        return not self.split or not _is_even(ids)

    def _judges(self, number: int, ids: tuple[int, ...]) -> bool:
        if key_of(ids) in self.fitted:
            self.overlap.add(number)
            return False
        if self.split:
            return _is_even(ids)
        if not self.of_controls:
            self.of_controls = set(self.controls.seen.tolist())
        return key_of(ids) not in self.of_controls

    def notes(self) -> list[str]:
        """Return what a reader should know of the two."""
        judged, controls = self.judged, self.controls
        found = [
            f"Judged on {judged.tokens:,} tokens of {judged.prompts:,} prompts; controls were "
            f"fitted to {controls.tokens:,} tokens of "
            + ("the other half of the prompts." if self.split else f"{controls.prompts:,} prompts.")
        ]
        if controls.sha256 == self.same:
            found.append("The controls were fitted to what the translator was fitted to.")
        if self.overlap:
            found.append(
                f"{len(self.overlap):,} prompts were left out: the translator was fitted to them."
            )
        if not self.fitted:
            found.append("What the translator was fitted to is not known: it may be these prompts.")
        return found


def _is_even(ids: tuple[int, ...]) -> bool:
    # by content, so that a prompt that occurs twice is on one side only
    return key_of(ids) % 2 == 0


def _rows(translator: Translator, model: Model) -> list[Row]:
    """Return the translator's rows, and the final one."""
    known = {*translator.rows, translator.final}
    sublayers = any(name.endswith(".mid") for name in known)
    rows = rows_of(model.anatomy(), sublayers=sublayers)
    return [row for row in rows if row.name in known]


def _shift(
    work: _Work, fitted: Fitted, corpus: Corpus, rows: Sequence[Row], steps: int, seed: int
) -> Maps:
    """Return a trained shift, begun at the mean difference."""
    start = Maps(None, (fitted.means[-1:] - fitted.means[:-1]).to(work.readout.dtype))
    return train(
        work.model,
        work.readout,
        corpus,
        rows,
        start,
        steps=steps,
        rate=SHIFT_RATE,
        seed=seed,
        advance=work.advance,
    ).maps


@dataclass(frozen=True)
class _Work:
    """A model, and where progress is told."""

    model: Model
    readout: Readout
    advance: Advance


def _scored(
    work: _Work,
    corpus: Corpus,
    rows: Sequence[Row],
    lenses: Mapping[str, Mapped | None],
    marginal: Marginal,
) -> tuple[dict[str, Float[Tensor, "row prompt"]], Float[Tensor, " prompt"]]:
    """Return each lens's sums of KL(final || row) by prompt, and the tokens of each prompt."""
    sums: list[Tensor] = []
    tokens: list[Tensor] = []
    numbers: list[int] = []
    for batch in corpus.batches():
        values = residuals(work.model, batch, rows)
        width = together(values.device, (len(lenses) + 1) * len(rows) * values.shape[-1])
        found = torch.cat(
            [
                _divergences(work.readout, part, rows, lenses, marginal)
                for part in values.split(width, dim=1)
            ]
        )
        place = prompts_of(batch)[:, None] == torch.tensor(batch.pairs, device=found.device)
        owned = place.to(found.dtype)
        sums.append(torch.einsum("nlr,np->lrp", found, owned).cpu())
        tokens.append(owned.sum(0).cpu())
        numbers += batch.pairs
        work.advance(len(batch))
    order = torch.tensor(numbers).argsort()
    whole = torch.cat(sums, dim=-1)[..., order]
    return dict(zip([*lenses, "marginal"], whole, strict=True)), torch.cat(tokens)[order]


@torch.no_grad()
def _divergences(
    readout: Readout,
    values: Float[Tensor, "row position d_model"],
    rows: Sequence[Row],
    lenses: Mapping[str, Mapped | None],
    marginal: Marginal,
) -> Float[Tensor, "position lens row"]:
    """Return KL(final || row) of every lens, the marginal last; the final row is never mapped."""
    final = readout.normed(values[-1:], rows[-1:])
    parts = []
    for lens in lenses.values():
        mapped = values[:-1] if lens is None else lens(values[:-1])
        both = torch.cat([readout.normed(mapped, rows[:-1]), final], dim=1)
        parts.append(divergence(readout, final[:, 0], both))
    parts.append(marginal.divergence(readout, final)[:, None].expand(-1, len(rows)))
    return torch.stack(parts, dim=1)


def _of_untrained(
    twin: Model, corpora: _Corpora, rows: Sequence[Row], seed: int, advance: Advance
) -> dict[str, Float[Tensor, "row prompt"]]:
    """Return the same of an untrained copy, its translator by least squares."""
    work = _Work(twin, Readout(twin), advance)
    own = rows_of(twin.anatomy(), sublayers=any(row.kind == "mid" for row in rows))
    names = {row.name for row in rows}
    there = [row for row in own if row.name in names]
    with twin.frozen():
        fitted = Fitted(twin, work.readout, corpora.controls, there, seed=seed, advance=advance)
        lenses: dict[str, Mapped | None] = {
            "logit lens": None,
            "least squares": fitted.least_squares,
        }
        found, _ = _scored(work, corpora.judged, there, lenses, fitted.marginal)
    return {f"untrained: {name}": value for name, value in found.items()}
