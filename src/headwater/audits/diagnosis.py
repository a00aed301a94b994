"""What makes first-order scores of a component unsafe: numbers for each, and flags in words.

The thresholds are the constants below; `hw.Attribution.diagnose` computes the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from headwater.audits.report import Audit
from headwater.audits.saturation import SATURATED
from headwater.audits.words import effect, figure, name_list
from headwater.errors import ResultError, did_you_mean

MATTERS = 0.01
"""Share of the whole effect below which nothing is flagged: such a component is no part of it."""
MISSED = 0.1
"""AtP misses something in saturated rows if that is more than this share of the effect with the
softmax computed: a tenth is less than what AtP is off by anyway."""
BENDS = 0.5
"""AtP is not what attention does if the effect with the softmax computed differs by more than this
share of the larger of the two: sizes are off by two then, or the sign is."""
CANCELS = 3.0
"""Cancellation index from which effects cancel: with one layer held constant the gradient is on
average three times what it is. Where layers do not undo each other it is about 1."""
OUTPUT_PAIRS = 0.5
"""Share of pairs with a saturated output softmax from which every component is flagged."""

ATTENTION, BENT, OUTPUT = "saturated attention", "bent attention", "saturated output softmax"
CANCELLATION, ROUTING, NOISE = "cancellation", "routing jump", "below noise floor"
FLAGS = (ATTENTION, BENT, OUTPUT, CANCELLATION, ROUTING, NOISE)
"""The flags' names, in the order in which they are said."""


@dataclass(frozen=True)
class Finding:
    """What is known of one component. None where it does not apply or was not looked at."""

    name: str
    score: float
    """The score that was diagnosed, mean over pairs."""
    gradient: float
    """`df/dm` at the clean end, mean over pairs: AtP."""
    saturated_rows: float | None = None
    """Share of its attention rows with p > 0.99, of those that have a choice."""
    missed: float | None = None
    """What AtP misses in these rows: effect with the softmax computed minus effect with its slope,
    mean over pairs. For a head, of its query and its key together."""
    inside: bool = False
    """Whether these numbers are those of a head's query and key, not of its own output."""
    softened: float | None = None
    """The size `missed` is compared with: mean |effect| through all rows, softmax computed."""
    computed: float | None = None
    """Of a query or key, its effect through all rows with the softmax computed, mean over pairs:
    AtP*. With the softmax's slope it is `gradient`. A head's own output passes none."""
    cancellation: float | None = None
    """Mean over layers of |gradient with that layer held constant|, by |gradient|."""
    uncancelled: float | None = None
    """The numerator of `cancellation`, in units of the metric."""
    jump: float | None = None
    """The largest jump of the metric on the gate's way, on the pairs looked at; 0: none found."""
    jump_at: float | None = None
    """Where the gate stands there; None where many small steps make the jump."""
    flags: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data; infinity becomes text, which JSON can hold."""
        data = asdict(self) | {"flags": list(self.flags)}
        return {key: str(one) if one == math.inf else one for key, one in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Read the numbers back."""
        read: dict[str, Any] = {key: math.inf if one == "inf" else one for key, one in data.items()}
        return cls(**{**read, "flags": tuple(read["flags"])})


def flags_of(
    found: Finding, whole: float, floor: float | None, jump_tolerance: float
) -> tuple[str, ...]:
    """Return a component's flags in words, by the thresholds of this module.

    Args:
        found: Its numbers.
        whole: Size of the whole effect, in units of the metric.
        floor: Noise floor; None if it is not known.
        jump_tolerance: Jumps up to this size were not looked for.
    """
    least = max(MATTERS * whole, floor or 0.0)
    flags = _attention_flags(found, least)
    index, kept = found.cancellation, found.uncancelled
    if index is not None and kept is not None and index >= CANCELS and kept > least:
        shown = "infinite" if index == math.inf else figure(index)
        flags.append(
            f"{CANCELLATION} (index {shown}: {effect(kept).lstrip('+')} with a layer held)"
        )
    if found.jump is not None and found.jump > max(jump_tolerance, floor or 0.0):
        where = f"near gate {figure(found.jump_at)}" if found.jump_at is not None else "in steps"
        flags.append(f"{ROUTING} ({figure(found.jump)} {where})")
    if floor is not None and 0 < abs(found.score) <= floor:
        flags.append(f"{NOISE} ({floor:.2g})")
    return tuple(flags)


