"""The functions that select one kind of component each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from headwater.components.kinds import Kind
from headwater.components.selection import Choice, Positions, Selection, as_positions
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import UnknownOptionError, did_you_mean


def _select(kind: Kind, layers: Iterable[int] | int | None, positions: Positions) -> Selection:
    if isinstance(positions, str) and positions not in ("all", "each"):
        raise UnknownOptionError(
            f"positions={positions!r} is unknown.{did_you_mean(positions, ('all', 'each'))}\n"
            'Write positions="all" (one component over all positions), "each" (one a position), '
            "or a list such as [0, -1]."
        )
    if not isinstance(positions, str) and not len(positions):
        raise UnknownOptionError(
            "positions=[] selects nothing.\n"
            'Write positions="all", "each", or a list such as [0, -1].'
        )
    if isinstance(layers, int):
        layers = (layers,)
    chosen = None if layers is None else tuple(layers)
    return Selection((Choice(kind, chosen, as_positions(positions)),))


def tokens(*, positions: Positions = "each") -> Selection:
    """Select the input of layer 0, one component a position (`input@3`) by default."""
    return _select("token", None, positions)


def heads(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select attention heads by their output before the output projection (`a3.h5`).

    Args:
        layers: Which layers; None means all.
        positions: `"all"` gates a head at every position together, `"each"` one position at a
            time, a list only at these positions (one component each).
    """
    return _select("head", layers, positions)


def queries(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select the queries of heads, after rotary embedding and query norm (`a3.h5<q>`)."""
    return _select("query", layers, positions)


def keys(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select keys, one component a key-value head (`a3.kv1<k>`; `a3.h5<k>` if not grouped)."""
    return _select("key", layers, positions)


def values(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select values, one component a key-value head (`a3.kv1<v>`; `a3.h5<v>` if not grouped)."""
    return _select("value", layers, positions)


def attentions(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select whole attention blocks by what they write to the residual (`a3`)."""
    return _select("attention", layers, positions)


def mlps(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select whole MLPs by what they write to the residual (`m3`)."""
    return _select("mlp", layers, positions)


def neurons(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select MLP neurons: the inputs of the down projection (`m3.n128`)."""
    return _select("neuron", layers, positions)


def residual(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "each"
) -> Selection:
    """Select the residual stream after a layer, one component a position (`r3@7`)."""
    return _select("residual", layers, positions)


def mixers(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select whole Mamba mixers by what they write to the residual (`mixer3`)."""
    return _select("mixer", layers, positions)


def channels(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select the channels of Mamba mixers: the inputs of the output projection (`mixer3.c17`)."""
    return _select("channel", layers, positions)


def ssm_heads(
    *, layers: Iterable[int] | int | None = None, positions: Positions = "all"
) -> Selection:
    """Select the heads of Mamba-2 mixers by what they read from their state (`mixer3.h2`).

    That is before the gate and the norm, which mixes the heads of a group. The norm hides their
    common size, so with `hw.Zero()` gradients are poor estimates.
    """
    return _select("ssm_head", layers, positions)


def ssm(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select what drives the state of Mamba mixers: the activated convolution (`mixer3<ssm>`).

    In Mamba the scan reads it as x, and dt, B and C are computed from it; in Mamba-2 it holds x, B
    and C side by side. Only the mixer's gate (and dt in Mamba-2) does not come from it.
    """
    return _select("ssm", layers, positions)


def conv(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select what enters the convolution of Mamba mixers (`mixer3<conv>`).

    One position of it reaches as many positions of `ssm` as the convolution is wide.
    """
    return _select("conv", layers, positions)


def features(
    dictionaries: Dictionaries,
    *,
    layers: Iterable[int] | int | None = None,
    positions: Positions = "all",
) -> Selection:
    """Select the features of dictionaries, and of each site what they leave out.

    `m3.f77` is feature 77 of what the MLP of layer 3 writes, `m3.error` the rest of it; so `a3.f77`
    (attention), `r3.f77` (the residual after layer 3), `input.f77` (the input of layer 0). A gate
    moves a feature between its activation in the run and the reference, and the site with it by
    that times the feature's decoder row: nothing else at the site changes. All of a site closed
    together, error included, leave the reference's value there; with `hw.Zero()`, whose features
    and errors are 0, that is the decoder's bias.

    Args:
        dictionaries: From `hw.load_dictionaries(model, ...)`.
        layers: Which layers; None means every site that has a dictionary.
        positions: `"all"` gates a feature at every position together, `"each"` one position at a
            time, a list only at these positions (one component each).

    Raises:
        UnknownOptionError: If `dictionaries` is something else.
    """
    if not isinstance(dictionaries, Dictionaries):
        raise UnknownOptionError(
            f"hw.features takes dictionaries, got {type(dictionaries).__name__}.\n"
            "Write hw.features(hw.load_dictionaries(model, 'FOLDER'))."
        )
    (choice,) = _select("feature", layers, positions).choices
    return Selection((replace(choice, dictionaries=dictionaries),))


def nodes(*, layers: Iterable[int] | int | None = None, positions: Positions = "all") -> Selection:
    """Select the nodes of a circuit: input, heads and MLPs (`input`, `a3.h5`, `m3`)."""
    return (
        tokens(positions=positions)
        + heads(layers=layers, positions=positions)
        + mlps(layers=layers, positions=positions)
    )


SELECTORS = {
    "tokens": tokens,
    "heads": heads,
    "queries": queries,
    "keys": keys,
    "values": values,
    "attentions": attentions,
    "mlps": mlps,
    "neurons": neurons,
    "residual": residual,
    "mixers": mixers,
    "channels": channels,
    "ssm_heads": ssm_heads,
    "ssm": ssm,
    "conv": conv,
    "nodes": nodes,
}
"""The command line's words; the same as the functions' names."""
