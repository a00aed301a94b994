"""What can be asked of a result later: what is known exactly, and why it may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headwater.attribution import folders
from headwater.attribution.curve import Curve
from headwater.attribution.extras import Extras, say_flags
from headwater.audits.diagnosis import Diagnosis
from headwater.audits.error_bars import CONFORMAL, ErrorBars
from headwater.audits.known import known_effects
from headwater.audits.ledger import Ledger
from headwater.audits.report import Audit
from headwater.audits.verification import Verification
from headwater.errors import ResultError

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


class Later:
    """The part of `Attribution` that computes what is added to it later."""

    extras: Extras
    ledger: Ledger

    def __init__(self) -> None:
        self._bars: tuple[Audit, int, ErrorBars] | None = None

    @property
    def _result(self) -> Attribution:
        return cast("Attribution", self)

    @property
    def diagnosis(self) -> Diagnosis | None:
        """The last diagnosis, if there was one."""
        return self.extras.diagnosis

    @property
    def verification(self) -> Verification | None:
        """What the last `hw.verify` found, if there was one."""
        return self.extras.verification

    def diagnose(self, **options: Any) -> Diagnosis:
        """Look for what makes first-order scores wrong; see `headwater.audits.diagnose.diagnose`.

        Its flags then stand in the rows, the page and the audit's sentence.
        """
        from headwater.audits.diagnose import diagnose  # a peer on this floor that reads results

        self.extras.diagnosis = found = diagnose(self._result, **options)
        say_flags(self._result)
        return found

    def curve(self, name: str, points: int = 33, steps: int = 8, **options: Any) -> Curve:
        """Return what the metric does while one component's gate goes from closed to open.

        Args:
            name: A scored component.
            points: Gate values at which the metric is taken.
            steps: Quadrature points at which slopes are taken.
            options: `model`, `batch_size`, `progress` as in `hw.audit`.

        Raises:
            UnknownComponentError: If no component of that name was scored.
            ModelGoneError: If the model is gone and none was given.
        """
        from headwater.attribution.curves import curves_of

        return curves_of(self._result, [name], points=points, steps=steps, **options)[0]

    def add_curves(self, count: int = 8, **options: Any) -> list[Curve]:
        """Make the response curves of the strongest components; they go into folder and page.

        Strongest by the score, or by the exact effect where an audit found a stronger one.

        Raises:
            ResultError: If the count is negative.
            ModelGoneError: If the model is gone and none was given.
        """
        from headwater.attribution.curves import curves_of
        from headwater.audits.diagnose import strongest

        if count < 0:
            raise ResultError(f"add_curves({count}): there is no such number.\nType add_curves(8).")
        if count == 0:
            return []
        names = [self._result.names[column] for column in strongest(self._result, count)]
        made = curves_of(self._result, names, **options)
        self.extras.curves |= {curve.name: curve for curve in made}
        return made

    def known(self) -> dict[int, float]:
        """Return the exact effect of every component that was checked, by column."""
        result = self._result
        found = known_effects(result, result.checked, result.parts.magnitudes)
        return {column: one.signed for column, one in found.items()}

    def error_bars(self) -> ErrorBars | None:
        """Return the error bars that tables show; None without an audit, or of exact effects."""
        audit, runs = self._result.checked, len(self.ledger.lost)
        if audit is None or self._result.is_exact:
            return None
        if self._bars is None or self._bars[0] is not audit or self._bars[1] != runs:
            self._bars = audit, runs, audit.bars()
        return self._bars[2]

    def said_of_truth(self) -> list[str]:
        """Return what audit, error bars and verification found, in sentences; none without them."""
        audit, said = self._result.checked, []
        if audit is not None:
            bars = self.error_bars()
            said.append(audit.sentence)
            if bars is not None and any(bar.how == CONFORMAL for bar in bars.rows):
                said.append(
                    "components that were not checked have error bars (in brackets): at least "
                    f"{100 * bars.confidence:g} % of a group's hold their exact effects, "
                    f"{bars.how_often}. All of them: scores.error_bars()."
                )
                said += [f"doubtful: {doubt}" for doubt in bars.doubts]
            if bars is not None and audit.asked is not None:
                said.append(audit.asked.met_by(bars))
        if self.verification is not None:
            found = "verified" if self.verification.holds else "not verified"
            said.append(f"{found}: {self.verification.sentence}")
        return said

    @contextmanager
    def kept_in(self, folder: str | Path | None) -> Iterator[None]:
        """Take over the exact runs of this run's folder, and write there what is found meanwhile.

        Args:
            folder: Where these scores were saved; None keeps nothing.

        Raises:
            RunFolderError: If the folder holds another run, or a file that cannot be read.
        """
        if folder is None:
            yield
            return
        folder, result = Path(folder), self._result
        folders.refuse_other_scores(folder, result.manifest(), result.parts)
        self.ledger.merge(folders.read_ledger(folder, result.manifest()))
        self.ledger.keep = lambda: folders.write_ledger(folder, result.manifest(), self.ledger)
        try:
            yield
        finally:
            self.ledger.keep = None
        if result.checked is not None:
            folders.write_audit(folder, result.checked)
        self.extras.write(folder)
