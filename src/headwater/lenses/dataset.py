"""`hw.lens_dataset`: the lens over a corpus, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from headwater.errors import RunFolderError, UnknownOptionError
from headwater.lenses.measure import Plan, measure
from headwater.lenses.pieces import MAX_TOKENS, longest, pieces
from headwater.lenses.provenance import provenance
from headwater.lenses.readout import Readings, Readout
from headwater.lenses.rows import rows_of
from headwater.lenses.summary import LensSummary, restored, sums_data, vocabulary_of
from headwater.lenses.tally import Bounds, Tally, folder
from headwater.lenses.translators import Translator, as_translator, refuse_other_reading
from headwater.models import Model
from headwater.progress import Advance, log, progress_bar
from headwater.prompts.batches import Row, pack
from headwater.prompts.streams import (
    DATASET,
    WINDOW,
    Dataset,
    Reading,
    described,
    expected,
    source_of,
)


def lens_dataset(
    model: Model,
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    layers: Sequence[int] | None = None,
    sublayers: bool = False,
    readout: Readings = "final-norm",
    translator: Translator | str | Path | None = None,
    decode_with: Literal["unembedding", "embedding"] = "unembedding",
    mixtures: bool = False,
    controls: int = 8,
    kept_rank: float = 10,
    kept_kl: float = 1.0,
    max_tokens: int | None = MAX_TOKENS,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> LensSummary:
    """Read a corpus through the lens: means, quantiles, jumps, closeness and rarity.

    Prompts are streamed: of any length of corpus only a window of prompts is held, and sums whose
    size depends on rows, statistics and the vocabulary in use. Costs one forward and one product
    with the unembedding a row, over the corpus.

    Args:
        model: A causal language model.
        dataset: Prompts: a file with one a line (`.txt`, or `.jsonl` with `text`), a task, texts,
            token ids, or a function that returns such things one after another.
        out: A folder that the sums are written to after every window of 16 batches. Run again
            with the same folder, a run that was killed goes on, and ends with the same numbers.
        layers: Read after these layers only; the input and the last layer are always read.
        sublayers: Read between attention and MLP too (`r3.mid`).
        readout: Which norm stands before the head: `"final-norm"`, `"next-norm"` or `"none"`.
        translator: Applied before the norm: a `Translator`, or the folder of one.
        decode_with: `"embedding"` reads with the embedding's own table.
        mixtures: Whether to compute Jensen-Shannon divergence and total variation.
        controls: How many tokens of other positions to rank at each: the base rate of rarity.
        kept_rank: A token counts as kept along the rows as long as its rank is at most this.
        kept_kl: The input's prediction counts as kept as long as KL is at most this, in nats.
        max_tokens: Longer prompts are cut into pieces, each opened by the prompt's special tokens;
            None: as long as the model takes them.
        limit: Read at most so many prompts.
        batch_size: Most pieces in a forward.
        seed: Of controls and of the bootstrap over prompts.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        Statistics by row, tables and sentences.

    Raises:
        PromptError: If a prompt cannot be used, or there is none.
        UnknownOptionError: If there is no such layer or reading.
        UnsupportedModelError: If the model is no causal language model with a head.
        NonFiniteError: If logits are NaN or infinite.
        FailedProofError: If the readout is not the model's own.
        RunFolderError: If `out` holds another run, or the same of another corpus.
    """
    _refuse_numbers(controls, limit, batch_size)
    rows = rows_of(model.anatomy(), layers, sublayers=sublayers)
    translate = as_translator(translator, model, rows)
    if translate is not None:
        refuse_other_reading(readout, decode_with)
    head = Readout(model, readout, decode_with)
    plan = Plan(
        rows,
        best=min(2, head.vocab),
        mixtures=(len(rows) - 1, 0) if mixtures else (),
        controls=controls,
        seed=seed,
        translate=None if translate is None else translate.applied,
    )
    length = longest(model, max_tokens)
    options = {
        "rows": [row.name for row in rows],
        "readout": readout,
        "translator": None if translate is None else translate.described,
        "decode_with": decode_with,
        "mixtures": mixtures,
        "controls": controls,
        "kept": [kept_rank, kept_kl],
        "length": length,
        "limit": limit,
        "batch_size": batch_size,
        "seed": seed,
    }
    run = _Run(model, head, plan, Tally(plan, Bounds(kept_rank, kept_kl)), options, length)
    source = source_of(dataset)
    run.start(Reading(source, limit, DATASET), None if out is None else Path(out))
    with model.frozen(), progress_bar("lens", expected(source, limit), show=progress) as advance:
        run.go(batch_size, advance)
    return run.summary(described(source))


class _Run:
    """A corpus on its way through the lens, in chunks of one window of prompts."""

    def __init__(
        self,
        model: Model,
        head: Readout,
        plan: Plan,
        tally: Tally,
        options: dict[str, Any],
        length: int | None,
    ) -> None:
        self.model, self.head, self.plan, self.tally = model, head, plan, tally
        self.length, self.pieces, self.proved = length, 0, False
        self.provenance = provenance(model, **options)
        identity = {key: one for key, one in self.provenance["model"].items() if key != "name"}
        self.provenance["specification"] = {"model": identity, **options}
        tokenizer = model.tokenizer
        self.special = frozenset(() if tokenizer is None else tokenizer.all_special_ids)

    def start(self, reading: Reading, out: Path | None) -> None:
        """Take up what is in the folder already, after reading past its prompts.

        Raises:
            RunFolderError: If it is of another run or corpus.
        """
        self.reading, self.out = reading, out
        if out is None:
            return
        folder.claim(out, self.provenance["specification"])
        if not (out / folder.TENSORS).exists():
            return
        data, state = folder.read(out)
        reading.skip(data["prompts"])
        if (reading.count, reading.sha256) != (data["prompts"], data["sha256"]):
            raise RunFolderError(
                f"{out} holds a run over other prompts: its first {data['prompts']:,} are not "
                "those of this dataset.\nChoose another folder, or delete this one."
            )
        self.tally, self.pieces = restored(data, state), data["pieces"]

    def go(self, batch_size: int, advance: Advance) -> None:
        """Read what is left of the corpus."""
        advance(self.reading.count)
        saved = self.tally.prompts
        try:
            for window in self.reading.windows(self.model, WINDOW * batch_size):
                self._read(window, batch_size, advance)
                if self.out is not None:
                    folder.write(self.out, self._data(), self.tally.state())
                    saved = self.tally.prompts
        except KeyboardInterrupt:
            if self.out is not None:
                told = "%s prompts are saved in %s: run again, it goes on"
                log.info(told, f"{saved:,}", self.out)
            raise

    def _read(self, window: Sequence[Row], batch_size: int, advance: Advance) -> None:
        parts = list(pieces(window, self.length, self.special))
        pads = self.model.anatomy().pads
        note = f"{self.reading.count:,} prompts"
        for batch in pack(parts, batch_size=batch_size, pad_id=0, pad=pads):
            batch = batch.to(self.model.device)
            found = measure(self.model, self.head, batch, self.plan, check=not self.proved)
            self.tally.add(found)
            self.proved = True
            advance(len(batch) * len(window) / len(parts), note)
        self.pieces += len(parts)

    def _data(self) -> dict[str, Any]:
        data = sums_data(self.tally, self.provenance["specification"])
        return {**data, "sha256": self.reading.sha256, "pieces": self.pieces}

    def summary(self, source: str) -> LensSummary:
        """Return the result, and write it where a folder was given."""
        corpus = {
            "source": source,
            "prompts": self.tally.prompts,
            "pieces": self.pieces,
            "tokens": self.tally.positions,
            "length": self.length,
            "sha256": self.reading.sha256,
        }
        vocabulary = vocabulary_of(self.model, self.tally)
        found = LensSummary(self.tally, vocabulary, corpus, self.provenance)
        if self.out is not None:
            found.save(self.out)
        return found


def _refuse_numbers(controls: int, limit: int | None, batch_size: int) -> None:
    if controls < 0 or batch_size < 1 or (limit is not None and limit < 1):
        raise UnknownOptionError(
            f"controls={controls}, limit={limit}, batch_size={batch_size}: the number of controls "
            "is not negative, and the others are 1 at least.\n"
            "Write controls=8, limit=1000, batch_size=8."
        )
