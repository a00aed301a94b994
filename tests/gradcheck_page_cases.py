"""Pages of gradient checks to test: plain dicts with numbers that are known in closed form."""

from __future__ import annotations

import math
from typing import Any

from headwater.page.gradcheck import READINGS

STEPS = [10 ** (-place / 2) for place in range(8)]


def direction(name: str = "gradient", **changes: Any) -> dict[str, Any]:
    """One direction of slope 2, whose error is the step's square until rounding takes over."""
    off = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-5, 1e-4]
    return {
        "name": name,
        "verdict": "agree",
        "standing": "agree",
        "readings": [f"{name} {place}" for place in range(len(READINGS))],
        "gradient": 2.0,
        "slope": 2.0,
        "bar": 1e-6,
        "plateau": (STEPS[6], STEPS[4]),
        "linear": STEPS[2],
        "steps": STEPS,
        "backward": [2 - step for step in STEPS],
        "forward": [2 + step for step in STEPS],
        "off_gradient": off,
        "off_slope": [-value for value in off],
        "error": [2 * value for value in off[:-1]] + [math.inf],
    } | changes


def lost(name: str = "lost") -> dict[str, Any]:
    """A direction of which every step was rounded away."""
    nothing = {key: [] for key in ("steps", "backward", "forward", "off_gradient", "off_slope",
                                   "error")}  # fmt: skip
    return direction(
        name,
        verdict="unresolved",
        standing="neither",
        slope=math.nan,
        bar=math.inf,
        plateau=(math.nan, math.nan),
        linear=None,
        **nothing,
    )


def table(title: str, names: list[str]) -> dict[str, Any]:
    """A table with a row a name."""
    return {
        "title": title,
        "headings": ("name", "number", "word"),
        "rows": [(name, "-1.5", "agree") for name in names],
    }


def site(name: str = "layers.1.mlp.post", *directions: dict[str, Any]) -> dict[str, Any]:
    """The check at one value."""
    shown = list(directions) or [direction(), direction("n3")]
    return {
        "name": name,
        "verdict": "agree",
        "standing": "agree",
        "size": 0.25,
        "first": 0,
        "directions": shown,
        "table": table("directions", [one["name"] for one in shown]),
        "steps": table("steps", [f"{step:.1e} s" for step in shown[0]["steps"]]),
        "effects": None,
        "signs": None,
        "entries": None,
        "reach": {},
        "share": None,
        "precision": {},
    }


def page(*sites: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A page of one site, or of those given."""
    return {
        "title": "Gradient check of prob:Mary",
        "heading": "Gradient of prob:Mary at layers.1.mlp.post",
        "verdict": "agree",
        "standing": "agree",
        "sentences": ["AGREE: the gradient is the slope.", "Another sentence."],
        "notes": [],
        "facts": {"model": "tiny"},
        "tokens": ["Mary", " and", " John"],
        "marked": [2],
        "sites": list(sites) or [site()],
        "summary": None,
        "provenance": {"seed": "0"},
    } | changes
