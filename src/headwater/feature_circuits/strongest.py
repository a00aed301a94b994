"""One pass over a corpus that keeps, of each feature, the few strongest places.

Costs one forward of the corpus. Kept are `top` windows a feature; at a time one batch is encoded,
only at the features wanted, and where a batch is large a few of its prompts at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.attribution.manifest import describe_model
from headwater.coding import Coded
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import PromptError
from headwater.feature_circuits.again import again
from headwater.feature_circuits.contexts import Context, Contexts, FeatureContexts, base
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Batch, Task
from headwater.prompts.encoding import token_texts
from headwater.prompts.streams import (
    WINDOW,
    Argument,
    Dataset,
    Reading,
    Streamed,
    described,
    expected,
    refuse_unreadable,
)
from headwater.saes.reading import counted, packed, refuse_not_positive
from headwater.sites import Site
from headwater.taps import Tap, in_turn

if TYPE_CHECKING:
    from headwater.feature_circuits.result import FeatureCircuit

CORPUS = Argument("corpus", "show", PromptError, any_corpus=True)
ENCODED_BYTES = 2**27
"""What a site's features of one batch may take at a time."""
DIGITS = 6
RANKED = 4
"""Digits by which sizes are compared: another batch shape rounds differently, and should decide
nothing. Among equal ones the first prompt and position come first."""


@dataclass(frozen=True)
class Around:
    """What is read of a corpus, and what is kept of it."""

    top: int
    before: int
    """Most tokens shown before the strongest."""
    after: int
    skip: int
    """Positions at the front of each prompt that count for nothing."""
    length: int | None
    limit: int | None
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result, as plain data."""
        names = ("top", "before", "after", "skip", "length", "limit")
        return {name: getattr(self, name) for name in names}


def contexts_of(
    circuit: FeatureCircuit,
    corpus: Dataset,
    around: Around,
    *,
    model: Model | None,
    dictionaries: Dictionaries | None,
    progress: bool | None,
) -> Contexts:
    """Return the strongest contexts of a circuit's features in a corpus.

    Args:
        circuit: Whose features.
        corpus: Prompts.
        around: What is read and kept.
        model: Needed when the circuit no longer has its model.
        dictionaries: By default those the circuit was found with.
        progress: True, False, or None to show a bar only on a terminal.

    Raises:
        ModelGoneError: If the model is gone and none was given.
        PromptError: If the corpus gives no prompts, or one cannot be used.
        UnknownOptionError: If a number is out of range.
    """
    refuse_not_positive(
        top=around.top, length=around.length, limit=around.limit, batch_size=around.batch_size
    )
    refuse_not_positive(before=around.before + 1, after=around.after + 1, skip=around.skip + 1)
    source = _source(corpus)
    with again(circuit, model=model, dictionaries=dictionaries) as live:
        wanted = {node.coded: _kept(circuit, node.site) for node in live.nodes}
        features, tokens, reading = strongest_in(
            live.model, wanted, source, around, progress=progress
        )
        return Contexts(
            {one.name: one for one in features},
            tokens=tokens,
            prompts=reading.count,
            provenance={
                "model": describe_model(live.model),
                "dictionaries": live.dictionaries.to_list(),
                "corpus": {
                    "source": described(source),
                    "sha256": reading.sha256,
                    "prompts": reading.count,
                    "tokens": tokens,
                },
                **around.to_dict(),
            },
        )


def strongest_in(
    model: Model,
    wanted: Mapping[Coded, Mapping[int, str]],
    source: Streamed,
    around: Around,
    *,
    progress: bool | None,
) -> tuple[list[FeatureContexts], int, Reading]:
    """Return where in prompts features are strongest, how many tokens count, and what was read.

    Args:
        model: A frozen model.
        wanted: By site, the names of features by their numbers.
        source: The prompts.
        around: What is read and kept.
        progress: True, False, or None to show a bar only on a terminal.
    """
    reading = Reading(source, around.limit, CORPUS)
    sites = [
        _SiteFeatures(coded, tuple(names), tuple(names.values()), around)
        for coded, names in wanted.items()
        if names
    ]
    tokens = _read(model, reading, sites, around, expected(source, around.limit), progress)
    return [one for site in sites for one in site.result(model)], tokens, reading


def _source(corpus: Dataset) -> Streamed:
    if isinstance(corpus, str):
        return Path(corpus)
    if isinstance(corpus, Task):
        return [pair.clean for pair in corpus.pairs]
    refuse_unreadable(corpus, CORPUS)
    return corpus


def _kept(circuit: FeatureCircuit, site: Site) -> dict[int, str]:
    """Return the circuit's features of one site, each once: number and name."""
    found = {
        node.index: base(node.name)
        for node in circuit.nodes
        if node.index is not None and node.site == str(site)
    }
    return dict(sorted(found.items()))


@torch.no_grad()
def _read(
    model: Model,
    reading: Reading,
    sites: Sequence[_SiteFeatures],
    around: Around,
    prompts: float,
    progress: bool | None,
) -> int:
    """Read the corpus, and return how many of its tokens count."""
    tokens = 0
    with progress_bar("contexts", prompts, show=progress) as advance:
        for rows in reading.windows(model, WINDOW * around.batch_size):
            for batch in packed(model, rows, around.batch_size, around.length):
                counts = counted(batch, around.skip)
                tokens += int(counts.sum())
                taps: dict[Site, Tap] = {}
                for site in sites:
                    tap = site.tap(batch, counts)
                    read = site.coded.reads
                    taps[read] = in_turn(taps[read], tap) if read in taps else tap
                model.forward(
                    batch.clean,
                    mask=batch.mask,
                    position_ids=batch.position_ids,
                    taps=taps,
                    read=1,
                )
                advance(len(batch))
    return tokens


