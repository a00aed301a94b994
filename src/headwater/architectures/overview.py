"""What the architectures and one model offer, as rows for the command line."""

from __future__ import annotations

from headwater.architectures.adapter import Adapter, lacking
from headwater.architectures.table import FAMILIES, Family
from headwater.architectures.widths import sizes
from headwater.sites import GLOBAL_NAMES, LAYER_NAMES

_ASKED = {
    "heads": "attn.z",
    "queries, keys, values": "attn.q",
    "patterns": "attn.pattern",
    "MLPs": "mlp.out",
    "neurons": "mlp.post",
}
_UNITS = {
    "head": "heads",
    "kv_head": "key/value heads",
    "d_mlp": "neurons",
    "d_inner": "channels",
    "d_conv": "channels",
    "ssm_head": "state-space heads",
    "vocab": "tokens",
}
"""What is counted along an axis, where it has a name of its own."""


def models_table() -> list[dict[str, str]]:
    """One row a family for `headwater models`.

    Returns:
        Rows with `family`, `class`, a "yes" or "no" for each kind of component, and `refused`:
        what the family lacks and why.
    """
    return [_family_row(family) for family in FAMILIES]


def site_rows(adapter: Adapter) -> list[dict[str, str]]:
    """One row a site name for `headwater sites`.

    Args:
        adapter: Of the model.

    Returns:
        Rows with `site` (layers joined, `layers.0-3.attn.z`), `shape` in words, `meaning`; where
        the model lacks a site, `shape` is empty and `meaning` says why.
    """
    layers = "layers.0" if adapter.n_layers == 1 else f"layers.0-{adapter.n_layers - 1}"
    rows = [_site_row("embed", "embed", adapter)]
    for name in LAYER_NAMES:
        path = f"{layers}.{name}"
        if name in adapter.missing:
            rows.append({"site": path, "shape": "", "meaning": f"no: {adapter.missing[name]}"})
        else:
            rows.append(_site_row(path, name, adapter))
    last = ["final_norm", "logits"] if adapter.final_norm is not None else ["logits"]
    return rows + [_site_row(name, name, adapter) for name in last]


def _site_row(path: str, name: str, adapter: Adapter) -> dict[str, str]:
    axes, meaning = {**GLOBAL_NAMES, **LAYER_NAMES}[name]
    known = sizes(adapter)
    words = [
        axis if known.get(axis) is None else f"{known[axis]} {_UNITS.get(axis, axis)}"
        for axis in axes.split()
    ]
    return {"site": path, "shape": f"[{', '.join(words)}]", "meaning": meaning}


def _family_row(family: Family) -> dict[str, str]:
    lacks = lacking(family, parallel=False)
    offers = {kind: "no" if name in lacks else "yes" for kind, name in _ASKED.items()}
    reasons: dict[str, list[str]] = {}
    for kind, name in _ASKED.items():
        if name in lacks:
            reasons.setdefault(lacks[name], []).append(kind)
    refused = [f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items()]
    refused += [
        f"checkpoints with {name}={value}: {reason}"
        for name, (value, reason) in family.refuses.items()
    ]
    return {
        "family": family.name,
        "class": family.example,
        **offers,
        "refused": "; ".join(refused),
    }
