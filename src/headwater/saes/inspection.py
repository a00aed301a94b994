"""`hw.inspect_dictionary`: what a dictionary is, and how it does on a model's activations.

Costs five forwards a prompt: for the mean, and with the values as they are, reconstructed, at their
mean, and at zero. Token ids of all prompts are held, activations of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from headwater.dictionaries import Dictionaries, Dictionary, read_dictionary
from headwater.dictionaries.hooks import read_site, written_site
from headwater.errors import PromptError, UnknownOptionError
from headwater.models import Model
from headwater.progress import Advance, progress_bar
from headwater.prompts.batches import Batch
from headwater.prompts.streams import DATASET, Dataset, Reading, described, source_of
from headwater.saes.reading import counted, packed, refuse_not_positive, site_for, values_at
from headwater.saes.report import Figures, Inspection
from headwater.sites import Site
from headwater.taps import Tap, in_turn

Counts: TypeAlias = Bool[Tensor, "batch pos"]
"""Which positions count."""

_TOGETHER = 2**24
"""Activations of features held at a time."""
_RUNS = 5
_READ_AHEAD = 256


def inspect_dictionary(
    dictionary: Dictionary | str | Path,
    model: Model | None = None,
    texts: Dataset | None = None,
    site: Site | str | None = None,
    *,
    reads: Site | str | None = None,
    limit: int | None = None,
    length: int | None = None,
    skip: int = 0,
    batch_size: int = 8,
    progress: bool | None = None,
) -> Inspection:
    """Say what a dictionary is and, with a model and texts, how well it does there.

    Args:
        dictionary: A dictionary, or its folder or file.
        model: The model whose activations it should reconstruct; None to look at the file alone.
        texts: Texts, lists of ids, rows with a text, a file with one a line, or a function that
            returns such things. Best are texts that it was not trained on.
        site: Where its reconstruction goes; None for the place that its file names.
        reads: What a transcoder encodes; None for the place that its file names.
        limit: Read at most this many prompts.
        length: Cut each prompt to this many tokens.
        skip: Positions at the front of each prompt that are left as they are and not counted.
        batch_size: Most prompts in a forward.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        What is known: print it. It says in words if the dictionary does not fit.

    Raises:
        DictionaryError: If it cannot be read, names no place while none is given, or has another
            width than the site.
        UnknownSiteError: If there is no such site, or it has no vector at each position.
        UnavailableSiteError: If the model does not offer it.
        UnknownOptionError: If only one of model and texts is given, or a number has no meaning.
        PromptError: If there is no prompt, or none has a next token.
        ModelStateError: If dropout is active.
    """
    found = dictionary if isinstance(dictionary, Dictionary) else read_dictionary(dictionary)
    if (model is None) != (texts is None):
        given, missing = ("texts", "model") if model is None else ("model", "texts")
        raise UnknownOptionError(
            f"{given} without {missing}: a dictionary is run on a model and on texts, or only "
            f"looked at.\nAdd {missing}, or leave out {given}."
        )
    if model is None or texts is None:
        return Inspection(found)
    refuse_not_positive(limit=limit, length=length, batch_size=batch_size)
    where = _places(found, model, site, reads)
    fitted = Dictionaries({where[0]: found}, {where[0]: where[1]}).fitted(model.anatomy())
    rows = [
        row
        for window in Reading(source_of(texts), limit, DATASET).windows(model, _READ_AHEAD)
        for row in window
    ]
    batches = packed(model, rows, batch_size, length)
    dtype = torch.float64 if model.dtype == torch.float64 else None
    run = _Run(model, fitted[where[0]].to(device=model.device, dtype=dtype), *where, skip)
    total = _RUNS * len(rows)
    with (
        model.frozen(),
        torch.no_grad(),
        progress_bar(f"inspecting {where[0]}", total, show=progress) as go,
    ):
        mean = run.mean(batches, go)
        sums = _Sums.new(found.features, model.device)
        for batch in batches:
            run.measure(batch, mean, sums)
            go((_RUNS - 1) * len(batch))
    if not sums.predictions:
        raise PromptError(
            f"none of the {len(rows)} prompts in {described(source_of(texts))} has a second token, "
            "so no next token is predicted.\nGive longer texts."
        )
    return Inspection(found, sums.figures(model.name, *where, prompts=len(rows)))


@dataclass
class _Sums:
    """What is added up over tokens and predictions."""

    ever: Bool[Tensor, " feature"]
    tokens: int = 0
    error: float = 0.0
    variance: float = 0.0
    cosine: float = 0.0
    active: float = 0.0
    predictions: int = 0
    losses: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("clean", "spliced", "mean_ablated", "zero_ablated"), 0.0
        )
    )

    @staticmethod
    def new(features: int, device: torch.device) -> _Sums:
        return _Sums(torch.zeros(features, dtype=torch.bool, device=device))

    def figures(self, model: str, site: Site, reads: Site, prompts: int) -> Figures:
        unexplained = self.error / self.variance if self.variance else float("nan")
        return Figures(
            model=model,
            site=str(site),
            reads=str(reads),
            prompts=prompts,
            tokens=self.tokens,
            predictions=self.predictions,
            explained_variance=1 - unexplained,
            cosine=self.cosine / self.tokens,
            active=self.active / self.tokens,
            dead=int((~self.ever).sum()),
            **{name: loss / self.predictions for name, loss in self.losses.items()},
        )


@dataclass(frozen=True)
class _Run:
    """A dictionary at its place in a model."""

    model: Model
    dictionary: Dictionary
    site: Site
    reads: Site
    skip: int

    def mean(self, batches: Sequence[Batch], advance: Advance) -> Float[Tensor, " d_out"]:
        """Return the mean of the values at the site."""
        totals, count = list[Tensor](), 0
        for batch in batches:
            values = values_at(self.model, batch, self.site, self.skip)
            totals.append(values.double().sum(0))
            count += len(values)
            advance(len(batch))
        if not count:
            raise PromptError(
                f"no prompt is longer than the {self.skip} positions that are left out.\n"
                "Give longer texts, or a smaller skip."
            )
        return torch.stack(totals).sum(0) / count

    def measure(self, batch: Batch, mean: Float[Tensor, " d_out"], sums: _Sums) -> None:
        """Run a batch with the values as they are and in three ways replaced."""
        counts = counted(batch, self.skip)
        runs = {
            "clean": {},
            "spliced": self._splice(counts, mean, sums),
            "mean_ablated": {self.site: _constant(mean, counts)},
            "zero_ablated": {self.site: _constant(torch.zeros_like(mean), counts)},
        }
        for name, taps in runs.items():
            logits = self.model.forward(
                batch.clean, mask=batch.mask, position_ids=batch.position_ids, taps=taps
            )
            sums.losses[name] += next_token_loss(logits, batch)
        sums.predictions += int(batch.mask[:, :-1].sum())

    def _splice(self, counts: Counts, mean: Tensor, sums: _Sums) -> dict[Site, Tap]:
        """Return taps that put the reconstruction in place, and compare it on the way."""
        seen: list[Tensor] = []

        def read(value: Tensor) -> None:
            seen.append(value.flatten(2)[counts])

        def write(value: Tensor) -> Tensor:
            written = value.flatten(2)[counts]
            found = self._coded(seen.pop(), sums)
            if not self.dictionary.centered:
                self._compare(written, found, mean, sums)
                return _with(value, counts, found)
            level = written.to(found.dtype).mean(-1, keepdim=True)  # which it leaves out
            self._compare(written - level, found, mean - mean.mean(), sums)
            return _with(value, counts, found + level)

        if self.reads == self.site:
            return {self.site: in_turn(read, write)}
        return {self.reads: read, self.site: write}

    def _coded(self, x: Float[Tensor, "token d_in"], sums: _Sums) -> Float[Tensor, "token d_out"]:
        """Return the reconstruction; count the features that are active."""
        found = []
        for piece in x.split(max(16, _TOGETHER // self.dictionary.features)):
            features = self.dictionary.encode(piece)
            sums.active += float((features != 0).sum())
            sums.ever |= (features != 0).any(0)
            found.append(self.dictionary.reconstruct(piece, features))
        return torch.cat(found)

    def _compare(self, values: Tensor, found: Tensor, mean: Tensor, sums: _Sums) -> None:
        values, found = values.double(), found.double()
        sums.tokens += len(values)
        sums.error += float((values - found).square().sum())
        sums.variance += float((values - mean).square().sum())
        sums.cosine += float(cosine_similarity(values, found, dim=-1).sum())


def next_token_loss(logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> float:
    """Return the summed cross-entropy, in nats, of every real token that follows a real token.

    Args:
        logits: Of all positions.
        batch: The prompts, padded on the left.
    """
    total = 0.0
    for row, ids, real in zip(logits, batch.clean, batch.mask, strict=True):
        predicted = row[:-1][real[:-1]]  # what follows a real token is real
        wide = predicted if predicted.dtype == torch.float64 else predicted.float()
        total += float(cross_entropy(wide, ids[1:][real[:-1]], reduction="sum"))
    return total


def _constant(at: Float[Tensor, " d_out"], counts: Counts) -> Tap:
    """Return a tap that puts one vector everywhere."""
    return lambda value: _with(value, counts, at.expand(int(counts.sum()), -1))


def _with(value: Tensor, counts: Counts, found: Tensor) -> Tensor:
    """Return a site's value with other vectors at the positions that count."""
    flat = value.flatten(2).clone()
    flat[counts] = found.to(flat.dtype)
    return flat.view_as(value)


def _places(
    dictionary: Dictionary, model: Model, site: Site | str | None, reads: Site | str | None
) -> tuple[Site, Site]:
    """Return what is replaced and what is encoded."""
    if reads is not None and not dictionary.transcoder:
        raise UnknownOptionError(
            "reads= is of transcoders; this dictionary encodes what it reconstructs.\n"
            "Leave it out, and give its place as site=."
        )
    site = site_for(model, written_site(dictionary) if site is None else site)
    if not dictionary.transcoder:
        return site, site
    reads = site_for(model, read_site(dictionary) if reads is None else reads)
    if reads.order > site.order:
        raise UnknownOptionError(
            f"'{reads}' is computed after '{site}': a transcoder writes after it has read.\n"
            "Give what it encodes as reads=, what it decodes to as site=."
        )
    return site, reads
