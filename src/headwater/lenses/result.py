"""The result of a lens: its statistics, the questions asked of them, tests, files and pictures."""

from __future__ import annotations

import html
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from headwater.errors import ModelGoneError, ResultError
from headwater.fingerprints import differing
from headwater.frames import frame
from headwater.lenses import storing, words
from headwater.lenses.arrays import Arrays, arrays_of
from headwater.lenses.asked import Prompt
from headwater.lenses.causal import LensCheck, Reader, check
from headwater.lenses.causal.kept import Kept
from headwater.lenses.causal.words import summary as words_of_check
from headwater.lenses.measure import Measured, Plan
from headwater.lenses.plot import heat_map, refuse_format, written
from headwater.lenses.questions import Close, Jumps, Rarity, close, jumps, rarity
from headwater.lenses.recurrence import kept_in
from headwater.lenses.statistics import TARGETS
from headwater.lenses.tally import Tally
from headwater.lenses.tokens import texts
from headwater.lenses.values import Direction, LensValues
from headwater.lenses.view import Added, page_data
from headwater.page.lens import write_lens

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from headwater.lenses.translators import Translator
    from headwater.models import Model


@dataclass(frozen=True, eq=False, repr=False)
class Lens(LensValues):
    """What every row predicts at every position of every prompt."""

    provenance: dict[str, Any] = field(default_factory=dict)
    tally: Tally = field(kw_only=True)
    """Sums over all positions, from which the questions are answered."""
    added: dict[str, Added] = field(default_factory=dict)
    """What was tested by changing residuals, for the page and the folder."""
    _model: weakref.ref[Model] | None = None
    _translator: Any = None
    _again: Callable[[Model], Tally] | None = None
    _counted: list[Tally] = field(default_factory=list)
    """The sums with base rates, once they were asked for."""

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Sequence[Prompt],
        plan: Plan,
        parts: Sequence[Measured],
        words: tuple[str, ...],
        provenance: dict[str, Any],
        translator: Any,
        again: Callable[[Model], Tally],
    ) -> Lens:
        """Return what batches measured as one result.

        Args:
            model: Whose numbers they are; kept by a weak reference.
            prompts: The prompts, in their order.
            plan: What was read.
            parts: What each batch measured.
            words: The plan's tokens as texts.
            provenance: Where the numbers come from.
            translator: What residuals were read through.
            again: Reads the prompts once more, with base rates.
        """
        tally = Tally(plan)
        for part in parts:
            tally.add(part)
        lengths = [len(one.ids) for one in prompts]
        arrays = arrays_of(parts, lengths, len(TARGETS) + len(words))
        return cls(
            layers=plan.rows,
            arrays=arrays,
            texts=tuple(one.text for one in prompts),
            vocabulary=_vocabulary(model, arrays),
            tokens=words,
            provenance=provenance,
            tally=tally,
            _model=weakref.ref(model),
            _translator=translator,
            _again=again,
        )

    def jumps(
        self,
        against: Literal["final", "first"] | None = None,
        of: Literal["kl", "rank"] | None = None,
        direction: Direction | None = None,
    ) -> Jumps:
        """Return the largest one-layer change of a mean curve, as a share of all its changes.

        Args:
            against: `"final"` or `"first"`; None for both, compared.
            of: `"kl"` or `"rank"` (on a logarithmic scale); None for both.
            direction: Of KL, as for `kl`; None for both.

        Raises:
            UnknownOptionError: If there is no such option.
        """
        return jumps(self.tally, against, of, direction)

    def close(self, measure: Any = None) -> Close:
        """Return at how many positions each row is close to final, to first, and to both.

        Args:
            measure: `"ref||layer"`, `"layer||ref"`, `"both directions"` or `"js"`; None for all.

        Raises:
            UnknownOptionError: If there is no such measure.
        """
        return close(self.tally, measure)

    def rarity(
        self, counts: Any = "corpus", *, bins: int = 5, model: Model | None = None
    ) -> Rarity:
        """Return how long input tokens stay visible, by how rare they are, with the base rate.

        Args:
            counts: How common tokens are: a mapping from texts or ids to counts, a tensor
                `[vocab]`, `"corpus"` (counts in these prompts) or `"tokenizer"` (order of ids).
            bins: How many quantiles of token types.
            model: Reads the prompts once more if no base rates were read; None for the one that
                was read, if it is still there.

        Raises:
            UnknownOptionError: If the counts cannot be used.
            ModelGoneError: If base rates have to be read and the model is gone.
            ResultError: If there are none and the lens was read from a folder.
        """
        return rarity(self.with_base_rates(model), counts, bins=bins, vocabulary=self.vocabulary)

    @property
    def sums(self) -> Tally:
        """The sums over all positions, with base rates if they were read."""
        return self._counted[0] if self._counted else self.tally

    def with_base_rates(self, model: Model | None = None) -> Tally:
        """Return the sums with the ranks of tokens at other positions; reads once more for them.

        Args:
            model: What reads; None for the model that was read, if it is still there.

        Raises:
            ModelGoneError: If it is gone and none is given.
            ResultError: If there are none and the lens was read from a folder.
        """
        if not self._counted and bool(self.tally.types.of("control_count").sum() > 0):
            self._counted.append(self.tally)
        if not self._counted:
            if self._again is None:
                raise ResultError(
                    "no token of another position was ranked, so there is no base rate to compare "
                    "with, and a lens from a folder cannot be read again.\n"
                    "Read it with controls=8 before it is saved."
                )
            self._counted.append(self._again(self._alive(model)))
        return self._counted[0]

    def check(
        self,
        model: Model | None = None,
        *,
        translator: Translator | str | Path | None = None,
        **options: Any,
    ) -> LensCheck:
        """Test what the lens says: change residuals, and compare predicted and actual changes.

        Args:
            model: The model; None for the one that was read, if it is still there.
            translator: What the lens was read through; needed only after it was loaded.
            **options: `cells`, `sample`, `how`, `nats`, `seed`, `progress` of
                `headwater.lenses.causal.check`.

        Raises:
            ModelGoneError: If the model is gone.
            UnknownOptionError: If an option cannot be used.
        """
        found = check(self._reader(model, translator), **options)
        self.added["check"] = {"sentences": words_of_check(found), "table": found.table()}
        return found

    def kept(
        self,
        model: Model | None = None,
        *,
        translator: Translator | str | Path | None = None,
        **options: Any,
    ) -> Kept:
        """Test whether tokens that recur are kept for it: replace residuals where they were read.

        Args:
            model: The model; None for the one that was read, if it is still there.
            translator: What the lens was read through; needed only after it was loaded.
            **options: `off`, `sample`, `seed`, `progress` of `headwater.lenses.recurrence.kept_in`.

        Raises:
            ModelGoneError: If the model is gone.
            PromptError: If no token recurs.
        """
        found = kept_in(self._reader(model, translator), **options)
        self.added["kept"] = {"sentences": list(found.sentences), "table": found.table()}
        return found

    def _reader(self, model: Model | None, translator: Any) -> Reader:
        given = self._translator if translator is None else translator
        return Reader.of_lens(self._alive(model), self, given)

    def _alive(self, model: Model | None) -> Model:
        """Return the model that was read.

        Raises:
            ModelGoneError: If it is gone and none is given.
            ResultError: If another one is given, or it was changed meanwhile.
        """
        found = model or (None if self._model is None else self._model())
        said = self.provenance["model"]
        if found is None:
            raise ModelGoneError(
                f"this lens came from {said['name']!r}, which it does not hold (it was read from a "
                "folder, or the model is gone).\nPass it: model=model."
            )
        if differing(said, found.fingerprint()):
            raise ResultError(
                f"this lens was read from {said['name']!r} in {said['dtype']}, and the model is "
                "another one now: its weights, configuration or tokenizer differ.\n"
                "Pass the model that was read, or read this one: hw.lens(model, prompts)."
            )
        return found

    def page(self, path: str | Path) -> Path:
        """Write the lens as one HTML file that loads nothing, and return its path."""
        return write_lens(page_data(self), path)

    def to_dict(self) -> dict[str, Any]:
        """Return what is said of the lens, and its means over positions, as plain data."""
        return {
            "title": words.title(self),
            "sentences": words.sentences(self),
            "rows": list(words.means(self)),
            "added": self.added,
            "provenance": self.provenance,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `lens.json` and `lens.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another lens instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds other files or another lens.
        """
        return storing.write(self, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Lens:
        """Read what `save` wrote.

        Raises:
            RunFolderError: If the folder holds no lens that this release can read.
        """
        return cls(**storing.read(Path(path)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a prompt, position and row, with every statistic."""
        values = self.arrays.values
        top = self.topk()
        for prompt, position in self.mask.nonzero().tolist():
            for row, one in enumerate(self.layers):
                yield {
                    "prompt": prompt,
                    "position": position,
                    "token": self.text_of(int(self.arrays.ids[prompt, position])),
                    "row": one.name,
                    "top": self.text_of(int(top.ids[row, prompt, position, 0])),
                    **{key: float(value[row, prompt, position]) for key, value in values.items()},
                    **{
                        f"rank({word})": float(self.rank(word)[row, prompt, position])
                        for word in self.tokens
                    },
                }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a prompt, position and row of the lens, as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.rows(), "lens.rows()")

    def plot(
        self,
        path: str | Path | None = None,
        statistic: str = "kl(final||layer)",
        *,
        prompt: int = 0,
        positions: slice | None = None,
    ) -> Figure:
        """Draw a heat map of one statistic, rows by positions, and return the figure.

        Args:
            path: Where to write it: `.png`, `.svg` or `.pdf`; None draws only.
            statistic: Its key, as in `lens["..."]`.
            prompt: The prompt's number.
            positions: Which positions; None for the first forty.

        Raises:
            MissingExtraError: If matplotlib is not installed.
            UnknownOptionError: If there is no such statistic, prompt or format.
        """
        if path is not None:
            refuse_format(Path(path))
        figure = heat_map(self, statistic, prompt, positions)
        if path is not None:
            written(figure, Path(path))
        return figure

    def __repr__(self) -> str:
        return "\n".join(words.told(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _vocabulary(model: Model, arrays: Arrays) -> dict[int, str]:
    """Return the text of every token that occurs."""
    parts = (arrays.ids, arrays.targets, arrays.top, arrays.followed)
    found = torch.cat([part.flatten() for part in parts]).unique().tolist()
    ids = [one for one in found if one >= 0]
    return dict(zip(ids, texts(model, ids), strict=True))
