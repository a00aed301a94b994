"""The parts of a page that are plain HTML: they read the same with scripts off and in print."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headwater.page.payload import count_non_finite

ABSENT = "\u2013"
# Characters HTML cannot hold: controls other than tab and newline, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def escape(value: object) -> str:
    """Return `value` as text that is safe in HTML, in an element and in a quoted attribute."""
    return html.escape(UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


def number(value: float | int | None, absent: str = ABSENT) -> str:
    """Return `value` with three digits and a true minus sign; `absent` for None, else `n/a`."""
    if value is None:
        return absent
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    text = f"{value:.{max(0, 2 - size)}f}" if -4 <= size < 6 else f"{value:.2e}"
    return text.replace("-", "\u2212")


def by_strength(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the components by |score|, strongest first, those without a number last."""

    def weakness(row: Mapping[str, Any]) -> float:
        score = row.get("score")
        return -abs(score) if score is not None and math.isfinite(score) else math.inf

    return sorted(rows, key=weakness)


def is_audited(data: Mapping[str, Any]) -> bool:
    """Return whether any component carries an exact effect or the audit left a statistic."""
    audited = any(row.get("exact") is not None for row in data["components"])
    return audited or bool(data.get("statistics"))


def facts(data: Mapping[str, Any]) -> str:
    """Return the line under the title: metric, its two ends, estimator, reference, counts."""
    metric = data["metric"]
    ends = number(metric.get("clean"))
    if metric.get("corrupted") is not None:
        ends += f" \u2192 {number(metric['corrupted'])}"
    components, scored = shown(data)
    counted = f"{scored:,}" if components == scored else f"{components:,} of {scored:,}"
    items = {
        "metric": metric.get("name", "metric"),
        "clean \u2192 corrupted" if "\u2192" in ends else "clean": ends,
        "estimator": data["estimator"],
        "reference": data.get("reference", ""),
        "components": counted,
        "prompt pairs": f"{of_pairs(data):,}",
    }
    return terms({name: value for name, value in items.items() if value})


def sense(data: Mapping[str, Any]) -> str:
    """Return what the metric's sign means, to follow a clause; nothing if it does not say."""
    words = data["metric"].get("sense")
    return f": the metric {escape(words)}" if words else ""


def shown(data: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many components the page holds, of how many that were scored."""
    count = len(data["components"])
    return count, int((data.get("shown") or {}).get("of", count))


def of_pairs(data: Mapping[str, Any]) -> int:
    """Return how many prompt pairs the scores average over."""
    return int((data.get("pairs_shown") or {}).get("of", len(data.get("pairs") or [])))


def headline(sentences: Sequence[str]) -> str:
    """Return the sentences to read first, the first of them set larger."""
    return "".join(
        f'<p class="{"lead" if place == 0 else "follow"}">{escape(sentence)}</p>'
        for place, sentence in enumerate(sentences)
    )


def notes(data: Mapping[str, Any]) -> str:
    """Return what to know of the scores as a list, and a warning where numbers are not finite."""
    broken = count_non_finite(data["components"])
    who = "1 component has" if broken == 1 else f"{broken:,} components have"
    alarm = [f"{who} a number that is not finite, shown as n/a."] if broken else []
    return box("Warning", "notes alarm", alarm) + box("Note", "notes", data.get("warnings"))


def box(heading: str, kind: str, sentences: Sequence[str] | None) -> str:
    """Return sentences in a box of their own; nothing if there are none."""
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    heading += "" if len(sentences) == 1 else "s"
    return (
        f'<section class="{kind}" aria-label="{heading}">'
        f"<h2>{heading}</h2><ul>{items}</ul></section>"
    )


def statistics(data: Mapping[str, Any]) -> str:
    """Return the audit's table with intervals, and the worst components by name."""
    rows = data.get("statistics") or []
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>'
        f'<td class="number">{number(row.get("value"), "unknown")}</td>'
        f'<td class="number">{interval(row)}</td><td>{escape(row.get("words", ""))}</td></tr>'
        for row in rows
    )
    worst = data.get("worst") or []
    names = " ".join(
        f'<button type="button" class="name" data-pick="{escape(name)}">{escape(name)}</button>'
        for name in worst
    )
    tail = f'<p class="worst">Largest errors: {names}</p>' if worst else ""
    return (
        '<section aria-labelledby="audit-title"><h2 id="audit-title">The audit</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="audit-title">'
        '<table class="audit"><thead><tr><th scope="col">statistic</th>'
        '<th scope="col" class="number">value</th><th scope="col" class="number">interval</th>'
        f'<th scope="col">in words</th></tr></thead><tbody>{lines}</tbody></table></div>{tail}'
        "</section>"
    )


def interval(row: Mapping[str, Any]) -> str:
    """Return `low to high`, or a dash where the audit gives no interval."""
    if row.get("low") is None and row.get("high") is None:
        return "\u2013"
    return f"{number(row.get('low'))} to {number(row.get('high'))}"


def provenance(data: Mapping[str, Any]) -> str:
    """Return where the numbers come from, as pairs of term and value."""
    items = data.get("provenance") or {}
    if not items:
        return ""
    return (
        '<section aria-labelledby="provenance-title"><h2 id="provenance-title">Provenance</h2>'
        f'<dl class="provenance">{terms(items)}</dl></section>'
    )


def one_level(data: Mapping[str, Any]) -> dict[str, str]:
    """Return where numbers come from as one level of texts; hashes by their beginning.

    Args:
        data: Plain data; what is None is left out.
    """
    found: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name} {key}".strip(), inner)
        elif value is not None:
            shown = str(value)
            is_hash = name.endswith(("hash", "sha256", "unembedding"))
            found[name] = shown[:16] if is_hash else shown

    add("", data)
    return found


def terms(items: Mapping[str, object]) -> str:
    """Return what a definition list holds: terms and values."""
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in items.items()
    )


def strongest(data: Mapping[str, Any], count: int) -> tuple[str, str]:
    """Return the rows of the `count` strongest components, and the sentence that says so."""
    rows = by_strength(data["components"])[:count]
    body = "".join(
        f'<tr><td>{escape(row["name"])}</td><td class="number">{number(row.get("score"))}</td>'
        f'<td class="number">{number(row.get("spread"))}</td>'
        f'<td class="number">{number(row.get("se"))}</td>'
        f'<td class="number">{escape(row.get("ranks") or ABSENT)}</td>'
        f'<td class="number">{truth(row)}</td>'
        f"<td>{escape('; '.join(row.get('flags') or []))}</td></tr>"
        for row in rows
    )
    _, scored = shown(data)
    return body, f"The {len(rows):,} strongest of {scored:,} component{'' if scored == 1 else 's'}."


def truth(row: Mapping[str, Any]) -> str:
    """Return a component's exact effect, else its error bar, else a dash."""
    if row.get("exact") is None and row.get("low") is not None:
        return f"[{number(row['low'])}, {number(row['high'])}]"
    return number(row.get("exact"))


def plain_pairs(pairs: Sequence[Mapping[str, Any]], count: int) -> str:
    """Return the first `count` prompt pairs as text, for readers without scripts."""
    items = "".join(
        "<li>"
        + "<br>".join(
            f"{word}: <bdi>{escape(''.join(pair[word]))}</bdi>"
            for word in ("clean", "corrupted")
            if pair.get(word)
        )
        + "</li>"
        for pair in pairs[:count]
    )
    return f"<ol>{items}</ol>" if items else ""
