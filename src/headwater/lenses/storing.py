"""A lens to its folder and back: arrays by name, everything else as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headwater.lenses.arrays import Arrays
from headwater.lenses.folder import FOLDER, hash_of
from headwater.lenses.rows import Row
from headwater.lenses.tally import Tally
from headwater.sites import Site

if TYPE_CHECKING:
    from headwater.lenses.result import Lens

_VALUES, _TALLY = "values.", "tally."
"""Before the names of tensors."""


def write(lens: Lens, path: Path, *, overwrite: bool) -> Path:
    """Write a lens to a folder; arguments and errors as for `Folder.write`."""
    arrays = {
        one.name: getattr(lens.arrays, one.name) for one in fields(Arrays) if one.name != "values"
    }
    tensors = {
        **arrays,
        **{_VALUES + key: value for key, value in lens.arrays.values.items()},
        **{_TALLY + key: value for key, value in lens.sums.state().items()},
    }
    data = {
        "names": lens.names,
        "rows": rows_to_data(lens.layers),
        "texts": lens.texts,
        "prompts_hash": hash_of(ids[ids >= 0].tolist() for ids in lens.arrays.ids),
        "tokens": lens.tokens,
        "best": lens.arrays.top.shape[-1],
        "mixtures": "js(final)" in lens.arrays.values,
        "vocabulary": {str(one): text for one, text in lens.vocabulary.items()},
        "tally_keys": lens.sums.keys,
        "added": lens.added,
        "provenance": lens.provenance,
    }
    return FOLDER.write(path, data, tensors, overwrite=overwrite)


def read(path: Path) -> dict[str, Any]:
    """Read a folder; return the fields of a `Lens`.

    Raises:
        RunFolderError: If it holds no lens that this release can read.
    """
    data, tensors = FOLDER.read(path)
    with FOLDER.reading(path):
        rows = rows_from_data(data["rows"])
        plain = {one.name: tensors[one.name] for one in fields(Arrays) if one.name != "values"}
        return {
            "layers": rows,
            "arrays": Arrays(**plain, values=_under(tensors, _VALUES)),
            "texts": tuple(data["texts"]),
            "vocabulary": {int(one): text for one, text in data["vocabulary"].items()},
            "tokens": tuple(data["tokens"]),
            "provenance": data["provenance"],
            "tally": Tally.restored(rows, data["tally_keys"], _under(tensors, _TALLY)),
            "added": data["added"],
        }


def rows_to_data(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Return rows as plain data."""
    return [
        {"name": one.name, "kind": one.kind, "layer": one.site.layer, "site": one.site.name}
        for one in rows
    ]


def rows_from_data(data: list[dict[str, Any]]) -> tuple[Row, ...]:
    """Return the rows that `rows_to_data` described."""
    return tuple(Row(one["name"], one["kind"], Site(one["layer"], one["site"])) for one in data)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