def _attention_flags(found: Finding, least: float) -> list[str]:
    """Return that attention saturates, or else that it bends without; empty if it does neither."""
    if found.missed is not None and abs(found.missed) > least:
        size = max(abs(found.softened or 0.0), abs(found.missed))
        if abs(found.missed) > MISSED * size:
            whose = "AtP of its query and key" if found.inside else "AtP"
            rows = f"{100 * (found.saturated_rows or 0):.0f} % of rows"
            return [f"{ATTENTION} ({rows}, {whose} misses {effect(found.missed)} there)"]
    if found.computed is None:
        return []
    larger = max(abs(found.computed), abs(found.gradient))
    if abs(found.computed - found.gradient) <= max(least, BENDS * larger):
        return []
    said = f"AtP gives {effect(found.gradient)}, with the softmax computed {effect(found.computed)}"
    return [f"{BENT} ({said})"]


def output_flag(share: float) -> str:
    """Return the flag of a saturated output, which is every component's; empty below half.

    Args:
        share: Of the pairs, those whose answer has p > 0.99.
    """
    said = f"{OUTPUT} (p > {SATURATED} in {100 * share:.0f} % of pairs)"
    return said if share >= OUTPUT_PAIRS else ""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Why first-order scores may be wrong, component by component."""

    findings: tuple[Finding, ...]
    """One a component, in the order of the scores."""
    whole: float
    """Size of the whole effect, by which small ones are told: how far corruption moves the
    metric, else the size of the metric itself."""
    noise_floor: float | None
    """How far rounding alone moves the metric; None for a gated function, which cannot tell."""
    jumps_in: tuple[str, ...]
    """Components in which jumps were looked for; a note says how they were chosen."""
    jump_pairs: int
    """On how many pairs."""
    jump_tolerance: float
    """Jumps up to this size were not looked for."""
    notes: tuple[str, ...] = ()
    """What could not be looked at, and why."""
    cost: str = ""

    def __getitem__(self, name: str) -> Finding:
        """Return one component's numbers.

        Raises:
            ResultError: If no component of that name was diagnosed.
        """
        for found in self.findings:
            if found.name == name:
                return found
        raise ResultError(
            f"no component {name!r} among the {len(self.findings):,} diagnosed."
            f"{did_you_mean(name, [found.name for found in self.findings])}\n"
            "All names: `scores.names`."
        )

    def flagged(self, flag: str) -> tuple[str, ...]:
        """Return the names of the components that have a flag, one of `FLAGS`.

        Raises:
            ResultError: If there is no such flag.
        """
        if flag not in FLAGS:
            raise ResultError(
                f"no flag {flag!r}.{did_you_mean(flag, FLAGS)}\n"
                f"The flags: {', '.join(map(repr, FLAGS))}."
            )
        return tuple(f.name for f in self.findings if any(one.startswith(flag) for one in f.flags))

    @property
    def sentence(self) -> str:
        """The flags in one sentence, with what was not looked at."""
        named = [(flag, self.flagged(flag)) for flag in FLAGS]
        said = [f"{flag} {name_list(names)}" for flag, names in named if names]
        count, of = len(self.jumps_in), len(self.findings)
        looked = f"jumps looked for in {count:,} of {of:,}"
        if 0 < count < of:
            said = [*said, looked] if said else [f"none ({looked})"]
        return "; ".join(said) if said else "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data; `from_dict` reads it back."""
        data = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return data | {
            "findings": [found.to_dict() for found in self.findings],
            "jumps_in": list(self.jumps_in),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Diagnosis:
        """Read a diagnosis back from plain data.

        Raises:
            ResultError: If the data lack something or are no diagnosis at all.
        """
        try:
            return cls(
                **{
                    **data,
                    "findings": tuple(Finding.from_dict(one) for one in data["findings"]),
                    "jumps_in": tuple(data["jumps_in"]),
                    "notes": tuple(data["notes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"these data are not a diagnosis: {type(error).__name__}: {error}.\n"
                "Diagnose again: scores.diagnose()."
            ) from None

    def __repr__(self) -> str:
        marked = sorted((f for f in self.findings if f.flags), key=lambda f: -abs(f.score))
        floor = "unknown" if self.noise_floor is None else f"{self.noise_floor:.2g}"
        lines = [
            f"Diagnosis of {len(self.findings):,} components: {len(marked):,} flagged",
            f"flags: {self.sentence}",
            f"whole effect {self.whole:.4g}, noise floor {floor}",
        ]
        lines += [f"{f.name:<16}{f.score:>+10.4g}  {', '.join(f.flags)}" for f in marked[:10]]
        if len(marked) > 10:
            lines.append(f"... {len(marked) - 10:,} more in diagnosis.findings")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"cost: {self.cost}"] if self.cost else lines)


def noted(audit: Audit, flags: str) -> Audit:
    """Return an audit whose sentence ends with these flags, in place of those said before."""
    return replace(audit, flags=flags)
