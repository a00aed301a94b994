"""A lens as the plain data that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from jaxtyping import Float
from torch import Tensor

from headwater.lenses import words as told
from headwater.lenses.arrays import Arrays
from headwater.lenses.questions import Rarity, close, jumps
from headwater.lenses.sections import close_tables, jumps_table, rarity_data
from headwater.lenses.statistics import BY_KEY, TARGETS
from headwater.lenses.tally import Tally
from headwater.page.lens_schema import (
    CurveData,
    LensData,
    PointData,
    PromptData,
    RarityData,
    RowData,
    StatisticData,
)
from headwater.page.static import one_level
from headwater.page.tables import TableData

if TYPE_CHECKING:
    from headwater.lenses.result import Lens
    from headwater.lenses.summary import LensSummary

CELLS = 20_000
"""Most cells on a page: about 5 MB."""
PROMPTS = 16
"""Most prompts on a page."""
TYPES = 50
"""Fewest types of token for a picture by frequency."""
BEST = 5
"""Tokens listed for each cell."""
ON_PAGE = tuple(BY_KEY)
"""Statistics on a page, in the order of its switch."""


class Added(TypedDict):
    """What was tested by changing residuals."""

    sentences: list[str]
    table: TableData


class Vocabulary:
    """Numbers the tokens that a page shows; two tokens may have the same text."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self.known = texts
        self.ids: dict[int, int] = {}

    def number(self, token: int) -> int:
        """Return the page's number of a token."""
        return self.ids.setdefault(token, len(self.ids))

    def texts(self) -> list[str]:
        """Return the texts, in the order of the numbers."""
        return [self.known.get(one, f"[{one}]") for one in self.ids]


def page_data(lens: Lens) -> LensData:
    """Return what the page of a lens over prompts shows."""
    data = shell(lens.tally, lens.provenance, told.sentences(lens), list(lens.added.values()))
    data["statistics"] = [*data["statistics"], *of_words(lens).values()]
    return {**data, **cells(lens), "rarity": _rarity(lens, lens.sums, "corpus")}  # type: ignore[typeddict-item]


def corpus_data(summary: LensSummary, counts: Any, examples: Lens | None) -> LensData:
    """Return what the page of a lens over a corpus shows.

    Args:
        summary: What was read.
        counts: How common tokens are, as for `summary.rarity`.
        examples: A lens of a few prompts, to be shown cell by cell.
    """
    rare = _rarity(summary, summary.tally, counts)
    # the rest is in the tables below
    sentences = summary.jumps(of="kl", direction="ref||layer").sentences()
    sentences += summary.close("both directions").sentences()
    if rare is not None:
        sentences += rare.sentences()[:3]
    data = shell(summary.tally, summary.provenance, sentences)
    if examples is not None:
        shown = cells(examples)
        shown["shown"] |= {
            "of": summary.tally.prompts,
            "of_positions": summary.tally.positions,
        }
        data = {**data, **shown}  # type: ignore[typeddict-item]
    data["facts"] = {**data["facts"], "corpus": str(summary.corpus["source"])}
    return {**data, "rarity": _picture(rare)}  # type: ignore[typeddict-item]


def of_words(lens: Lens) -> dict[str, StatisticData]:
    """Return the statistics of words that were ranked too, by key."""
    found: dict[str, StatisticData] = {}
    for word in lens.tokens:
        for name in ("rank", "logprob"):
            like = _statistic(f"{name}(next)")
            key = f"{name}({word})"
            title = like["name"].replace("next", repr(word))
            explain = f"{like['name'].split(' of ')[0].capitalize()} of {word!r} at every position."
            found[key] = {**like, "key": key, "name": title, "explain": explain}
    return found


def cells(lens: Lens) -> dict[str, Any]:
    """Return every cell of the first prompts, as many as a page takes, and what was left out."""
    words = Vocabulary(lens.vocabulary)
    prompts = _shown(lens)
    listed = [_prompt(lens, prompt, positions, words) for prompt, positions in prompts]
    return {
        "vocabulary": words.texts(),
        "prompts": listed,
        "shown": {
            "prompts": len(prompts),
            "of": len(lens.texts),
            "positions": sum(positions for _, positions in prompts),
            "of_positions": int(lens.mask.sum()),
        },
    }


