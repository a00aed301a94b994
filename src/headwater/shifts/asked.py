"""What is asked of `hw.shift`, refused where it has no meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.errors import UnknownOptionError
from headwater.estimators import Estimator
from headwater.references import Reference
from headwater.shifts.judging import ABLATE, Judged
from headwater.shifts.judgments import read_judgments
from headwater.shifts.pooling import Pooling, refuse_pooling
from headwater.sites import Site


@dataclass(frozen=True)
class Asked:
    """The options of `shift`."""

    site: Site
    pooling: Pooling
    features: int
    threshold: float
    estimator: Estimator
    reference: Reference
    sample: int
    audit: int
    draws: int
    held_out: float
    judge_share: float
    l2: float
    batch_size: int
    seed: int
    given: tuple[Judged, ...] | None

    def __post_init__(self) -> None:
        refuse_pooling(self.pooling)
        for name, least in {"features": 1, "sample": 2, "audit": 0, "draws": 0}.items():
            if getattr(self, name) < least:
                raise UnknownOptionError(
                    f"{name}={getattr(self, name)}: it must be at least {least}."
                )
        for name in ("held_out", "judge_share"):
            if not 0 < getattr(self, name) < 1:
                raise UnknownOptionError(
                    f"{name}={getattr(self, name)} leaves one part empty.\nType {name}=0.5."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return them as plain data."""
        names = (
            "pooling", "features", "threshold", "sample", "audit", "draws", "held_out",
            "judge_share", "l2", "batch_size", "seed",
        )  # fmt: skip
        return {
            "site": str(self.site),
            **{name: getattr(self, name) for name in names},
            "estimator": self.estimator.to_dict(),
            "reference": self.reference.to_dict(),
            "given": None if self.given is None else [one.to_dict() for one in self.given],
        }


def given(ablate: Iterable[str] | str | Path) -> tuple[Judged, ...]:
    """Return the judgments in a file, or names as judgments.

    Args:
        ablate: The file, or names of features, all of which are to be ablated.

    Raises:
        PairFileError: If the file cannot be read.
    """
    if isinstance(ablate, str | Path):
        return tuple(read_judgments(ablate))
    return tuple(Judged(name, judgment=ABLATE) for name in dict.fromkeys(ablate))
