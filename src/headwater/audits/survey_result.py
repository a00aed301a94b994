"""What a survey found, in numbers and in one sentence."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.audits.saturated_heads import HeadSaturation
from headwater.audits.words import figure
from headwater.errors import ResultError, did_you_mean
from headwater.files import make_writable, write_text
from headwater.frames import frame

if TYPE_CHECKING:
    import pandas

COMES_UP = 0.05
"""From this share of the total |exact effect| on, what an estimate does not see is worth a yes."""
BLIND = 0.1
"""An estimate does not see a component if it is below this share of the exact effect."""
THROUGH_OUTPUT = ("prob", "prob-diff", "logprob", "cross-entropy", "kl")
"""Metrics that read probabilities, and so have the output softmax between them and the logits."""
PLURAL = {"head": "heads", "query": "queries", "key": "keys"}
FILE = "survey.json"
_SHOWN = 8


WELL_ABOVE = 10.0
"""Times the noise floor from which an effect is surely none of rounding."""


@dataclass(frozen=True)
class MissedShare:
    """How much of the effects an estimate does not see."""

    estimator: str
    kind: str
    """`all`, or a kind of component: `head`, `query`, `key`."""
    components: int
    """Checked exactly."""
    share: float | None
    """Share of the total |exact effect| that is on components with |estimate| < 0.1 |exact|; both
    averaged over prompts first. None if no effect is above zero."""
    low: float | None
    high: float | None
    """Ends of the interval for all components (95 %, and what the sample cannot exclude); None
    where all were checked, or too few for an interval."""
    by_prompt: float | None
    """The same with every prompt counted by itself: sum over prompts and components."""


@dataclass(frozen=True)
class SurveyRow:
    """One component that was checked exactly; means over prompts."""

    name: str
    kind: str
    weight: float
    """How many components it stands for."""
    exact: float
    estimates: Mapping[str, float]
    """By estimator."""
    saturated: float
    """Share of its attention rows that are saturated on the corpus."""


@dataclass(frozen=True, repr=False)
class Survey:
    """Does saturation come up in a model: rows of attention, and effects that slopes do not see."""

    model: str
    corpus: str
    prompts: int
    """Over which rows were counted."""
    tokens: int
    heads: tuple[HeadSaturation, ...]
    tested: int
    """Prompts on which exact effects were taken."""
    metric: str
    reference: str
    components: int
    """Heads, queries and keys in all."""
    heads_per_key: int
    """Heads that share one key."""
    rows: tuple[SurveyRow, ...]
    shares: tuple[MissedShare, ...]
    output_saturated: float
    """Share of the predictions that the metric reads, on the tested prompts, with p > 0.99."""
    noise_floor: float
    seed: int
    notes: tuple[str, ...] = ()
    cost: str = ""

    @property
    def saturated(self) -> float:
        """Share of all rows of all heads that are saturated."""
        return sum(head.saturated for head in self.heads) / len(self.heads)

    @property
    def at_start(self) -> float:
        """Share of the saturated rows that look at the first token."""
        hits = sum(head.saturated for head in self.heads)
        return sum(head.saturated * head.at_start for head in self.heads) / hits if hits else 0.0

    def share(self, estimator: str = "gradient", kind: str = "all") -> MissedShare:
        """Return how much one estimate does not see.

        Raises:
            ResultError: If there is no such estimator or kind.
        """
        for one in self.shares:
            if (one.estimator, one.kind) == (estimator, kind):
                return one
        known = [f"{one.estimator}/{one.kind}" for one in self.shares]
        raise ResultError(
            f"no share of {estimator!r} for {kind!r}.{did_you_mean(f'{estimator}/{kind}', known)}\n"
            f"There are {', '.join(known)}."
        )

    @property
    def answer(self) -> str:
        """`yes` `in part` `no` `open` `unknown`: by the share of effects the gradient does not see.

        Of a sample by the ends of the interval: `open` if 5 % lies between them.
        """
        if not self.measurable:
            return "unknown"
        whole = self.share()
        low, high = whole.low, whole.high
        if self.complete:
            low = high = whole.share or 0.0
        if low is None or high is None or low < COMES_UP <= high:
            return "open"
        if low >= COMES_UP:
            return "yes"
        of_kind = [one for one in self.shares if one.estimator == "gradient"]
        return "in part" if any((one.share or 0.0) >= COMES_UP for one in of_kind) else "no"

    @property
    def complete(self) -> bool:
        """Whether every component was checked."""
        return len(self.rows) == self.components

    @property
    def measurable(self) -> bool:
        """Whether any checked component has an effect well above rounding.

        The floor is the largest of a few tries; others may be some times as large.
        """
        return any(abs(row.exact) > WELL_ABOVE * self.noise_floor for row in self.rows)

    @property
    def sentence(self) -> str:
        """The answer in words, with its numbers and the likely reason."""
        worst = max(self.heads, key=lambda head: head.saturated)
        return (
            f"Does a gradient miss effects in {self.model} here? {self.answer.capitalize()}: "
            f"{self._missed}{self.reason} "
            f"{_percent(self.saturated)} of attention rows have p > 0.99, {_percent(self.at_start)}"
            f" of these at the first token; most in {worst.name} ({_percent(worst.saturated)})."
        )

    @property
    def _missed(self) -> str:
        """How much is missed, as part of the sentence; nothing where that is not known."""
        if not self.measurable:
            return ""
        whole = self.share()
        span = ""
        if whole.low is not None and whole.high is not None:
            span = f" [{_percent(whole.low)}, {_percent(whole.high)}]"
        kinds = ", ".join(
            f"{PLURAL[one.kind]} {_percent(one.share)}"
            for one in self.shares
            if one.estimator == "gradient" and one.kind != "all"
        )
        return (
            f"components of which it sees less than a tenth hold {_percent(whole.share)}{span} of "
            f"the total |exact effect| of heads, queries and keys ({kinds}). {self._open}"
        )

    @property
    def _open(self) -> str:
        """What would decide, where the sample does not."""
        if self.answer != "open":
            return ""
        return (
            f"{len(self.rows):,} of {self.components:,} components checked cannot tell whether it "
            f"is {_percent(COMES_UP)}: raise sample=; {self.components:,} checks all. "
        )

    @property
    def reason(self) -> str:
        """What computing the attention softmax changes, and how saturated the output softmax is.

        Where there is no answer, why not.
        """
        if not self.measurable:
            prompts = "1 prompt" if self.tested == 1 else f"{self.tested:,} prompts"
            return (
                f"none of {len(self.rows):,} checked heads, queries and keys has an exact effect "
                f"above rounding ({self.noise_floor:.2g}) on {prompts}, reference {self.reference},"
                " so there is nothing to miss. Give more prompts, or pairs."
            )
        missed, left = self.share().share or 0.0, self.share("atp-star").share or 0.0
        said = f"With the softmax of queries and keys computed (AtP*) it is {_percent(left)}"
        if self.answer in ("yes", "in part"):
            cured = left < missed / 2
            said += f": saturated attention is {'most' if cured else 'not most'} of the reason"
        if self.metric in THROUGH_OUTPUT:
            said += (
                f"; {self.metric} reads the output softmax, which has p > 0.99 in "
                f"{_percent(self.output_saturated)} of the predictions it reads"
            )
        return f"{said}."

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain data; `from_dict` reads it back."""
        data = asdict(self) | {"answer": self.answer, "sentence": self.sentence}
        return data | {"saturated": self.saturated, "at_start": self.at_start}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Survey:
        """Read a survey back from plain data.

        Raises:
            ResultError: If the data lack something or are no survey at all.
        """
        try:
            kept = {key: data[key] for key in cls.__dataclass_fields__}
            made = {
                "heads": tuple(HeadSaturation(**one) for one in data["heads"]),
                "rows": tuple(SurveyRow(**one) for one in data["rows"]),
                "shares": tuple(MissedShare(**one) for one in data["shares"]),
                "notes": tuple(data["notes"]),
            }
            return cls(**{**kept, **made})
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"these data are not a survey: {type(error).__name__}: {error}.\n"
                "Survey again: hw.survey(model, prompts)."
            ) from None

    def save(self, folder: str | Path) -> Path:
        """Write `survey.json` into a folder, and return its path.

        Raises:
            RunFolderError: If the folder cannot be written.
        """
        path = Path(folder) / FILE
        make_writable(path.parent)
        write_text(path, json.dumps(self.to_dict(), indent=1))
        return path

    @staticmethod
    def load(folder: str | Path) -> Survey:
        """Read a survey back.

        Raises:
            ResultError: If the folder holds none.
        """
        path = Path(folder) / FILE
        try:
            return Survey.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ResultError(
                f"{path} cannot be read: {error}.\nMake it: headwater survey --out {folder}"
            ) from None

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a head as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame((asdict(head) for head in self.heads), "survey.heads")

    def most_saturated(self) -> list[HeadSaturation]:
        """Return the heads, the most saturated first."""
        return sorted(self.heads, key=lambda head: -head.saturated)

    def missed_rows(self, estimator: str = "gradient") -> list[SurveyRow]:
        """Return the checked components that an estimate does not see, largest effect first."""
        missed = [
            row for row in self.rows if abs(row.estimates[estimator]) < BLIND * abs(row.exact)
        ]
        return sorted(missed, key=lambda row: -abs(row.exact))

    def __repr__(self) -> str:
        missed, alone, by_prompt = self.missed_rows(), "", self.share().by_prompt
        if by_prompt is not None:
            alone = f"; every prompt counted by itself, {_percent(by_prompt)} is not seen"
        lines = [
            f"Survey of {self.model} on {self.corpus}: {self.prompts:,} prompts, "
            f"{self.tokens:,} tokens",
            self.sentence,
            "",
            f"{'most saturated':<16}{'rows':>10}{'p > 0.99':>10}{'at start':>10}",
        ]
        lines += [
            f"{head.name:<16}{head.rows:>10,}{_percent(head.saturated):>10}"
            f"{_percent(head.at_start):>10}"
            for head in self.most_saturated()[:_SHOWN]
        ]
        lines += [
            "",
            f"exact effects of {len(self.rows):,} of {self.components:,} components on "
            f"{self.tested:,} prompts: {self.metric}, reference {self.reference}{alone}",
            f"{'not seen':<16}{'exact':>10}{'gradient':>10}{'atp-star':>10}",
        ]
        lines += [
            f"{row.name:<16}{row.exact:>+10.3g}{row.estimates['gradient']:>+10.2g}"
            f"{row.estimates['atp-star']:>+10.2g}"
            for row in missed[:_SHOWN]
        ]
        if not missed:
            lines.append("none of the checked components")
        elif len(missed) > _SHOWN:
            lines.append(f"... {len(missed) - _SHOWN:,} more in survey.missed_rows()")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"cost: {self.cost}"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def shared_keys(self) -> dict[str, str]:
        """The name of the key that each head reads, of those that were checked."""
        keys = [row.name for row in self.rows if row.kind == "key"]
        grouped = any(".kv" in name for name in keys)
        short, by = ("kv", self.heads_per_key) if grouped else ("h", 1)
        return {h.name: f"a{h.layer}.{short}{h.head // by}<k>" for h in self.heads}


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{figure(100 * share).removesuffix('.00')} %"
