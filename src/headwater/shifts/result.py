"""The result of `hw.shift`: what was judged, and accuracy before and after."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import ResultError
from headwater.folders import Folder, without_versions
from headwater.frames import frame
from headwater.gates import Cost
from headwater.shifts.judging import Judged
from headwater.shifts.outcomes import Kind, Outcome, picked
from headwater.shifts.probe import Probe
from headwater.shifts.words import printed, sentences

if TYPE_CHECKING:
    import pandas

FOLDER = Folder(
    report="shift.json",
    tensors="shift.safetensors",
    what="shift",
    made_by="hw.shift(model, biased, balanced, dictionaries, out='FOLDER')",
    identity=lambda data: without_versions(data["provenance"]),
)


@dataclass(frozen=True, eq=False, repr=False)
class Shift:
    """A classifier before and after features it should not go by were ablated.

    Attributes:
        probe: The probe as it was fitted to the biased examples.
        retrained: The probe fitted again with the features ablated; use it with them ablated.
        judged: The features that were judged, those with the largest effects first.
        ablated: The features that were ablated.
        outcomes: Every treatment with its accuracies.
        gained: By how much more often the retrained probe is right on the balanced examples than
            the one `"before"`, and than those retrained with as many `"random"` features or the
            `"strongest"` ablated: mean, and 95 % ends over examples. Empty if none were ablated.
        audit: How far the effects are from ablating features one at a time, in words.
        cost: Runs over one text each, and seconds.
        provenance: Model, examples, dictionaries, options and versions.
    """

    probe: Probe
    retrained: Probe
    judged: tuple[Judged, ...]
    ablated: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    gained: Mapping[str, tuple[float, float, float]]
    audit: str
    cost: Cost
    provenance: dict[str, Any]

    def outcome(self, kind: Kind, *, retrained: bool = False) -> Outcome:
        """Return one treatment; of random features the first draw.

        Args:
            kind: `"before"`, `"ablated"`, `"strongest"`, `"random"` or `"oracle"`.
            retrained: Whether the probe was fitted again.

        Raises:
            ResultError: If there is no such outcome: nothing was ablated, or no baselines asked.
        """
        found = picked(self.outcomes, kind, retrained=retrained)
        if not found:
            had = ", ".join(dict.fromkeys(one.kind for one in self.outcomes))
            again = ", retrained=True" if retrained else ""
            raise ResultError(
                f"this result has no outcome {kind!r}{again}; it has {had}.\n"
                "All of them: shift.outcomes."
            )
        return found[0]

    @property
    def sentences(self) -> list[str]:
        """What came of it, in words."""
        return sentences(self)

    def __repr__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a treatment as a pandas table.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        return frame(
            (
                {
                    "treatment": one.kind,
                    "retrained": one.retrained,
                    "draw": one.draw,
                    "ablated": len(one.ablated),
                    "biased": one.biased.all.value,
                    "balanced": one.balanced.all.value,
                    "worst_group": one.balanced.worst[1].value,
                    "follows_spurious": None
                    if one.balanced.follows is None
                    else one.balanced.follows.value,
                }
                for one in self.outcomes
            ),
            "shift.outcomes",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the probes' weights as plain data."""
        return {
            "probe": self.probe.to_dict(),
            "retrained": self.retrained.to_dict(),
            "judged": [one.to_dict() for one in self.judged],
            "ablated": list(self.ablated),
            "outcomes": [one.to_dict() for one in self.outcomes],
            "gained": {name: list(one) for name, one in self.gained.items()},
            "sentences": self.sentences,
            "audit": self.audit,
            "cost": {"forwards": self.cost.forwards, "backwards": self.cost.backwards,
                     "seconds": self.cost.seconds, "pairs": self.cost.pairs},
            "provenance": self.provenance,
        }  # fmt: skip

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `shift.json` and `shift.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another result instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds something else.
        """
        tensors = {
            f"{which}.{name}": one
            for which, probe in (("probe", self.probe), ("retrained", self.retrained))
            for name, one in probe.tensors().items()
        }
        return FOLDER.write(Path(path), self.to_dict(), tensors, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Shift:
        """Read what `save` wrote; the model is not needed.

        Raises:
            RunFolderError: If the folder holds no result that this release can read.
        """
        there = Path(path)
        data, tensors = FOLDER.read(there)

        def probe(which: str) -> Probe:
            own = {
                name.removeprefix(f"{which}."): one
                for name, one in tensors.items()
                if name.startswith(f"{which}.")
            }
            return Probe.from_dict(data[which], own)

        with FOLDER.reading(there):
            return cls(
                probe=probe("probe"),
                retrained=probe("retrained"),
                judged=tuple(_judged(one) for one in data["judged"]),
                ablated=tuple(data["ablated"]),
                outcomes=tuple(Outcome.from_dict(one) for one in data["outcomes"]),
                gained={
                    name: (mean, low, high) for name, (mean, low, high) in data["gained"].items()
                },
                audit=data["audit"],
                cost=Cost(**data["cost"]),
                provenance=data["provenance"],
            )


def _judged(data: Mapping[str, Any]) -> Judged:
    told = {key: one for key, one in data.items() if key not in ("feature", "contexts")}
    return Judged(data["feature"], contexts=tuple(data.get("contexts", ())), **told)
