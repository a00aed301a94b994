"""The result of a check: how far the output follows a lens, row by row."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headwater.frames import frame
from headwater.lenses.causal import words
from headwater.lenses.causal.claims import Claim
from headwater.lenses.causal.exchanges import Exchange
from headwater.lenses.causal.figures import ClaimRow, ExchangeRow

if TYPE_CHECKING:
    import pandas

    from headwater.page.tables import TableData


@dataclass(frozen=True, eq=False, repr=False)
class LensCheck:
    """Predicted and actual changes of the output, a row of the lens each."""

    how: Literal["claim", "resample"]
    nats: float
    figures: tuple[ClaimRow | ExchangeRow, ...]
    """The rows that were tested, from the input on."""
    findings: tuple[Claim | Exchange, ...]
    """What was found at each place."""
    final: str | None
    """The row that is the model's own prediction; None where it is read in another way."""
    over: str
    """What intervals are over: `prompts`, or the `positions` of one prompt."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, row: str) -> ClaimRow | ExchangeRow:
        """Return the figures of a row, by name.

        Raises:
            UnknownOptionError: If it was not tested.
        """
        return words.found(self, row)

    @property
    def places(self) -> int:
        """How many positions were looked at."""
        return len({(one.cell.prompt, one.cell.position) for one in self.findings})

    @property
    def identity(self) -> float | None:
        """The largest difference of predicted and actual at the last row, where they are one."""
        return words.identity(self)

    @property
    def sentences(self) -> list[str]:
        """What each row's figures say, in words."""
        return [words.sentence(self, one) for one in self.figures]

    def table(self) -> TableData:
        """Return the figures as text: title, caption, headings and rows."""
        return words.table(self)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping a row of the lens, with every figure."""
        for one in self.figures:
            plain = asdict(one)
            ends = plain.pop("slope")
            slopes = plain.pop("slopes", ())
            yield {
                **plain,
                "slope": ends["value"],
                "slope_low": ends["low"],
                "slope_high": ends["high"],
                **{f"slope({change:+g})": slope for change, slope in slopes},
            }

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a row of the lens, as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(self.rows(), "check.rows()")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single findings as plain data."""
        return {
            "how": self.how,
            "nats": self.nats,
            "places": self.places,
            "over": self.over,
            "final": self.final,
            "identity": self.identity,
            "rows": list(self.rows()),
            "sentences": self.sentences,
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        return "\n".join(words.told(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