def shell(
    tally: Tally,
    provenance: Mapping[str, Any],
    sentences: Sequence[str],
    added: Sequence[Added] = (),
) -> LensData:
    """Return the page of statistics over all prompts, without any prompt's own cells.

    Args:
        tally: The statistics.
        provenance: Where they come from.
        sentences: What to read first.
        added: What was tested besides.
    """
    keys = [key for key in ON_PAGE if key in tally.keys]
    name = provenance["model"]["name"]
    options = {key: value for key, value in provenance["options"].items() if value is not None}
    return {
        "title": f"Lens of {name}",
        "heading": f"What each layer of {name} already predicts",
        "sentences": list(sentences),
        "notes": [],
        "facts": {
            "model": name,
            "prompts": f"{tally.prompts:,}",
            "tokens": f"{tally.positions:,}",
            "rows": f"{len(tally.rows)}",
            "read through": str(options.get("readout", "final-norm")),
        },
        # what decides a corpus's numbers stands in it once more
        "provenance": one_level({k: v for k, v in provenance.items() if k != "specification"}),
        "rows": [_row(one) for one in tally.rows],
        "vocabulary": [],
        "statistics": [_statistic(key) for key in keys],
        "prompts": [],
        "shown": {"prompts": 0, "of": tally.prompts, "positions": 0,
                  "of_positions": tally.positions},
        "curves": [_curve(tally, key) for key in keys],
        "tables": [
            *(one["table"] for one in added),
            jumps_table(jumps(tally)),
            *close_tables(close(tally)),
        ],
        "rarity": None,
    }  # fmt: skip


def _rarity(read: Lens | LensSummary, tally: Tally, counts: Any) -> Rarity | None:
    """Return what is found of rarity, where enough types of token were read for bins."""
    counted = tally.types.of("control_count")
    if int((counted > 0).sum()) < TYPES:
        return None
    return read.rarity(counts)


def _picture(rare: Rarity | None) -> RarityData | None:
    return None if rare is None else rarity_data(rare)


def _shown(lens: Lens) -> list[tuple[int, int]]:
    """Return the prompts on the page, each with how many of its positions."""
    left, found = CELLS // len(lens.layers), []
    for prompt, length in enumerate(lens.mask.sum(-1).tolist()):
        if left <= 0 or len(found) == PROMPTS:
            break
        found.append((prompt, min(length, left)))
        left -= length
    return found


def _prompt(lens: Lens, prompt: int, positions: int, words: Vocabulary) -> PromptData:
    arrays: Arrays = lens.arrays
    number = words.number

    def tokens(ids: Tensor) -> list[int]:
        return [number(one) for one in ids[prompt, :positions].tolist()]

    top = arrays.top[:, prompt, :positions, :BEST].tolist()
    following = arrays.targets[TARGETS["next"]][prompt, :positions].tolist()
    followed = arrays.followed[prompt, :positions].tolist()
    counts = [sum(one >= 0 for one in cell) for cell in followed]
    logprobs = arrays.followed_logprob[:, prompt, :positions]
    return {
        "tokens": tokens(arrays.ids),
        "next": [number(one) if one >= 0 else None for one in following],
        "final": tokens(arrays.targets[TARGETS["final"]]),
        "values": {
            key: _short(arrays.values[key][:, prompt, :positions])
            for key in ON_PAGE
            if key in arrays.values
        }
        | {key: _short(lens[key][:, prompt, :positions]) for key in of_words(lens)},
        "top": [[[number(one) for one in cell] for cell in row] for row in top],
        "logprob": _short(arrays.top_logprob[:, prompt, :positions, :BEST]),
        "followed": [[number(one) for one in cell if one >= 0] for cell in followed],
        "followed_logprob": [
            [cell[:count] for cell, count in zip(row, counts, strict=True)]
            for row in _short(logprobs)
        ],
    }


def _short(values: Float[Tensor, "*shape"]) -> Any:
    """Return nested lists with four digits, which is what can be seen."""
    return _rounded(values.tolist())


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.4g}")


def _row(row: Any) -> RowData:
    return {"name": row.name, "kind": row.kind, "title": row.title}


def _statistic(key: str) -> StatisticData:
    one = BY_KEY[key]
    return {
        "key": key,
        "name": one.title,
        "unit": one.unit,
        "explain": one.explain,
        "scale": one.scale,
        "group": one.group,
    }


def _curve(tally: Tally, key: str) -> CurveData:
    low, high = tally.interval(key)
    quarters = [tally.quantile(key, share) for share in (0.25, 0.5, 0.75)]
    mean, count = tally.mean(key), tally.count(key)
    points: list[PointData] = [
        {
            "row": name,
            "mean": float(mean[row]),
            "low": float(low[row]),
            "high": float(high[row]),
            "q25": float(quarters[0][row]),
            "median": float(quarters[1][row]),
            "q75": float(quarters[2][row]),
            "count": int(count[row]),
        }
        for row, name in enumerate(tally.names)
    ]
    return {"key": key, "rows": points}
