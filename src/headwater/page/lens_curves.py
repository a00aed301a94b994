"""A lens's statistics over the rows: both divergences in one picture, each alone, and rarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headwater.page.lens_schema import BinData, CurveData, LensData, RarityData, StatisticData
from headwater.page.over_rows import Series, picture
from headwater.page.payload import finite
from headwater.page.static import escape, number

WIDE = (720, 320)
SMALL = (360, 210)
SHADES = 5
"""So many colors from the commonest tokens to the rarest."""


def sections(data: LensData) -> str:
    """Return the sections of curves and of rarity; nothing where there is neither."""
    return _curves(data) + (_rarity(data) if data["rarity"] else "")


def _curves(data: LensData) -> str:
    known = {one["key"]: one for one in data["statistics"]}
    curves = [curve for curve in finite(data["curves"]) if curve["key"] in known]
    if not curves:
        return ""
    divergences = [curve for curve in curves if known[curve["key"]]["group"] == "KL"]
    both = _together(data, divergences, known) if len(divergences) > 1 else ""
    alone = "".join(_alone(data, curve, known[curve["key"]]) for curve in curves)
    return (
        '<section class="over" aria-labelledby="curves-title"><h2 id="curves-title">'
        f'Statistics over the layers</h2><p class="caption">{_counted(curves)}'
        " Bands: the mean\u2019s 95 % interval (darker), and the middle half of the positions "
        f"(lighter); dashed: the median.{_writes(data)}</p>{both}"
        f'<div class="small">{alone}</div></section>'
    )


def _writes(data: LensData) -> str:
    wrote = any(row["kind"] == "write" for row in data["rows"])
    return " Hollow: what one sublayer writes, read alone." if wrote else ""


def _counted(curves: Sequence[CurveData]) -> str:
    counts = {point["count"] for curve in curves for point in curve["rows"]}
    most = max(counts, default=0)
    least = "" if len(counts) < 2 else f" (at least {min(counts):,})"
    return f"Means over {most:,}{least} positions."


def _together(
    data: LensData, curves: Sequence[CurveData], known: Mapping[str, StatisticData]
) -> str:
    """Return all divergences in one picture: a layer close to both ends has two low lines."""
    series = [
        Series(
            known[curve["key"]]["name"],
            f"series-{place % 8}",
            _along(data, curve, "mean"),
            interval=(_along(data, curve, "low"), _along(data, curve, "high")),
        )
        for place, curve in enumerate(curves)
    ]
    first = known[curves[0]["key"]]
    drawn = picture(
        data["rows"],
        series,
        "Mean divergences over the layers: " + ", ".join(one.name for one in series),
        unit=first["unit"],
        scale=first["scale"],
        size=WIDE,
    )
    return (
        f'<figure class="together"><h3>Is any layer close to both ends?</h3>'
        f"{_scrolling(drawn)}"
        f"<figcaption>{''.join(_item(one.kind, one.name) for one in series)}<br>A layer that is "
        "close both to the input and to the final layer is low in all lines.</figcaption></figure>"
    )


def _alone(data: LensData, curve: CurveData, statistic: StatisticData) -> str:
    one = Series(
        "mean",
        "series-0",
        _along(data, curve, "mean"),
        interval=(_along(data, curve, "low"), _along(data, curve, "high")),
        quartiles=(_along(data, curve, "q25"), _along(data, curve, "q75")),
        middle=_along(data, curve, "median"),
    )
    drawn = picture(
        data["rows"],
        [one],
        _told(statistic["name"], data["rows"], one.values),
        unit=statistic["unit"],
        scale=statistic["scale"],
        size=SMALL,
    )
    return f"<figure><h3>{escape(statistic['name'])}</h3>{drawn}</figure>"


def _told(name: str, rows: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> str:
    ends = [place for place, value in enumerate(values) if value is not None]
    if not ends:
        return f"{name}: no numbers"
    first, last = ends[0], ends[-1]
    return (
        f"{name}, mean: {number(values[first])} at {rows[first]['name']}, "
        f"{number(values[last])} at {rows[last]['name']}"
    )


def _along(data: LensData, curve: CurveData, what: str) -> list[float | None]:
    """Return one number of a curve by the lens's rows, None where the curve has no such row."""
    points: dict[str, Mapping[str, Any]] = {point["row"]: point for point in curve["rows"]}
    return [points.get(row["name"], {}).get(what) for row in data["rows"]]


