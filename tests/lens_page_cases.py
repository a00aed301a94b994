"""Pages of lenses to test: made-up residuals that turn from the input token into the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WORDS = (
    " the", " of", " and", " to", " a", " in", " river", " plasma", " was", " headwater", " where",
    " lens", " stream", " found", " layer", " from", " its", " source", ".", ",", "\n", " Mary",
    " John", " gave", " drink", "s", "ing", " mountain", " cold", " water", " flows", " through",
    " valley", " before", " reaching", " sea", " again", " every", " spring", " melts",
)  # fmt: skip

STATISTICS = (
    ("kl_final", "KL(final \u2016 layer)", "nats", "linear", "KL"),
    ("kl_final_back", "KL(layer \u2016 final)", "nats", "linear", "KL"),
    ("kl_first", "KL(input \u2016 layer)", "nats", "linear", "KL"),
    ("kl_first_back", "KL(layer \u2016 input)", "nats", "linear", "KL"),
    ("tv_final", "total variation from final", "", "linear", "distance"),
    ("rank_next", "rank of the next token", "", "log", "rank"),
    ("rank_final", "rank of the final top-1", "", "log", "rank"),
    ("rank_input", "rank of the input token", "", "log", "rank"),
    ("entropy", "entropy", "nats", "linear", "own"),
    ("gain", "gain in log p(next) over the row before", "nats", "diverging", "own"),
)


def rows(layers: int, *, writes: bool = False) -> list[dict[str, str]]:
    """`r0` to the final residual, with what each sublayer writes if so asked."""
    found = [{"name": "input", "kind": "input", "title": "residual entering layer 0"}]
    for layer in range(layers):
        if writes:
            found += [
                {"name": f"a{layer}", "kind": "write", "title": f"attention output {layer}"},
                {"name": f"r{layer}.mid", "kind": "mid", "title": f"middle of layer {layer}"},
                {"name": f"m{layer}", "kind": "write", "title": f"MLP output {layer}"},
            ]
        found.append(
            {"name": f"r{layer}", "kind": "residual", "title": f"residual leaving layer {layer}"}
        )
    return found


def prompt(count: int, positions: int, generator: np.random.Generator, k: int = 5) -> dict:
    """A prompt read at `count` rows: every statistic is that of one made-up distribution."""
    size = len(WORDS)
    tokens = generator.integers(0, size, positions)
    near = np.linspace(0, 1, count)[:, None, None] ** 0.7
    first = generator.normal(size=(positions, size)) + 9 * np.eye(size)[tokens]
    last = 2.2 * generator.normal(size=(positions, size))
    after = np.roll(tokens, -1)
    last[np.arange(positions), after] += 2.5
    rough = generator.normal(size=(count, positions, size)) * 2.5 * near * (1 - near)
    logits = (1 - near) * first + near * last + rough
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    top = np.argsort(-logp, -1, kind="stable")[..., :k]
    following = [int(token) for token in after[:-1]] + [None]
    asked = [[int(tokens[at]), following[at], *map(int, top[:, at, 0])] for at in range(positions)]
    followed = [[t for t in dict.fromkeys(some) if t is not None] for some in asked]
    return {
        "tokens": tokens.tolist(),
        "next": following,
        "final": top[-1, :, 0].tolist(),
        "values": values(logp, tokens, after),
        "top": top.tolist(),
        "logprob": np.take_along_axis(logp, top, -1).tolist(),
        "followed": followed,
        "followed_logprob": [
            [logp[row, at, followed[at]].tolist() for at in range(positions)]
            for row in range(count)
        ],
    }


def values(logp: Array, tokens: NDArray[Any], after: NDArray[Any]) -> dict[str, Any]:
    """Every statistic by row and position; None where the next token is unknown."""
    p = np.exp(logp)

    def divergence(left: Array, right: Array) -> Array:
        return np.maximum(0, (np.exp(left) * (left - right)).sum(-1))

    def of(which: NDArray[Any]) -> Array:
        return logp[:, np.arange(len(which)), which]

    def rank(which: NDArray[Any]) -> NDArray[Any]:
        return 1 + (logp > of(which)[..., None]).sum(-1)

    gain = np.diff(of(after), axis=0, prepend=np.nan)
    found = {
        "kl_final": divergence(logp[-1:], logp),
        "kl_final_back": divergence(logp, logp[-1:]),
        "kl_first": divergence(logp[:1], logp),
        "kl_first_back": divergence(logp, logp[:1]),
        "tv_final": abs(p - p[-1:]).sum(-1) / 2,
        "rank_next": rank(after),
        "rank_final": rank(logp[-1].argmax(-1)),
        "rank_input": rank(tokens),
        "entropy": -(p * logp).sum(-1),
        "gain": gain,
    }
    grids = {key: grid.tolist() for key, grid in found.items()}
    for key in ("rank_next", "gain"):
        for row in grids[key]:
            row[-1] = None
    return grids


def curves(prompts: list[dict], names: list[dict[str, str]]) -> list[dict]:
    """Means, intervals and quartiles of every statistic over all positions of all prompts."""
    found = []
    for key, *_ in STATISTICS:
        points = []
        for place, row in enumerate(names):
            held = [v for one in prompts for v in one["values"][key][place] if v is not None]
            numbers = np.asarray(held, dtype=float)
            numbers = numbers[~np.isnan(numbers)]
            if not len(numbers):
                continue
            mean, half = numbers.mean(), 1.96 * numbers.std() / len(numbers) ** 0.5
            q25, median, q75 = np.quantile(numbers, [0.25, 0.5, 0.75])
            points.append({
                "row": row["name"], "mean": mean, "low": mean - half, "high": mean + half,
                "median": median, "q25": q25, "q75": q75, "count": len(numbers),
            })  # fmt: skip
        found.append({"key": key, "rows": points})
    return found


def rarity(names: list[dict[str, str]], bins: int = 5) -> dict:
    """Bins of frequency in which rare tokens are kept longer than their frequency explains."""
    depth = np.linspace(0, 1, len(names))

    def one(place: int) -> dict:
        own = np.exp(depth * (6 - 0.5 * place))
        excess = 0.35 * place * depth
        return {
            "label": ("commonest fifth", "second", "third", "fourth", "rarest fifth")[place],
            "types": 12 * 4**place,
            "own": own.tolist(),
            "control": (own * np.exp(excess)).tolist(),
            "excess": excess.tolist(),
            "low": (excess - 0.05 - 0.1 * depth).tolist(),
            "high": (excess + 0.05 + 0.1 * depth).tolist(),
        }

    return {"bins": [one(place) for place in range(bins)], "rows": [row["name"] for row in names]}


def table(**changes: Any) -> dict:
    """A table of words and numbers."""
    return {
        "title": "Where the jump is",
        "caption": "The step between rows that brings most of the way.",
        "headings": ("statistic", "from", "to", "share", "in words"),
        "rows": [
            ("KL(final \u2016 layer)", "input", "r0", "-0.52", "more than half of the way"),
            ("rank of the next token", "r3", "r4", "0.21", "late"),
        ],
    } | changes


def page(
    layers: int = 12,
    positions: int = 64,
    prompts: int = 1,
    *,
    writes: bool = False,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A page of so many layers, positions and prompts."""
    generator = np.random.default_rng(seed)
    names = rows(layers, writes=writes)
    read = [prompt(len(names), positions, generator) for _ in range(prompts)]
    return {
        "title": "Lens of tiny",
        "heading": "What each layer of tiny would predict",
        "sentences": [
            "The prediction settles late: half of the positions have the final top-1 only at r8.",
            "No layer is close to both ends.",
        ],
        "notes": ["Middle layers were never trained to be read."],
        "facts": {"model": "tiny", "rows": str(len(names)), "readout error": "2e-7"},
        "provenance": {"seed": str(seed), "model": "tiny"},
        "rows": names,
        "vocabulary": list(WORDS),
        "statistics": [
            {
                "key": key,
                "name": name,
                "unit": unit,
                "explain": f"{name}: what it says.",
                "scale": scale,
                "group": group,
            }
            for key, name, unit, scale, group in STATISTICS
        ],
        "prompts": read,
        "shown": {
            "prompts": prompts,
            "of": prompts,
            "positions": prompts * positions,
            "of_positions": prompts * positions,
        },
        "curves": curves(read, names),
        "tables": [table()],
        "rarity": rarity(names),
    } | changes
