"""What can be added to a result later: its diagnosis, verification and response curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.attribution import folders
from headwater.attribution.curve import Curve
from headwater.attribution.flags import flag_words
from headwater.audits.diagnosis import Diagnosis, noted
from headwater.audits.verification import Verification
from headwater.errors import ResultError, RunFolderError
from headwater.files import write_text

if TYPE_CHECKING:
    from headwater.attribution.result import Attribution


@dataclass
class Extras:
    """What was added to a result."""

    diagnosis: Diagnosis | None = None
    verification: Verification | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    """By component, in the order in which they were made."""

    def write(self, folder: Path) -> None:
        """Write `diagnosis.json`, `verify.json` and `curves.json`, whichever there is."""
        if self.diagnosis is not None:
            _write(folder / folders.DIAGNOSIS, self.diagnosis.to_dict())
        if self.verification is not None:
            _write(folder / folders.VERIFIED, self.verification.to_dict())
        if self.curves:
            curves = [curve.to_dict() for curve in self.curves.values()]
            _write(folder / folders.CURVES, {"curves": curves})

    @classmethod
    def read(cls, folder: Path) -> Extras:
        """Read what a run folder holds of them.

        Raises:
            RunFolderError: If a file is there and cannot be read.
        """
        curves = _read(folder / folders.CURVES, _curves) or []
        return cls(
            diagnosis=_read(folder / folders.DIAGNOSIS, Diagnosis.from_dict),
            verification=_read(folder / folders.VERIFIED, Verification.from_dict),
            curves={curve.name: curve for curve in curves},
        )


def say_flags(result: Attribution) -> None:
    """Bring the sentence of a result's audit up to date with its flags."""
    if result.checked is not None:
        result.checked = noted(result.checked, flag_words(result))


def _curves(data: Mapping[str, Any]) -> list[Curve]:
    found: Iterable[Mapping[str, Any]] = data["curves"]
    return [Curve.from_dict(one) for one in found]


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, allow_nan=False))


def _read(path: Path, made: Callable[[Any], Any]) -> Any:
    if not path.is_file():
        return None
    try:
        return made(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, ResultError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {str(error).splitlines()[0]}\n"
            "The scores beside it are whole: delete this file and make it again."
        ) from error
