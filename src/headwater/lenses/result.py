"""The result of a lens: statistics `[row, prompt, position]` of what each layer predicts.

Position i has read the tokens up to and including i and predicts token i + 1. Arrays are padded on
the right with NaN (token ids with -1) where prompts have different lengths.
"""

from __future__ import annotations

import html
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headwater.errors import ModelGoneError, UnknownOptionError, did_you_mean
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
from headwater.lenses.rows import Row, index_of
from headwater.lenses.statistics import BY_KEY, TARGETS
from headwater.lenses.tally import Tally
from headwater.lenses.tokens import texts
from headwater.lenses.view import Added, page_data
from headwater.page.lens import write_lens

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from headwater.models import Model

Direction = Literal["ref||layer", "layer||ref"]
Ties = Literal["mid", "strict", "ties"]


@dataclass(frozen=True)
class Decided:
    """Where the final row's best token is the best; -1 where there is no token."""

    at: Int[Tensor, "prompt position"]
    """The first row from which on no other token is above it, at any later row."""
    first: Int[Tensor, "prompt position"]
    """The first row at which no other token is above it, whatever comes after."""


@dataclass(frozen=True)
class TopK:
    """The best tokens of each row and position, best first."""

    ids: Int[Tensor, "row prompt position best"]
    logprobs: Float[Tensor, "row prompt position best"]

    def texts(self, lens: Lens, row: int, prompt: int, position: int) -> list[str]:
        """Return the tokens of one cell as texts."""
        return [lens.text_of(one) for one in self.ids[row, prompt, position].tolist()]


