"""The result of a lens over a corpus: means, quantiles and answers; single positions are not kept.

Position i has read the tokens up to and including i and predicts token i + 1.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from headwater.errors import RunFolderError
from headwater.frames import frame
from headwater.lenses.intervals import CONFIDENCE, interval_note, number
from headwater.lenses.questions.close import Close, close
from headwater.lenses.questions.frequency import Counts
from headwater.lenses.questions.jumps import Against, Direction, Jumps, Of, jumps
from headwater.lenses.questions.rarity import rarity
from headwater.lenses.questions.rarity_result import Rarity
from headwater.lenses.storing import rows_from_data, rows_to_data
from headwater.lenses.tally import Tally, folder
from headwater.lenses.tally.closeness import Measure
from headwater.lenses.tokens import texts
from headwater.lenses.view import corpus_data
from headwater.lenses.words import CONVENTION
from headwater.page.lens import write_lens

if TYPE_CHECKING:
    import pandas

    from headwater.lenses.result import Lens
    from headwater.models import Model

_COLUMNS = (
    ("kl(final||layer)", "KL(final||row)"),
    ("kl(layer||final)", "KL(row||final)"),
    ("kl(first||layer)", "KL(first||row)"),
    ("kl(layer||first)", "KL(row||first)"),
)
_MEDIANS = (("rank(input)", "rank input"), ("rank(next)", "rank next"))


@dataclass(frozen=True, eq=False, repr=False)
class LensSummary:
    """What every row predicts, over the positions of a corpus."""

    tally: Tally
    """All sums."""
    vocabulary: dict[int, str]
    """The texts of the tokens that were read."""
    corpus: dict[str, Any]
    """What was read: source, prompts, pieces, tokens, a hash."""
    provenance: dict[str, Any] = field(default_factory=dict)
    _rarities: dict[tuple[str, int, int, int], Rarity] = field(default_factory=dict, init=False)
    """Answers that were given: with many types one takes a minute, and five places ask for it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names, from `input` to that of the last layer."""
        return self.tally.names

    @property
    def keys(self) -> tuple[str, ...]:
        """The statistics that were computed."""
        return self.tally.keys

    def mean(self, key: str) -> Float[Tensor, " row"]:
        """Return a statistic's mean over positions; infinite ones are left out, and counted."""
        return self.tally.mean(key)

    def interval(
        self, key: str, confidence: float = CONFIDENCE
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Return the ends of the mean's interval, by a bootstrap over prompts.

        Args:
            key: Of the statistic.
            confidence: How often the interval should hold.
        """
        return self.tally.interval(key, confidence)

    def deviation(self, key: str) -> Float[Tensor, " row"]:
        """Return a statistic's standard deviation over positions."""
        return self.tally.deviation(key)

    def quantile(self, key: str, share: float) -> Float[Tensor, " row"]:
        """Return the value that this share of positions does not exceed, good to 1 %."""
        return self.tally.quantile(key, share)

    def jumps(
        self,
        against: Against | None = None,
        of: Of | None = None,
        direction: Direction | None = None,
    ) -> Jumps:
        """Return how much of each curve along the layers is one step.

        Args:
            against: The row that all are compared with: `"final"` or `"first"`; None for both.
            of: `"kl"`, or `"rank"` of the reference's token; None for both.
            direction: Of KL: `"ref||layer"` or `"layer||ref"`; None for both.
        """
        return jumps(self.tally, against, of, direction)

    def close(self, measure: Measure | None = None) -> Close:
        """Return at how many positions each row is close to both first and final."""
        return close(self.tally, measure)

    def rarity(self, counts: Counts = "corpus", *, bins: int = 5, seed: int = 0) -> Rarity:
        """Return whether rare input tokens are preserved more than common ones.

        Args:
            counts: How common tokens are: `"corpus"`, `"tokenizer"`, a mapping from token texts
                or ids to counts, or a tensor `[vocab]`.
            bins: How many quantiles of token types.
            seed: Of the intervals.
        """
        if not isinstance(counts, str):
            return rarity(self.tally, counts, bins=bins, vocabulary=self.vocabulary, seed=seed)
        asked = counts, bins, seed, self.tally.positions
        if asked not in self._rarities:
            self._rarities[asked] = rarity(self.tally, counts, bins=bins, seed=seed)
        return self._rarities[asked]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a statistic and row."""
        for key in self.keys:
            count, infinite = self.tally.count(key), self.tally.infinite(key)
            low, high = self.interval(key)
            mean, deviation = self.mean(key), self.deviation(key)
            shares = {name: self.quantile(key, share) for name, share in _QUANTILES.items()}
            for place, name in enumerate(self.names):
                yield {
                    "statistic": key,
                    "row": name,
                    "mean": float(mean[place]),
                    "low": float(low[place]),
                    "high": float(high[place]),
                    "deviation": float(deviation[place]),
                    **{share: float(values[place]) for share, values in shares.items()},
                    "positions": int(count[place]),
                    "infinite": int(infinite[place]),
                }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a statistic and row of the lens, as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.rows(), "summary.rows()")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: corpus, statistics, jumps, closeness and rarity."""
        return {
            "corpus": self.corpus,
            "provenance": self.provenance,
            "rows": list(self.names),
            "statistics": [_plain(row) for row in self.rows()],
            "jumps": self.jumps().to_dict(),
            "close": self.close().to_dict(),
            "rarity": self.rarity().to_dict() if self._has_controls else None,
        }

    def save(self, path: str | Path) -> Path:
        """Write everything into a folder: `tally.safetensors`, and `corpus.json` to be read.

        Args:
            path: The folder; made if it does not exist.

        Raises:
            RunFolderError: If it cannot be written, or holds something else.
        """
        path = Path(path)
        folder.claim(path, self._specification, self.corpus["sha256"])
        folder.write(path, self._data(), self.tally.state())
        folder.finish(path, self.to_dict())
        return path

    def page(
        self, path: str | Path, *, counts: Counts = "corpus", examples: Lens | None = None
    ) -> Path:
        """Write the summary as one HTML file that loads nothing, and return its path.

        Args:
            path: Where to write.
            counts: How common tokens are, as for `rarity`.
            examples: A lens of a few prompts, to be shown cell by cell.
        """
        return write_lens(corpus_data(self, counts, examples), path)

    @classmethod
    def load(cls, path: str | Path) -> LensSummary:
        """Read what `save`, or `hw.lens_dataset(..., out=path)`, wrote.

        Raises:
            RunFolderError: If the folder holds none, or a run that was not finished.
        """
        path = Path(path)
        data, state = folder.read(path)
        folder.refuse_incomplete(path)
        tally = restored(data, state)
        try:
            vocabulary = {int(token): text for token, text in data["vocabulary"].items()}
            return cls(tally, vocabulary, data["corpus"], data["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"{path / folder.TENSORS} lacks what a lens over a corpus has: {error}.\n"
                "Make it again."
            ) from error

    def _data(self) -> dict[str, Any]:
        return {
            **sums_data(self.tally, self._specification),
            "sha256": self.corpus["sha256"],
            "pieces": self.corpus["pieces"],
            "vocabulary": {str(token): text for token, text in self.vocabulary.items()},
            "corpus": self.corpus,
            "provenance": self.provenance,
        }

    @property
    def _specification(self) -> dict[str, Any]:
        return self.provenance.get("specification", self.provenance)

    @property
    def _has_controls(self) -> bool:
        return bool(self.tally.types.of("control_count").sum() > 0)

    def told(self, *, rarity: bool = True) -> list[str]:
        """Return the lines of the printed result, with or without what is said of rarity."""
        model = self.provenance.get("model", {}).get("name", "a model")
        told = self.corpus
        cut = f" in {told['pieces']:,} pieces" if told["pieces"] != told["prompts"] else ""
        lines = [
            f"Lens of {model} over {told['prompts']:,} prompts{cut}, {told['tokens']:,} tokens, "
            f"{len(self.names)} rows",
            CONVENTION,
            *self._table(),
            f"Means (ranks: medians). {interval_note(self.tally.prompts)}{self._infinite()}",
            *self.jumps().sentences(),
            *self.close().sentences(),
        ]
        if rarity and self._has_controls:
            lines += self.rarity().sentences()
        return lines

    def __repr__(self) -> str:
        return "\n".join(self.told())

    def _table(self) -> list[str]:
        means = {key: (self.mean(key), *self.interval(key)) for key, _ in _COLUMNS}
        medians = {key: self.quantile(key, 0.5) for key, _ in _MEDIANS}
        heads = "".join(f"{head:>25}" for _, head in _COLUMNS)
        lines = [f"{'row':<8}{heads}" + "".join(f"{head:>12}" for _, head in _MEDIANS)]
        for place in reversed(range(len(self.names))):
            cells = []
            for mean, low, high in means.values():
                ends = (
                    f" ({low[place]:.3g} to {high[place]:.3g})" if low[place] < high[place] else ""
                )
                cells.append(f"{f'{mean[place]:.3g}{ends}':>25}")
            cells += [f"{float(one[place]):>12.4g}" for one in medians.values()]
            lines.append(f"{self.names[place]:<8}{''.join(cells)}")
        return lines

    def _infinite(self) -> str:
        found = {key: int(self.tally.infinite(key).sum()) for key in self.keys}
        most = max(found.values())
        if not most:
            return ""
        return (
            f" Infinite values (up to {most:,}, in {max(found, key=found.__getitem__)}) left out."
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: number(value) if isinstance(value, float) else value for name, value in row.items()
    }


_QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


def sums_data(tally: Tally, specification: dict[str, Any]) -> dict[str, Any]:
    """Return what stands beside a tally's tensors so that they can be read again."""
    return {
        "specification": specification,
        "rows": rows_to_data(tally.rows),
        "keys": list(tally.keys),
        "prompts": tally.prompts,
    }


def restored(data: dict[str, Any], state: dict[str, Tensor]) -> Tally:
    """Return the tally of a folder.

    Raises:
        RunFolderError: If its data and tensors do not belong together.
    """
    try:
        return Tally.restored(rows_from_data(data["rows"]), data["keys"], state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunFolderError(
            f"the folder's sums cannot be read: {type(error).__name__}: {error}.\nMake them again."
        ) from error


def vocabulary_of(model: Model, tally: Tally) -> dict[int, str]:
    """Return the text of every token that was read."""
    tokens = sorted(tally.types.tokens)
    return dict(zip(tokens, texts(model, tokens), strict=True))