class _SiteFeatures:
    """Some features of one site, and where they were strongest so far.

    Args:
        coded: The site.
        columns: Numbers of the features.
        names: Their names.
        around: What is kept.
    """

    def __init__(
        self, coded: Coded, columns: Sequence[int], names: Sequence[str], around: Around
    ) -> None:
        self.coded, self.names, self.around = coded, names, around
        self.columns = torch.tensor(columns, device=coded.dictionary.decoder.device)
        self.strongest = [_Strongest(around.top) for _ in columns]
        self.fires = torch.zeros(len(columns), dtype=torch.long)
        self.prompts = torch.zeros(len(columns), dtype=torch.long)

    def tap(self, batch: Batch, counts: Bool[Tensor, "batch pos"]) -> Tap:
        """Return the tap that looks at a batch."""

        def look(value: Tensor) -> None:
            value = value.flatten(2) if value.ndim == 4 else value
            rows = self._rows(value.shape[1])
            for first in range(0, len(value), rows):
                part = slice(first, first + rows)
                self._take(batch.rows(first, first + rows), value[part], counts[part])

        return look

    def result(self, model: Model) -> list[FeatureContexts]:
        """Return what was found."""
        return [
            FeatureContexts(
                name=name,
                fires=int(self.fires[place]),
                prompts=int(self.prompts[place]),
                contexts=tuple(one.context(model) for one in self.strongest[place].found()),
            )
            for place, name in enumerate(self.names)
        ]

    def _rows(self, positions: int) -> int:
        dictionary = self.coded.dictionary
        # features that compete are all encoded, whichever are wanted
        width = dictionary.features if dictionary.activation.couples else len(self.columns)
        return max(1, ENCODED_BYTES // (dictionary.decoder.element_size() * positions * width))

    def _take(
        self,
        batch: Batch,
        value: Float[Tensor, "batch pos width"],
        counts: Bool[Tensor, "batch pos"],
    ) -> None:
        features = self.coded.dictionary.encode(value, self.columns).cpu()
        on = (features != 0) & counts.cpu()[..., None]
        self.fires += on.sum((0, 1))
        self.prompts += on.any(1).sum(0)
        sizes = features.abs() * on
        peak = sizes.amax(1)
        least = torch.tensor([one.least for one in self.strongest], dtype=peak.dtype)
        close = 1 - 10.0 ** (1 - RANKED)
        for row, column in ((peak > 0) & (peak >= close * least)).nonzero().tolist():
            equal = sizes[row, :, column] >= (1 - 10.0**-RANKED) * peak[row, column]
            self._offer(batch, row, column, int(equal.nonzero()[0]), features[row, :, column])

    def _offer(
        self, batch: Batch, row: int, column: int, at: int, feature: Float[Tensor, " pos"]
    ) -> None:
        padding = int((~batch.mask[row]).sum())
        position = at - padding
        key = (-float(f"{abs(float(feature[at])):.{RANKED}g}"), batch.pairs[row], position)
        if not self.strongest[column].wants(key):
            return
        first = max(padding, at - self.around.before)
        shown = slice(first, at + self.around.after + 1)
        window = _Window(
            key, first - padding, tuple(batch.clean[row, shown].tolist()), feature[shown].tolist()
        )
        self.strongest[column].take(window)


@dataclass(frozen=True)
class _Window:
    """A place in the corpus."""

    key: tuple[float, int, int]
    """Minus its size, its prompt, its position: the smallest is the strongest, then the first."""
    start: int
    ids: tuple[int, ...]
    values: Sequence[float]

    def context(self, model: Model) -> Context:
        return Context(
            prompt=self.key[1],
            position=self.key[2],
            start=self.start,
            tokens=tuple(_texts(model, self.ids)),
            activations=tuple(float(f"{value:.{DIGITS}g}") for value in self.values),
        )


class _Strongest:
    """The strongest windows of one feature, no two with the same tokens.

    Which they are does not depend on the order in which they are taken: a window that gave way did
    so to as many others as are kept, all of them stronger and of other tokens.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._kept: dict[tuple[int, ...], _Window] = {}

    @property
    def least(self) -> float:
        """Size that a window needs to be kept."""
        return -self._last().key[0] if len(self._kept) == self._top else 0.0

    def wants(self, key: tuple[float, int, int]) -> bool:
        """Whether a window of this key may be kept."""
        return len(self._kept) < self._top or key < self._last().key

    def take(self, window: _Window) -> None:
        """Keep a window that is wanted, in place of the weakest or of one with its tokens."""
        there = self._kept.get(window.ids)
        if there is not None and there.key < window.key:
            return
        self._kept[window.ids] = window
        if len(self._kept) > self._top:
            del self._kept[self._last().ids]

    def found(self) -> list[_Window]:
        """Return the windows, the strongest first."""
        return sorted(self._kept.values(), key=lambda one: one.key)

    def _last(self) -> _Window:
        return max(self._kept.values(), key=lambda one: one.key)


def _texts(model: Model, ids: Sequence[int]) -> list[str]:
    if model.tokenizer is None:
        return [f"[{one}]" for one in ids]
    return token_texts(model.tokenizer, ids)