@dataclass(frozen=True, eq=False, repr=False)
class Lens:
    """What every row predicts at every position of every prompt."""

    layers: tuple[Row, ...]
    """The rows, from the input to the final residual."""
    arrays: Arrays
    texts: tuple[str | None, ...]
    """The prompts; None where token ids were given."""
    vocabulary: Mapping[int, str]
    """The texts of all tokens that occur."""
    tokens: tuple[str, ...] = ()
    """Words that were ranked too."""
    provenance: dict[str, Any] = field(default_factory=dict)
    tally: Tally = field(kw_only=True)
    """Sums over all positions, from which the questions are answered."""
    added: dict[str, Added] = field(default_factory=dict)
    """What was tested by changing residuals, for the page and the folder."""
    _model: weakref.ref[Model] | None = None
    _translator: Any = None

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
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names, from `input` to that of the last layer."""
        return tuple(row.name for row in self.layers)

    @property
    def mask(self) -> Bool[Tensor, "prompt position"]:
        """Where there is a token."""
        return self.arrays.ids >= 0

    def text_of(self, token: int) -> str:
        """Return a token's text."""
        return self.vocabulary.get(token, f"[{token}]")

    def row(self, which: str | int) -> int:
        """Return the number of a row: `"final"`, `"first"`, a name, or a layer's number.

        Raises:
            UnknownOptionError: If there is no such row.
        """
        return index_of(self.layers, which)

    def __getitem__(self, key: str) -> Float[Tensor, "row prompt position"]:
        """Return a statistic by its key, such as `"kl(final||layer)"`.

        Raises:
            UnknownOptionError: If there is no such statistic, or it was not computed.
        """
        if key in self.arrays.values:
            return self.arrays.values[key]
        if key in BY_KEY:
            option = "mixtures=True" if BY_KEY[key].group == "distance" else "best=2"
            raise UnknownOptionError(
                f"{key} was not computed.\nWrite hw.lens(..., {option}) for it."
            )
        raise UnknownOptionError(
            f"no statistic {key!r}.{did_you_mean(key, self.arrays.values)}\n"
            f"Statistics: {', '.join(self.arrays.values)}."
        )

    def kl(
        self, against: str | int = "final", direction: Direction = "ref||layer"
    ) -> Float[Tensor, "row prompt position"]:
        """Return the KL divergence between each row and one of them, in nats.

        Args:
            against: `"final"` (the model's own prediction), `"first"` (the residual entering
                layer 0), any row's name or a layer's number.
            direction: `"ref||layer"` is the sum of p log(p/q) with p of `against` and q of the
                row; `"layer||ref"` the other way round. KL is no metric: read both.

        Raises:
            UnknownOptionError: If there is no such row or direction.
        """
        reference = self.row(against)
        if direction == "ref||layer":
            return self.arrays.kl[reference]
        if direction == "layer||ref":
            return self.arrays.kl[:, reference]
        raise UnknownOptionError(
            f"direction={direction!r} is unknown.\nWrite 'ref||layer' or 'layer||ref'."
        )

    def js(self, against: str = "final") -> Float[Tensor, "row prompt position"]:
        """Return the Jensen-Shannon divergence to `"final"` or `"first"`, in nats: 0 to ln 2.

        Raises:
            UnknownOptionError: If it is against another row, or was not computed.
        """
        return self[f"js({_end(against)})"]

    def tv(self, against: str = "final") -> Float[Tensor, "row prompt position"]:
        """Return the total variation to `"final"` or `"first"`: 0 to 1.

        Raises:
            UnknownOptionError: If it is against another row, or was not computed.
        """
        return self[f"tv({_end(against)})"]

    def entropy(self) -> Float[Tensor, "row prompt position"]:
        """Return the entropy in nats; its exponential is the number of tokens in play."""
        return self["entropy"]

    def rms(self) -> Float[Tensor, "row prompt position"]:
        """Return the root mean square of what is read, before any norm."""
        return self["rms"]

    def max_prob(self) -> Float[Tensor, "row prompt position"]:
        """Return the probability of the best token."""
        return self["max-prob"]

    def margin(self) -> Float[Tensor, "row prompt position"]:
        """Return the best logit minus the second best."""
        return self["margin"]

    def agrees(self) -> Float[Tensor, "row prompt position"]:
        """Return 1 where no token is above the final row's best one, else 0."""
        return self["agrees"]

    def cross_entropy(self) -> Float[Tensor, "row prompt position"]:
        """Return minus the log-probability of the next token; NaN at a prompt's last position."""
        return -self["logprob(next)"]

    def bits_per_byte(self) -> Float[Tensor, " row"]:
        """Return the cross-entropy of all next tokens in bits, a byte of UTF-8 text that they are.

        Raises:
            UnknownOptionError: If token ids were given, whose text is not known.
        """
        if any(text is None for text in self.texts):
            raise UnknownOptionError(
                "bits per byte are of texts, and token ids were given.\nUse cross_entropy()."
            )
        following = self.arrays.targets[TARGETS["next"]]
        known = following[following >= 0].tolist()
        size = sum(len(self.text_of(one).encode("utf-8", "replace")) for one in known)
        return self.cross_entropy().nansum((1, 2)) / (torch.tensor(2.0).log() * size)

    def rank(
        self, of: str | int = "next", ties: Ties = "mid"
    ) -> Float[Tensor, "row prompt position"]:
        """Return a token's rank among all tokens, from 1.

        Args:
            of: `"input"` (the token read), `"next"` (the one that follows), `"final"` (the final
                row's best), or one of the words given as `tokens=`.
            ties: `"mid"` counts those level with it half, `"strict"` not at all; `"ties"` returns
                how many there are.

        Raises:
            UnknownOptionError: If the token was not ranked.
        """
        if ties not in ("mid", "strict", "ties"):
            raise UnknownOptionError(f"ties={ties!r} is unknown.\nWrite 'mid', 'strict' or 'ties'.")
        target = self._target(of)
        strict, level = self.arrays.strict[target], self.arrays.ties[target]
        return {"mid": strict + level / 2, "strict": strict, "ties": level}[ties]

    def logprob(self, of: str | int = "next") -> Float[Tensor, "row prompt position"]:
        """Return a token's log-probability; `of` as for `rank`."""
        return self.arrays.logprob[self._target(of)]

    def topk(self, k: int | None = None) -> TopK:
        """Return the best tokens of every row and position.

        Args:
            k: How many; None for all that were kept.

        Raises:
            UnknownOptionError: If fewer were kept.
        """
        kept = self.arrays.top.shape[-1]
        k = kept if k is None else k
        if not 1 <= k <= kept:
            raise UnknownOptionError(
                f"topk({k}): {kept} of the best tokens were kept.\nWrite hw.lens(..., best={k})."
            )
        return TopK(self.arrays.top[..., :k], self.arrays.top_logprob[..., :k])

    def jaccard(self, k: int = 10) -> Float[Tensor, "row prompt position"]:
        """Return the overlap of each row's k best tokens with the final row's: |both| / |either|.

        Raises:
            UnknownOptionError: If fewer were kept.
        """
        ids = self.topk(k).ids
        both = (ids[..., :, None] == ids[-1][..., None, :]).any(-1).sum(-1)
        found = both / (2 * k - both)
        return found.masked_fill(~self.mask, torch.nan)

    def decided(self) -> Decided:
        """Return from which row on, and at which row first, the final best token is the best."""
        stream = [number for number, row in enumerate(self.layers) if row.is_stream]
        agrees = self.arrays.strict[TARGETS["final"]][stream] == 1
        index = torch.tensor(stream)
        first = index[agrees.to(torch.uint8).argmax(0)]
        # from the end: the longest run of agreement that reaches the final row
        lasting = agrees.flip(0).cumprod(0).sum(0).clamp(min=1)
        at = index[len(stream) - lasting]
        return Decided(at.masked_fill(~self.mask, -1), first.masked_fill(~self.mask, -1))

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

    def rarity(self, counts: Any = "corpus", *, bins: int = 5) -> Rarity:
        """Return how long input tokens stay visible, by how rare they are, with the base rate.

        Args:
            counts: How common tokens are: a mapping from texts or ids to counts, a tensor
                `[vocab]`, `"corpus"` (counts in these prompts) or `"tokenizer"` (order of ids).
            bins: How many quantiles of token types.

        Raises:
            UnknownOptionError: If no controls were ranked, or the counts cannot be used.
        """
        return rarity(self.tally, counts, bins=bins, vocabulary=self.vocabulary)

    def check(self, model: Model | None = None, **options: Any) -> LensCheck:
        """Test what the lens says: change residuals, and compare predicted and actual changes.

        Args:
            model: The model; None for the one that was read, if it is still there.
            **options: `cells`, `sample`, `how`, `nats`, `seed`, `progress` of
                `headwater.lenses.causal.check`.

        Raises:
            ModelGoneError: If the model is gone.
            UnknownOptionError: If an option cannot be used.
        """
        found = check(Reader.of_lens(self._alive(model), self, self._translator), **options)
        self.added["check"] = {"sentences": words_of_check(found), "table": found.table()}
        return found

    def kept(self, model: Model | None = None, **options: Any) -> Kept:
        """Test whether tokens that recur are kept for it: replace residuals where they were read.

        Args:
            model: The model; None for the one that was read, if it is still there.
            **options: `off`, `sample`, `seed`, `progress` of `headwater.lenses.recurrence.kept_in`.

        Raises:
            ModelGoneError: If the model is gone.
            PromptError: If no token recurs.
        """
        found = kept_in(Reader.of_lens(self._alive(model), self, self._translator), **options)
        self.added["kept"] = {"sentences": list(found.sentences), "table": found.table()}
        return found

    def _alive(self, model: Model | None) -> Model:
        found = model or (None if self._model is None else self._model())
        if found is None:
            raise ModelGoneError(
                f"this lens came from {self.provenance['model']['name']!r}, which it does not hold "
                "(it was read from a folder, or the model is gone).\nPass it: model=model."
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

    def _target(self, of: str | int) -> int:
        names = [*TARGETS, *self.tokens]
        if of in names:
            return names.index(str(of))
        raise UnknownOptionError(
            f"no token {of!r} was ranked.{did_you_mean(str(of), names)}\n"
            f"Ranked: {', '.join(map(repr, names))}; for another write "
            f"hw.lens(..., tokens=[{of!r}])."
        )


def _vocabulary(model: Model, arrays: Arrays) -> dict[int, str]:
    """Return the text of every token that occurs."""
    parts = (arrays.ids, arrays.targets, arrays.top, arrays.followed)
    found = torch.cat([part.flatten() for part in parts]).unique().tolist()
    ids = [one for one in found if one >= 0]
    return dict(zip(ids, texts(model, ids), strict=True))


def _end(against: Any) -> str:
    if against in ("final", "first"):
        return against
    raise UnknownOptionError(
        f"against={against!r}: mixtures are computed against 'final' and 'first'.\n"
        "Use kl(against=...), which there is for every pair of rows."
    )