def _rarity(data: LensData) -> str:
    rarity: RarityData = finite(data["rarity"])
    kinds = {row["name"]: row["kind"] for row in data["rows"]}
    rows = [{"name": name, "kind": kinds.get(name, "residual")} for name in rarity["rows"]]
    said = rarity.get("caption") or (
        "Tokens by how frequent they are, the commonest first. How soon do the layers lose the "
        "token that was read? Common tokens rank high anywhere, so each is compared with itself "
        "where it was not read (control)."
    )
    small = "".join(_bin(rows, one, _hull(rarity)) for one in rarity["bins"])
    return (
        '<section class="over" aria-labelledby="rarity-title"><h2 id="rarity-title">Are rare '
        f'tokens kept longer?</h2><p class="caption">{escape(said)}</p>'
        f'{_excess(rows, rarity)}<h3>Median rank of the token that was read</h3>'
        f'<p class="caption">{_item("series-0", "where it was read")}'
        f'{_item("series-gray", "control: where it was not")}</p>'
        f'<div class="small">{small}</div></section>'
    )  # fmt: skip


def _hull(rarity: RarityData) -> list[float]:
    """Return the lowest and highest median rank, so that bins share an axis."""
    ranks = [
        rank
        for one in rarity["bins"]
        for rank in (*one["own"], *one["control"])
        if rank is not None
    ]
    return [min(ranks, default=1.0), max(ranks, default=10.0)]


def _bin(rows: Sequence[Mapping[str, str]], one: BinData, hull: Sequence[float]) -> str:
    series = [
        Series("control", "series-gray", one["control"]),
        Series("own", "series-0", one["own"]),
    ]
    label = f"{one['label']}: median rank by layer, own and control"
    drawn = picture(rows, series, label, unit="median rank", scale="log", size=SMALL, holding=hull)
    return f"<figure><h3>{escape(one['label'])} <i>{_types(one)}</i></h3>{drawn}</figure>"


def _types(one: BinData) -> str:
    return "1 token" if one["types"] == 1 else f"{one['types']:,} tokens"


def _excess(rows: Sequence[Mapping[str, str]], rarity: RarityData) -> str:
    bins = rarity["bins"]
    series = [
        Series(
            one["label"],
            f"shade-{_shade(place, len(bins))}",
            one["excess"],
            interval=(one["low"], one["high"]),
        )
        for place, one in enumerate(bins)
    ]
    drawn = picture(
        rows,
        series,
        "Excess of the token that was read over its control, by layer and frequency",
        unit="mean log ratio of ranks",
        size=WIDE,
        holding=[0.0],
    )
    return (
        f'<figure class="together"><h3>Excess over the control</h3>'
        f"{_scrolling(drawn)}<figcaption>"
        f"{''.join(_item(one.kind, one.name) for one in series)}<br>Bands are intervals of the "
        "mean; at 0 a token is kept no longer than its frequency explains.</figcaption></figure>"
    )


def _scrolling(drawn: str) -> str:
    """Return a wide picture in a box that scrolls in a narrow window."""
    return f'<div class="scroll">{drawn}</div>'


def _shade(place: int, count: int) -> int:
    return round(place * (SHADES - 1) / max(1, count - 1))


def _item(kind: str, text: str) -> str:
    return (
        '<span class="item"><svg class="sample wide" viewBox="0 0 24 10" aria-hidden="true">'
        f'<path class="line {kind}" d="M0 5H24"/></svg>{escape(text)}</span> '
    )
