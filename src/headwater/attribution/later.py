"""What can be asked of a result after it was made: why it may be wrong, and response curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from headwater.attribution.curve import Curve
from headwater.attribution.extras import Extras, say_flags
from headwater.audits.diagnosis import Diagnosis

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


class Later:
    """The part of `Attribution` that computes what is added to it later."""

    extras: Extras

    @property
    def _result(self) -> Attribution:
        return cast("Attribution", self)

    @property
    def diagnosis(self) -> Diagnosis | None:
        """The last diagnosis, if there was one."""
        return self.extras.diagnosis

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
        """
        from headwater.attribution.curves import curves_of
        from headwater.audits.diagnose import strongest

        names = [self._result.names[column] for column in strongest(self._result, count)]
        made = curves_of(self._result, names, **options)
        self.extras.curves |= {curve.name: curve for curve in made}
        return made
